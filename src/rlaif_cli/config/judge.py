"""Judge settings, and those of the stages that produce and check labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import field_validator, model_validator

from rlaif_cli.config.base import FROM, JUDGING, ORDERED, OUTPUT, InputConfig, Names, setting
from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.config.naming import SettingError, option

Judges = Annotated[Names, MinLen(1)]
Part = Literal["answer", "all"]  # of a response


def judge_sees() -> Any:
    return setting(
        "answer", "What the judge reads of a response with reasoning: its answer, or all of it.", section=JUDGING
    )


class JudgeConfig(EngineConfig, section=JUDGING):
    """How a judge is queried."""

    _reasons_with: ClassVar[tuple[str, ...]] = ("samples",)  # the settings with which a judge may reason

    judge: Judges = setting(
        help="A built-in name, a folder, a .gguf file or a hub name. Repeat for a panel of judges, averaged."
    )
    constitution: str = setting(help="Name of a shipped constitution, or a YAML file.")
    method: Literal["pairwise", "score", "contrast"] = setting(
        "pairwise",
        "pairwise: ask which response is better, in both orders; score: rate each response from 1 to 10; contrast: "
        "compare likelihoods without asking. How well each agrees with people: docs/judging.md.",
    )
    principles: tuple[str, ...] = setting(
        ("sample",),
        "Principles to judge by: 'sample' draws one per comparison, 'all' averages over all; or ids to average over.",
    )
    min_mass: float = setting(
        0.1, "Pairwise and score: leave a row unscored if its labels have less total probability than this.", ge=0, le=1
    )
    samples: int = setting(
        0, "Pairwise and score: sample this many answers and count them, for judges that return no log-probs.", ge=0
    )
    rationale_tokens: int = setting(
        512, "With --cot, and for servers with --samples: maximum tokens of reasoning before an answer.", ge=1
    )
    contrast_scale: float = setting(
        20.0, "Contrast: k in sigmoid(k (score_a - score_b)); scores are in nats per token.", gt=0
    )

    @property
    def judge_name(self) -> str:
        return " + ".join(self.judge)

    @field_validator("judge")
    @classmethod
    def _each_once(cls, judge: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in judge if judge.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is given twice: the judges of a panel must differ")
        return judge

    @model_validator(mode="after")
    def _of_this_method(self) -> JudgeConfig:
        if self.method == "contrast" and self.samples:
            raise SettingError(
                f"{option('samples')} does not apply to {option('method')} contrast, which does not ask the judge"
            )
        changed = self.rationale_tokens != type(self).model_fields["rationale_tokens"].default
        if changed and not any(getattr(self, name) for name in self._reasons_with):
            raise SettingError(f"{option('rationale_tokens')} needs {' or '.join(map(option, self._reasons_with))}")
        if self.method == "contrast" and self.engine == "openai":
            raise SettingError(
                f"{option('method')} contrast needs the log-probs of given texts, which {option('engine')} "
                "openai does not return"
            )
        return self


class CompareConfig(JudgeConfig, section=JUDGING):
    """How a judge compares two responses."""

    _reasons_with: ClassVar[tuple[str, ...]] = ("cot", "samples")

    shots: int = setting(0, "Pairwise: number of the constitution's exemplars to show before the question.", ge=0)
    cot: bool = setting(False, "Pairwise: let the judge reason before it answers (chain of thought).")
    truncate: Literal["refuse", "head", "tail", "middle"] = setting(
        "refuse",
        "For a pair that is too long for the judge: refuse it, or cut the head, tail or middle of its texts.",
    )
    clamp: tuple[float, float] | None = setting(
        None, "Pairwise: clip probabilities to these bounds (0.4 0.6 suits --cot, whose labels are overconfident)."
    )

    @model_validator(mode="after")
    def _of_this_comparison(self) -> CompareConfig:
        if self.method != "pairwise":
            for name in ("shots", "cot", "clamp"):
                if getattr(self, name):
                    raise SettingError(f"{option(name)} needs {option('method')} pairwise")
        if self.engine == "openai" and self.truncate != "refuse":
            raise SettingError(
                f"{option('truncate')} needs the model's tokenizer, which {option('engine')} openai does not have"
            )
        if self.clamp and not 0 <= self.clamp[0] <= self.clamp[1] <= 1:
            raise SettingError(
                f"{option('clamp')} needs two increasing bounds from 0 to 1, got {self.clamp[0]:g} {self.clamp[1]:g}"
            )
        return self


class LabelConfig(CompareConfig):
    """Turn candidates into soft preferences with an LLM judge."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif label candidates.jsonl --judge org/judge --constitution helpfulness -o preferences.jsonl",
        "rlaif label - --judge gpt --engine openai --base-url http://127.0.0.1:8000/v1 --constitution my.yaml < c",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True, records=True)
    output: str = setting(
        "-", "Output file for the preferences; - is stdout.", short="-o", section=OUTPUT, output=False
    )
    pairs: str = setting("chain", "Which responses to compare: all, chain (neighbours) or random:K.")
    judge_sees: Part = judge_sees()
    ordered: bool = setting(False, ORDERED, section=OUTPUT)


class AnnotateConfig(InputConfig):
    """Compare pairs by hand, in a local web page. Blind, shuffled, by keyboard; every answer is saved at once."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif annotate candidates.jsonl -o human.jsonl --annotator ann --labels preferences.jsonl",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True, records=True)
    output: str = setting(
        help="Output file for the answers: human pairs, as `rlaif eval alignment` reads them.",
        short="-o",
        section=OUTPUT,
    )
    annotator: str = setting(help="Your name; several people may share one file.", min_length=1)
    pairs: str = setting("chain", "Which responses to compare: all, chain (neighbours) or random:K.")
    labels: str | None = setting(
        None, "A judge's preferences for the same pairs, to compare with at the end.", output=False
    )
    port: int = setting(0, "Port of the page; 0 picks a free one.", ge=0, lt=65536, output=False)
    no_browser: bool = setting(False, "Print the address without opening a browser.", output=False)


class AuditConfig(InputConfig):
    """Check labels before training on them. Bias, mass, ties, length, duplicates: ok, look or stop for each."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif audit preferences.jsonl",
        "rlaif audit preferences.jsonl --strict --json > audit.json",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True, records=True)
    skip_invalid: bool = setting(False, "Skip and count invalid lines.")
    as_json: bool = setting(
        False, "Print the findings as one JSON object.", flag="--json", section=OUTPUT, output=False
    )
    strict: bool = setting(False, "Exit with code 3 if a check says stop.", output=False)
