"""Everything a killed run needs to go on as if it had not been: weights, optimizer, schedule, position, RNG.

Tensors go to safetensors, the rest to JSON: no pickle. A checkpoint is written into a folder of its own and becomes
*the* checkpoint by one rename. It holds whole tensors, which the main process writes and reads, so that any number of
processes goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data.atomic import cannot_write, fsync_folder, fsync_tree, read_json, write_json
from rlaif_cli.data.run_settings import START_ANEW, refuse_other_settings
from rlaif_cli.data.torn_lines import drop_torn_line
from rlaif_cli.errors import InputError
from rlaif_cli.train import distributed
from rlaif_cli.train.models import trained_parameters
from rlaif_cli.train.trackers import Trackers

_STATE = "state"
_BETWEEN = 600.0  # seconds between states, where no number of steps is asked for
_BEST = "best-*.safetensors"


class TrainState:
    """The resumable state of a training run, kept in `<output>/state` while it is under way.

    Args:
        folder: the run's output folder.
        settings: all that decides the result; a resumed run must have the same.
        models: by name; what is trained.
        optimizer: over the parameters of `models`.

    Raises:
        UsageError: the folder holds a run with other settings.
        InputError: what was saved is damaged.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], models: dict[str, Any], optimizer: torch.optim.Optimizer
    ) -> None:
        self._path = folder / _STATE
        self._settings = settings
        self._models = models
        self._optimizer = optimizer
        self._saved_at = time.monotonic()

    def due(self, done: int, total: int, every: int) -> bool:
        """Whether to save after step `done` of `total`: each `every` steps; at 0, ten minutes after the last time.

        Never after the last step, when what was trained is saved itself.
        """
        if done == total:
            return False
        if every:
            return done % every == 0
        return distributed.from_main(lambda: time.monotonic() - self._saved_at >= _BETWEEN)

    def save(self, position: dict[str, Any]) -> None:
        """Make `position` (JSON) and the present weights the point to go on from."""
        new = self._path.with_name("state.new")
        with saving(self._path):
            if distributed.is_main():
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir(parents=True)
            for name, model in self._models.items():
                save_trained(model, new / f"{name}.safetensors")
            tensors, numbers = _flatten(self._optimizer.state_dict())
            _save(tensors, new / "optimizer.safetensors")
        self._saved_at = time.monotonic()
        if distributed.is_main():
            output = str(self._path.parent)
            record = {"output": output, "settings": self._settings, "optimizer": numbers, "position": position}
            self._go_on_from(new, record)

    def _go_on_from(self, new: Path, position: dict[str, Any]) -> None:
        """Complete the new state, and put it in the place of the old one."""
        old = self._path.with_name("state.old")
        with saving(self._path):
            save_file({"cpu": torch.get_rng_state(), **_cuda_rng()}, new / "rng.safetensors")
            write_json(new / "position.json", position)
            fsync_tree(new)
            if self._path.exists():  # else a kill came between the two renames, and `old` is all there is until then
                shutil.rmtree(old, ignore_errors=True)
                os.replace(self._path, old)
            os.replace(new, self._path)
            fsync_folder(self._path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> dict[str, Any] | None:
        """Put everything back as it was saved; None if there is nothing to go on from."""
        path = self._path if self._path.exists() else self._path.with_name("state.old")
        saved = distributed.from_main(lambda: self._position(path))
        if saved is None:
            return None
        try:
            self._put_back(path, saved["optimizer"])
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            if distributed.is_lost_process(error):
                raise
            what = f"the run's saved state is damaged: {type(error).__name__}: {error}"
            raise InputError(what, where=str(path), hint=START_ANEW) from error
        position: dict[str, Any] = saved["position"]
        return position

    def _position(self, path: Path) -> dict[str, Any] | None:
        if not (path / "position.json").exists():
            return None
        saved = read_json(path / "position.json", settings=dict, optimizer=dict, position=dict, hint=START_ANEW)
        refuse_other_settings(saved, self._settings, path.parent)
        return saved

    def _put_back(self, path: Path, optimizer: dict[str, Any]) -> None:
        for name, model in self._models.items():
            load_trained(model, path / f"{name}.safetensors")
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        tensors = _load_state(path / "optimizer.safetensors", parameters)
        self._optimizer.load_state_dict(_unflatten(tensors, optimizer))
        if not distributed.is_main():
            return
        rng = load_file(path / "rng.safetensors")
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"])


def remove_state(folder: Path) -> None:
    """The run is complete: there is nothing to go on from."""
    for name in (_STATE, "state.new", "state.old"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob(_BEST):
        path.unlink()


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """A disk that is full, or whatever else keeps tensors from being written, becomes a clear error."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
    except SafetensorError as error:  # holds the system's reason in its text alone
        if found := re.search(r"os error (\d+)", str(error)):
            raise cannot_write(path, OSError(int(found[1]), os.strerror(int(found[1])))) from error
        raise


def save_trained(model: Any, path: Path) -> None:
    """What is trained of a model."""
    _save(trained_parameters(model), path)


def load_trained(model: Any, path: Path) -> None:
    """The reverse of `save_trained`."""
    saved = load_file(path) if distributed.is_main() else {}
    for name, parameter in trained_parameters(model).items():
        value = saved[name] if distributed.is_main() else None
        with torch.no_grad():
            parameter.copy_(distributed.like(parameter, value))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    gathered = distributed.on_main(tensors)
    if distributed.is_main():
        with saving(path):
            save_file(gathered, path)


def _load_state(path: Path, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """An optimizer's tensors, named `<parameter>.<what>`, each split as its parameter is."""
    saved = load_file(path) if distributed.is_main() else {}
    shapes = distributed.from_main(lambda: {name: tensor.shape for name, tensor in saved.items()})
    found = {}
    for name, shape in shapes.items():
        parameter = parameters[int(name.partition(".")[0])]
        target = parameter if parameter.shape == shape else torch.zeros(shape)  # a count of steps is of no parameter
        found[name] = distributed.like(target, saved.get(name))
    return found


class BestWeights:
    """The weights with the lowest held-out loss (or other measure) so far, in a file named by their step.

    That of the last saved state stays until the next one is saved: a killed run goes on from there.

    Attributes:
        found: step, loss, and measurements since; None before the first.
    """

    def __init__(self, folder: Path, model: Any, found: dict[str, Any] | None) -> None:
        self._folder = folder
        self._model = model
        self.found = self._saved = found

    def offer(self, loss: float, step: int) -> None:
        if self.found and not loss < self.found["loss"]:
            self.found = self.found | {"since": self.found["since"] + 1}
            return
        save_trained(self._model, self._path(step))
        self.found = {"step": step, "loss": loss, "since": 0}
        self._remove_others()

    def saved(self) -> None:
        """A state that names what is found now has been saved."""
        self._saved = self.found
        self._remove_others()

    def _path(self, step: int) -> Path:
        return self._folder / _BEST.replace("*", str(step))

    def _remove_others(self) -> None:
        needed = {self._path(found["step"]) for found in (self.found, self._saved) if found}
        if distributed.is_main():
            for path in set(self._folder.glob(_BEST)) - needed:
                path.unlink()

    def exhausted(self, patience: int) -> bool:
        return bool(patience and self.found and self.found["since"] >= patience)

    def restore(self) -> None:
        assert self.found is not None
        load_trained(self._model, self._path(self.found["step"]))


def _cuda_rng() -> dict[str, torch.Tensor]:
    return {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named `<parameter>.<what>`, and its plain numbers."""
    tensors = {
        f"{index}.{name}": value.contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
        if torch.is_tensor(value)
    }
    return tensors, {"param_groups": state["param_groups"]}


def _unflatten(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}


def keep_through(path: Path, step: int) -> None:
    """Cut off the rows of a log that come after the step a run goes on from: they will be written again."""
    if not distributed.is_main() or not path.exists():
        return
    drop_torn_line(path)
    kept = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                if json.loads(line)["step"] > step:
                    break
                kept += len(line)
        os.truncate(path, kept)  # by one call: a kill in the middle of writing it anew would lose it
    except OSError as error:
        raise cannot_write(path, error) from error


class MetricsLog:
    """`metrics.jsonl`, a row a step, by the main process. A resumed run drops rows after the step it goes on from."""

    def __init__(self, config: TrainConfig, folder: Path, *, keep_through_step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._writes = distributed.is_main()
        if not self._writes:
            return
        keep_through(self.path, keep_through_step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._trackers = Trackers(config, folder)

    def add(self, step: int, **numbers: Any) -> None:
        if not self._writes:
            return
        plain = {name: _plain(value) for name, value in numbers.items()}
        self._write({"step": step, **plain})
        self._trackers.log(step, plain)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._trackers.finish()

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        value = value.item()
    return round(value, 6) if isinstance(value, float) else value
