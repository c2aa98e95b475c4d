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
    name_and_address,
    setting,
)
from rlaif_cli.config.chat import TEMPLATE_HELP, TemplateArguments
from rlaif_cli.config.engine import SERVERS, AnyEngineName
from rlaif_cli.config.judge import JudgeConfig
from rlaif_cli.config.naming import SettingError, option


class ScorersConfig(InputConfig, section=REWARDS):
    """What scores single responses, and the weight of each source."""

    reward_model: Names = setting((), "Folder of a reward model. Repeat to average the normalized rewards of several.")
    reward_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores responses; the file is executed. Repeatable, and can be combined "
        "with another source: the reward is the weighted sum. See docs/ppo.md.",
    )
    reward_weights: Numbers = setting(
        (),
        "Weight of a source. Repeat for each: the reward model or judge first, then the functions in order. "
        "Default: all 1.",
    )

    @property
    def other_source(self) -> str | None:
        """The short name of the source that is not a function, if there is one."""
        return "model" if self.reward_model else None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all sources in the order of the weights; functions of equal names are prefixed with their file.

        Raises:
            SettingError: two functions would have the same name.
        """
        first = (self.other_source,) if self.other_source else ()
        return (*first, *function_names("reward_function", self.reward_function, first))

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight for each of `sources`."""
        return self.reward_weights or (1.0,) * len(self.sources)

    @model_validator(mode="after")
    def _a_weight_each(self) -> ScorersConfig:
        names, given = self.sources, self.reward_weights
        if given and len(given) != len(names):
            order = ", ".join(names) or "none"
            raise SettingError(
                f"{option('reward_weights')}: {len(given)} weights for {len(names)} sources (in order: {order})"
            )
        if 0 in given:
            measured = "to measure a source without training on it: `rlaif ppo --eval-function` or `rlaif eval reward`"
            raise SettingError(f"{option('reward_weights')}: the weight of {names[given.index(0)]} is 0; {measured}")
        return self


class RewardSourceConfig(ScorersConfig, section=REWARDS):
    """What scores single responses: a reward model or a judge, and user-defined functions."""

    judge: str | None = setting(None, "Use a judge instead of a reward model (needs --constitution).")
    constitution: str | None = setting(None, "For --judge: name of a shipped constitution, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "For --judge: principles to average over, 'all' or ids.")
    method: Literal["contrast", "score"] = setting(
        "contrast",
        "For --judge: contrast compares likelihoods; score takes the expected rating from 1 to 10, scaled to -1 to 1.",
    )
    contrast_scale: float = setting(20.0, "For --judge: factor by which contrast scores are multiplied.", gt=0)
    judge_engine: AnyEngineName | None = setting(
        None,
        "For --judge: vllm, transformers, openai (a server), decisions or fake. Default: --engine.",
        section=ENGINE,
    )
    judge_template_arg: TemplateArguments = setting((), TEMPLATE_HELP.format("the judge's"), section=ENGINE)
    base_url: Addresses = setting(
        (),
        "For --judge-engine openai or decisions: the server. Repeat to use several. The key is read from "
        "OPENAI_API_KEY.",
        section=ENGINE,
        output=False,
    )
    concurrency: int = setting(
        16,
        "For --judge-engine openai or decisions: concurrent requests per server.",
        ge=1,
        section=ENGINE,
        output=False,
    )
    engine_memory: float | None = setting(
        None,
        "Memory for vLLM: GiB of KV cache on a CPU (default 2), fraction of GPU memory on a GPU (default 0.9).",
        gt=0,
        section=ENGINE,
        output=False,
    )

    @model_validator(mode="after")
    def _one_source(self) -> RewardSourceConfig:
        if self.reward_model and self.judge is not None:
            raise SettingError(f"{option('reward_model')} and {option('judge')} cannot be combined")
        if not self.sources:
            raise SettingError(
                f"a reward source is needed: {option('reward_model')}, {option('judge')} or {option('reward_function')}"
            )
        if self.judge is not None and self.constitution is None:
            raise SettingError(f"{option('judge')} needs {option('constitution')}")
        if self.judge is not None and name_and_address(self.judge)[1]:
            raise SettingError(f"{option('judge')} NAME@URL is for panels: give the server with {option('base_url')}")
        if self.base_url and self.judge_engine not in SERVERS:
            raise SettingError(f"{option('base_url')} needs {option('judge_engine')} openai or decisions")
        if self.judge_engine in SERVERS and self.method == "contrast":
            raise SettingError(
                f"{option('judge_engine')} {self.judge_engine} needs {option('method')} score: a server does not "
                "return the log-probs of given texts"
            )
        if self.judge is None:
            for name in (
                "constitution",
                "principles",
                "method",
                "contrast_scale",
                "judge_engine",
                "judge_template_arg",
            ):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise SettingError(f"{option(name)} needs {option('judge')}")
        return self

    @property
    def other_source(self) -> str | None:
        return "judge" if self.judge is not None else super().other_source

    @property
    def reward_judge(self) -> JudgeConfig:
        """The settings of `judge`; it runs on the stage's own `engine` unless `judge_engine` is given."""
        own: AnyEngineName | None = getattr(self, "engine", None)
        return JudgeConfig(
            judge=(self.judge or "",),
            constitution=self.constitution or "",
            method=self.method,
            principles=self.principles,
            contrast_scale=self.contrast_scale,
            chat_template_arg=self.judge_template_arg,
            engine=self.judge_engine or (None if "fake" in (self.judge, own) else own),
            base_url=self.base_url,
            concurrency=self.concurrency,
            engine_memory=self.engine_memory,
            seed=self.seed,
        )
