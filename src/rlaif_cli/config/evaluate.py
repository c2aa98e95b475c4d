"""Settings of `rlaif eval`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator, model_validator

from rlaif_cli.config.base import ENGINE, FROM, HUMAN_PAIRS, InputConfig, Precision, result_output, setting
from rlaif_cli.config.engine import EngineName
from rlaif_cli.config.judge import CompareConfig, JudgeConfig, Judges
from rlaif_cli.config.reward import RewardSourceConfig, ScorersConfig


class AlignmentConfig(CompareConfig):
    """How often a judge agrees with people, beside the rule that the longer response wins."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval alignment human.jsonl --judge org/judge --constitution helpfulness -o alignment.json",
    )
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}: {FROM}.", argument=True)
    output: str = result_output()


class WinRateConfig(CompareConfig):
    """How often a judge prefers the responses of A to those of B on the same prompts."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval win-rate after.jsonl before.jsonl --judge org/judge --constitution helpfulness -o win_rate.json",
    )
    a: str = setting(help="Candidates of the tuned model, or a model to sample from --prompts.", argument=True)
    b: str = setting(help="Candidates of the model it is compared with, or a model.", argument=True)
    output: str = result_output()
    prompts: str | None = setting(None, "Prompts to sample from, where A or B is a model.")
    n: int = setting(1, "Responses a prompt, where A or B is a model.", short="-n", ge=1)
    temperature: float = setting(1.0, "Of those samples.", ge=0)
    max_tokens: int = setting(256, "The longest of those responses, tokens.", ge=1)


class HarmlessRateConfig(JudgeConfig):
    """The share of responses that a judge finds harmless, each by itself; by every principle, and by their mean."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval harmless-rate after.jsonl --judge org/judge --constitution harmlessness -o harmless.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    constitution: str = setting("harmlessness", "A shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "'all', or the ids of those to ask.")
    output: str = result_output()

    @field_validator("principles")
    @classmethod
    def _not_drawn(cls, principles: tuple[str, ...]) -> tuple[str, ...]:
        if principles == ("sample",):
            raise ValueError("'sample' is for comparisons: here every response is asked about the same ones")
        return principles


class RewardConfig(RewardSourceConfig):
    """The mean reward of candidates by a reward model, a judge or functions; of two files, and their difference."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-model rm -o reward.json",
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-function checks.py:exact -o exact.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    baseline: str | None = setting(None, "Other candidates for the same prompts, to compare with.")
    output: str = result_output()
    engine: EngineName | None = setting(
        None, "What runs a judge. Default: vllm; fake where the judge is 'fake'.", section=ENGINE
    )
    precision: Precision = setting(
        "auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.", section=ENGINE
    )
    tokens_per_batch: int = setting(
        4096, "Tokens that go through the model at once.", ge=64, section=ENGINE, output=False
    )


class BestOfNConfig(ScorersConfig, CompareConfig):
    """Whether a judge prefers the one of n responses that scores best to the first, and to a random one."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval best-of-n candidates.jsonl --reward-model rm --judge J --constitution helpfulness -o best.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = result_output()
    precision: Precision = setting(
        "auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.", section=ENGINE
    )
    tokens_per_batch: int = setting(
        4096, "Tokens that go through the model at once.", ge=64, section=ENGINE, output=False
    )

    @model_validator(mode="after")
    def _a_chooser(self) -> BestOfNConfig:
        if not self.sources:
            raise ValueError("something must choose: --reward-model or --reward-function")
        return self


class RewardModelEvalConfig(InputConfig):
    """How often a reward model agrees with people or with labels, beside the rule that the longer response wins."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif eval reward-model human.jsonl --reward-model rm -o quality.json",)
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}, or of preferences: {FROM}.", argument=True)
    reward_model: Judges = setting(help="A reward model's folder. Several times: their probabilities are averaged.")
    output: str = result_output()
    max_length: int = setting(1024, "Prompt and response together, tokens; longer pairs are refused.", ge=8)
    precision: Precision = setting(
        "auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.", section=ENGINE
    )
    tokens_per_batch: int = setting(
        4096, "Tokens that go through the model at once.", ge=64, section=ENGINE, output=False
    )
