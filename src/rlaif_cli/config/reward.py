"""Where rewards come from: reward models, functions, a judge."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rlaif_cli.config.base import (
    ENGINE,
    REWARDS,
    Addresses,
    Functions,
    InputConfig,
    Names,
    Numbers,
    function_names,
    setting,
)
from rlaif_cli.config.engine import AnyEngineName
from rlaif_cli.config.judge import JudgeConfig


class ScorersConfig(InputConfig, section=REWARDS):
    """What scores single responses, and what each of several counts."""

    reward_model: Names = setting((), "A reward model's folder. Several times: the mean of their normalised rewards.")
    reward_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores responses; the file is run as code. May be given several times, "
        "and beside another source: the weighted sum counts. See docs/ppo.md.",
    )
    reward_weights: Numbers = setting(
        (),
        "The weight of each source, one option each: the reward model's (or judge's) first, then the functions' in "
        "order. Default: all 1.",
    )

    @property
    def other_source(self) -> str | None:
        """What scores beside functions, by its short name."""
        return "model" if self.reward_model else None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all that scores, in the order of the weights; a function's has its file's where two are alike.

        Raises:
            ValueError: two functions would have one name.
        """
        first = (self.other_source,) if self.other_source else ()
        return (*first, *function_names("--reward-function", self.reward_function, first))

    @property
    def weights(self) -> tuple[float, ...]:
        """Of `sources`."""
        return self.reward_weights or (1.0,) * len(self.sources)

    @model_validator(mode="after")
    def _a_weight_each(self) -> ScorersConfig:
        names, given = self.sources, self.reward_weights
        if given and len(given) != len(names):
            order = ", ".join(names) or "none"
            raise ValueError(f"--reward-weights: {len(given)} for {len(names)} sources, in this order: {order}")
        if 0 in given:
            measured = "to measure without training on it, use --eval-function or `rlaif eval reward`"
            raise ValueError(f"--reward-weights: the weight of {names[given.index(0)]} is 0; {measured}")
        return self


class RewardSourceConfig(ScorersConfig, section=REWARDS):
    """What scores single responses: a reward model or a judge directly, and functions that the user wrote."""

    judge: str | None = setting(None, "Instead of a reward model: a judge (needs --constitution).")
    constitution: str | None = setting(None, "For --judge: a shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "For --judge: 'all' averages over all principles; or ids.")
    method: Literal["contrast", "score"] = setting(
        "contrast", "For --judge: contrast compares likelihoods; score asks for 1 to 10 and takes the mean, as -1 to 1."
    )
    contrast_scale: float = setting(20.0, "For --judge: the reward is this times the contrast score.", gt=0)
    judge_engine: AnyEngineName | None = setting(
        None, "For --judge: vllm, transformers, openai (a server) or fake. Default: --engine.", section=ENGINE
    )
    base_url: Addresses = setting(
        (),
        "For --judge-engine openai: the server; several times: a fleet of them. The key is in OPENAI_API_KEY.",
        section=ENGINE,
        output=False,
    )
    concurrency: int = setting(
        16,
        "For --judge-engine openai: requests under way at the same time, of each server.",
        ge=1,
        section=ENGINE,
        output=False,
    )
    engine_memory: float | None = setting(
        None,
        "vLLM's KV cache: GiB on a CPU (2), share of the memory on a GPU (0.9).",
        gt=0,
        section=ENGINE,
        output=False,
    )

    @model_validator(mode="after")
    def _one_source(self) -> RewardSourceConfig:
        if self.reward_model and self.judge is not None:
            raise ValueError("--reward-model and --judge: only one of them can be given")
        if not self.sources:
            raise ValueError("a source of rewards is needed: --reward-model, --judge or --reward-function")
        if self.judge is not None and self.constitution is None:
            raise ValueError("--judge needs --constitution")
        if self.base_url and self.judge_engine != "openai":
            raise ValueError("--base-url needs --judge-engine openai")
        if self.judge_engine == "openai" and self.method == "contrast":
            raise ValueError("--judge-engine openai needs --method score: a server returns no log-probs of texts")
        if self.judge is None:
            for name in ("constitution", "principles", "method", "contrast_scale", "judge_engine"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"--{name.replace('_', '-')} belongs to --judge, and there is none")
        return self

    @property
    def other_source(self) -> str | None:
        return "judge" if self.judge is not None else super().other_source

    @property
    def reward_judge(self) -> JudgeConfig:
        """How `judge` is asked; by the stage's own `engine` where it has none of its own."""
        own: AnyEngineName | None = getattr(self, "engine", None)
        return JudgeConfig(
            judge=(self.judge or "",),
            constitution=self.constitution or "",
            method=self.method,
            principles=self.principles,
            contrast_scale=self.contrast_scale,
            engine=self.judge_engine or (None if "fake" in (self.judge, own) else own),
            base_url=self.base_url,
            concurrency=self.concurrency,
            engine_memory=self.engine_memory,
            seed=self.seed,
        )
