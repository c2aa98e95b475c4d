"""A training run's output folder: locked by one process, resumable, and complete once it has a manifest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli import __version__
from rlaif_cli.config.naming import option
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data.atomic import cannot_write, fsync_tree, lock, read_json, write_json
from rlaif_cli.data.run_settings import START_OVER, refuse_changed_settings
from rlaif_cli.errors import EngineError, UsageError, is_out_of_memory
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.train.parallel.distributed import broadcast_from_main, is_main
from rlaif_cli.train.runtime.checkpoint import remove_state
from rlaif_cli.train.runtime.optim import set_seed
from rlaif_cli.train.runtime.trackers import check_trackers

MANIFEST = "manifest.json"


def run_in_folder(
    config: TrainConfig, stage: str, base: Path, train: Callable[[dict[str, Any]], dict[str, Any]], **inputs: Any
) -> dict[str, Any]:
    """Run training in its output folder: check trackers, lock the folder, set the seed, and write the manifest.

    Args:
        base: the checkpoint that training starts from.
        train: settings -> the summary's numbers; saves the trained model.
        inputs: what determines the result besides the config, such as the input's sha256.

    Returns:
        What `train` returned, now or when the same run completed earlier.

    Raises:
        UsageError: the folder holds other files, or another process is training into it.
    """
    check_trackers(config)
    folder = Path(config.output)
    with _claimed(folder) if is_main() else contextlib.nullcontext():
        settings, done = broadcast_from_main(lambda: _begin(config, folder, stage, base, inputs))
        if done is not None:
            return done
        set_seed(config.seed)
        results = _within_memory(train, settings)
        broadcast_from_main(lambda: _complete(folder, stage, settings, results))
        return results


def _begin(
    config: TrainConfig, folder: Path, stage: str, base: Path, inputs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(everything that determines the result, the summary's numbers if the folder holds this run, completed)."""
    settings = config.deciding() | inputs | {"model_sha256": checkpoint_hash(base)}
    _refuse_foreign(folder, stage)
    if config.overwrite:
        _empty(folder)
    if not (folder / MANIFEST).exists():
        return settings, None
    done = read_json(folder / MANIFEST, settings=dict, results=dict, hint=START_OVER)
    refuse_changed_settings(done, settings, folder)
    return settings, dict(done["results"])


def _complete(folder: Path, stage: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    hashed = checkpoint_hash(folder)
    fsync_tree(folder)
    manifest = {"stage": stage, "rlaif": __version__, "output": str(folder), "settings": settings, "results": results}
    write_json(folder / MANIFEST, manifest | {"checkpoint_sha256": hashed})
    remove_state(folder)


def _within_memory(train: Callable[[dict[str, Any]], dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return train(settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"out of memory: {str(error).splitlines()[0]}" if str(error) else "out of memory"
        raise EngineError(
            what,
            hint=f"to use less memory: a smaller {option('tokens_per_batch')} (same results, slower), "
            f"{option('gradient_checkpointing')}, "
            f"{option('lora_rank')} or {option('optimizer')} adamw-8bit; with {option('overwrite')}, since a "
            "run's settings cannot change midway",
        ) from error


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Create the folder if needed, check that it is writable, and lock it against other processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error


def _refuse_foreign(folder: Path, stage: str) -> None:
    manifest = folder / MANIFEST
    if manifest.exists():
        ours = read_json(manifest, error=UsageError).get("stage") == stage
    else:
        ours = any((folder / name).exists() for name in ("metrics.jsonl", "state"))
    if any(folder.iterdir()) and not ours:
        raise UsageError(
            f"the folder holds files that no {stage} run made",
            where=str(folder),
            hint=f"choose another {option('output')}",
        )
