"""Where PPO's scores come from: a reward model, or a judge directly. Both read decoded text.

So a reward model may have another tokenizer and chat template than the policy, and is asked exactly what it was
trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from rlaif_cli import console, models
from rlaif_cli import constitution as constitutions
from rlaif_cli.chat import ChatTokenizer
from rlaif_cli.config import JudgeConfig, PPOConfig, RewardConfig, RewardSourceConfig
from rlaif_cli.constitution import Constitution, Principle
from rlaif_cli.engines import LOCAL, Engine, EnginePool, Failed, Request
from rlaif_cli.errors import ModelError, UsageError
from rlaif_cli.judge import NoReward, RewardingJudge, make_judge, named_principles
from rlaif_cli.output import read_json
from rlaif_cli.records import Message, content_id
from rlaif_cli.train import loop
from rlaif_cli.train.adapters import Adapted
from rlaif_cli.train.models import load_reward_model
from rlaif_cli.train.packing import Group
from rlaif_cli.train.reward_model import NO_SPREAD, score_groups


class RewardSource(Protocol):
    def score(self, prompts: Sequence[list[Message]], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        """The score of every response: [prompts, n]; NaN where it has none (`why_unscored`)."""
        ...


def check_reward_source(config: RewardSourceConfig) -> None:
    """Whatever can be wrong with it, before compute is spent.

    Raises:
        InputError, ModelError: no such constitution, principle or model, or the model is no reward model.
    """
    for name in config.reward_model:
        models.check_reward_model(models.resolve(name))
    if config.judge is not None and config.constitution is not None:
        _principles(constitutions.load(config.constitution), config.principles)
        if config.judge != models.FAKE and config.judge_engine in (None, *LOCAL):
            models.resolve(config.judge)


def reward_source(
    config: PPOConfig | RewardConfig, engines: EnginePool, on_body: Callable[[Path], Adapted | None] = lambda _: None
) -> RewardSource:
    """The reward models or the judge that `config` names.

    Args:
        on_body: a reward model as an adapter on a body that is there already, where it can be one.
    """
    if config.reward_model:
        return reward_models(config.reward_model, config.precision, config.tokens_per_batch, on_body)
    wanted = config.reward_judge
    return JudgeScorer(wanted, engines.get(wanted, wanted.judge[0]))


def reward_models(
    names: Sequence[str],
    precision: str,
    token_budget: int,
    on_body: Callable[[Path], Adapted | None] = lambda _: None,
) -> RewardSource:
    """The mean of the normalised rewards of several reward models."""
    return Ensemble(
        [RewardModelScorer(path, precision, token_budget, on_body(path)) for path in map(models.resolve, names)]
    )


class RewardModelScorer:
    """A trained reward model; scores are normalised by the mean and std that its checkpoint stores.

    Args:
        model: the same model on a body that is there already.
    """

    def __init__(self, path: Path, precision: str, token_budget: int, model: Adapted | None = None) -> None:
        self.model = model or load_reward_model(path, loop.frozen_dtype(precision)).eval().requires_grad_(False)
        self.reader = RewardReader(path)
        self.mean, self.std = stored_scale(path)
        self._precision = precision
        self._token_budget = token_budget

    def score(self, prompts: Sequence[list[Message]], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        groups = [self.reader.group(prompt, texts) for prompt, texts in zip(prompts, responses, strict=True)]
        raw = score_groups(self.model, groups, self._precision, self._token_budget)
        return (torch.from_numpy(raw).float() - self.mean) / self.std


class RewardReader:
    """The tokens that a reward model reads of a conversation; its reward is that at the last one.

    A model of `train-rm` reads up to the end of the response's turn. One of another tool is read as transformers and
    TRL do it: the whole conversation as the template writes it, up to the last token that is no pad.
    """

    def __init__(self, path: Path) -> None:
        config = read_json(path / "config.json", error=ModelError)
        self.tokenizer = ChatTokenizer(path)
        self._ours = "rlaif" in config
        self._pad = config.get("pad_token_id")

    def group(self, prompt: Sequence[Message], texts: Sequence[str]) -> Group:
        if self._ours:
            return Group(self.tokenizer.chat(prompt), [self.tokenizer.response(text) for text in texts])
        whole = [self._whole(prompt, text) for text in texts]
        alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*whole, strict=False))
        shared = min(sum(1 for _ in alike), min(map(len, whole)) - 1)  # something is left of each
        return Group(whole[0][:shared], [ids[shared:] for ids in whole])

    def _whole(self, prompt: Sequence[Message], text: str) -> list[int]:
        reply = Message(role="assistant", content=text)
        ids = self.tokenizer.chat([*prompt, reply], add_generation_prompt=False)
        while ids[-1] == self._pad:
            ids = ids[:-1]
        return ids


class Ensemble:
    """The mean of several sources."""

    def __init__(self, sources: Sequence[RewardSource]) -> None:
        self._sources = sources

    def score(self, prompts: Sequence[list[Message]], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        return torch.stack([source.score(prompts, responses) for source in self._sources]).mean(0)


class JudgeScorer:
    """A judge's own word on a single response: see `rewards` of its method. Means over the principles, cached.

    A response that one principle leaves without a reward has no score: a mean over the others would be another kind
    of number than its neighbours'. It is asked about again if it comes again.

    Attributes:
        reasons: why, by `content_id` of prompt and response; of the last call.
    """

    def __init__(self, config: JudgeConfig, engine: Engine) -> None:
        constitution = constitutions.load(config.constitution)
        self._principles = _principles(constitution, config.principles)
        self._judge = cast(RewardingJudge, make_judge(config, constitution, cast(Engine, _Fitting(engine))))
        self._cache: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def score(self, prompts: Sequence[list[Message]], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        keys = [[content_id(prompt, text) for text in texts] for prompt, texts in zip(prompts, responses, strict=True)]
        items = {
            (key, principle.id): ((key, principle.id), prompt, text, principle)
            for prompt, texts, row in zip(prompts, responses, keys, strict=True)
            for text, key in zip(texts, row, strict=True)
            if key not in self._cache
            for principle in self._principles
        }
        found: dict[str, list[float]] = {}
        for (key, _), reward in self._judge.rewards(items.values()):
            found.setdefault(key, []).append(reward)
        self.reasons = {}
        for key, rewards in found.items():
            missing = [reward for reward in rewards if not math.isfinite(reward)]
            if missing:
                self.reasons[key] = _why(missing, len(rewards))
            else:
                self._cache[key] = sum(rewards) / len(rewards)
        return torch.tensor([[self._cache.get(key, math.nan) for key in row] for row in keys])


class _Fitting:
    """An engine that answers `Failed` to what its context does not hold; the engine itself would end the whole run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        limit, too_long = self._engine.max_length, []

        def fitting() -> Iterator[Request]:
            for request in requests:
                tokens = len(request.prompt) + len(request.continuation) + 1
                if limit and tokens > limit:
                    what = f"the response and the judge's question need {tokens} tokens, its context holds {limit}"
                    too_long.append((request.key, Failed(what, False)))
                else:
                    yield request

        yield from self._engine.logprobs(fitting())
        yield from too_long


NOT_FINITE = "its score is no finite number"


def _why(missing: Sequence[float], asked: int) -> str:
    """Why a response has no score, of whose questions (one for each principle) these have no reward."""
    reason = missing[0].reason if isinstance(missing[0], NoReward) else NOT_FINITE
    return (
        reason if asked == 1 else f"{len(missing)} of its {asked} questions (one for each principle) failed: {reason}"
    )


def why_unscored(source: RewardSource, prompt: list[Message], response: str) -> str:
    """Why a source gave a response no score in its last call."""
    known = source.reasons if isinstance(source, JudgeScorer) else {}
    return known.get(content_id(prompt, response), NOT_FINITE)


def _principles(constitution: Constitution, wanted: Sequence[str]) -> tuple[Principle, ...]:
    # A drawn principle would make the reward itself random from step to step.
    if tuple(wanted) == ("sample",):
        raise UsageError("--principles sample is for comparisons: a reward needs the same ones for every response")
    return named_principles(constitution, wanted)


def stored_scale(path: Path) -> tuple[float, float]:
    """(mean, std) of the rewards over the training responses; (0, 1) for a model of another tool."""
    scale = read_json(path / "config.json", error=ModelError).get("rlaif") or {}
    std = float(scale.get("reward_std", 1.0))
    if std < NO_SPREAD:
        console.warn_once(f"{path}: this reward model prefers nothing: all its training responses got one reward")
    return float(scale.get("reward_mean", 0.0)), max(std, NO_SPREAD)
