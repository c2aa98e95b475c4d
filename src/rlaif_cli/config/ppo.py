"""Settings of `rlaif ppo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import ENGINE, EVALUATION, FROM, OUTPUT, Functions, function_names, setting
from rlaif_cli.config.engine import EngineName
from rlaif_cli.config.judge import CompareConfig
from rlaif_cli.config.naming import SettingError, option
from rlaif_cli.config.reward import RewardSourceConfig
from rlaif_cli.config.train import TrainConfig


class PPOConfig(TrainConfig, RewardSourceConfig):
    """Tune a policy with PPO. The reward comes from a reward model, a judge or your own functions."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --steps 200 -o policy",
        "rlaif ppo prompts.jsonl --model org/model --judge org/judge --constitution helpfulness -o policy",
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --reward-function checks.py:exact "
        "--reward-weights 1 --reward-weights 0.5 -o policy",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True)
    engine: EngineName = setting(
        "vllm", "What samples the rollouts and runs a judge: vllm, transformers or fake.", section=ENGINE
    )
    system: str | None = setting(None, "System prompt for every prompt.")
    steps: int = setting(100, "Training steps, each a rollout and an update.", ge=1)
    prompts_per_step: int = setting(32, "Prompts per step.", ge=1)
    n: int = setting(4, "Responses per prompt.", short="-n", ge=1)
    max_tokens: int = setting(256, "Maximum tokens per response.", ge=1)
    temperature: float = setting(
        1.0, "Sampling temperature of the rollouts; also applied to the trained log-probs.", gt=0
    )
    top_p: float = setting(1.0, "Must be 1: PPO on truncated samples is biased.")
    epochs: int = setting(1, "Passes over each rollout.", ge=1)
    minibatches: int = setting(1, "Optimizer steps per pass over the rollout.", ge=1)
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = setting(
        "gae",
        "Advantage estimator. gae trains a value model; rloo and grpo compare the n responses of a prompt (n >= 2), "
        "reinforce all responses of a step, at half the cost of gae.",
    )
    value_lr: float | None = setting(None, "Learning rate of the value model. Default: --lr.", gt=0)
    kl_coef: float = setting(0.05, "Weight of the KL divergence from the reference model.", ge=0)
    kl_in: Literal["reward", "loss"] = setting(
        "reward", "Where the KL is applied: in the reward (k1 estimator) or in the loss (k2 estimator)."
    )
    kl_form: Literal["plain", "convex"] = setting(
        "plain", "plain: score - kl_coef KL; convex: (1 - kl_coef) score - kl_coef KL, as in Lee et al."
    )
    kl_target: float | None = setting(None, "Adapt kl_coef towards this KL (nats per response).", gt=0)
    max_kl: float | None = setting(
        None, "Stop before an update if the mean KL of the step (nats per response) is above this.", gt=0
    )
    clip: float = setting(0.2, "Clip range of the probability ratio.", gt=0)
    value_clip: float = setting(0.2, "Clip range of the value.", gt=0)
    value_coef: float = setting(0.1, "Weight of the value loss.", ge=0)
    gamma: float = setting(1.0, "Discount factor.", gt=0, le=1)
    lam: float = setting(0.95, "Lambda of GAE.", ge=0, le=1)
    missing_eos_penalty: float | None = setting(
        None, "Score given to a response that hit --max-tokens. Default: its own score."
    )
    length_penalty: float = setting(0.0, "Subtract this from the score for every token of the response.", ge=0)
    length_control: bool = setting(
        False,
        "Regress response length out of the scores of each step, so that length alone gains nothing.",
    )
    importance_cap: float = setting(
        2.0, "Cap on the importance weights that correct for the difference between engine and trainer.", gt=0
    )
    max_mismatch: float = setting(
        0.2, "Stop if the mean |engine - trainer| log-prob difference is above this: the weights are out of sync.", gt=0
    )
    max_unscored: float = setting(
        0.2,
        "Fraction of a step's responses that may be unscored; these are not trained on. Above it the run stops; it "
        "can be resumed, also with a different value.",
        ge=0,
        le=1,
        output=False,
    )
    eval_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores responses to held-out prompts but is not trained on; the file is "
        "executed. Repeatable. See docs/ppo.md.",
        section=EVALUATION,
    )
    eval_judge: str | None = setting(
        None,
        "Judge that compares the policy's responses to held-out prompts with those of the initial model. The weights "
        "with the highest win rate are kept: half of the held-out prompts choose them, the other half measures them. "
        "Use a different judge from the reward's.",
        section=EVALUATION,
    )
    eval_constitution: str | None = setting(
        None, "For --eval-judge: the constitution. Default: --constitution.", section=EVALUATION
    )
    eval_method: Literal["pairwise", "score", "contrast"] = setting(
        "pairwise", "For --eval-judge: the method, as in `rlaif label`.", section=EVALUATION
    )
    eval_every: int = setting(
        10,
        "For --eval-function and --eval-judge: steps between evaluations, besides those at the start and the end.",
        section=EVALUATION,
        ge=1,
    )
    eval_fraction: float = setting(
        0.1,
        "For --eval-function and --eval-judge: fraction of the prompts to hold out, at least two prompts.",
        section=EVALUATION,
        gt=0,
        lt=1,
    )
    samples_every: int = setting(
        10, "Steps between samples written to samples.jsonl; 0: none.", ge=0, section=OUTPUT, output=False
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> PPOConfig:
        if self.top_p != 1:
            raise SettingError(
                f"{option('top_p')} must be 1 with ppo: truncated sampling draws from a different distribution "
                "than the "
                f"trained one, which biases the gradient; lower {option('temperature')} instead"
            )
        self._check_evaluation()
        if self.length_control and self.length_penalty:
            raise SettingError(f"{option('length_control')} cancels {option('length_penalty')}: give only one of them")
        if self.kl_form == "convex" and (self.kl_target or self.kl_coef > 1):
            raise SettingError(f"{option('kl_form')} convex needs a fixed {option('kl_coef')} from 0 to 1")
        if self.advantage != "gae":
            if self.n < 2 and self.advantage != "reinforce":
                raise SettingError(
                    f"{option('advantage')} {self.advantage} compares a prompt's responses: {option('n')} must "
                    "be 2 or more"
                )
            whole = () if self.advantage == "reinforce" else ("gamma",)  # a group's rewards are summed as they are
            for name in ("value_lr", "value_clip", "value_coef", "lam", *whole):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise SettingError(
                        f"{option(name)} needs {option('advantage')} gae: {self.advantage} has no value model"
                    )
        return self

    def _check_evaluation(self) -> None:
        function_names("eval_function", self.eval_function)
        owners = {
            name: option("eval_judge") for name in ("eval_constitution", "eval_method") if self.eval_judge is None
        }
        if not self.evaluates:
            owners |= dict.fromkeys(
                ("eval_every", "eval_fraction"), f"{option('eval_function')} or {option('eval_judge')}"
            )
        for name, owner in owners.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise SettingError(f"{option(name)} needs {owner}")
        if self.eval_judge is not None and self.eval_constitution is None and self.constitution is None:
            raise SettingError(f"{option('eval_judge')} needs {option('eval_constitution')}")

    @property
    def eval_functions(self) -> dict[str, str]:
        """The name of each evaluation function in results -> FILE.py:NAME."""
        names = function_names("eval_function", self.eval_function)
        return dict(zip(names, self.eval_function, strict=True))

    @property
    def evaluates(self) -> bool:
        """Whether prompts are held out to evaluate the policy on."""
        return bool(self.eval_function) or self.eval_judge is not None

    @property
    def eval_comparison(self) -> CompareConfig:
        """The settings of `eval_judge`."""
        return CompareConfig(
            judge=(self.eval_judge or "",),
            constitution=self.eval_constitution or self.constitution or "",
            method=self.eval_method,
            engine=None if "fake" in (self.eval_judge, self.engine) else self.engine,
            engine_memory=self.engine_memory,
            truncate="middle",
            seed=self.seed,
        )
