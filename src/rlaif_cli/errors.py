"""The errors that users see: what went wrong, where, and how to fix it.

Every error that a user can cause is one of these; `cli/app.py` prints it as `error: …` and `hint: …` and turns it into
an exit code. Any other exception is a bug in rlaif and is shown as one.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3  # some rows are not done: set aside in a file that the message names, or left for a rerun (`Paused`)
EXIT_INTERRUPTED = 130


class RlaifError(Exception):
    """Something failed at run time.

    Args:
        what: one line, e.g. "'responses' needs at least 2 items, found 1".
        where: the location, e.g. "candidates.jsonl line 7"; printed before `what`.
        hint: how to fix it; printed on its own line.
        errors: all errors if there are several (the first 20 are printed), each with its location.
    """

    exit_code = EXIT_FAILED

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, errors: list[str] | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.errors = errors or []

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


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
            hint="use a lower --lr (metrics.jsonl shows what grew first) and --overwrite, since a run's settings "
            "cannot change midway",
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

    def __init__(self, what: str, *, hint: str, again: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.again = again


class RlaifWarning(UserWarning):
    """What the command line prints as `warning: …`, as the Python API gives it."""
