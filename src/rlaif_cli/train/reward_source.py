"""Where PPO's scores come from: a reward model, a judge directly, or functions that users write. All read decoded text.

So a reward model may have another tokenizer and chat template than the policy, and is asked exactly what it was
trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from rlaif_cli.config.evaluate import BestOfNConfig, RewardConfig
from rlaif_cli.config.judge import JudgeConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.reward import RewardSourceConfig, ScorersConfig
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.messages import Message, content_id
from rlaif_cli.engines import LOCAL, Engine, EnginePool, Failed, Request
from rlaif_cli.errors import ModelError, UsageError
from rlaif_cli.judge import NoReward, RewardingJudge, make_judge, named_principles
from rlaif_cli.judge.constitution import Constitution, Principle
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.metadata import check_reward_model
from rlaif_cli.models.names import FAKE
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train import reward_function
from rlaif_cli.train.nn.heads import load_reward_model
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.nn.packing import Group
from rlaif_cli.train.nn.precision import frozen_dtype
from rlaif_cli.train.reward_function import RewardFunction, Row, response_key
from rlaif_cli.train.reward_model import MIN_REWARD_STD, score_groups
from rlaif_cli.ui import console


class RewardSource(Protocol):
    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        """The score of every response: [rows, n]; NaN where it has none (`why_unscored`)."""
        ...


def check_reward_source(config: ScorersConfig) -> None:
    """Whatever can be wrong with it, before compute is spent.

    Raises:
        InputError, ModelError: no such constitution, principle, function or model, or the model is no reward model.
    """
    for spec in config.reward_function:
        reward_function.load(spec)
    for name in config.reward_model:
        check_reward_model(resolve_model(name))
    if isinstance(config, RewardSourceConfig) and config.judge is not None and config.constitution is not None:
        _principles(load_constitution(config.constitution), config.principles)
        if config.judge != FAKE and config.judge_engine in (None, *LOCAL):
            resolve_model(config.judge)


def reward_source(
    config: PPOConfig | RewardConfig | BestOfNConfig,
    engines: EnginePool | None,
    load_adapter: Callable[[Path], Adapted | None] = lambda _: None,
) -> RewardSource:
    """What `config` names: the reward models or the judge, and the functions; of several, the weighted sum.

    Args:
        engines: where a judge is run; not needed without one.
        load_adapter: a reward model as an adapter on a body that is there already, where it can be one.
    """
    found = list[RewardSource]()
    if config.reward_model:
        found.append(reward_models(config.reward_model, config.precision, config.tokens_per_batch, load_adapter))
    elif isinstance(config, RewardSourceConfig) and config.judge is not None:
        assert engines is not None
        wanted = config.reward_judge
        found.append(JudgeScorer(wanted, engines.get(wanted, wanted.judge[0])))
    found += [reward_function.load(spec) for spec in config.reward_function]
    if config.weights == (1.0,):
        return found[0]
    return WeightedSum(dict(zip(config.sources, found, strict=True)), config.weights)


def reward_models(
    names: Sequence[str],
    precision: str,
    token_budget: int,
    load_adapter: Callable[[Path], Adapted | None] = lambda _: None,
) -> RewardSource:
    """The mean of the normalised rewards of several reward models."""
    return Ensemble(
        [RewardModelScorer(path, precision, token_budget, load_adapter(path)) for path in map(resolve_model, names)]
    )


class RewardModelScorer:
    """A trained reward model; scores are normalised by the mean and std that its checkpoint stores.

    Args:
        model: the same model on a body that is there already.
    """

    def __init__(self, path: Path, precision: str, token_budget: int, model: Adapted | None = None) -> None:
        self.model = model or load_reward_model(path, frozen_dtype(precision)).eval().requires_grad_(False)
        self.reader = RewardReader(path)
        self.mean, self.std = stored_scale(path)
        self._precision = precision
        self._token_budget = token_budget

    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        groups = [self.reader.group(row.messages, texts) for row, texts in zip(rows, responses, strict=True)]
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

    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        return torch.stack([source.score(rows, responses) for source in self._sources]).mean(0)


class WeightedSum:
    """The weighted sum of several sources; a response that one of them leaves without a score has none.

    Args:
        sources: by name.
        weights: in the same order.
    """

    def __init__(self, sources: Mapping[str, RewardSource], weights: Sequence[float]) -> None:
        self.sources = sources
        self._weights = weights

    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        return self.total(self.of_each(rows, responses))

    def of_each(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """The scores by each source, before its weight: [rows, n] by name."""
        return {name: source.score(rows, responses) for name, source in self.sources.items()}

    def total(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[rows, n], of what `of_each` returned."""
        weighted = [weight * each for weight, each in zip(self._weights, scores.values(), strict=True)]
        return torch.stack(weighted).sum(0)


def scores_and_parts(
    source: RewardSource, rows: Sequence[Row], responses: Sequence[Sequence[str]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The scores, [rows, n], and where they come from several sources, those of each by name, before its weight."""
    none = torch.empty(0, 0)  # of a process without a prompt, where there are fewer of them than processes
    if not isinstance(source, WeightedSum):
        return source.score(rows, responses) if rows else none, {}
    each = source.of_each(rows, responses) if rows else dict.fromkeys(source.sources, none)
    return source.total(each), each if len(each) > 1 else {}


class JudgeScorer:
    """A judge's own word on a single response: see `rewards` of its method. Means over the principles, cached.

    A response that one principle leaves without a reward has no score: a mean over the others would be another kind
    of number than its neighbours'. It is asked about again if it comes again.

    Attributes:
        reasons: why, by `response_key`; of the last call.
    """

    def __init__(self, config: JudgeConfig, engine: Engine) -> None:
        constitution = load_constitution(config.constitution)
        self._principles = _principles(constitution, config.principles)
        self._judge = cast(RewardingJudge, make_judge(config, constitution, cast(Engine, _SkipsTooLong(engine))))
        self._cache: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        asked = [
            [(content_id(row.messages, text), row, text) for text in texts]
            for row, texts in zip(rows, responses, strict=True)
        ]
        items = {
            (key, principle.id): ((key, principle.id), row.messages, text, principle)
            for of_row in asked
            for key, row, text in of_row
            if key not in self._cache
            for principle in self._principles
        }
        found: dict[str, list[float]] = {}
        for (key, _), reward in self._judge.rewards(items.values()):
            found.setdefault(key, []).append(reward)
        missing: dict[str, str] = {}
        for key, rewards in found.items():
            if failed := [reward for reward in rewards if not math.isfinite(reward)]:
                missing[key] = _why(failed, len(rewards))
            else:
                self._cache[key] = sum(rewards) / len(rewards)
        self.reasons = {
            response_key(row, text): missing[key] for of_row in asked for key, row, text in of_row if key in missing
        }
        return torch.tensor([[self._cache.get(key, math.nan) for key, _, _ in of_row] for of_row in asked])


class _SkipsTooLong:
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


def why_unscored(source: RewardSource, row: Row, response: str) -> str:
    """Why a source gave a response no score in its last call."""
    key = response_key(row, response)
    if isinstance(source, WeightedSum):
        return next((known for each in source.sources.values() if (known := _reason(each, key))), NOT_FINITE)
    return _reason(source, key) or NOT_FINITE


def _reason(source: RewardSource, key: str) -> str | None:
    return source.reasons.get(key) if isinstance(source, JudgeScorer | RewardFunction) else None


def _principles(constitution: Constitution, wanted: Sequence[str]) -> tuple[Principle, ...]:
    # A drawn principle would make the reward itself random from step to step.
    if tuple(wanted) == ("sample",):
        raise UsageError("--principles sample is for comparisons: a reward needs the same ones for every response")
    return named_principles(constitution, wanted)


def stored_scale(path: Path) -> tuple[float, float]:
    """(mean, std) of the rewards over the training responses; (0, 1) for a model of another tool."""
    scale = read_json(path / "config.json", error=ModelError).get("rlaif") or {}
    std = float(scale.get("reward_std", 1.0))
    if std < MIN_REWARD_STD:
        console.warn_once(f"{path}: this reward model prefers nothing: all its training responses got one reward")
    return float(scale.get("reward_mean", 0.0)), max(std, MIN_REWARD_STD)
