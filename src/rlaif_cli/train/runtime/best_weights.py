"""The weights of the best evaluation so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli.train.parallel.distributed import is_main
from rlaif_cli.train.runtime.checkpoint import BEST, load_trained, save_trained


class BestWeights:
    """The weights with the lowest held-out loss (or other measure) so far, in a file named by their step.

    That of the last saved state stays until the next one is saved: a killed run goes on from there.

    Attributes:
        found: step, loss, and measurements since; None before the first.
    """

    def __init__(self, folder: Path, model: Any, found: dict[str, Any] | None) -> None:
        self._folder = folder
        self._model = model
        self.record = self._saved = found

    def offer(self, loss: float, step: int) -> None:
        if self.record and not loss < self.record["loss"]:
            self.record = self.record | {"since": self.record["since"] + 1}
            return
        save_trained(self._model, self._path(step))
        self.record = {"step": step, "loss": loss, "since": 0}
        self._remove_others()

    def saved(self) -> None:
        """A state that names what is found now has been saved."""
        self._saved = self.record
        self._remove_others()

    def _path(self, step: int) -> Path:
        return self._folder / BEST.replace("*", str(step))

    def _remove_others(self) -> None:
        needed = {self._path(found["step"]) for found in (self.record, self._saved) if found}
        if is_main():
            for path in set(self._folder.glob(BEST)) - needed:
                path.unlink()

    def exhausted(self, patience: int) -> bool:
        return bool(patience and self.record and self.record["since"] >= patience)

    def restore(self) -> None:
        assert self.record is not None
        load_trained(self._model, self._path(self.record["step"]))
