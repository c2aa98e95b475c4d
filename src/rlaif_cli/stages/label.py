"""candidates -> preferences: soft labels from an LLM judge. Unscored pairs are saved with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.messages import Message, as_messages
from rlaif_cli.data.paths import beside, file_of, rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import NO_ANSWER, Candidates, PairsOnly, Preference, Unscored, Verdict, Vote
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.server_account import start_over, until_paused
from rlaif_cli.errors import UsageError
from rlaif_cli.judge import Comparison, Judge, Judgement, choose_principles
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.judge.session import check_principles
from rlaif_cli.stages.manifest import accounted, finish
from rlaif_cli.stages.ordering import InOrder, Unanswered
from rlaif_cli.stages.pairs import pair_chooser, pair_id
from rlaif_cli.ui.progress import ProgressCallback, no_progress


@dataclass
class LabelSummary:
    """Counts of the whole output, including rows of an earlier, killed run."""

    pairs: int = 0
    resumed: int = 0  # how many of them already existed
    unscored: int = 0
    flipped: int = 0
    first_wins: int = 0
    orders: int = 0  # verdicts with a position: two per principle of a pairwise row
    mass: float = 0.0  # summed over `masses`
    masses: int = 0
    p_chosen: float = 0.0  # summed over the scored pairs
    truncated: int = 0  # pairs that were truncated for the judge
    rejected: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """row: a preference, as in the file."""
        verdict = row["judge"]
        self.pairs += 1
        self.flipped += verdict["flipped"]
        p_first, mass = verdict.get("p_first") or (), verdict.get("mass") or ()
        self.first_wins += sum(p > 0.5 for p in p_first)
        self.orders += len(p_first)
        self.mass += sum(mass)
        self.masses += len(mass)
        self.p_chosen += row["p_chosen"]
        self.truncated += bool(verdict.get("truncated"))

    def add_unscored(self, _: dict[str, Any] | None = None) -> None:
        self.pairs += 1
        self.unscored += 1

    def as_numbers(self) -> dict[str, float | int | None]:
        """The numbers of the summary and the manifest."""
        scored = self.pairs - self.unscored
        return {
            "pairs": self.pairs,
            "resumed": self.resumed,
            "unscored": self.unscored,
            "truncated": self.truncated,
            "rejected": self.rejected,
            "mean_p_chosen": _ratio(self.p_chosen, scored),
            "flip_rate": _ratio(self.flipped, scored) if self.orders else None,
            "first_position_share": _ratio(self.first_wins, self.orders),
            "mean_mass": _ratio(self.mass, self.masses),
        }


def _ratio(part: float, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


@until_paused
def label(config: LabelConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress) -> LabelSummary:
    """Run the stage; see `LabelConfig`.

    Raises:
        InputError: the candidates or the constitution are invalid, or a pair does not fit in the judge's context.
        UsageError: an option has an unknown name.
    """
    if config.recheck:
        raise UsageError(
            f"{option('recheck')} asks a finished output's rows again; it is for the command line, not for a stage"
        )
    constitution = load_constitution(config.constitution)
    choose_pairs = pair_chooser(config.pairs, config.seed)
    check_principles(config, constitution)
    budget = ContextBudget(config, constitution)
    pairs = _PairCount(config, choose_pairs, budget)
    source = Source(
        config.candidates,
        PairsOnly,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "label"),
        check=pairs.check,
        restart=pairs.restart,
    )
    summary = LabelSummary(rejected=source.rejected)
    if config.dry_run:
        summary.pairs = pairs.count
        return summary
    settings = label_settings(config, constitution, source)
    start_over(config)
    output = Output(file_of(config.output), settings, overwrite=config.overwrite, on_row=summary.add)
    unscored = UnscoredFile(config, settings, summary)
    try:
        done = output.done | unscored.done
        summary.resumed = len(done)
        if not output.complete:
            asked = comparisons(config, constitution, source, lambda pair: pair not in done, budget)
            judge, started = budget.session.start(engines)
            with accounted(output, started, config):
                _judge_all(config, judge, asked, output, unscored, summary, pairs.count, progress)
        unscored.finish()
        finish(output, "label", config, budget.session.models, summary.as_numbers())
    finally:
        output.close()
        unscored.close()
    return summary


def label_settings(config: LabelConfig, constitution: Constitution, source: Source[Any]) -> dict[str, Any]:
    """Everything that determines the labels."""
    return config.deciding() | {"input_sha256": source.sha256} | {"constitution_sha256": constitution.sha256}


class _PairCount:
    """Checks that rows fit in the judge's context, and counts the pairs that will be judged."""

    def __init__(self, config: LabelConfig, choose_pairs: Any, budget: ContextBudget) -> None:
        self._config, self._choose_pairs, self._budget = config, choose_pairs, budget
        self.count = 0

    def restart(self) -> None:
        self.count = 0

    def check(self, row: PairsOnly) -> str | None:
        reason = self._budget.check(row.prompt, [each.seen(self._config.judge_sees) for each in row.responses])
        self.count += 0 if reason else len(self._choose_pairs(row))
        return reason


def comparisons(
    config: LabelConfig,
    constitution: Constitution,
    source: Source[PairsOnly],
    wanted: Callable[[str], bool],
    budget: ContextBudget,
) -> Iterator[Comparison]:
    """The pairs to judge; `wanted`: whether a pair, by its id, is to be judged. Keys: (row, i, j)."""
    choose_pairs = pair_chooser(config.pairs, config.seed)
    for row in source:
        for i, j in choose_pairs(row):
            if wanted(pair_id(row, i, j)):
                a, b = (row.responses[index].seen(config.judge_sees) for index in (i, j))
                one, other = row.responses[i].text, row.responses[j].text  # whatever the judge sees of them
                principles = choose_principles(constitution, config.principles, row.prompt, one, other, config.seed)
                yield budget.fit(Comparison((row, i, j), row.prompt, a, b, principles))


def _judge_all(
    config: LabelConfig,
    judge: Judge,
    comparisons: Iterator[Comparison],
    output: Output,
    unscored: UnscoredFile,
    summary: LabelSummary,
    total: int,
    progress: ProgressCallback,
) -> None:
    order, unanswered = InOrder(config.ordered), Unanswered()

    def expected() -> Iterator[Comparison]:
        for comparison in comparisons:
            order.expect(pair_id(*comparison.key))
            if reason := no_answer(*comparison.key):
                order.settle(pair_id(*comparison.key), partial(settle, comparison, Judgement(None, reason)))
            else:
                yield comparison

    def settle(comparison: Comparison, judgement: Judgement) -> None:
        row, i, j = comparison.key
        if judgement.retryable:
            unanswered.add(judgement.reason or "")
            return
        if judgement.p_a is None:
            unscored.write(_unscored(config, row, i, j, comparison, judgement))
            summary.add_unscored()
        else:
            written = preference(config, row, i, j, comparison, judgement)
            output.write(written)
            summary.add(written.model_dump())
        progress(summary.pairs, total, f"{summary.unscored} unscored")

    for comparison, judgement in judge.compare(expected()):
        order.settle(pair_id(*comparison.key), partial(settle, comparison, judgement))
    unanswered.check()


def no_answer(row: Candidates, i: int, j: int) -> str | None:
    """Why two responses cannot be compared whoever judges: one of them has no answer."""
    missing = [index + 1 for index in (i, j) if not row.responses[index].answered]
    return f"response {missing[0]}: {NO_ANSWER}" if missing else None


def preference(
    config: LabelConfig, row: Candidates, i: int, j: int, comparison: Comparison, judgement: Judgement
) -> Preference:
    """A judgement as a row: `chosen` is the preferred response; a tie keeps input order."""
    assert judgement.p_a is not None
    a_wins = judgement.p_a >= 0.5
    a, b = row.responses[i], row.responses[j]  # in full, even if they were truncated for the judge
    replies = [
        Message(role="assistant", content=each.text, reasoning_content=each.reasoning)
        for each in ((a, b) if a_wins else (b, a))
    ]
    names = [principle.id for principle in comparison.principles]
    return Preference(
        id=pair_id(row, i, j),
        prompt=as_messages(row.prompt),
        chosen=replies[:1],
        rejected=replies[1:],
        p_chosen=max(judgement.p_a, 1 - judgement.p_a),
        judge=Verdict(
            model=config.judge_name,
            method=config.method,
            principle=names[0] if len(names) == 1 else names,
            **_verdict_fields(judgement, a_wins),
            truncated=was_cut(config, comparison) or None,
            panel=[
                Vote(model=name, p_chosen=vote.p_a if a_wins else 1 - vote.p_a, **_verdict_fields(vote, a_wins))
                for name, vote in judgement.panel.items()
                if vote.p_a is not None
            ]
            or None,
        ),
        meta=row.meta | _origin(row, *((i, j) if a_wins else (j, i))),
    )


def _verdict_fields(judgement: Judgement, a_wins: bool) -> dict[str, Any]:
    """The numbers behind a label, as seen from `chosen`."""
    orders: tuple[tuple[Any, ...], ...] = (judgement.p_first, judgement.mass, judgement.rationales)
    p_first, mass, rationales = orders if a_wins else map(_swap_orders, orders)
    by_principle = judgement.by_principle if a_wins else [1 - p for p in judgement.by_principle]
    scores = judgement.scores if a_wins else judgement.scores[::-1]
    return {
        "p_first": [round(p, 6) for p in p_first] or None,
        "by_principle": [round(p, 6) for p in by_principle] if len(by_principle) > 1 else None,
        "mass": [round(m, 6) for m in mass] or None,
        "flipped": judgement.flipped,
        "scores": [round(s, 6) for s in scores] or None,
        "rationales": list(rationales) or None,
    }


def _origin(row: Candidates, chosen: int, rejected: int) -> dict[str, Any]:
    """Where a pair comes from, and whether its responses were cut off."""
    reasons = [row.responses[index].finish_reason for index in (chosen, rejected)]
    known = {"finish_reasons": reasons} if None not in reasons else {}
    return {"prompt_id": row.id, "pair": [chosen, rejected], **known}


def was_cut(config: LabelConfig, comparison: Comparison) -> bool:
    """Whether the texts were truncated for the judge."""
    row, i, j = comparison.key
    whole = (row.prompt, *(row.responses[index].seen(config.judge_sees) for index in (i, j)))
    return (comparison.prompt, comparison.a, comparison.b) != whole


def _swap_orders(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Per principle, [of a (or a first), of b] -> [of b, of a]."""
    return tuple(values[i ^ 1] for i in range(len(values)))


def _unscored(
    config: LabelConfig, row: Candidates, i: int, j: int, comparison: Comparison, judgement: Judgement
) -> Unscored:
    return Unscored(
        id=pair_id(row, i, j),
        prompt=row.prompt,
        responses=[row.responses[i].text, row.responses[j].text],
        reason=judgement.reason or "",
        judge={
            "model": config.judge_name,
            "method": config.method,
            "principle": [principle.id for principle in comparison.principles],
            **_raw(judgement),
            **({"panel": {name: _raw(vote) for name, vote in judgement.panel.items()}} if judgement.panel else {}),
        },
    )


def _raw(judgement: Judgement) -> dict[str, Any]:
    """The answers of a judge in the order of its questions."""
    return {name: getattr(judgement, name) for name in ("p_first", "mass", "scores", "rationales")}


class UnscoredFile:
    """`<output>.unscored.jsonl`: created for the first unscored row."""

    def __init__(self, config: LabelConfig, settings: dict[str, Any], summary: LabelSummary) -> None:
        self.path = beside(config.output, "label", "unscored")
        self._settings, self._summary = settings, summary
        # Output to stdout cannot be resumed, so an existing file is not of this run.
        self._overwrite = config.overwrite or file_of(config.output) is None
        self._file: Output | None = None
        if self._overwrite:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            self._open()

    @property
    def done(self) -> HashSet:
        return self._file.done if self._file else HashSet()

    def write(self, row: Unscored) -> None:
        self._open().write(row)

    def finish(self) -> None:
        if self._file:
            self._file.finish({"stage": "label"})

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _open(self) -> Output:
        if self._file is None:
            on_row = self._summary.add_unscored
            self._file = Output(self.path, self._settings, overwrite=self._overwrite, on_row=on_row)
        return self._file


def run(config: LabelConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it."""
    return label(config, engines, progress=progress).as_numbers()
