"""Evaluations of the policy on held-out prompts during PPO: its reward, measures that it is not trained on, and the KL
to the initial policy.

The optimised reward (the proxy) may keep rising while the intended measure (the gold) falls again; plotting both
against the KL shows this overoptimisation (Gao et al., arXiv 2210.10760).

Every evaluation samples the same prompts with the same seeds. Its numbers are a row of `evaluations.jsonl`; the
responses, with the numbers of each, are in `evaluations.items.jsonl`. Everything that is reported is computed from the
numbers in these files, so that anyone can recompute it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.atomic import open_for_writing, read_rows
from rlaif_cli.engines.base import request_seed
from rlaif_cli.stats.as_json import estimate, rounded
from rlaif_cli.stats.diversity import distinct_ngrams, openings
from rlaif_cli.train import scoring
from rlaif_cli.train.best_policy import Answers, Selection, WinRate
from rlaif_cli.train.dataset import held_out
from rlaif_cli.train.parallel.distributed import all_gather, broadcast_from_main, local_share
from rlaif_cli.train.reward_source import RewardSource
from rlaif_cli.train.rollout import Prompt, Rollout, RolloutEngine
from rlaif_cli.train.runtime.metrics_log import drop_rows_after
from rlaif_cli.ui import messages

EVALUATIONS = "evaluations.jsonl"
ITEMS = "evaluations.items.jsonl"
# A response of an evaluation: a line of ITEMS.
Item = dict[str, Any]
Value = Callable[[Item], float | None]


class Evaluations:
    """The evaluations of a run. All processes must call every method together.

    Args:
        prompts: the held-out prompts; each gets `config.n` responses.
        kl_of: rollouts -> [S], log p - log p_ref of every response, summed over its tokens.
        reward: the source that the policy is trained on.
        functions: other sources by name, which it is not trained on.
        choice: compares responses with the initial policy's to select weights; None for no selection.
        resume_step: the step that the run resumes from; later evaluations are dropped.
    """

    def __init__(
        self,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        kl_of: Callable[[list[Rollout]], Tensor],
        reward: RewardSource,
        functions: Mapping[str, RewardSource],
        choice: Selection | None = None,
        *,
        resume_step: int = 0,
    ) -> None:
        self._config, self._prompts = config, prompts
        self._kl_of, self._reward, self._functions, self._choice = kl_of, reward, functions, choice
        self._folder = Path(config.output)
        drop_rows_after(self._folder / EVALUATIONS, resume_step)
        self._last = broadcast_from_main(self._last_written)
        # The row is written last: without it, items may be left from a killed evaluation.
        drop_rows_after(self._folder / ITEMS, self._last)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to evaluate after `step` updates: every `eval_every` updates and after the last one."""
        return bool(self._prompts) and (step % self._config.eval_every == 0 or last)

    def rows(self) -> list[dict[str, Any]]:
        """All evaluations so far."""
        return broadcast_from_main(lambda: read_rows(self._folder / EVALUATIONS))

    def evaluate(self, engine: RolloutEngine, step: int, *, choose: bool = True) -> WinRate | None:
        """Sample, score and write an evaluation; returns the win rate if the judge that selects weights was called.

        Does nothing if the evaluation of `step` already exists, or no prompt is held out.

        Args:
            step: number of updates so far.
            choose: whether these weights may be selected; the initial weights never are.
        """
        if step <= self._last or not self._prompts:
            return None
        engine.sync()
        items = self._items(step, self._answer(engine))
        self._last = step
        return broadcast_from_main(lambda: self._write(items, choose and step > 0))

    def report(self, step: int) -> WinRate:
        """The win rate of the responses after `step` over the initial ones, on the prompts not used for selection."""
        assert self._choice is not None
        choice = self._choice
        return broadcast_from_main(lambda: choice.report_win_rate(*(answers(self._read(at)) for at in (step, 0))))

    def _answer(self, engine: RolloutEngine) -> list[Rollout]:
        """Sample with the same seeds every time, to reduce the noise in comparisons."""
        mine = local_share(self._prompts)
        seeds = [request_seed(self._config.seed, "held out", prompt.id) for prompt in mine]
        return all_gather(engine.sample(mine, seeds))

    def _items(self, step: int, rollouts: list[Rollout]) -> list[Item]:
        mine = local_share(rollouts)
        kl = self._kl_of(rollouts).tolist()
        reward = scoring.score_rollouts(self._reward, mine).values.tolist()
        functions = {
            name: scoring.score_rollouts(source, mine).values.tolist() for name, source in self._functions.items()
        }
        responses = [(rollout.prompt.id, completion) for rollout in rollouts for completion in rollout.completions]
        return [
            {
                "step": step,
                "id": key,
                "response": completion.answer,
                "tokens": len(completion.token_ids),
                "kl": rounded(kl[index], 6),
                "reward": rounded(reward[index], 6),
                "functions": {name: rounded(found[index], 6) for name, found in functions.items()},
            }
            for index, (key, completion) in enumerate(responses)
        ]

    def _write(self, items: list[Item], choose: bool) -> WinRate | None:
        """Write the items, then the row, which marks them as complete."""
        step = items[0]["step"]
        initial = self._read(0) if step else items
        found = self._choice.selection_win_rate(answers(items), answers(initial)) if choose and self._choice else None
        if found is not None:
            _record_wins(items, found)
            if not found.decided:
                messages.warn(f"--eval-judge could decide none of the {found.unscored} comparisons after step {step}")
        self._append(ITEMS, items)
        self._append(EVALUATIONS, [summary_row(items, initial, found)])
        return found

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with open_for_writing(self._folder / name, "a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _read(self, step: int) -> list[Item]:
        return [item for item in read_rows(self._folder / ITEMS) if item["step"] == step]

    def _last_written(self) -> int:
        path = self._folder / EVALUATIONS
        rows = read_rows(path) if path.exists() else []
        return rows[-1]["step"] if rows else -1


def answers(items: Sequence[Item]) -> Answers:
    found: dict[str, list[str | None]] = {}
    for item in items:
        found.setdefault(item["id"], []).append(item["response"])
    return found


def _record_wins(items: Sequence[Item], found: WinRate) -> None:
    """Set `win` on the items of the selection prompts: a prompt's k-th comparison is of its k-th response."""
    wins: dict[str, list[float | None]] = {}
    for prompt, win in zip(found.prompts, found.wins, strict=True):
        wins.setdefault(prompt, []).append(win)
    for prompt, of_prompt in wins.items():
        for item, win in zip((item for item in items if item["id"] == prompt), of_prompt, strict=True):
            item["win"] = win


# ------------------------------------------------------------------------------------------- the numbers of a row


def summary_row(items: Sequence[Item], start: Sequence[Item], found: WinRate | None = None) -> dict[str, Any]:
    """The row of `evaluations.jsonl` for an evaluation.

    Args:
        start: the items of step 0, for the same prompts in the same order.
        found: the win rate, if the judge that selects weights was called.
    """
    step, names = items[0]["step"], list(items[0]["functions"])
    texts = [item["response"] or "" for item in items]

    def change(value: Value) -> dict[str, Any] | None:
        return difference(items, start, value) if step else None

    row = {
        "step": step,
        "prompts": len({item["id"] for item in items}),
        "responses": len(items),
        "unscored": sum(None in (item["reward"], *item["functions"].values()) for item in items),
        "kl": mean(items, lambda item: item["kl"]),
        "reward": mean(items, _reward),
        "reward_change": change(_reward),
        "functions": {name: mean(items, function(name)) for name in names},
        "functions_change": {name: change(function(name)) for name in names},
        "openings": openings(texts),
        "distinct_bigrams": distinct_ngrams(texts, 2),
        "response_length": sum(item["tokens"] for item in items) / len(items),
    }
    if found is None or not found.decided:
        return row
    return row | {"win_rate": found.estimate, "win_rate_unscored": found.unscored}


def _reward(item: Item) -> float | None:
    found: float | None = item["reward"]
    return found


def function(name: str) -> Value:
    """Returns a getter for the named function's score of an item."""
    return lambda item: item["functions"][name]


def mean(items: Sequence[Item], value: Value) -> dict[str, Any] | None:
    """Mean over the items that have the value, with an interval over prompts; None if none has it."""
    found = [(number, item["id"]) for item in items if (number := value(item)) is not None]
    return estimate(*map(list, zip(*found, strict=True))) if found else None


def difference(items: Sequence[Item], others: Sequence[Item], value: Value) -> dict[str, Any] | None:
    """Mean of `items` minus `others`, paired by item (same prompt and seed); None if no pair has both values."""
    pairs = [
        {"id": item["id"], "difference": after - before}
        for item, other in zip(items, others, strict=True)
        if (after := value(item)) is not None and (before := value(other)) is not None
    ]
    return mean(pairs, lambda pair: pair["difference"])


# ------------------------------------------------------------------------------------------- summary of a run


def summary(config: PPOConfig, kept: int | None = None) -> dict[str, Any]:
    """The first and last evaluation of a run, and the peak of each function.

    Args:
        kept: the step whose weights were selected; None without selection.
    """
    rows, items = (read_rows(Path(config.output) / name) for name in (EVALUATIONS, ITEMS))
    by_step: dict[int, list[Item]] = {}
    for item in items:
        by_step.setdefault(item["step"], []).append(item)
    peaks = {name: peak(by_step, function(name), config.seed) for name in rows[0]["functions"]}
    found = {"first": rows[0], "last": rows[-1], "peak": {name: at for name, at in peaks.items() if at is not None}}
    return found | ({"kept": next(row for row in rows if row["step"] == kept)} if kept is not None else {})


def peak(evaluations: Mapping[int, Sequence[Item]], value: Value, seed: int) -> dict[str, Any] | None:
    """The step at which a measure was highest, and how far below that it ended.

    The highest of several means is biased upwards, so the last one would seem lower even if nothing fell. Therefore the
    prompts are split into two halves: each half locates the peak, and the other half measures how far below it the last
    evaluation is. So no prompt measures a peak that it helped to locate.

    Args:
        evaluations: items by step, in the order of the steps.

    Returns:
        `step` and `value` of the highest mean over all prompts, and `last_below`, the last evaluation minus the peak
        (0 where the peak is the last evaluation; None with fewer than two prompts). None if no response has a value.
    """
    step = _highest(evaluations, value)
    if step is None:
        return None
    found = mean(evaluations[step], value)
    assert found is not None
    return {"step": step, "value": found["value"], "last_below": _last_below(evaluations, value, seed)}


def _last_below(evaluations: Mapping[int, Sequence[Item]], value: Value, seed: int) -> dict[str, Any] | None:
    last = max(evaluations)
    prompts = {item["id"] for item in evaluations[last]}
    half = held_out(prompts, 0.5, seed)
    pairs: list[Item] = []
    for measuring, choosing in ((half, prompts - half), (prompts - half, half)):
        highest = _highest({step: _of(items, choosing) for step, items in evaluations.items()}, value)
        if highest is not None:
            ends, tops = (_of(evaluations[step], measuring) for step in (last, highest))
            pairs += [
                {"id": end["id"], "end": value(end), "top": value(top)} for end, top in zip(ends, tops, strict=True)
            ]
    return mean(pairs, lambda pair: None if None in pair.values() else pair["end"] - pair["top"]) if half else None


def _of(items: Sequence[Item], prompts: set[str]) -> list[Item]:
    return [item for item in items if item["id"] in prompts]


def _highest(evaluations: Mapping[int, Sequence[Item]], value: Value) -> int | None:
    """The (first) step with the highest mean; None if no response has a value."""
    means = {step: found["value"] for step, items in evaluations.items() if (found := mean(items, value))}
    return max(means, key=lambda step: means[step]) if means else None
