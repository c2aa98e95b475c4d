"""Functions that users write themselves, named `FILE.py:NAME`: loaded from that file and called with lists.

The file is run as Python code, with the rights of whoever runs rlaif. So such a name is only ever taken from the
command line or from a pipeline file that the user runs (`config.FUNCTION_FIELDS`).
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

# What a function is called with: only the keywords that it takes, all lists of the same length.
KEYWORDS = ("prompts", "responses", "reference", "meta")
_CALLED_WITH = "rlaif calls it with the keywords prompts, responses, reference and meta, as many of them as it takes"


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's own.

    Attributes:
        spec: FILE.py:NAME, as it was given.
        sha256: of the file's bytes, which are those that were run.
    """

    spec: str
    name: str
    file: Path
    sha256: str
    function: Callable[..., Any]
    keywords: tuple[str, ...]

    def scores(self, places: Sequence[str], arguments: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """One call of the function; a number for each place, as the function returned it: also None and NaN.

        Args:
            places: the rows, in words for errors.
            arguments: by keyword; each [places].

        Raises:
            InputError: the function raises an exception, or returns something else than so many numbers.
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
        """An exception as an error that names the first row that fails by itself, where one does."""
        for index, place in enumerate(places):
            try:
                self._call({name: [values[index]] for name, values in arguments.items()})
            except (Exception, SystemExit) as alone:
                return self._error(f"{place}: it raised {_said(alone)}", _line(alone, self.file))
        what = f"it raised {_said(error)} for {len(places)} responses together, and for none of them alone"
        return self._error(what, _line(error, self.file))

    def _values(self, returned: Any, places: Sequence[str]) -> list[Any]:
        values = returned.tolist() if hasattr(returned, "tolist") else returned  # a tensor's, an array's, a series'
        if not isinstance(values, list | tuple):
            what = f"it returned {_shown(returned)}, and a list of a number or None for each response is needed"
            raise self._error(what, "")
        if len(values) != len(places):
            raise self._error(f"it returned {len(values)} scores for {len(places)} responses", "")
        return list(values)

    def _number(self, value: Any, place: str) -> float | None:
        if value is None:
            return None
        single = _plain(value)
        if not isinstance(single, int | float):  # True and False are numbers
            raise self._error(f"{place}: it returned {_shown(value)}, and a score is a number or None", "")
        try:
            number = float(single)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            hint = "a score must be finite; None leaves the response without one"
            raise self._error(f"{place}: it returned {_shown(value)}", hint)
        return number

    def _error(self, what: str, hint: str) -> InputError:
        return InputError(what, where=self.spec, hint=hint or None)


def load(spec: str) -> UserFunction:
    """The function that `FILE.py:NAME` names. The file is run once; its siblings can be imported, as in a script.

    Raises:
        InputError: the file cannot be read or run, or has no such function, or one that cannot be called with KEYWORDS.
    """
    place, name = function_place(spec)
    file = Path(place)
    content = _content(file, spec)
    sha256 = hashlib.sha256(content).hexdigest()
    module = _module(file, content, sha256)
    function = getattr(module, name, None)
    if function is None:
        raise InputError(f"there is no '{name}' in the file", where=place, hint=_there(module))
    if not callable(function):
        what = f"'{name}' is no function but {_shown(function)}"
        raise InputError(what, where=place, hint=_there(module))
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
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        hint = "FILE.py:NAME names a Python file, seen from the folder where rlaif is run, and a function in it"
        reason = getattr(error, "strerror", error)
        raise InputError(f"the file cannot be read: {reason}", where=spec, hint=hint) from None


def _module(file: Path, content: bytes, sha256: str) -> ModuleType:
    """The file, run as a module of a name of its own; the same bytes in the same place are run once.

    Compiled from the bytes that were hashed: Python's own loader would take a cached file of the same second and size.
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
        raise InputError(f"it is no Python file: {said}", where=f"{where}{line}") from error
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        with _siblings_importable(file.parent):
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        missing = isinstance(error, ModuleNotFoundError)
        hint = "it is run by the Python that runs rlaif: install the package there" if missing else ""
        hints = [each for each in (_line(error, file), hint) if each]
        raise InputError(f"it raised {_said(error)}", where=where, hint="; ".join(hints) or None) from error
    return module


@contextmanager
def _siblings_importable(folder: Path) -> Iterator[None]:
    """As when a script in the folder is run; no longer than needed, for its files could hide packages of rlaif's."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(place)


def _keywords(function: Callable[..., Any], spec: str) -> tuple[str, ...]:
    """Those of KEYWORDS that a function takes."""
    if inspect.iscoroutinefunction(function):
        raise InputError("it is async, and is called as a plain function", where=spec)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError("Python cannot tell which keywords it takes", where=spec, hint=_CALLED_WITH) from None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    needed = [name for name, p in named.items() if p.default is p.empty]
    if unknown := [name for name in (*by_place, *needed) if name in by_place or name not in KEYWORDS]:
        raise InputError(f"it needs '{unknown[0]}', which it is not called with", where=spec, hint=_CALLED_WITH)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = tuple(name for name in KEYWORDS if anything or name in named)
    if "responses" not in taken:
        raise InputError("it takes no 'responses', so it cannot score them", where=spec, hint=_CALLED_WITH)
    return taken


def _plain(value: Any) -> Any:
    """The Python number in a scalar of numpy or torch; everything else as it is."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # the last two: it holds several
        return value


def _there(module: ModuleType) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = [name for name in own if not name.startswith("_") and callable(getattr(module, name))]
    return f"functions there: {', '.join(names)}" if names else "the file defines no function"


def _line(error: BaseException, file: Path) -> str:
    """Where in the user's file an exception came from; "" where it did not pass through it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if not frames:
        return ""
    return f"line {frames[-1].lineno} of {file.name}: {frames[-1].line}; --debug shows the whole traceback"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else f'{text[:60]}…'} ({type(value).__name__})"
