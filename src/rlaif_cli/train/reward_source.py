"""PPO's reward sources: a reward model, a judge, or user-written functions. All of them score decoded text.

So a reward model may have a different tokenizer and chat template from the policy's, and gets its input in exactly the
format that it was trained on.
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
from rlaif_cli.config.naming import option
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
        """The score of every response: [rows, n]; NaN if it is unscored (see `why_unscored`)."""
        ...


def check_reward_source(config: ScorersConfig) -> None:
    """Check the reward source before compute is spent.

    Raises:
        InputError, ModelError: no such constitution, principle, function or model, or it is not a reward model.
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
    """Build the reward source of `config`: reward models or a judge, and functions; the weighted sum if several.

    Args:
        engines: runs the judge; not needed without one.
        load_adapter: loads a reward model as an adapter on the policy's body, or returns None if that is not possible.
    """
    sources = list[RewardSource]()
    if config.reward_model:
        sources.append(reward_models(config.reward_model, config.precision, config.tokens_per_batch, load_adapter))
    elif isinstance(config, RewardSourceConfig) and config.judge is not None:
        assert engines is not None
        judge = config.reward_judge
        sources.append(JudgeScorer(judge, engines.get(judge, judge.judge[0])))
    sources += [reward_function.load(spec) for spec in config.reward_function]
    if config.weights == (1.0,):
        return sources[0]
    return WeightedSum(dict(zip(config.sources, sources, strict=True)), config.weights)


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
    """A trained reward model; scores are normalised by the mean and std stored in its checkpoint.

    Args:
        model: the same model if already loaded as an adapter.
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
    """Tokenizes conversations for a reward model, whose reward is its output at the last token.

    A model trained by `train-rm` reads up to the end of the response's turn. Models from other tools are handled as in
    transformers and TRL: the whole conversation as the template renders it, up to the last token that is not a pad.
    """

    def __init__(self, path: Path) -> None:
        config = read_json(path / "config.json", error=ModelError)
        self.tokenizer = ChatTokenizer(path)
        self._ours = "rlaif" in config
        self._pad = config.get("pad_token_id")

    def group(self, prompt: Sequence[Message], texts: Sequence[str]) -> Group:
        if self._ours:
            return Group(self.tokenizer.chat(prompt), [self.tokenizer.response(text) for text in texts])
        rendered = [self._rendered(prompt, text) for text in texts]
        common = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rendered, strict=False))
        shared = min(sum(1 for _ in common), min(map(len, rendered)) - 1)  # leave at least one token of each
        return Group(rendered[0][:shared], [ids[shared:] for ids in rendered])

    def _rendered(self, prompt: Sequence[Message], text: str) -> list[int]:
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
    """The weighted sum of several sources; a response that one of them leaves unscored is unscored.

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
        """The scores of each source by name, before weighting: [rows, n]."""
        return {name: source.score(rows, responses) for name, source in self.sources.items()}

    def total(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the result of `of_each`: [rows, n]."""
        weighted = [weight * each for weight, each in zip(self._weights, scores.values(), strict=True)]
        return torch.stack(weighted).sum(0)


def scores_and_parts(
    source: RewardSource, rows: Sequence[Row], responses: Sequence[Sequence[str]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(scores [rows, n], the unweighted scores of each source by name); the latter is empty for a single source."""
    none = torch.empty(0, 0)  # for a process without prompts, if there are fewer prompts than processes
    if not isinstance(source, WeightedSum):
        return source.score(rows, responses) if rows else none, {}
    each = source.of_each(rows, responses) if rows else dict.fromkeys(source.sources, none)
    return source.total(each), each if len(each) > 1 else {}


class JudgeScorer:
    """Scores single responses with a judge (see `rewards` of its method): the mean over the principles, cached.

    A response without a reward for one of the principles is unscored: a mean over the others would not be comparable
    with other scores. Unscored responses are not cached, so a later call asks the judge again.

    Attributes:
        reasons: why a response of the last call is unscored, by `response_key`.
    """

    def __init__(self, config: JudgeConfig, engine: Engine) -> None:
        constitution = load_constitution(config.constitution)
        self._principles = _principles(constitution, config.principles)
        self._judge = cast(RewardingJudge, make_judge(config, constitution, cast(Engine, _SkipTooLong(engine))))
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


class _SkipTooLong:
    """Wraps an engine to answer `Failed` for requests beyond its context length, which would otherwise end the run."""

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


NOT_FINITE = "its score is not a finite number"


def _why(missing: Sequence[float], asked: int) -> str:
    """Why a response is unscored.

    Args:
        missing: the failed rewards.
        asked: the number of questions, one per principle.
    """
    reason = missing[0].reason if isinstance(missing[0], NoReward) else NOT_FINITE
    return (
        reason if asked == 1 else f"{len(missing)} of its {asked} questions (one for each principle) failed: {reason}"
    )


def why_unscored(source: RewardSource, row: Row, response: str) -> str:
    """Why a source left a response unscored in its last call."""
    key = response_key(row, response)
    if isinstance(source, WeightedSum):
        return next((known for each in source.sources.values() if (known := _reason(each, key))), NOT_FINITE)
    return _reason(source, key) or NOT_FINITE


def _reason(source: RewardSource, key: str) -> str | None:
    return source.reasons.get(key) if isinstance(source, JudgeScorer | RewardFunction) else None


def _principles(constitution: Constitution, wanted: Sequence[str]) -> tuple[Principle, ...]:
    # A sampled principle would make the reward itself random from step to step.
    if tuple(wanted) == ("sample",):
        raise UsageError(
            f"{option('principles')} sample is for comparisons: a reward needs the same principles for every response"
        )
    return named_principles(constitution, wanted)


def stored_scale(path: Path) -> tuple[float, float]:
    """(mean, std) of the rewards over the training responses; (0, 1) for a model from another tool."""
    scale = read_json(path / "config.json", error=ModelError).get("rlaif") or {}
    std = float(scale.get("reward_std", 1.0))
    if std < MIN_REWARD_STD:
        console.warn_once(f"{path}: this reward model prefers nothing: all its training responses got the same reward")
    return float(scale.get("reward_mean", 0.0)), max(std, MIN_REWARD_STD)
