"""The checks of `rlaif audit`: each reads row by row and has one finding at the end."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.records import Preference
from rlaif_cli.data.turns import text_is_repeated
from rlaif_cli.stats.as_json import rate
from rlaif_cli.stats.calibration import entropy
from rlaif_cli.stats.length import LENGTH_GAPS, length_gap

Level = Literal["ok", "look", "stop"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        verdict: ok; look: understand why before training; stop: do not train on this.
        says: one line for people.
        numbers: the same for programs; rates are {"value", "low", "high", "n", "prompts"}.
    """

    check: str
    verdict: Level
    says: str
    numbers: dict[str, Any] = field(default_factory=dict)


class Check(Protocol):
    def add(self, row: Preference) -> None: ...

    def finding(self) -> Finding | None:
        """None if the labels lack what the check looks at."""
        ...


def shown(found: dict[str, Any]) -> str:
    return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _level(value: float, look: float, stop: float) -> Level:
    return "stop" if value > stop else "look" if value > look else "ok"


class Rate:
    """A rate, counted row by row.

    Args:
        prompts: the prompts of all rows read so far, the current one last; the interval is over prompts because results
            of one prompt are correlated.
    """

    def __init__(self, prompts: HashSet) -> None:
        self._prompts = prompts
        self._rows, self._hits, self._totals = array("I"), array("B"), array("B")

    def add(self, hits: int, total: int = 1) -> None:
        """Count `hits` of `total` in the current row."""
        self._rows.append(self._prompts.added - 1)
        self._hits.append(hits)
        self._totals.append(total)

    def found(self) -> dict[str, Any]:
        hits, totals = np.array(self._hits), np.array(self._totals)
        values = np.repeat(np.tile([1.0, 0.0], len(totals)), np.column_stack([hits, totals - hits]).ravel())
        prompts = self._prompts.codes()[np.array(self._rows)]
        return rate(values, np.repeat(prompts, totals).tolist())

    def __bool__(self) -> bool:
        return bool(self._rows)


class Histogram:
    """Counts of values in [0, top], in equal bins; quantiles are upper bin edges."""

    def __init__(self, top: float = 1.0) -> None:
        self._top, self._bins = top, 100
        self._counts = [0] * self._bins
        self.n = 0

    def add(self, value: float) -> None:
        self._counts[min(self._bins - 1, max(0, int(value / self._top * self._bins)))] += 1
        self.n += 1

    def quantile(self, share: float) -> float:
        seen, wanted = 0, share * self.n
        for place, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return round((place + 1) * self._top / self._bins, 4)
        return self._top

    def coarse(self, bins: int) -> list[int]:
        width = self._bins // bins
        return [sum(self._counts[i * width : (i + 1) * width]) for i in range(bins)]


class Scored:
    """Unscored rows and invalid lines: look above 5 %, stop above 20 % or if there are no labels at all."""

    def __init__(self, reasons: Counter[str], unusable: int = 0) -> None:
        self._reasons, self._unusable, self._n = reasons, unusable, 0

    def add(self, row: Preference) -> None:
        self._n += 1

    def finding(self) -> Finding:
        unscored = sum(self._reasons.values())
        reasons = dict(self._reasons.most_common())
        numbers = {"rows": self._n, "unscored": unscored, "unusable": self._unusable, "reasons": reasons}
        if not self._n:
            return Finding("scored", "stop", f"no labels; {unscored} rows unscored", numbers)
        lost = unscored + self._unusable
        share = lost / (lost + self._n)
        why = f": {self._reasons.most_common(1)[0][0]}" if unscored else ""
        says = f"{self._n:,} labels, {unscored:,} rows unscored ({100 * share:.1f} %){why}"
        if self._unusable:
            says += f"; {self._unusable:,} lines are not labels"
        return Finding("scored", _level(share, 0.05, 0.20), says, numbers)


class Decided:
    """How decided the labels are: stop if all have the same value. Near-ties (within 0.05 of one half): look above
    50 %, stop above 90 %. Look if `chosen` is not always the preferred one."""

    def __init__(self, prompts: HashSet) -> None:
        self._entropy = Histogram(top=0.6931471805599453)
        self._ties, self._contrary = Rate(prompts), 0
        self._low, self._high, self._sum = 1.0, 0.0, 0.0

    def add(self, row: Preference) -> None:
        p = row.p_chosen
        self._entropy.add(float(entropy([p])[0]))
        self._ties.add(abs(p - 0.5) < 0.05)
        self._contrary += p < 0.5
        self._low, self._high = min(self._low, p), max(self._high, p)
        self._sum += p

    def finding(self) -> Finding | None:
        n = self._entropy.n
        if not n:
            return None
        ties = self._ties.found()
        numbers = {"near_ties": ties, "mean_p_chosen": round(self._sum / n, 4), "p_chosen_below_half": self._contrary}
        numbers["entropy_bins"] = self._entropy.coarse(5)
        if n > 1 and self._high - self._low < 1e-6:
            return Finding("decided", "stop", f"all {n:,} labels share one value, {self._low:.4f}", numbers)
        says = f"mean p_chosen {self._sum / n:.3f}; {shown(ties)} are near-ties (within 0.05 of one half)"
        verdict = _level(ties["value"], 0.5, 0.9)
        if self._contrary:
            says += f"; in {self._contrary:,} `chosen` is not the preferred one (p_chosen below one half)"
            verdict = "look" if verdict == "ok" else verdict
        return Finding("decided", verdict, says, numbers)


class Position:
    """Position bias: look if more than 30 % of the verdicts flip with the order, or if the share of the first position
    is significantly outside 40 to 60 %; stop if more than 60 % flip."""

    def __init__(self, prompts: HashSet) -> None:
        self._flipped, self._first = Rate(prompts), Rate(prompts)

    def add(self, row: Preference) -> None:
        if row.judge is None or not row.judge.p_first:
            return
        self._flipped.add(row.judge.flipped)
        self._first.add(sum(p > 0.5 for p in row.judge.p_first), len(row.judge.p_first))

    def finding(self) -> Finding | None:
        if not self._flipped:
            return None
        flips, first = self._flipped.found(), self._first.found()
        verdict = _level(flips["value"], 0.3, 0.6)
        if verdict == "ok" and (first["low"] > 0.6 or first["high"] < 0.4):
            verdict = "look"
        says = f"{shown(flips)} flip with the order; the first position wins {shown(first)}"
        return Finding("position", verdict, says, {"flip_rate": flips, "first_share": first})


class Mass:
    """Probability mass of the judge's answers on the labels: look if 5 % of the answers are below 0.5, stop if half of
    them are below 0.2."""

    def __init__(self) -> None:
        self._mass = Histogram()

    def add(self, row: Preference) -> None:
        for mass in (row.judge and row.judge.mass) or ():
            self._mass.add(mass)

    def finding(self) -> Finding | None:
        if not self._mass.n:
            return None
        low, middle = self._mass.quantile(0.05), self._mass.quantile(0.5)
        verdict: Level = "stop" if middle < 0.2 else "look" if low < 0.5 else "ok"
        says = f"mass on the labels: median {middle:.2f}, a twentieth below {low:.2f}"
        return Finding("mass", verdict, says, {"p05": low, "median": middle, "bins": self._mass.coarse(10)})


class Against:
    """The votes behind labels, by voter: how often at least one of several votes disagrees with the label."""

    def __init__(self, prompts: HashSet) -> None:
        self._against: Counter[str] = Counter()
        self._split = Rate(prompts)

    def add(self, votes: Iterable[tuple[str, float]]) -> None:
        """votes: (voter, its P(chosen))."""
        against = [name for name, p in votes if p < 0.5]
        self._against.update(against)
        self._split.add(bool(against))

    def found(self) -> tuple[Level, str, dict[str, Any]] | None:
        """Look if more than 40 % are split."""
        if not self._split:
            return None
        split = self._split.found()
        numbers = {"split": split, "against_the_label": dict(self._against.most_common())}
        says = f"in {shown(split)} of the rows at least one disagrees with the label"
        return "look" if split["value"] > 0.4 else "ok", says, numbers


class Principles:
    """Which principles the labels come from, and how often a single one disagrees with the label."""

    def __init__(self, prompts: HashSet) -> None:
        self._rows: Counter[str] = Counter()
        self._against = Against(prompts)

    def add(self, row: Preference) -> None:
        if row.judge is None or row.judge.principle is None:
            return
        names = [row.judge.principle] if isinstance(row.judge.principle, str) else row.judge.principle
        self._rows.update(names)
        if row.judge.by_principle:
            self._against.add(zip(names, row.judge.by_principle, strict=False))

    def finding(self) -> Finding | None:
        if not self._rows:
            return None
        numbers: dict[str, Any] = {"rows": dict(self._rows.most_common())}
        says = f"{len(self._rows)} principles, the most frequent in {self._rows.most_common(1)[0][1]:,} labels"
        verdict, against, more = self._against.found() or ("ok", "", {})
        return Finding("principles", verdict, "; ".join(filter(None, (says, against))), numbers | more)


class Judges:
    """How often a single judge of a panel disagrees with the label."""

    def __init__(self, prompts: HashSet) -> None:
        self._against = Against(prompts)

    def add(self, row: Preference) -> None:
        if row.judge is not None and row.judge.panel:
            self._against.add((vote.model, vote.p_chosen) for vote in row.judge.panel)

    def finding(self) -> Finding | None:
        found = self._against.found()
        return Finding("judges", *found) if found else None


class Length:
    """Length bias: how often the longer response wins. Look if significantly above 60 %, stop if significantly above
    85 %; the same applies to the shorter response."""

    def __init__(self, prompts: HashSet) -> None:
        self._longer = Rate(prompts)
        self._by_gap = {gap: Rate(prompts) for gap in LENGTH_GAPS}

    def add(self, row: Preference) -> None:
        chosen, rejected = len(row.chosen_text), len(row.rejected_text)
        if chosen == rejected or row.p_chosen == 0.5:
            return
        for each in (self._longer, self._by_gap[length_gap(chosen, rejected)]):
            each.add((chosen > rejected) == (row.p_chosen > 0.5))

    def finding(self) -> Finding | None:
        if not self._longer:
            return None
        longer = self._longer.found()
        bins = {gap: each.found() for gap, each in self._by_gap.items() if each}
        sure = max(longer["low"], 1 - longer["high"])
        says = f"the longer response wins {shown(longer)}"
        if len(bins) > 1:
            says += "; " + ", ".join(f"{name} longer: {100 * found['value']:.0f} %" for name, found in bins.items())
        return Finding("length", _level(sure, 0.6, 0.85), says, {"longer_wins": longer, "by_gap": bins})


class Repeats:
    """Duplicates: pairs of (nearly) equal texts teach nothing, and duplicate rows count twice. Look above 1 %, stop
    above 20 %, for each of the two."""

    def __init__(self) -> None:
        self._n = self._equal = self._near = 0
        self._rows = HashSet()

    def add(self, row: Preference) -> None:
        self._n += 1
        one, two = _words(row.chosen_text), _words(row.rejected_text)
        self._equal += one == two
        self._near += one != two and similarity(one, two) >= 0.9
        self._rows.add(*(m.content for m in row.prompt), *sorted((row.chosen_text, row.rejected_text)))

    def finding(self) -> Finding | None:
        if not self._n:
            return None
        duplicates = self._n - len(self._rows)
        numbers = {"equal": self._equal, "near_equal": self._near, "repeated_rows": duplicates, "n": self._n}
        share = max(self._equal + self._near, duplicates) / self._n
        says = (
            f"{self._equal:,} pairs of equal texts, {self._near:,} of nearly equal ones (9 in 10 word triples shared); "
            f"{duplicates:,} duplicate rows"
        )
        return Finding("repeats", _level(share, 0.01, 0.20), says, numbers)


class Responses:
    """Responses that are empty, cut off or repeat their prompt: look above 1 % empty or 20 % cut off, or if both
    responses of more than 1 % of the rows begin with the prompt; stop above 10 % empty."""

    def __init__(self) -> None:
        self._n = self._empty = self._known = self._cut = self._repeated = 0

    def add(self, row: Preference) -> None:
        self._n += 2
        texts = (row.chosen_text, row.rejected_text)
        self._empty += sum(not text.strip() for text in texts)
        self._repeated += text_is_repeated(row.prompt[-1].content, texts)
        reasons = row.meta.get("finish_reasons")
        if isinstance(reasons, list):
            self._known += len(reasons)
            self._cut += sum(reason == "length" for reason in reasons)

    def finding(self) -> Finding | None:
        if not self._n:
            return None
        empty = self._empty / self._n
        cut = self._cut / self._known if self._known else None
        verdict = _level(empty, 0.01, 0.10)
        if verdict == "ok" and ((cut or 0) > 0.2 or 2 * self._repeated / self._n > 0.01):
            verdict = "look"
        says = f"{self._empty:,} of {self._n:,} responses are empty; "
        says += "how many were cut off is unknown" if cut is None else f"{100 * cut:.1f} % were cut off at the limit"
        if self._repeated:
            says += f"; in {self._repeated:,} rows both responses begin with the prompt"
        numbers = {"responses": self._n, "empty": self._empty, "cut": self._cut, "cut_known_of": self._known}
        numbers["rows_that_repeat_the_prompt"] = self._repeated
        return Finding("responses", verdict, says, numbers)


class Prompts:
    """Overrepresented prompts: look if one prompt has more than 5 % of at least 100 rows, stop above 50 %."""

    def __init__(self, prompts: HashSet) -> None:
        self._prompts = prompts

    def add(self, row: Preference) -> None:
        """Nothing to do: the prompts are collected for all checks."""

    def finding(self) -> Finding | None:
        n = self._prompts.added
        if not n:
            return None
        counts = self._prompts.counts()
        most = int(counts.max())
        numbers = {"prompts": len(counts), "rows_of_the_most_frequent": most, "n": n}
        says = f"{len(counts):,} prompts; the most frequent has {most:,} of {n:,} rows"
        return Finding("prompts", _level(most / n, 0.05, 0.5) if n >= 100 else "ok", says, numbers)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def similarity(one: Sequence[str], two: Sequence[str]) -> float:
    """Jaccard similarity of two texts' word triples; 0 for texts too short to have any."""
    a, b = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one, two))
    return len(a & b) / len(a | b) if a and b else 0.0
