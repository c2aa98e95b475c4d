"""rlaif: reinforcement learning from AI feedback, as a command line and as the functions below.

What is named here is in `rlaif_cli.api`, which is imported when the first of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AlignmentConfig",
    "AuditConfig",
    "AuditResult",
    "BestOfNConfig",
    "Candidates",
    "DivergedError",
    "EngineError",
    "Engines",
    "Estimate",
    "EvaluationResult",
    "GenerateConfig",
    "GenerateResult",
    "HarmlessRateConfig",
    "HumanPair",
    "InputError",
    "LabelConfig",
    "LabelResult",
    "MissingDependency",
    "ModelError",
    "PPOConfig",
    "Preference",
    "PromptRecord",
    "ReviseConfig",
    "ReviseResult",
    "Revision",
    "RewardConfig",
    "RewardModelConfig",
    "RewardModelEvalConfig",
    "RlaifError",
    "RlaifWarning",
    "Rows",
    "SftConfig",
    "TrainResult",
    "Unscored",
    "UsageError",
    "WinRateConfig",
    "__version__",
    "audit",
    "evaluate",
    "generate",
    "label",
    "load_constitution",
    "ppo",
    "resolve_model",
    "revise",
    "sft",
    "train_rm",
]

if TYPE_CHECKING:
    from rlaif_cli.api import (
        AlignmentConfig,
        AuditConfig,
        AuditResult,
        BestOfNConfig,
        Candidates,
        DivergedError,
        EngineError,
        Engines,
        Estimate,
        EvaluationResult,
        GenerateConfig,
        GenerateResult,
        HarmlessRateConfig,
        HumanPair,
        InputError,
        LabelConfig,
        LabelResult,
        MissingDependency,
        ModelError,
        PPOConfig,
        Preference,
        PromptRecord,
        ReviseConfig,
        ReviseResult,
        Revision,
        RewardConfig,
        RewardModelConfig,
        RewardModelEvalConfig,
        RlaifError,
        RlaifWarning,
        Rows,
        SftConfig,
        TrainResult,
        Unscored,
        UsageError,
        WinRateConfig,
        audit,
        evaluate,
        generate,
        label,
        load_constitution,
        ppo,
        resolve_model,
        revise,
        sft,
        train_rm,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("rlaif_cli.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
