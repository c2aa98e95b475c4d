"""Compare texts with the judge of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.judge import Comparison, Judgement, choose_principles
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.judge.session import check_principles
from rlaif_cli.ui.progress import ProgressCallback, no_progress


def judge_all(
    config: JudgeConfig,
    constitution: Constitution,
    budget: ContextBudget,
    engines: EnginePool,
    texts: Sequence[tuple[Any, str, str]],
    progress: ProgressCallback,
) -> list[Judgement]:
    """Judge (prompt, a, b) triples; results are in the same order. Raises: Paused: see `JudgeSession.evaluating`."""

    def comparisons() -> Iterator[Comparison]:
        for index, (prompt, a, b) in enumerate(texts):
            principles = choose_principles(constitution, config.principles, prompt, a, b, config.seed)
            yield budget.fit(Comparison(index, prompt, a, b, principles))

    judged: dict[int, Judgement] = {}
    with budget.session.evaluating(engines) as judge:
        for comparison, judgement in judge.compare(comparisons()):
            judged[comparison.key] = judgement
            progress(len(judged), len(texts))
    return [judged[index] for index in range(len(texts))]


def comparer(
    config: CompareConfig, engines: EnginePool
) -> Callable[[Sequence[tuple[Any, str, str]]], list[float | None]]:
    """A function from (prompt, a, b) triples to P(the judge prefers a), in the same order; None if unscored.

    Invalid settings raise here, before compute is spent.
    """
    constitution = load_constitution(config.constitution)
    check_principles(config, constitution)
    budget = ContextBudget(config, constitution)
    return lambda texts: [j.p_a for j in judge_all(config, constitution, budget, engines, texts, no_progress)]
