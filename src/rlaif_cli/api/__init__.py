"""The stages as Python functions: settings in, a result out, nothing printed. docs/python-api.md has a whole chain.

Every function takes either one config or, as keywords, the settings that it would hold. Where a config names a file of
records, rows may be given instead: dicts, records, or what another function returned. Where `output` is left out, the
rows come back in memory. One call at a time: while they run, trainers set the seeds of the whole process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

from rlaif_cli.api.call import as_given, called, hushed
from rlaif_cli.api.results import AuditResult as AuditResult
from rlaif_cli.api.results import Data as Data
from rlaif_cli.api.results import DataResult as DataResult
from rlaif_cli.api.results import EvaluationResult as EvaluationResult
from rlaif_cli.api.results import GenerateResult as GenerateResult
from rlaif_cli.api.results import LabelResult as LabelResult
from rlaif_cli.api.results import ReviseResult as ReviseResult
from rlaif_cli.api.results import Row as Row
from rlaif_cli.api.results import Rows as Rows
from rlaif_cli.api.results import TrainResult as TrainResult
from rlaif_cli.api.results import data_result, evaluation_result, train_result, unscored_reasons
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.engine import GenerateConfig as GenerateConfig
from rlaif_cli.config.engine import ReviseConfig as ReviseConfig
from rlaif_cli.config.evaluate import AlignmentConfig as AlignmentConfig
from rlaif_cli.config.evaluate import BestOfNConfig as BestOfNConfig
from rlaif_cli.config.evaluate import HarmlessRateConfig as HarmlessRateConfig
from rlaif_cli.config.evaluate import RewardConfig as RewardConfig
from rlaif_cli.config.evaluate import RewardModelEvalConfig as RewardModelEvalConfig
from rlaif_cli.config.evaluate import WinRateConfig as WinRateConfig
from rlaif_cli.config.judge import AuditConfig as AuditConfig
from rlaif_cli.config.judge import LabelConfig as LabelConfig
from rlaif_cli.config.ppo import PPOConfig as PPOConfig
from rlaif_cli.config.train import RewardModelConfig as RewardModelConfig
from rlaif_cli.config.train import SftConfig as SftConfig
from rlaif_cli.data.paths import beside
from rlaif_cli.data.records import Candidates as Candidates
from rlaif_cli.data.records import HumanPair as HumanPair
from rlaif_cli.data.records import Preference as Preference
from rlaif_cli.data.records import PromptRecord as PromptRecord
from rlaif_cli.data.records import Revision as Revision
from rlaif_cli.data.records import Unscored as Unscored
from rlaif_cli.engines import EnginePool
from rlaif_cli.errors import DivergedError as DivergedError
from rlaif_cli.errors import EngineError as EngineError
from rlaif_cli.errors import InputError as InputError
from rlaif_cli.errors import MissingDependency as MissingDependency
from rlaif_cli.errors import ModelError as ModelError
from rlaif_cli.errors import RlaifError as RlaifError
from rlaif_cli.errors import RlaifWarning as RlaifWarning
from rlaif_cli.errors import UsageError as UsageError
from rlaif_cli.judge.constitution_files import load_constitution as load_constitution
from rlaif_cli.models.resolve import resolve_model as resolve_model
from rlaif_cli.pipeline.stage import run_stage
from rlaif_cli.registry import STAGES
from rlaif_cli.stages.audit import audit as find
from rlaif_cli.stages.audit import worst
from rlaif_cli.stats.intervals import Estimate as Estimate
from rlaif_cli.ui.progress import ProgressCallback, no_progress

Engines = EnginePool  # `with Engines() as engines:` and `engines=engines` in several calls: a model is loaded once
Progress: TypeAlias = "Callable[[int, int | None, str, float | None], object]"  # done, total, note, value


def generate(
    prompts: Data | GenerateConfig,
    *,
    engines: Engines | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> GenerateResult:
    """Sample candidate responses for every prompt; settings: see `GenerateConfig`.

    Args:
        engines: those that are open already; without them the model is loaded for this call.
        progress: called with done, total, note and value.

    Raises:
        RlaifError: as on the command line; UsageError: settings that cannot be.
    """
    with called(GenerateConfig, settings, prompts) as (config, in_memory):
        numbers = _run("generate", config, engines, progress)
        return GenerateResult(**data_result(config.output, in_memory, "generate", Candidates, numbers))


def revise(
    prompts: Data | ReviseConfig,
    *,
    engines: Engines | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> ReviseResult:
    """Criticise and rewrite responses by a constitution; settings: see `ReviseConfig`, the rest as in `generate`."""
    with called(ReviseConfig, settings, prompts) as (config, in_memory):
        numbers = _run("revise", config, engines, progress)
        return ReviseResult(**data_result(config.output, in_memory, "revise", Revision, numbers))


def label(
    candidates: Data | LabelConfig,
    *,
    engines: Engines | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> LabelResult:
    """Turn candidates into soft preferences by a judge; settings: see `LabelConfig`, the rest as in `generate`."""
    with called(LabelConfig, settings, candidates) as (config, in_memory):
        numbers = _run("label", config, engines, progress)
        path = beside(config.output, "label", "unscored")
        numbers["unscored"] = Rows(path, Unscored.model_validate, in_memory=in_memory)
        return LabelResult(**data_result(config.output, in_memory, "label", Preference, numbers))


def audit(preferences: Data | AuditConfig, *, progress: Progress | None = None, **settings: Any) -> AuditResult:
    """Check labels before anyone trains on them; settings: see `AuditConfig`."""
    with called(AuditConfig, settings, preferences) as (config, _):
        findings = tuple(find(config, progress=_callback(progress)))
        return AuditResult(worst(findings), findings)


def sft(records: Data | SftConfig, *, progress: Progress | None = None, **settings: Any) -> TrainResult:
    """Fine-tune a model on responses, into the folder `output`; settings: see `SftConfig`."""
    with called(SftConfig, settings, records) as (config, _):
        return train_result(config.output, _run("sft", config, None, progress))


def train_rm(
    preferences: Data | RewardModelConfig, *, progress: Progress | None = None, **settings: Any
) -> TrainResult:
    """Train a reward model on soft preferences, into the folder `output`; settings: see `RewardModelConfig`."""
    with called(RewardModelConfig, settings, preferences) as (config, _):
        return train_result(config.output, _run("train-rm", config, None, progress))


def ppo(
    prompts: Data | PPOConfig,
    *,
    engines: Engines | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainResult:
    """Tune a policy by PPO, into the folder `output`; settings: see `PPOConfig`. Open engines are closed first."""
    with called(PPOConfig, settings, prompts) as (config, _):
        return train_result(config.output, _run("ppo", config, engines, progress))


def evaluate(
    metric: str,
    *data: Data | StageConfig,
    engines: Engines | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> EvaluationResult:
    """Say whether it helped: `evaluate("win-rate", after, before, judge=…)`, as `rlaif eval` does.

    Args:
        metric: the name of a command of `rlaif eval`; its settings are those of AlignmentConfig, WinRateConfig,
            HarmlessRateConfig, RewardModelEvalConfig, BestOfNConfig or RewardConfig.
        data: a config; or what stands first on the command line, in its order.
    """
    stage = f"eval {metric}"
    if stage not in STAGES:
        known = [name.removeprefix("eval ") for name in STAGES if name.startswith("eval ")]
        raise UsageError(f"there is no evaluation '{metric}'", hint=f"one of: {', '.join(known)}")
    with called(STAGES[stage].config_class, settings, *data) as (config, in_memory):
        output = str(config.output)  # type: ignore[attr-defined]  # every evaluation's config has one
        try:
            numbers = _run(stage, config, engines, progress)
        except InputError as error:
            if in_memory and (reasons := unscored_reasons(output, metric)):
                error.errors, error.hint = reasons, None  # which speaks of the items' file, and that goes
            raise
        return evaluation_result({name: as_given(each) for name, each in numbers.items()}, output, in_memory)


def _run(stage: str, config: StageConfig, engines: Engines | None, progress: Progress | None) -> dict[str, Any]:
    with hushed(config), EnginePool() if engines is None else nullcontext(engines) as pool:
        return dict(run_stage(stage, config, engines=pool, progress=_callback(progress)))


def _callback(progress: Progress | None) -> ProgressCallback:
    """The user's callback, which always gets all four."""
    if progress is None:
        return no_progress

    def tell(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
        progress(done, total, note, value)

    return tell
