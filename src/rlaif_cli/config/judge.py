"""Judge settings, and those of the stages that produce and check labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import field_validator, model_validator

from rlaif_cli.config.base import (
    FROM,
    JUDGING,
    ORDERED,
    OUTPUT,
    InputConfig,
    Names,
    address_fault,
    name_and_address,
    setting,
    shown_address,
)
from rlaif_cli.config.engine import SERVERS, EngineConfig
from rlaif_cli.config.naming import SettingError, option

Judges = Annotated[Names, MinLen(1)]
Part = Literal["answer", "all"]  # of a response


def judge_sees() -> Any:
    return setting(
        "answer",
        "Which part of a reasoning model's response the judge reads: its answer, or the reasoning too.",
        section=JUDGING,
    )


_ONE_QUESTION = "takes one question and no earlier turns"
_OWN_PROMPT = "writes the model's prompt itself"
_NOT_FOR_DECISIONS = {
    "samples": "returns the probabilities themselves",
    "cot": "answers without writing text",
    "shots": _ONE_QUESTION,
    "chat_template_arg": _OWN_PROMPT,
    "judge_template_arg": _OWN_PROMPT,
    "reasoning_marks": _OWN_PROMPT,
}


def _judge_names(judge: tuple[str, ...]) -> tuple[str, ...]:
    pairs = [name_and_address(each) for each in judge]
    names = [name for name, _ in pairs]
    return tuple(
        f"{name}@{shown_address(address)}" if address and names.count(name) > 1 else name for name, address in pairs
    )


class JudgeConfig(EngineConfig, section=JUDGING):
    """How a judge is queried."""

    _reasons_with: ClassVar[tuple[str, ...]] = ("samples",)  # the settings with which a judge may reason

    judge: Judges = setting(
        help="A built-in name, a folder, a .gguf file or a hub name; NAME@URL: behind this server. Repeat for a panel "
        "of judges, averaged."
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
    structured: bool = setting(
        False,
        "With --samples and --engine openai: have the server constrain each answer to JSON (response_format), so that "
        "it always is a label and its mass says nothing. A server that does not accept this is asked without.",
    )
    rationale_tokens: int = setting(
        512, "With --cot, and for servers with --samples: maximum tokens of reasoning before an answer.", ge=1
    )
    decision_format: Literal["decisions", "sglang", "systemone"] | None = setting(
        None,
        "decisions: the wire format of the endpoint: decisions (OpenAI's), sglang (its own fields at the same path) or "
        "systemone. Default: tried in this order.",
    )
    contrast_scale: float = setting(
        20.0, "Contrast: k in sigmoid(k (score_a - score_b)); scores are in nats per token.", gt=0
    )

    @property
    def judge_names(self) -> tuple[str, ...]:
        """The judges as records and messages name them: with their address only if that tells two apart."""
        return _judge_names(self.judge)

    @property
    def judge_name(self) -> str:
        return " + ".join(self.judge_names)

    def deciding(self) -> dict[str, Any]:
        """Judges by name: an address does not affect the output, and may contain a secret."""
        names = self.judge_names
        return super().deciding() | {"judge": names[0] if len(names) == 1 else list(names)}

    @field_validator("judge")
    @classmethod
    def _each_once(cls, judge: tuple[str, ...]) -> tuple[str, ...]:
        names = _judge_names(judge)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is given twice: the judges of a panel must differ")
        for address in filter(None, (name_and_address(each)[1] for each in judge)):
            if fault := address_fault(address):
                raise ValueError(fault)
        return judge

    @model_validator(mode="after")
    def _own_addresses(self) -> JudgeConfig:
        # The client would send the key and the texts to its default server.
        if self.engine in SERVERS and (broken := [name for name in self.judge if name.strip() != name.strip(" @")]):
            raise SettingError(f"{option('judge')} '{broken[0]}' lacks the name before @ or the address after it")
        if any(name_and_address(judge)[1] for judge in self.judge):
            if self.engine not in SERVERS:
                raise SettingError(f"{option('judge')} NAME@URL needs {option('engine')} openai or decisions")
            names = [name_and_address(judge)[0] for judge in self.judge]
            if (self.batch or self.max_cost is not None) and len(set(names)) < len(names):
                raise SettingError(f"{option('batch')} and {option('max_cost')} need judges of different names")
            if self.base_url:
                raise SettingError(
                    f"{option('base_url')} and {option('judge')} NAME@URL cannot be combined: give each judge its own "
                    "address"
                )
        return self

    @model_validator(mode="after")
    def _of_decisions(self) -> JudgeConfig:
        if self.engine != "decisions":
            if self.decision_format:
                raise SettingError(f"{option('decision_format')} needs {option('engine')} decisions")
            return self
        for name, why in _NOT_FOR_DECISIONS.items():
            if getattr(self, name, None) not in (None, 0, False, (), "refuse"):
                raise SettingError(f"{option(name)} does not apply to {option('engine')} decisions, which {why}")
        return self

    @model_validator(mode="after")
    def _of_this_method(self) -> JudgeConfig:
        if self.method == "contrast" and self.samples:
            raise SettingError(
                f"{option('samples')} does not apply to {option('method')} contrast, which does not ask the judge"
            )
        if self.structured and not (self.samples and self.engine == "openai"):
            raise SettingError(f"{option('structured')} needs {option('samples')} and {option('engine')} openai")
        changed = self.rationale_tokens != type(self).model_fields["rationale_tokens"].default
        if changed and not any(getattr(self, name) for name in self._reasons_with):
            raise SettingError(f"{option('rationale_tokens')} needs {' or '.join(map(option, self._reasons_with))}")
        if self.method == "contrast" and self.engine in SERVERS:
            raise SettingError(
                f"{option('method')} contrast needs the log-probs of given texts, which {option('engine')} "
                f"{self.engine} does not return"
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
        if self.structured and self.cot:
            raise SettingError(
                f"{option('structured')} leaves no space for the explanation that {option('cot')} asks for"
            )
        if self.engine in SERVERS and self.truncate != "refuse":
            raise SettingError(
                f"{option('truncate')} needs the model's tokenizer, which {option('engine')} {self.engine} does not "
                "have"
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
    recheck: int | None = setting(
        None,
        "Of a finished output: ask the judge K of its rows again, drawn by seed, each twice, and say whether it has "
        "drifted (exit code 3). Writes OUTPUT.recheck.json; the output is not changed.",
        ge=2,
        output=False,
    )
    ordered: bool = setting(False, ORDERED, section=OUTPUT)

    @model_validator(mode="after")
    def _recheck_a_file(self) -> LabelConfig:
        if self.recheck and (self.output == "-" or self.overwrite):
            what = f"a finished output, which {option('overwrite')} discards"
            if self.output == "-":
                what = f"a finished file: {option('output')}"
            raise SettingError(f"{option('recheck')} needs {what}")
        for name in ("batch", "max_cost"):
            if self.recheck and getattr(self, name):
                raise SettingError(f"{option(name)} does not apply to {option('recheck')}")
        return self


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
