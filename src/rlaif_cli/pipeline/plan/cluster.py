"""Forecast a pipeline on a cluster: time, cost, the bottleneck of each stage, and the best split of GPUs for PPO.

The forecast divides the tokens of `plan` by the speeds of a *cluster file*. A speed is, in order of precedence: given
in the file for a model; measured on this machine, if the file has `machines`; computed from the size of the model and
the GPU with the efficiencies below. `docs/scale.md` compares them with measurements.

    name: 8 H100
    gpus: 8
    gpu: {teraflops: 989, terabytes_per_second: 3.35, gigabytes: 80}   # dense bf16; memory bandwidth and size
    price: 2.5                                             # per GPU hour
    models:
      org/policy: {billions: 8}
      org/judge: {billions: 70, gpus: 4, sampled: 2200}    # GPUs per copy; decoding tokens/s per copy, if known
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlaif_cli.data import strict_yaml
from rlaif_cli.data.json_lines import describe
from rlaif_cli.engines import CLUSTER
from rlaif_cli.errors import InputError
from rlaif_cli.pipeline.file import Step
from rlaif_cli.pipeline.plan.counts import measure, plan
from rlaif_cli.pipeline.plan.throughput import FILE_KEYS, Rate
from rlaif_cli.pipeline.plan.work import Plan, Work, left_open

# Efficiencies, used if nothing was measured.
_PREFILL = 0.5  # share of the peak FLOPS in prefill: an assumption
_TRAIN = 0.33  # the same for training with FSDP: 8B on 8 H100, torchtitan docs/performance.md (33 % without compile)
# Decoding is bound by memory bandwidth. 8B on one H100 (3.35 TB/s): 3,400 tokens/s, LambdaLabsML/vllm-benchmark.
_DECODE = 3400 * 8 / 3.35  # tokens/s * billions of parameters / (TB/s)
_LATENCY = 0.7  # share of the bandwidth when decoding a single sequence: an assumption
_TRAINING_BYTES, _INFERENCE_BYTES = 16, 2  # per parameter: fp32 weight, gradient and two moments; bf16 weight
_FILLED = (
    0.8  # share of the memory for weights and optimizer state; the rest is for activations and caches: an assumption
)
_START = 120.0  # seconds until a multi-GPU engine is ready: an assumption


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Gpu(_Strict):
    teraflops: float = Field(gt=0)
    terabytes_per_second: float = Field(gt=0)
    gigabytes: float | None = Field(default=None, gt=0)


class Size(_Strict):
    """Size and speed of one model, in tokens/s: `prefill` and `decode` per copy, `train` per GPU (or machine)."""

    billions: float | None = Field(default=None, gt=0)
    gpus: int = Field(default=1, ge=1)
    prefill: float | None = Field(default=None, gt=0, alias="read")
    decode: float | None = Field(default=None, gt=0, alias="sampled")
    train: float | None = Field(default=None, gt=0, alias="learned")


class Cluster(_Strict):
    """See the top of this file.

    Attributes:
        machines: instead of `gpus`: the number of machines like this one.
        drivers: processes that feed the cluster in parallel, each with a shard of the input.
        rows_per_second: rows that one driver renders, sends and writes (measured by `benchmarks/scale.py`).
    """

    name: str
    gpus: int | None = Field(default=None, ge=1, le=100_000)
    machines: int | None = Field(default=None, ge=1, le=100_000)
    gpu: Gpu | None = None
    price: float = Field(default=0.0, ge=0)
    drivers: int = Field(default=1, ge=1)
    rows_per_second: float = Field(default=1000.0, gt=0)
    models: dict[str, Size] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Cluster:
        if (self.gpus is None) == (self.machines is None):
            raise ValueError("exactly one of 'gpus' and 'machines' (like this one) is needed")
        if self.gpus is not None and self.gpu is None:
            raise ValueError("'gpu' is missing: {teraflops: …, terabytes_per_second: …}")
        return self

    @property
    def units(self) -> int:
        """The number of GPUs or machines."""
        return self.gpus or self.machines or 1


@dataclass(frozen=True)
class Speed:
    """Speed of one copy of a model on a cluster; `latency`: seconds per token of a single sequence."""

    rate: Rate
    gpus: int
    latency: float = 0.0


@dataclass(frozen=True)
class Split:
    """PPO with rollouts and training in parallel, one step apart, each on its own part of the GPUs."""

    rollout: int
    training: int
    seconds: float


@dataclass
class Forecast:
    """The forecast of one stage.

    Attributes:
        phases: seconds by phase: start, reading (prefill), sampling (decoding), tokens (decoding latency), learning
            (training), feeding.
        idle: why some GPUs are idle, if they are.
        too_large: models that do not fit, and how much memory they need.
    """

    name: str
    kind: str
    rows: int | None
    phases: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    split: Split | None = None
    idle: str | None = None
    too_large: list[str] = field(default_factory=list)

    @property
    def limit(self) -> str | None:
        return max(self.phases, key=self.phases.__getitem__) if any(self.phases.values()) else None


def read(path: Path) -> Cluster:
    """Raises: InputError: the file cannot be read, or is not a cluster file."""
    try:
        value = strict_yaml.load(path)
        if not isinstance(value, dict):
            raise InputError("not a cluster file", where=str(path), hint="see examples/clusters")
        return Cluster.model_validate(value)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), hint="see examples/clusters") from None
    except ValidationError as error:
        raise InputError(describe(error), where=str(path)) from error


def planned(steps: Sequence[Step], prompts: int | None) -> list[tuple[Step, Plan]]:
    """The plan of every step, assuming `prompts` rows for the input of the first one.

    Raises:
        InputError: that input is missing.
    """
    first = steps[0].config
    source = next((str(getattr(first, name)) for name in first.data_fields() if getattr(first, name, None)), None)
    if source is None:
        raise InputError("the first stage does not read a file of records", where=steps[0].name)
    size = measure(source)
    files = {source: size if prompts is None else replace(size, rows=prompts)}
    # A replica of `--engine ray` runs vLLM.
    return [(step, replace(each, work=each.work and tuple(map(_vllm, each.work)))) for step, each in plan(steps, files)]


def _vllm(work: Work) -> Work:
    return replace(work, engine="vllm") if work.engine == CLUSTER else work


def forecast(found: Iterable[tuple[Step, Plan]], cluster: Cluster, known: Mapping[str, Rate]) -> list[Forecast]:
    """Forecast each stage.

    Args:
        known: the measured rates of this machine, for a cluster of `machines`.

    Raises:
        InputError: the cluster file lacks a model that is needed.
    """
    forecasts, running = [], set[str]()  # engines that the previous stage left open: they need no start
    for step, each in found:
        forecasts.append(_stage(step, each, cluster, known, running))
        running = left_open(each)
    return forecasts


def _stage(step: Step, each: Plan, cluster: Cluster, known: Mapping[str, Rate], running: Container[str]) -> Forecast:
    stage = Forecast(step.name, step.kind, each.rows)
    if each.work is None:  # a server does the work, or it cannot be estimated yet
        return stage
    parts = [(work, _speed(work, cluster, known)) for work in each.work]
    trainers = _trainers(step, each, cluster)
    phases = dict.fromkeys(("start", "reading", "sampling", "tokens", "learning", "feeding"), 0.0)
    for work, speed in parts:
        copies = max(1, cluster.units // speed.gpus)
        phases["start"] += 0.0 if work.key in running else speed.rate.start
        phases["reading"] += work.prefill and work.prefill / speed.rate.prefill / copies
        phases["sampling"] += work.decode and work.decode / speed.rate.decode / copies
        phases["learning"] += work.train and work.train / speed.rate.train / trainers
        if each.sequential and work.decode:
            phases["tokens"] = each.sequential * speed.latency
    if not any(work.trains for work in each.work) and each.work:
        phases["feeding"] = (each.rows or 0) / (cluster.drivers * cluster.rows_per_second)
    stage.phases = phases
    stage.seconds = phases["start"] + max(_working(phases), phases["feeding"])
    if each.sequential:
        stage.split = _best_split(parts, cluster, trainers, phases)
    if phases["learning"] and trainers < cluster.units:
        stage.idle = f"a training step has work for only {trainers} of {cluster.units}"
    stage.too_large = [reason for work in each.work if (reason := _too_large(work, step.config, cluster))]
    return stage


def _too_large(work: Work, config: Any, cluster: Cluster) -> str | None:
    """Compare the weights, and in full training the gradients and Adam moments, with the memory of the GPUs."""
    size = cluster.models.get(work.model)
    if cluster.gpu is None or cluster.gpu.gigabytes is None or size is None or size.billions is None:
        return None
    whole = work.trains and not getattr(config, "lora_rank", 0)
    needed = size.billions * (_TRAINING_BYTES if whole else _INFERENCE_BYTES)
    available = _FILLED * cluster.gpu.gigabytes * (cluster.units if work.trains else size.gpus)
    purpose = "for training" if whole else "for inference"
    return f"{work.model} needs {needed:.0f} GB {purpose}, {available:.0f} GB available" if needed > available else None


def _working(phases: Mapping[str, float]) -> float:
    """Seconds of compute; more GPUs do not shorten the decoding latency (`tokens`)."""
    return phases["reading"] + max(phases["sampling"], phases["tokens"]) + phases["learning"]


def _trainers(step: Step, each: Plan, cluster: Cluster) -> int:
    """How many GPUs share the tokens of an optimizer step: each gets at least one micro-batch."""
    config = step.config
    if not each.calls or not hasattr(config, "tokens_per_batch"):
        return cluster.units
    tokens = (each.tokens_in or 0) + (each.tokens_out or 0)
    per_step = tokens / each.calls / getattr(config, "minibatches", 1)
    return max(1, min(cluster.units, math.ceil(per_step / config.tokens_per_batch)))


def _best_split(
    parts: Sequence[tuple[Work, Speed]], cluster: Cluster, trainers: int, phases: Mapping[str, float]
) -> Split | None:
    """Try every split of the GPUs: a step takes as long as the slower of the two sides.

    None if one copy of a model that samples or judges leaves no GPU for training.
    """
    unit = max((speed.gpus for work, speed in parts if not work.trains), default=1)
    if cluster.units <= unit:
        return None
    rollout = sum(
        (work.prefill and work.prefill / speed.rate.prefill) + (work.decode and work.decode / speed.rate.decode)
        for work, speed in parts
        if not work.trains
    )
    learning = phases["learning"] * trainers

    def seconds(share: int) -> float:
        training = learning / min(trainers, cluster.units - share)
        return phases["start"] + max(rollout / max(1, share // unit), phases["tokens"], training)

    best = min(range(unit, cluster.units, unit), key=seconds)
    return Split(best, cluster.units - best, seconds(best))


def _speed(work: Work, cluster: Cluster, known: Mapping[str, Rate]) -> Speed:
    size = cluster.models.get(work.model, Size())
    given = {name: getattr(size, name) for name in FILE_KEYS}
    if cluster.machines is not None:
        return Speed(_merged(known.get(work.key, Rate()), given, work), gpus=1)
    assert cluster.gpu is not None
    if size.gpus > cluster.units:
        raise InputError(f"a copy of '{work.model}' needs {size.gpus} GPUs, but the cluster has {cluster.units}")
    if size.billions is None:
        return Speed(_merged(Rate(start=_START), given, work), size.gpus)
    flops, bandwidth = cluster.gpu.teraflops * 1e12, cluster.gpu.terabytes_per_second
    parameters = size.billions * 1e9
    computed = Rate(
        prefill=_PREFILL * flops * size.gpus / (2 * parameters),
        decode=_DECODE * bandwidth * size.gpus / size.billions,
        train=_TRAIN * flops / (6 * parameters),
        start=_START,
    )
    # Every token reads two bytes per parameter.
    latency = 2 * parameters / (_LATENCY * bandwidth * 1e12 * size.gpus)
    return Speed(_merged(computed, given, work), size.gpus, latency)


def _merged(rate: Rate, given: Mapping[str, float | None], work: Work) -> Rate:
    """Raises: InputError: a speed that is needed is unknown."""
    known = {name: value or getattr(rate, name) for name, value in given.items()}
    if missing := [FILE_KEYS[name] for name, speed in known.items() if getattr(work, name) and not speed]:
        raise InputError(
            f"the speed of model '{work.model}' ({', '.join(missing)}) is unknown",
            hint=f"in the cluster file: models: {{{work.model}: {{billions: …}}}}; for `machines`, use --calibrate",
        )
    return Rate(**known, start=rate.start, memory=rate.memory)
