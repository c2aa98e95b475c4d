"""Keep the weights of the best evaluation so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli.train.parallel.distributed import is_main
from rlaif_cli.train.runtime.checkpoint import BEST, load_trained, save_trained


class BestWeights:
    """The weights with the best value of a metric so far, in a file named after their step.

    The file that the last saved state refers to is kept until the next state is saved: a killed run resumes from there.

    Args:
        higher_is_better: True for a win rate, False for a loss.

    Attributes:
        record: `step`, `loss` (the negated metric if higher is better: the format of saved states), and `since`, the
            number of measurements since; None before the first measurement.
    """

    def __init__(
        self, folder: Path, model: Any, record: dict[str, Any] | None, *, higher_is_better: bool = False
    ) -> None:
        self._folder = folder
        self._model = model
        self._higher_is_better = higher_is_better
        self.record = self._saved = record

    def update(self, value: float, step: int) -> None:
        """Save the weights if `value`, the metric measured after `step`, is the best so far."""
        loss = -value if self._higher_is_better else value
        if self.record and not loss < self.record["loss"]:
            self.record = self.record | {"since": self.record["since"] + 1}
            return
        save_trained(self._model, self._path(step))
        self.record = {"step": step, "loss": loss, "since": 0}
        self._remove_others()

    def state_saved(self) -> None:
        """Call after saving a state that contains the present `record`."""
        self._saved = self.record
        self._remove_others()

    def _path(self, step: int) -> Path:
        return self._folder / BEST.replace("*", str(step))

    def _remove_others(self) -> None:
        needed = {self._path(record["step"]) for record in (self.record, self._saved) if record}
        if is_main():
            for path in set(self._folder.glob(BEST)) - needed:
                path.unlink()

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` measurements brought no improvement."""
        return bool(patience and self.record and self.record["since"] >= patience)

    def restore(self) -> None:
        """Load the best weights into the model."""
        assert self.record is not None
        load_trained(self._model, self._path(self.record["step"]))
