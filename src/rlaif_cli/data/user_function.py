"""User-defined functions, named `FILE.py:NAME`: loaded from that file and called with lists.

The file is run as Python code, with the permissions of whoever runs rlaif. So such a name is only taken from the
command line or from a pipeline file that the user runs (`config.base.FUNCTION_FIELDS`).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rlaif_cli.config.base import function_place
from rlaif_cli.errors import InputError

# Keyword arguments of a function: it gets those that it accepts, all lists of the same length.
KEYWORDS = ("prompts", "responses", "reference", "meta")
_CALLED_WITH = "rlaif calls it with those of the keywords prompts, responses, reference and meta that it accepts"


@dataclass(frozen=True)
class UserFunction:
    """A user-defined function.

    Attributes:
        spec: FILE.py:NAME, as it was given.
        sha256: of the bytes of the file that were run.
    """

    spec: str
    name: str
    file: Path
    sha256: str
    function: Callable[..., Any]
    keywords: tuple[str, ...]

    def scores(self, places: Sequence[str], arguments: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """Call the function once; returns its number for each place, which may be None or NaN.

        Args:
            places: names of the rows, for error messages.
            arguments: by keyword; each [places].

        Raises:
            InputError: the function raises an exception, or does not return that many numbers.
        """
        if not places:
            return []
        try:
            returned = self._call(arguments)
        except (Exception, SystemExit) as error:
            raise self._failure(error, places, arguments) from error
        return [self._number(value, place) for value, place in zip(self._values(returned, places), places, strict=True)]

    def _call(self, arguments: Mapping[str, Sequence[Any]]) -> Any:
        with _siblings_importable(self.file.parent):
            return self.function(**{name: list(arguments[name]) for name in self.keywords})

    def _failure(
        self, error: BaseException, places: Sequence[str], arguments: Mapping[str, Sequence[Any]]
    ) -> InputError:
        """An exception as an error that names the first row that fails by itself, if any."""
        for index, place in enumerate(places):
            try:
                self._call({name: [values[index]] for name, values in arguments.items()})
            except (Exception, SystemExit) as alone:
                return self._error(f"{place}: it raised {_describe(alone)}", _line(alone, self.file))
        what = f"it raised {_describe(error)} for {len(places)} responses together, but for none of them alone"
        return self._error(what, _line(error, self.file))

    def _values(self, returned: Any, places: Sequence[str]) -> list[Any]:
        values = returned.tolist() if hasattr(returned, "tolist") else returned  # a tensor's, an array's, a series'
        if not isinstance(values, list | tuple):
            what = f"it returned {_repr(returned)}; it must return a list with a number or None for each response"
            raise self._error(what, "")
        if len(values) != len(places):
            raise self._error(f"it returned {len(values)} scores for {len(places)} responses", "")
        return list(values)

    def _number(self, value: Any, place: str) -> float | None:
        if value is None:
            return None
        single = _as_python_number(value)
        if not isinstance(single, int | float):  # True and False count as numbers
            raise self._error(f"{place}: it returned {_repr(value)}; a score must be a number or None", "")
        try:
            number = float(single)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            hint = "a score must be finite; return None for no score"
            raise self._error(f"{place}: it returned {_repr(value)}", hint)
        return number

    def _error(self, what: str, hint: str) -> InputError:
        return InputError(what, where=self.spec, hint=hint or None)


def load(spec: str) -> UserFunction:
    """Load the function `FILE.py:NAME`. The file is run once; it can import its siblings, as a script can.

    Raises:
        InputError: the file cannot be read or run, has no such function, or it cannot be called with KEYWORDS.
    """
    place, name = function_place(spec)
    file = Path(place)
    content = _content(file, spec)
    sha256 = hashlib.sha256(content).hexdigest()
    module = _module(file, content, sha256)
    function = getattr(module, name, None)
    if function is None:
        raise InputError(f"there is no '{name}' in the file", where=place, hint=_defined_functions(module))
    if not callable(function):
        what = f"'{name}' is not a function but {_repr(function)}"
        raise InputError(what, where=place, hint=_defined_functions(module))
    return UserFunction(spec, name, file, sha256, function, _keywords(function, spec))


def sha256_of(spec: str) -> str:
    """The sha256 of the file that `FILE.py:NAME` names.

    Raises:
        InputError: it cannot be read.
    """
    return hashlib.sha256(_content(Path(function_place(spec)[0]), spec)).hexdigest()


def _content(file: Path, spec: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        hint = "FILE.py:NAME names a Python file, relative to the folder where rlaif is run, and a function in it"
        reason = getattr(error, "strerror", error)
        raise InputError(f"the file cannot be read: {reason}", where=spec, hint=hint) from None


def _module(file: Path, content: bytes, sha256: str) -> ModuleType:
    """Run the file as a module with a unique name; the same bytes at the same path are run once.

    It is compiled from the hashed bytes: Python's loader would use a cached file of the same second and size.
    """
    where = str(file)
    name = "rlaif_user_" + hashlib.sha256(f"{file.resolve()} {sha256}".encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None  # its name ends in .py
    module = module_from_spec(spec)
    try:
        code = compile(content, where, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"it is not valid Python: {said}", where=f"{where}{line}") from error
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        with _siblings_importable(file.parent):
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        missing = isinstance(error, ModuleNotFoundError)
        hint = "install the package in the Python environment that runs rlaif" if missing else ""
        hints = [each for each in (_line(error, file), hint) if each]
        raise InputError(f"it raised {_describe(error)}", where=where, hint="; ".join(hints) or None) from error
    return module


@contextmanager
def _siblings_importable(folder: Path) -> Iterator[None]:
    """Make the folder's files importable, as for a script; only while needed, since they could shadow our packages."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(place)


def _keywords(function: Callable[..., Any], spec: str) -> tuple[str, ...]:
    """Those of KEYWORDS that a function accepts."""
    if inspect.iscoroutinefunction(function):
        raise InputError("it is async; it must be a plain function", where=spec)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError("its parameters cannot be inspected", where=spec, hint=_CALLED_WITH) from None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    needed = [name for name, p in named.items() if p.default is p.empty]
    if unknown := [name for name in (*by_place, *needed) if name in by_place or name not in KEYWORDS]:
        raise InputError(f"it requires '{unknown[0]}', which rlaif does not pass", where=spec, hint=_CALLED_WITH)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = tuple(name for name in KEYWORDS if anything or name in named)
    if "responses" not in taken:
        raise InputError("it does not accept 'responses', so it cannot score them", where=spec, hint=_CALLED_WITH)
    return taken


def _as_python_number(value: Any) -> Any:
    """A numpy or torch scalar as a Python number; everything else unchanged."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # the last two: it has several elements
        return value


def _defined_functions(module: ModuleType) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = [name for name in own if not name.startswith("_") and callable(getattr(module, name))]
    return f"functions there: {', '.join(names)}" if names else "the file defines no function"


def _line(error: BaseException, file: Path) -> str:
    """Where in the user's file an exception was raised; "" if it did not pass through it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if not frames:
        return ""
    return f"line {frames[-1].lineno} of {file.name}: {frames[-1].line}; --debug shows the whole traceback"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _repr(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else f'{text[:60]}…'} ({type(value).__name__})"
