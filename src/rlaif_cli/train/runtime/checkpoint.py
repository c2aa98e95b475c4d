"""Everything a killed run needs to go on as if it had not been: weights, optimizer, schedule, position, RNG.

Tensors go to safetensors, the rest to JSON: no pickle. A checkpoint is written into a folder of its own and becomes
*the* checkpoint by one rename. It holds whole tensors, which the main process writes and reads, so that any number of
processes goes on from it.
"""

from __future__ import annotations

import contextlib
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

from rlaif_cli.data.atomic import cannot_write, fsync_folder, fsync_tree, read_json, write_json
from rlaif_cli.data.run_settings import START_OVER, refuse_changed_settings
from rlaif_cli.errors import InputError
from rlaif_cli.train.nn.heads import trained_parameters
from rlaif_cli.train.parallel.distributed import from_main, is_lost_process, is_main, like, on_main

_STATE = "state"
_BETWEEN = 600.0  # seconds between states, where no number of steps is asked for
BEST = "best-*.safetensors"


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
        return from_main(lambda: time.monotonic() - self._saved_at >= _BETWEEN)

    def save(self, position: dict[str, Any]) -> None:
        """Make `position` (JSON) and the present weights the point to go on from."""
        new = self._path.with_name("state.new")
        with saving(self._path):
            if is_main():
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir(parents=True)
            for name, model in self._models.items():
                save_trained(model, new / f"{name}.safetensors")
            tensors, numbers = _flatten(self._optimizer.state_dict())
            _save(tensors, new / "optimizer.safetensors")
        self._saved_at = time.monotonic()
        if is_main():
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
        saved = from_main(lambda: self._position(path))
        if saved is None:
            return None
        try:
            self._put_back(path, saved["optimizer"])
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            if is_lost_process(error):
                raise
            what = f"the run's saved state is damaged: {type(error).__name__}: {error}"
            raise InputError(what, where=str(path), hint=START_OVER) from error
        position: dict[str, Any] = saved["position"]
        return position

    def _position(self, path: Path) -> dict[str, Any] | None:
        if not (path / "position.json").exists():
            return None
        saved = read_json(path / "position.json", settings=dict, optimizer=dict, position=dict, hint=START_OVER)
        refuse_changed_settings(saved, self._settings, path.parent)
        return saved

    def _put_back(self, path: Path, optimizer: dict[str, Any]) -> None:
        for name, model in self._models.items():
            load_trained(model, path / f"{name}.safetensors")
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        tensors = _load_state(path / "optimizer.safetensors", parameters)
        self._optimizer.load_state_dict(_unflatten(tensors, optimizer))
        if not is_main():
            return
        rng = load_file(path / "rng.safetensors")
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"])


def remove_state(folder: Path) -> None:
    """The run is complete: there is nothing to go on from."""
    for name in (_STATE, "state.new", "state.old"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob(BEST):
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
    saved = load_file(path) if is_main() else {}
    for name, parameter in trained_parameters(model).items():
        value = saved[name] if is_main() else None
        with torch.no_grad():
            parameter.copy_(like(parameter, value))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    gathered = on_main(tensors)
    if is_main():
        with saving(path):
            save_file(gathered, path)


def _load_state(path: Path, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """An optimizer's tensors, named `<parameter>.<what>`, each split as its parameter is."""
    saved = load_file(path) if is_main() else {}
    shapes = from_main(lambda: {name: tensor.shape for name, tensor in saved.items()})
    found = {}
    for name, shape in shapes.items():
        parameter = parameters[int(name.partition(".")[0])]
        target = parameter if parameter.shape == shape else torch.zeros(shape)  # a count of steps is of no parameter
        found[name] = like(target, saved.get(name))
    return found


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
