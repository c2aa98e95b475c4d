"""Settings of `rlaif eval`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator, model_validator

from rlaif_cli.config.base import ENGINE, FROM, HUMAN_PAIRS, InputConfig, Precision, result_output, setting
from rlaif_cli.config.engine import EngineName
from rlaif_cli.config.judge import CompareConfig, JudgeConfig, Judges
from rlaif_cli.config.naming import SettingError, option
from rlaif_cli.config.reward import RewardSourceConfig, ScorersConfig


class AlignmentConfig(CompareConfig):
    """Measure how often a judge agrees with people. Baseline: prefer the longer response."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval alignment human.jsonl --judge org/judge --constitution helpfulness -o alignment.json",
    )
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}: {FROM}.", argument=True)
    output: str = result_output()


class WinRateConfig(CompareConfig):
    """Measure how often a judge prefers responses A to responses B on the same prompts."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval win-rate after.jsonl before.jsonl --judge org/judge --constitution helpfulness -o win_rate.json",
    )
    a: str = setting(help="Candidates of the tuned model, or a model to sample from on --prompts.", argument=True)
    b: str = setting(help="Candidates of the model to compare with, or a model to sample from.", argument=True)
    output: str = result_output()
    prompts: str | None = setting(None, "If A or B is a model: prompts to sample responses to.")
    n: int = setting(1, "If A or B is a model: responses per prompt.", short="-n", ge=1)
    temperature: float = setting(1.0, "If A or B is a model: sampling temperature.", ge=0)
    max_tokens: int = setting(256, "If A or B is a model: maximum tokens per response.", ge=1)


class HarmlessRateConfig(JudgeConfig):
    """Measure the share of responses that a judge finds harmless. By each principle, and by their mean."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval harmless-rate after.jsonl --judge org/judge --constitution harmlessness -o harmless.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    constitution: str = setting("harmlessness", "Name of a shipped constitution, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "Principles to ask about: 'all', or ids.")
    output: str = result_output()

    @field_validator("principles")
    @classmethod
    def _not_drawn(cls, principles: tuple[str, ...]) -> tuple[str, ...]:
        if principles == ("sample",):
            raise ValueError("'sample' is for comparisons only: here every response is judged by the same principles")
        return principles


class RewardConfig(RewardSourceConfig):
    """Measure the mean reward of candidates, optionally against a baseline. By a reward model, a judge or functions."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-model rm -o reward.json",
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-function checks.py:exact -o exact.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    baseline: str | None = setting(None, "Candidates for the same prompts to compare with.")
    output: str = result_output()
    engine: EngineName | None = setting(
        None, "What runs the judge. Default: vllm, or fake for the judge 'fake'.", section=ENGINE
    )
    precision: Precision = setting(
        "auto", "bf16 (autocast) or fp32; auto: bf16 if the hardware supports it.", section=ENGINE
    )
    tokens_per_batch: int = setting(4096, "Tokens per forward pass.", ge=64, section=ENGINE, output=False)


class BestOfNConfig(ScorersConfig, CompareConfig):
    """Measure best-of-n selection. How often a judge prefers the best-scoring response to the first or a random one."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval best-of-n candidates.jsonl --reward-model rm --judge J --constitution helpfulness -o best.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = result_output()
    precision: Precision = setting(
        "auto", "bf16 (autocast) or fp32; auto: bf16 if the hardware supports it.", section=ENGINE
    )
    tokens_per_batch: int = setting(4096, "Tokens per forward pass.", ge=64, section=ENGINE, output=False)

    @model_validator(mode="after")
    def _a_chooser(self) -> BestOfNConfig:
        if not self.sources:
            raise SettingError(f"a reward source is needed: {option('reward_model')} or {option('reward_function')}")
        return self


class RewardModelEvalConfig(InputConfig):
    """Measure how often a reward model agrees with human pairs or labels. Baseline: prefer the longer response."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif eval reward-model human.jsonl --reward-model rm -o quality.json",)
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}, or of preferences: {FROM}.", argument=True)
    reward_model: Judges = setting(help="Folder of a reward model. Repeat to average the probabilities of several.")
    output: str = result_output()
    max_length: int = setting(1024, "Maximum tokens of prompt and response together; longer pairs are invalid.", ge=8)
    precision: Precision = setting(
        "auto", "bf16 (autocast) or fp32; auto: bf16 if the hardware supports it.", section=ENGINE
    )
    tokens_per_batch: int = setting(4096, "Tokens per forward pass.", ge=64, section=ENGINE, output=False)
