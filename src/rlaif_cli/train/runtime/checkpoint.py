"""Everything a killed run needs to resume exactly where it stopped: weights, optimizer, schedule, position, RNG.

Tensors go to safetensors, the rest to JSON: no pickle. A state is written into a new folder, which then replaces the
old one by a rename. It holds full tensors, which the main process writes and reads, so that a run can resume with any
number of processes.
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
from rlaif_cli.train.parallel.distributed import (
    broadcast_from_main,
    distribute_like,
    gather_on_main,
    is_lost_peer,
    is_main,
)

_STATE = "state"
_SAVE_INTERVAL = 600.0  # seconds between states without --save-every
BEST = "best-*.safetensors"


class TrainState:
    """The resumable state of a training run, in `<output>/state` until the run completes.

    Args:
        folder: the run's output folder.
        settings: everything that determines the result; a resumed run must have the same.
        models: the trained models, by name.
        optimizer: over the parameters of `models`.

    Raises:
        UsageError: the folder holds a run with other settings.
        InputError: the saved state is damaged.
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
        """Whether to save after step `done` of `total`: every `every` steps, or every ten minutes if `every` is 0.

        Never after the last step, after which the trained model itself is saved.
        """
        if done == total:
            return False
        if every:
            return done % every == 0
        return broadcast_from_main(lambda: time.monotonic() - self._saved_at >= _SAVE_INTERVAL)

    def save(self, position: dict[str, Any]) -> None:
        """Save `position` (JSON) and the current weights as the state to resume from."""
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
            self._replace_state(new, record)

    def _replace_state(self, new: Path, position: dict[str, Any]) -> None:
        """Complete the new state, then replace the old one with it."""
        old = self._path.with_name("state.old")
        with saving(self._path):
            save_file({"cpu": torch.get_rng_state(), **_cuda_rng()}, new / "rng.safetensors")
            write_json(new / "position.json", position)
            fsync_tree(new)
            if self._path.exists():  # else a kill came between these two renames, and only `old` exists
                shutil.rmtree(old, ignore_errors=True)
                os.replace(self._path, old)
            os.replace(new, self._path)
            fsync_folder(self._path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> dict[str, Any] | None:
        """Restore the saved state and return its position; None if there is none."""
        path = self._path if self._path.exists() else self._path.with_name("state.old")
        saved = broadcast_from_main(lambda: self._position(path))
        if saved is None:
            return None
        try:
            self._restore(path, saved["optimizer"])
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            if is_lost_peer(error):
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

    def _restore(self, path: Path, optimizer: dict[str, Any]) -> None:
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
    """Remove everything that was only needed to resume; the run is complete."""
    for name in (_STATE, "state.new", "state.old"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob(BEST):
        path.unlink()


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a full disk, or any other failure to write tensors, into a clear error."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
    except SafetensorError as error:  # has the OS error only in its text
        if found := re.search(r"os error (\d+)", str(error)):
            raise cannot_write(path, OSError(int(found[1]), os.strerror(int(found[1])))) from error
        raise


def save_trained(model: Any, path: Path) -> None:
    """Save a model's trained parameters."""
    _save(trained_parameters(model), path)


def load_trained(model: Any, path: Path) -> None:
    """Load what `save_trained` saved."""
    saved = load_file(path) if is_main() else {}
    for name, parameter in trained_parameters(model).items():
        value = saved[name] if is_main() else None
        with torch.no_grad():
            parameter.copy_(distribute_like(parameter, value))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    gathered = gather_on_main(tensors)
    if is_main():
        with saving(path):
            save_file(gathered, path)


def _load_state(path: Path, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """An optimizer's tensors, named `<parameter index>.<name>`, each sharded as its parameter is."""
    saved = load_file(path) if is_main() else {}
    shapes = broadcast_from_main(lambda: {name: tensor.shape for name, tensor in saved.items()})
    found = {}
    for name, shape in shapes.items():
        parameter = parameters[int(name.partition(".")[0])]
        target = parameter if parameter.shape == shape else torch.zeros(shape)  # a step count is not sharded
        found[name] = distribute_like(target, saved.get(name))
    return found


def _cuda_rng() -> dict[str, torch.Tensor]:
    return {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named `<parameter index>.<name>`, and its JSON part."""
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
