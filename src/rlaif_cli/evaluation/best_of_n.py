"""The gain of choosing the best of n responses by reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlaif_cli.config.evaluate import BestOfNConfig
from rlaif_cli.data.messages import as_messages, content_id, prompt_key
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates, PairsOnly
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.server_account import until_paused
from rlaif_cli.evaluation.result import nothing_scored, planned, save
from rlaif_cli.evaluation.reward import RowScores, response_scores
from rlaif_cli.judge.compare import comparer
from rlaif_cli.stats.agreement import wins
from rlaif_cli.stats.as_json import rate, rounded
from rlaif_cli.train.best_policy import Compare
from rlaif_cli.train.reward_source import check_reward_source, reward_source
from rlaif_cli.ui.progress import ProgressCallback


def best_of_n(config: BestOfNConfig, compare: Compare) -> dict[str, Any]:
    """How often a judge prefers the best-scoring response to the first one, and to a random one.

    A reward model or function can only help a policy if it prefers better responses among the policy's own samples.
    Rows with an unscored response are left out.

    Raises:
        InputError: the candidates are invalid, a reward function fails, or the judge decided no comparison.
        ModelError: a folder is not a reward model.
    """
    check_reward_source(config)
    rejected = rejected_path(config.output, "best-of-n")
    rows = list(Source(config.candidates, PairsOnly, skip_invalid=config.skip_invalid, rejected_path=rejected))
    if config.dry_run:
        return planned("best-of-n", len(rows))
    scores = response_scores(reward_source(config, None), rows)
    left_out = [row for row in rows if scores[row.id].unscored]
    missing = [_without_best(row, scores[row.id]) for row in left_out]
    rows = [row for row in rows if not scores[row.id].unscored]
    if not rows:
        what = "every row has an unscored response"
        raise nothing_scored(config, "best-of-n", what, config.candidates, missing)
    rewards = [scores[row.id].total for row in rows]
    best = [int(np.argmax(found)) for found in rewards]
    others = {
        "first": [0] * len(rows),
        "random": [int(content_id(config.seed, row.id), 16) % len(row.responses) for row in rows],
    }
    texts = [
        (as_messages(row.prompt), row.responses[chosen].text, row.responses[other].text)
        for places in others.values()
        for row, chosen, other in zip(rows, best, places, strict=True)
    ]
    answers = iter(compare([(prompt, a, b) for prompt, a, b in texts if a != b]))
    p = [next(answers) if a != b else 0.5 for _, a, b in texts]  # a response against itself is a tie
    verdicts = dict(zip(others, (p[: len(rows)], p[len(rows) :]), strict=True))
    prompts = [prompt_key(row.prompt) for row in rows]
    items = [
        {
            "id": row.id,
            "prompt_key": prompt,
            "rewards": [rounded(value, 6) for value in found],
            "best": chosen,
            **{name: places[index] for name, places in others.items()},
            **{f"p_over_{name}": verdicts[name][index] for name in others},
        }
        for index, (row, prompt, found, chosen) in enumerate(zip(rows, prompts, rewards, best, strict=True))
    ]
    result: dict[str, Any] = {
        "metric": "best-of-n",
        "reward_model": list(config.reward_model),
        "reward_function": list(config.reward_function),
        "judge": config.judge_name,
        "n": len(rows),
        "prompts": len(set(prompts)),
        "unscored": sum(each is None for each in p) + len(left_out),
        "rows_without_scores": len(left_out),
    }
    for name in others:
        decided = [(each, prompt) for each, prompt in zip(verdicts[name], prompts, strict=True) if each is not None]
        if not decided:
            what = "the judge decided no comparison"
            raise nothing_scored(config, "best-of-n", what, config.candidates, [*items, *missing])
        result[f"win_rate_over_{name}"] = rate(wins([each for each, _ in decided]), [key for _, key in decided])
    result["chose_the_first"] = rate([place == 0 for place in best], prompts)
    return save(config, result, [*items, *missing])


def _without_best(row: Candidates, scores: RowScores) -> dict[str, Any]:
    """The item of a row that is left out."""
    return {
        "id": row.id,
        "prompt_key": prompt_key(row.prompt),
        "rewards": [rounded(value, 6) for value in scores.total],
        "best": None,
        "reason": scores.reason,
    }


@until_paused
def run(config: BestOfNConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it; it shows no progress."""
    return best_of_n(config, comparer(config, engines))
