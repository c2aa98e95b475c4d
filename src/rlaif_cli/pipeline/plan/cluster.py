"""What a pipeline would take on other machines: time, money, what limits each stage, and how PPO's GPUs divide best.

A small simulation: the tokens of `plan`, over the speeds of a *cluster file*. A speed is, in this order: what the file
says of a model; what was measured on this machine, where the file says `machines`; else computed from the model's
size and the GPU, by the shares below. `docs/scale.md` holds them against what was measured.

    name: 8 H100
    gpus: 8
    gpu: {teraflops: 989, terabytes_per_second: 3.35, gigabytes: 80}   # dense bf16; the memory's speed and size
    price: 2.5                                             # of one GPU and hour
    models:
      org/policy: {billions: 8}
      org/judge: {billions: 70, gpus: 4, sampled: 2200}    # GPUs of a copy; tokens a second of a copy, where known
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlaif_cli.config.base import DATA_FIELDS
from rlaif_cli.data import strict_yaml
from rlaif_cli.data.json_lines import describe
from rlaif_cli.engines import CLUSTER
from rlaif_cli.errors import InputError
from rlaif_cli.pipeline.file import Step
from rlaif_cli.pipeline.plan.counts import measure, plan
from rlaif_cli.pipeline.plan.throughput import Rate
from rlaif_cli.pipeline.plan.work import Plan, Work, left_open

# Shares of what a GPU could do, where nothing was measured.
_READ = 0.5  # of its arithmetic, prefilling: an assumption
_LEARNED = 0.33  # the same, training by FSDP: 8B on 8 H100, torchtitan docs/performance.md (33 % without compile)
# Decoding follows the bandwidth of the memory. 8B on one H100 (3.35 TB/s): 3,400 tokens/s, LambdaLabsML/vllm-benchmark.
_SAMPLED = 3400 * 8 / 3.35  # tokens a second, for each billion of parameters below and TB/s above
_LATENCY = 0.7  # of the bandwidth, when one token waits for the one before: an assumption
_TRAINED_BYTES, _READ_BYTES = 16, 2  # of a parameter: fp32 weight, gradient and two moments; bf16 weight
_FILLED = 0.8  # of the memory, the rest is for activations and caches: an assumption
_START = 120.0  # seconds until an engine of many GPUs is ready: an assumption


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Gpu(_Strict):
    teraflops: float = Field(gt=0)
    terabytes_per_second: float = Field(gt=0)
    gigabytes: float | None = Field(default=None, gt=0)


class Size(_Strict):
    """Of one model. Tokens a second: `read` and `sampled` of one copy, `learned` of one GPU (or machine)."""

    billions: float | None = Field(default=None, gt=0)
    gpus: int = Field(default=1, ge=1)
    read: float | None = Field(default=None, gt=0)
    sampled: float | None = Field(default=None, gt=0)
    learned: float | None = Field(default=None, gt=0)


class Cluster(_Strict):
    """See the top of this file.

    Attributes:
        machines: instead of `gpus`: so many machines like this one.
        drivers: commands that feed the cluster side by side, each with a shard of the input.
        rows_per_second: what one of them renders, sends and writes (measured: `benchmarks/scale.py`).
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
            raise ValueError("either 'gpus' or 'machines' (like this one) is needed")
        if self.gpus is not None and self.gpu is None:
            raise ValueError("'gpu' is missing: {teraflops: …, terabytes_per_second: …}")
        return self

    @property
    def units(self) -> int:
        """GPUs, or machines."""
        return self.gpus or self.machines or 1


@dataclass(frozen=True)
class Speed:
    """Of one model on one cluster, `copies` of it at once; `latency`: seconds from one token to the next."""

    rate: Rate
    gpus: int
    latency: float = 0.0


@dataclass(frozen=True)
class Split:
    """PPO with rollouts and training side by side, one step apart, each on its own part of the GPUs."""

    rollout: int
    training: int
    seconds: float


@dataclass
class Forecast:
    """Of one stage.

    Attributes:
        phases: seconds by what is waited for: start, reading, sampling, tokens (one after another), learning, feeding.
        idle: why GPUs have nothing to do, if they have not.
        too_large: models that do not fit, and what they need.
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
    """Raises: InputError: the file cannot be read, or is no cluster file."""
    try:
        value = strict_yaml.load(path)
        if not isinstance(value, dict):
            raise InputError("this is no cluster file", where=str(path), hint="examples/clusters holds some")
        return Cluster.model_validate(value)
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path), hint="examples/clusters holds some") from None
    except ValidationError as error:
        raise InputError(describe(error), where=str(path)) from error


def planned(steps: Sequence[Step], prompts: int | None) -> list[tuple[Step, Plan]]:
    """The plan of every step; as if the first one's input had `prompts` rows.

    Raises:
        InputError: that input is not there.
    """
    first = steps[0].config
    source = next((str(getattr(first, name)) for name in DATA_FIELDS if getattr(first, name, None)), None)
    if source is None:
        raise InputError("the first stage reads no file of records", where=steps[0].name)
    there = measure(source)
    files = {source: there if prompts is None else replace(there, rows=prompts)}
    # What a replica of `--engine ray` holds is vLLM.
    return [(step, replace(each, work=each.work and tuple(map(_vllm, each.work)))) for step, each in plan(steps, files)]


def _vllm(work: Work) -> Work:
    return replace(work, engine="vllm") if work.engine == CLUSTER else work


def forecast(found: Iterable[tuple[Step, Plan]], cluster: Cluster, known: Mapping[str, Rate]) -> list[Forecast]:
    """What each stage takes.

    Args:
        known: the rates of this machine, for a cluster of `machines`.

    Raises:
        InputError: the file says nothing of a model that is needed.
    """
    told, running = [], set[str]()  # engines that the stage before left open: they need no start
    for step, each in found:
        told.append(_stage(step, each, cluster, known, running))
        running = left_open(each)
    return told


def _stage(step: Step, each: Plan, cluster: Cluster, known: Mapping[str, Rate], running: Container[str]) -> Forecast:
    told = Forecast(step.name, step.kind, each.rows)
    if each.work is None:  # a server's, or what cannot be counted yet
        return told
    parts = [(work, _speed(work, cluster, known)) for work in each.work]
    learners = _learners(step, each, cluster)
    phases = dict.fromkeys(("start", "reading", "sampling", "tokens", "learning", "feeding"), 0.0)
    for work, speed in parts:
        copies = max(1, cluster.units // speed.gpus)
        phases["start"] += 0.0 if work.key in running else speed.rate.start
        phases["reading"] += work.read and work.read / speed.rate.read / copies
        phases["sampling"] += work.sampled and work.sampled / speed.rate.sampled / copies
        phases["learning"] += work.learned and work.learned / speed.rate.learned / learners
        if step.kind == "ppo" and work.sampled:
            phases["tokens"] = _one_by_one(step.config) * speed.latency
    if not any(work.learns for work in each.work) and each.work:
        phases["feeding"] = (each.rows or 0) / (cluster.drivers * cluster.rows_per_second)
    told.phases = phases
    told.seconds = phases["start"] + max(_working(phases), phases["feeding"])
    if step.kind == "ppo":
        told.split = _best_split(step, parts, cluster, learners, phases)
    if phases["learning"] and learners < cluster.units:
        told.idle = f"a step has work for {learners} of {cluster.units} in training"
    told.too_large = [fault for work in each.work if (fault := _too_large(work, step.config, cluster))]
    return told


def _too_large(work: Work, config: Any, cluster: Cluster) -> str | None:
    """Weights, and where they are trained whole their gradients and Adam's two moments, against the GPUs' memory."""
    size = cluster.models.get(work.model)
    if cluster.gpu is None or cluster.gpu.gigabytes is None or size is None or size.billions is None:
        return None
    whole = work.learns and not getattr(config, "lora_rank", 0)
    needed = size.billions * (_TRAINED_BYTES if whole else _READ_BYTES)
    there = _FILLED * cluster.gpu.gigabytes * (cluster.units if work.learns else size.gpus)
    how = "to be trained" if whole else "to be run"
    return f"{work.model} needs {needed:.0f} GB {how}, and {there:.0f} GB are there" if needed > there else None


def _working(phases: Mapping[str, float]) -> float:
    """Tokens that wait for one another take their time however many GPUs there are."""
    return phases["reading"] + max(phases["sampling"], phases["tokens"]) + phases["learning"]


def _one_by_one(config: Any) -> int:
    """Tokens of a run of PPO that must follow one another: of each step, those of the longest response."""
    return int(config.steps * config.max_tokens)


def _learners(step: Step, each: Plan, cluster: Cluster) -> int:
    """How many share the tokens of one optimizer step: none has less than one micro-batch to do."""
    config = step.config
    if not each.calls or not hasattr(config, "tokens_per_batch"):
        return cluster.units
    tokens = (each.tokens_in or 0) + (each.tokens_out or 0)
    a_step = tokens / each.calls / getattr(config, "minibatches", 1)
    return max(1, min(cluster.units, math.ceil(a_step / config.tokens_per_batch)))


def _best_split(
    step: Step, parts: Sequence[tuple[Work, Speed]], cluster: Cluster, learners: int, phases: Mapping[str, float]
) -> Split | None:
    """By trying every division of the GPUs: a step takes as long as the slower of the two sides.

    None where a copy of a model that samples or judges leaves none for training.
    """
    unit = max((speed.gpus for work, speed in parts if not work.learns), default=1)
    if cluster.units <= unit:
        return None
    rollout = sum(
        (work.read and work.read / speed.rate.read) + (work.sampled and work.sampled / speed.rate.sampled)
        for work, speed in parts
        if not work.learns
    )
    learning = phases["learning"] * learners

    def seconds(share: int) -> float:
        trainers = min(learners, cluster.units - share)
        return phases["start"] + max(rollout / max(1, share // unit), phases["tokens"], learning / trainers)

    best = min(range(unit, cluster.units, unit), key=seconds)
    return Split(best, cluster.units - best, seconds(best))


def _speed(work: Work, cluster: Cluster, known: Mapping[str, Rate]) -> Speed:
    size = cluster.models.get(work.model, Size())
    given = {name: getattr(size, name) for name in ("read", "sampled", "learned")}
    if cluster.machines is not None:
        return Speed(_merged(known.get(work.key, Rate()), given, work), gpus=1)
    assert cluster.gpu is not None
    if size.gpus > cluster.units:
        raise InputError(f"a copy of '{work.model}' is on {size.gpus} GPUs, and the cluster has {cluster.units}")
    if size.billions is None:
        return Speed(_merged(Rate(start=_START), given, work), size.gpus)
    flops, bandwidth = cluster.gpu.teraflops * 1e12, cluster.gpu.terabytes_per_second
    parameters = size.billions * 1e9
    computed = Rate(
        read=_READ * flops * size.gpus / (2 * parameters),
        sampled=_SAMPLED * bandwidth * size.gpus / size.billions,
        learned=_LEARNED * flops / (6 * parameters),
        start=_START,
    )
    # Two bytes of every parameter pass by for each token.
    latency = 2 * parameters / (_LATENCY * bandwidth * 1e12 * size.gpus)
    return Speed(_merged(computed, given, work), size.gpus, latency)


def _merged(rate: Rate, given: Mapping[str, float | None], work: Work) -> Rate:
    """Raises: InputError: a speed that is needed is not known."""
    known = {name: value or getattr(rate, name) for name, value in given.items()}
    if missing := [name for name, speed in known.items() if getattr(work, name) and not speed]:
        raise InputError(
            f"how fast the model '{work.model}' is ({', '.join(missing)}) is not known",
            hint=f"in the cluster file: models: {{{work.model}: {{billions: …}}}}; for `machines`: --calibrate",
        )
    return Rate(**known, start=rate.start, memory=rate.memory)
