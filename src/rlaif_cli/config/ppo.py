"""Settings of `rlaif ppo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import ENGINE, EVALUATION, FROM, OUTPUT, Functions, function_names, setting
from rlaif_cli.config.engine import EngineName
from rlaif_cli.config.judge import CompareConfig
from rlaif_cli.config.reward import RewardSourceConfig
from rlaif_cli.config.train import TrainConfig


class PPOConfig(TrainConfig, RewardSourceConfig):
    """Tune a policy by PPO. Against a reward model, a judge or reward functions of your own."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --steps 200 -o policy",
        "rlaif ppo prompts.jsonl --model org/model --judge org/judge --constitution helpfulness -o policy",
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --reward-function checks.py:exact "
        "--reward-weights 1 --reward-weights 0.5 -o policy",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True)
    engine: EngineName = setting(
        "vllm", "What samples the rollouts, and runs a judge: vllm, transformers or fake.", section=ENGINE
    )
    system: str | None = setting(None, "A system prompt for every prompt.")
    steps: int = setting(100, "Rollout and update rounds.", ge=1)
    prompts_per_step: int = setting(32, "Prompts a step.", ge=1)
    n: int = setting(4, "Responses a prompt.", short="-n", ge=1)
    max_tokens: int = setting(256, "The longest response, tokens.", ge=1)
    temperature: float = setting(1.0, "Of the rollouts; log-probs are divided by it.", gt=0)
    top_p: float = setting(1.0, "Must be 1: PPO on truncated samples is biased.")
    epochs: int = setting(1, "Passes over each rollout.", ge=1)
    minibatches: int = setting(1, "Optimizer steps a pass over the rollout.", ge=1)
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = setting(
        "gae",
        "gae learns a value model; rloo and grpo compare the n responses of a prompt (n >= 2), reinforce those of the "
        "whole step: half the work.",
    )
    value_lr: float | None = setting(None, "The value model's learning rate; default: the policy's.", gt=0)
    kl_coef: float = setting(0.05, "Weight of the KL to the reference.", ge=0)
    kl_in: Literal["reward", "loss"] = setting("reward", "Where the KL stands: k1 in the reward, or k2 in the loss.")
    kl_form: Literal["plain", "convex"] = setting(
        "plain", "plain: score - kl_coef KL. convex: (1 - kl_coef) score - kl_coef KL, as Lee et al. write it."
    )
    kl_target: float | None = setting(None, "Adapt kl_coef towards this KL (nats a response).", gt=0)
    max_kl: float | None = setting(
        None, "Stop before the update of a step whose mean KL (nats a response) is above this.", gt=0
    )
    clip: float = setting(0.2, "The ratio's clip range.", gt=0)
    value_clip: float = setting(0.2, "The value's clip range.", gt=0)
    value_coef: float = setting(0.1, "Weight of the value loss.", ge=0)
    gamma: float = setting(1.0, "Discount.", gt=0, le=1)
    lam: float = setting(0.95, "GAE's lambda.", ge=0, le=1)
    missing_eos_penalty: float | None = setting(
        None, "The score of a response that did not end by itself; default: its own score stands."
    )
    length_penalty: float = setting(0.0, "Taken from the score for every token of the response.", ge=0)
    length_control: bool = setting(
        False,
        "Take out of each step's scores what the responses' lengths explain of them: nothing is gained by length.",
    )
    importance_cap: float = setting(2.0, "Cap of the importance weights between engine and trainer.", gt=0)
    max_mismatch: float = setting(
        0.2, "Stop when mean |engine - trainer| log-prob is beyond this: the weights were not synced.", gt=0
    )
    max_unscored: float = setting(
        0.2,
        "The share of a step's responses that may be left without a score: they are not trained on. Above it the run "
        "stops, and can be resumed, also with another share.",
        ge=0,
        le=1,
        output=False,
    )
    eval_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores the answers to held-out prompts: a measure that nothing is "
        "trained on; the file is run as code. May be given several times. See docs/ppo.md.",
        section=EVALUATION,
    )
    eval_judge: str | None = setting(
        None,
        "This judge compares the policy's answers to held-out prompts with the start's, and the weights with the "
        "highest win rate are kept. Half of the held-out prompts choose; on the other half the chosen weights are "
        "measured. Use a different judge from the reward's.",
        section=EVALUATION,
    )
    eval_constitution: str | None = setting(
        None, "For --eval-judge: a constitution. Default: --constitution.", section=EVALUATION
    )
    eval_method: Literal["pairwise", "score", "contrast"] = setting(
        "pairwise", "For --eval-judge: as in `label`.", section=EVALUATION
    )
    eval_every: int = setting(
        10,
        "For --eval-function and --eval-judge: steps between evaluations; there is one at the start and one at the "
        "end too.",
        section=EVALUATION,
        ge=1,
    )
    eval_fraction: float = setting(
        0.1,
        "For --eval-function and --eval-judge: the share of the prompts held out, two at least.",
        section=EVALUATION,
        gt=0,
        lt=1,
    )
    samples_every: int = setting(
        10, "Steps between samples written to samples.jsonl; 0: never.", ge=0, section=OUTPUT, output=False
    )

    @model_validator(mode="after")
    def _can_be(self) -> PPOConfig:
        if self.top_p != 1:
            raise ValueError(
                "--top-p must be 1 with ppo: truncated sampling draws from another distribution than the one whose "
                "log-probs are trained, which biases the gradient; lower --temperature instead"
            )
        self._check_evaluation()
        if self.length_control and self.length_penalty:
            raise ValueError("--length-control takes out what --length-penalty puts in: give one of them")
        if self.kl_form == "convex" and (self.kl_target or self.kl_coef > 1):
            raise ValueError("--kl-form convex needs a fixed --kl-coef from 0 to 1")
        if self.advantage != "gae":
            if self.n < 2 and self.advantage != "reinforce":
                raise ValueError(f"--advantage {self.advantage} compares a prompt's responses: --n must be 2 or more")
            whole = () if self.advantage == "reinforce" else ("gamma",)  # a group's rewards are summed as they are
            for name in ("value_lr", "value_clip", "value_coef", "lam", *whole):
                if getattr(self, name) != type(self).model_fields[name].default:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} belongs to --advantage gae: {self.advantage} has no value model")
        return self

    def _check_evaluation(self) -> None:
        function_names("--eval-function", self.eval_function)
        owners = {name: "--eval-judge" for name in ("eval_constitution", "eval_method") if self.eval_judge is None}
        if not self.evaluates:
            owners |= dict.fromkeys(("eval_every", "eval_fraction"), "--eval-function and --eval-judge")
        for name, owner in owners.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name.replace('_', '-')} belongs to {owner}")
        if self.eval_judge is not None and self.eval_constitution is None and self.constitution is None:
            raise ValueError("--eval-judge needs --eval-constitution")

    @property
    def eval_functions(self) -> dict[str, str]:
        """What each of `eval_function` is called in results -> FILE.py:NAME."""
        names = function_names("--eval-function", self.eval_function)
        return dict(zip(names, self.eval_function, strict=True))

    @property
    def evaluates(self) -> bool:
        """Whether prompts are held out to measure the policy on."""
        return bool(self.eval_function) or self.eval_judge is not None

    @property
    def eval_comparison(self) -> CompareConfig:
        """How `eval_judge` is asked."""
        return CompareConfig(
            judge=(self.eval_judge or "",),
            constitution=self.eval_constitution or self.constitution or "",
            method=self.eval_method,
            engine=None if "fake" in (self.eval_judge, self.engine) else self.engine,
            engine_memory=self.engine_memory,
            truncate="middle",
            seed=self.seed,
        )
