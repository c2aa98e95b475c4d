"""The errors that users see: what went wrong, where, and how to fix it.

Every error that a user can cause is one of these; `cli/app.py` prints it as `error: …` and `hint: …` and turns it into
an exit code. Any other exception is a bug in rlaif and is shown as one.

Texts may mention settings (`config/naming.py`); whoever shows an error to a reader sets how it spells them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

from rlaif_cli.config.naming import Spell, as_option, mentioned, option, spelled

Text = TypeVar("Text", str, "str | None", "list[str]")

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3  # some rows are not done: set aside in a file that the message names, or left for a rerun (`Paused`)
EXIT_INTERRUPTED = 130


class _Message(Generic[Text]):
    """A text of an error. Where it is read, the settings that it mentions are spelled by the error's `spell`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    def __set__(self, error: RlaifError, text: Text) -> None:
        error.__dict__[self._key] = text

    def __get__(self, error: RlaifError, owner: type | None = None) -> Text:
        text: Any = error.__dict__[self._key]
        if isinstance(text, list):
            text = [spelled(each, error.spell) for each in text]
        elif text:
            text = spelled(text, error.spell)
        return cast(Text, text)


class RlaifError(Exception):
    """Something failed at run time. Its texts may mention settings by `option`.

    Args:
        what: one line, e.g. "'responses' needs at least 2 items, found 1".
        where: the location, e.g. "candidates.jsonl line 7"; printed before `what`.
        hint: how to fix it; printed on its own line.
        errors: all errors if there are several (the first 20 are printed), each with its location.

    Attributes:
        spell: how the texts spell the settings that they mention.
    """

    exit_code = EXIT_FAILED
    what = _Message[str]()
    where = _Message["str | None"]()
    hint = _Message["str | None"]()
    errors = _Message["list[str]"]()

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, errors: list[str] | None = None
    ) -> None:
        super().__init__(spelled(what))
        self.spell: Spell = as_option
        self.what = what
        self.where = where
        self.hint = hint
        self.errors = errors or []

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    def mentions(self) -> list[str]:
        """The fields of the settings that it mentions, in order."""
        texts = [vars(self)[f"_{name}"] for name in ("where", "what", "hint")]
        return mentioned(" ".join([*filter(None, texts), *vars(self)["_errors"]]))


@contextlib.contextmanager
def spelling(spell: Spell) -> Iterator[None]:
    """Errors that are raised inside spell settings in this way."""
    try:
        yield
    except RlaifError as error:
        error.spell = spell
        raise


class UsageError(RlaifError):
    """The command was called incorrectly: an invalid option, name or combination."""

    exit_code = EXIT_USAGE


class InputError(RlaifError):
    """An input file is invalid or cannot be read."""


class MissingDependency(RlaifError):
    """An optional package that this command needs is not installed; the hint says how to install it."""


class ModelError(RlaifError):
    """A model cannot be found, loaded, or used for this purpose."""


class ConversationError(ModelError):
    """A model's chat template cannot render a conversation: an error of the row, not of the model."""


class DivergedError(RlaifError):
    """Training diverged: a value is no longer finite."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"training diverged: {what}",
            hint=f"use a lower {option('lr')} (metrics.jsonl shows what grew first) and {option('overwrite')}, since a "
            "run's settings cannot change midway",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or in main memory; torch has no class for the latter."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


class EngineError(RlaifError):
    """An inference engine failed to start, or failed while running."""


class RowsUnanswered(EngineError):
    """A server did not answer some rows; the others are saved, and a rerun asks for the rest."""


class Paused(RlaifError):
    """A command stopped before its end as it was told to, without a failure: a rerun resumes.

    Args:
        again: a rerun would make progress at once, so the stage may as well run again in this process.
    """

    exit_code = EXIT_PARTIAL

    def __init__(self, what: str, *, hint: str | None = None, again: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.again = again


class RlaifWarning(UserWarning):
    """What the command line prints as `warning: …`, as the Python API gives it."""
