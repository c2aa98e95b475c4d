"""How fast, and how large in memory, models were measured to be on this machine: what a plan's minutes are made of.

`<cache>/rates.json` holds them by machine (a cache may be shared), model and way of running.
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
    """Of one model, run in one way.

    Attributes:
        read: tokens a second that a full batch prefills.
        sampled: tokens a second that a full batch decodes.
        learned: tokens a second that go forward, backward and into the optimizer.
        start: seconds until it is ready.
        memory: GiB of the process (of the GPU, where there is one) at most.
    """

    read: float = 0.0
    sampled: float = 0.0
    learned: float = 0.0
    start: float = 0.0
    memory: float = 0.0


def known() -> dict[str, Rate]:
    """By `Work.key`; empty where nothing was measured here.

    Raises:
        InputError: the file is damaged.
    """
    if not (every := _all()):
        return {}  # without asking torch what machine this is
    try:
        return {key: Rate(**found) for key, found in every.get(machine(), {}).items()}
    except (TypeError, AttributeError) as error:
        hint = "delete it; --calibrate measures again"
        raise InputError("this is no file of rates", where=str(_file()), hint=hint) from error


def remember(key: str, rate: Rate) -> None:
    every = _all()
    every.setdefault(machine(), {})[key] = asdict(rate)
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_json(_file(), every)


def _file() -> Path:
    return cache_dir() / "rates.json"


def _all() -> dict[str, Any]:
    return read_json(_file()) if _file().exists() else {}
