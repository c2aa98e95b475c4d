"""How a judge is asked, and the settings of the stages that label and check labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import MinLen
from pydantic import field_validator, model_validator

from rlaif_cli.config.base import FROM, JUDGING, ORDERED, OUTPUT, InputConfig, Names, setting
from rlaif_cli.config.engine import EngineConfig

Judges = Annotated[Names, MinLen(1)]


class JudgeConfig(EngineConfig, section=JUDGING):
    """How a judge is asked."""

    judge: Judges = setting(
        help="The judge: a built-in model, a folder, a .gguf file or a hub name. Several times: a panel, averaged."
    )
    constitution: str = setting(help="A shipped constitution's name, or a YAML file.")
    method: Literal["pairwise", "score", "contrast"] = setting(
        "pairwise",
        "pairwise asks which is better, both orders; score asks for 1 to 10, one by one; contrast asks nothing and "
        "compares likelihoods. Which agrees with people: docs/judging.md.",
    )
    principles: tuple[str, ...] = setting(
        ("sample",), "'sample' draws one per comparison; 'all' averages over all; or ids, averaged."
    )
    min_mass: float = setting(
        0.1, "Pairwise and score: a row whose labels hold less probability than this is unscored.", ge=0, le=1
    )
    samples: int = setting(
        0, "Pairwise and score: sample this many answers and count them (judges that tell no log-probs).", ge=0
    )
    contrast_scale: float = setting(
        20.0, "Contrast: k in sigmoid(k (score_a - score_b)), scores in nats per token.", gt=0
    )

    @property
    def judge_name(self) -> str:
        return " + ".join(self.judge)

    @field_validator("judge")
    @classmethod
    def _each_once(cls, judge: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in judge if judge.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is there twice: a panel is of different judges")
        return judge

    @model_validator(mode="after")
    def _of_this_method(self) -> JudgeConfig:
        if self.method == "contrast" and self.samples:
            raise ValueError("--samples is for judges that are asked, and --method contrast asks nothing")
        if self.method == "contrast" and self.engine == "openai":
            raise ValueError("--method contrast needs the log-probs of given texts, which --engine openai cannot tell")
        return self


class CompareConfig(JudgeConfig, section=JUDGING):
    """How a judge compares two responses."""

    shots: int = setting(0, "Pairwise: exemplars of the constitution shown before the question.", ge=0)
    cot: bool = setting(False, "Pairwise: the judge reasons in words first, then answers.")
    rationale_tokens: int = setting(512, "With --cot: the longest reasoning, tokens.", ge=1)
    truncate: Literal["refuse", "head", "tail", "middle"] = setting(
        "refuse",
        "A pair that is too long for the judge: refuse it, or cut the head, tail or middle of its texts.",
    )
    clamp: tuple[float, float] | None = setting(
        None, "Pairwise: keep probabilities within these two bounds (0.4 0.6 for --cot, whose labels are too sure)."
    )

    @model_validator(mode="after")
    def _of_this_comparison(self) -> CompareConfig:
        if self.method != "pairwise":
            for name in ("shots", "cot", "clamp"):
                if getattr(self, name):
                    raise ValueError(f"--{name} belongs to --method pairwise")
        if self.engine == "openai" and self.truncate != "refuse":
            raise ValueError("--truncate needs the model's tokenizer, which --engine openai does not have")
        if self.clamp and not 0 <= self.clamp[0] <= self.clamp[1] <= 1:
            raise ValueError(f"--clamp needs two bounds from 0 to 1, found {self.clamp[0]:g} {self.clamp[1]:g}")
        if not self.cot and self.rationale_tokens != type(self).model_fields["rationale_tokens"].default:
            raise ValueError("--rationale-tokens belongs to --cot")
        return self


class LabelConfig(CompareConfig):
    """Turn candidates into soft preferences by an LLM judge."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif label candidates.jsonl --judge org/judge --constitution helpfulness -o preferences.jsonl",
        "rlaif label - --judge gpt --engine openai --base-url http://127.0.0.1:8000/v1 --constitution my.yaml < c",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = setting("-", "Where the preferences go; - is stdout.", short="-o", section=OUTPUT, output=False)
    pairs: str = setting("chain", "Which responses are compared: all, chain (neighbours) or random:K.")
    ordered: bool = setting(False, ORDERED, section=OUTPUT)


class AnnotateConfig(InputConfig):
    """Compare pairs by hand, in a page on this machine. Blind, shuffled, by keyboard, saved at once."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif annotate candidates.jsonl -o human.jsonl --annotator ann --labels preferences.jsonl",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = setting(
        help="Where the answers go: human pairs, as `rlaif eval alignment` reads them.", short="-o", section=OUTPUT
    )
    annotator: str = setting(help="Who answers; several people may share one file.", min_length=1)
    pairs: str = setting("chain", "Which responses are compared: all, chain (neighbours) or random:K.")
    labels: str | None = setting(None, "A judge's preferences for the same pairs, compared at the end.", output=False)
    port: int = setting(0, "0: any that is free.", ge=0, lt=65536, output=False)
    no_browser: bool = setting(False, "Only print the address.", output=False)


class AuditConfig(InputConfig):
    """Check labels before anyone trains on them. Bias, mass, ties, length, repeats; ok, look or stop for each."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif audit preferences.jsonl",
        "rlaif audit preferences.jsonl --strict --json > audit.json",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True)
    skip_invalid: bool = setting(False, "Go on without lines that cannot be used; they are counted.")
    as_json: bool = setting(False, "The findings as one JSON object.", flag="--json", section=OUTPUT, output=False)
    strict: bool = setting(False, "Exit code 3 when a check says stop.", output=False)
