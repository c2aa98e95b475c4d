"""The few kinds of error a user can meet: what went wrong, where, and how to mend it.

Every error that a user can cause is one of these; `cli.py` prints it as `error: …` and `hint: …` and turns it
into an exit code. Anything else that reaches the top is a bug in rlaif and is shown as one.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3  # done, but some rows could not be used; they are in a file that the message names
EXIT_INTERRUPTED = 130


class RlaifError(Exception):
    """Something failed while running.

    Args:
        what: one line, e.g. "'responses' needs at least 2 items, found 1".
        where: the place, e.g. "candidates.jsonl line 7"; printed before `what`.
        hint: how to mend it; printed on a line of its own.
        faults: every fault found, where there are several (the first 20 are printed), each naming its place.
    """

    exit_code = EXIT_FAILED

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, faults: list[str] | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.faults = faults or []

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class UsageError(RlaifError):
    """The command was asked for something that cannot be: a wrong option, name or combination."""

    exit_code = EXIT_USAGE


class InputError(RlaifError):
    """A file that the user gave cannot be used as it is."""


class MissingDependency(RlaifError):
    """An optional package that this command needs is not installed; the hint says how to install it."""


class ModelError(RlaifError):
    """A model cannot be found, loaded, or used for what was asked."""


class ConversationError(ModelError):
    """A model's chat template cannot render a conversation: that row's error, not the model's."""


class DivergedError(RlaifError):
    """Training has left what numbers can hold."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"training diverged: {what}",
            hint="a lower --lr; look at metrics.jsonl for what grew first; then --overwrite, for settings of a run "
            "cannot change on the way",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's, or of the machine's own memory; torch has no class for the latter."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


class EngineError(RlaifError):
    """An inference engine failed to start, or failed in the middle of its work."""


class RlaifWarning(UserWarning):
    """What the command line prints as `warning: …`, for who calls the Python API."""
