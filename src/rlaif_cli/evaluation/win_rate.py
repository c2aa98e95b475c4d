"""Win rate of one set of responses over another, also length-controlled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.evaluate import WinRateConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.inputs import names_records
from rlaif_cli.data.messages import Message, prompt_key
from rlaif_cli.data.paths import beside, rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import NO_ANSWER, Candidates, Response
from rlaif_cli.engines import DECISIONS, EnginePool
from rlaif_cli.engines.server_account import until_paused
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.evaluation.result import nothing_scored, planned, prompts_of_both, save
from rlaif_cli.judge import Judgement
from rlaif_cli.judge.compare import judge_all
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.judge.session import check_principles
from rlaif_cli.stages.generate import generate
from rlaif_cli.stats.agreement import wins
from rlaif_cli.stats.as_json import as_json, rate
from rlaif_cli.stats.diversity import opening, openings
from rlaif_cli.stats.length import length_controlled_estimate
from rlaif_cli.ui.progress import ProgressCallback, no_progress


@until_paused
def win_rate(config: WinRateConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """The share of comparisons in which the judge prefers A; the interval is over prompts.

    `length_controlled` is the win rate at equal length, from Lee et al.'s logistic regression on the length ratio.
    `openings` measures how often responses of a side begin alike: a small policy may game the judge with one opening.

    Raises:
        InputError: an id has different prompts in A and B, or no comparison could be scored.
    """
    constitution = load_constitution(config.constitution)
    check_principles(config, constitution)
    budget = ContextBudget(config, constitution)
    a, b = (_candidates(config, side, name, engines) for side, name in (("a", config.a), ("b", config.b)))
    if config.dry_run and not (a and b):  # a dry run does not sample
        return planned("win-rate", 0)
    shared = prompts_of_both(a, b, (config.a, config.b))
    pairs, alone = list[_Pair](), 0
    for key, prompt in shared.items():
        left, right = a[key].responses, b[key].responses
        alone += abs(len(left) - len(right))
        for index, both in enumerate(zip(left, right, strict=False)):
            pairs.append(_Pair(key, index, prompt, *both))
    asked = [pair for pair in pairs if pair.answered]
    texts = [(pair.prompt, pair.a.seen(config.judge_sees), pair.b.seen(config.judge_sees)) for pair in asked]
    reasons = ((pair.id, budget.check(text[0], text[1:])) for pair, text in zip(asked, texts, strict=True))
    if errors := [f"prompt {key}: {reason}" for key, reason in reasons if reason]:
        raise InputError(
            "the judge cannot compare some of the responses", where=f"{config.a}, {config.b}", errors=errors
        )
    if config.dry_run:
        return planned("win-rate", len(texts))
    judged = iter(judge_all(config, constitution, budget, engines, texts, progress))
    judgements = [next(judged) if pair.answered else Judgement(None, f"one of the two: {NO_ANSWER}") for pair in pairs]
    items = [_item(pair, judgement) for pair, judgement in zip(pairs, judgements, strict=True)]
    scored = [(pair, j.p_a) for pair, j in zip(pairs, judgements, strict=True) if j.p_a is not None]
    if not scored:
        where = f"{config.a}, {config.b}"
        raise nothing_scored(config, "win-rate", "no comparison could be scored", where, items)
    p = np.array([p_a for _, p_a in scored])
    # Equal texts are a tie, whatever the rounding errors of their log-probs.
    p[[pair.a.text == pair.b.text for pair, _ in scored]] = 0.5
    won = wins(p)
    prompts = [prompt_key(pair.prompt) for pair, _ in scored]
    lengths = np.array([(len(pair.a.text), len(pair.b.text)) for pair, _ in scored])
    result = {
        "metric": "win-rate",
        "judge": config.judge_name,
        "method": config.method,
        "constitution": config.constitution,
        "a": config.a,
        "b": config.b,
        "n": len(scored),
        "prompts": len(set(prompts)),
        "prompts_of_one_side": len(a) + len(b) - 2 * len(shared),
        "samples_of_one_side": alone,
        "unscored": len(judgements) - len(scored),
        "ties": int((p == 0.5).sum()),
        "win_rate": rate(won, prompts),
        "mean_p": rate(p, prompts),
        "length_controlled": as_json(length_controlled_estimate(won, lengths[:, 0], lengths[:, 1], prompts)),
        "mean_length_a": round(float(lengths[:, 0].mean()), 1),
        "mean_length_b": round(float(lengths[:, 1].mean()), 1),
        "openings": {
            "a": openings([pair.a.text for pair, _ in scored]),
            "b": openings([pair.b.text for pair, _ in scored]),
        },
    }
    return save(config, result, items)


@dataclass(frozen=True)
class _Pair:
    """The k-th responses of both sides to a prompt; k is `sample`."""

    id: str
    sample: int
    prompt: str | list[Message]
    a: Response
    b: Response

    @property
    def answered(self) -> bool:
        return self.a.answered and self.b.answered


def _item(pair: _Pair, judgement: Judgement) -> dict[str, Any]:
    left, right = pair.a.text, pair.b.text
    return {
        "id": pair.id,
        "prompt_key": prompt_key(pair.prompt),
        "sample": pair.sample,
        "p_a": judgement.p_a,
        "equal": left == right,
        "length_a": len(left),
        "length_b": len(right),
        "opening_a": opening(left),
        "opening_b": opening(right),
        **({"rationales": list(judgement.rationales)} if judgement.rationales else {}),
        "reason": judgement.reason,
    }


def _candidates(config: WinRateConfig, side: str, name: str, engines: EnginePool) -> dict[str, Candidates]:
    """The responses of a side by prompt id: read from its file, or sampled now if it names a model."""
    path = name
    if not names_records(name):
        if config.prompts is None:
            raise UsageError(
                f"'{name}' is not a candidates file; sampling from a model needs {option('prompts')}",
                hint=f"give a .jsonl from `rlaif generate`, or add {option('prompts')}",
            )
        if config.engine == DECISIONS:
            raise UsageError(f"{option('engine')} decisions writes no text, so it cannot sample from '{name}'")
        if config.batch or config.max_cost is not None:
            raise UsageError(
                f"{option('batch')} and {option('max_cost')} apply to one output at a time, so '{name}' cannot be "
                "sampled from on the way",
                hint="sample with `rlaif generate` first, and give its file",
            )
        path = str(beside(config.output, "win-rate", side))
        shared = {
            field: getattr(config, field)
            for field in GenerateConfig.model_fields
            if field in WinRateConfig.model_fields and field not in ("output", "prompts")
        }
        generate(GenerateConfig(**shared, prompts=config.prompts, output=path, model=name), engines)
        if config.dry_run:
            return {}
    source = Source(
        path,
        Candidates,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, f"win-rate.{side}"),
    )
    return {row.id: row for row in source}
