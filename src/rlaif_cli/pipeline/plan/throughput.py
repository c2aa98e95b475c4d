"""Measured throughput and memory of models on this machine, from which plans estimate time.

`<cache>/rates.json` stores them by machine (a cache may be shared), model and engine options.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.data.atomic import read_json, write_json
from rlaif_cli.errors import InputError
from rlaif_cli.machine import machine
from rlaif_cli.models.cache import cache_dir


@dataclass(frozen=True)
class Rate:
    """The speed and memory of one model with one set of options.

    Attributes:
        prefill: tokens per second when prefilling full batches.
        decode: tokens per second when decoding full batches.
        train: tokens per second of training (forward, backward and optimizer step).
        start: seconds until it is ready.
        memory: peak GiB of the process (of the GPU if there is one).
    """

    prefill: float = 0.0
    decode: float = 0.0
    train: float = 0.0
    start: float = 0.0
    memory: float = 0.0


# What rates.json and cluster files call the fields of `Rate`.
FILE_KEYS = {"prefill": "read", "decode": "sampled", "train": "learned"}
_FIELDS = {key: name for name, key in FILE_KEYS.items()}


def known() -> dict[str, Rate]:
    """The measured rates by `Work.key`; empty if nothing was measured on this machine.

    Raises:
        InputError: the file is damaged.
    """
    if not (every := _all()):
        return {}  # avoids importing torch to identify the machine
    try:
        return {key: _from_file(found) for key, found in every.get(machine(), {}).items()}
    except (TypeError, AttributeError) as error:
        hint = "delete it and measure again with --calibrate"
        raise InputError("not a file of measured rates", where=str(_file()), hint=hint) from error


def remember(key: str, rate: Rate) -> None:
    every = _all()
    every.setdefault(machine(), {})[key] = {FILE_KEYS.get(name, name): value for name, value in asdict(rate).items()}
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_json(_file(), every)


def _from_file(found: dict[str, float]) -> Rate:
    return Rate(**{_FIELDS.get(key, key): value for key, value in found.items()})


def _file() -> Path:
    return cache_dir() / "rates.json"


def _all() -> dict[str, Any]:
    return read_json(_file()) if _file().exists() else {}
