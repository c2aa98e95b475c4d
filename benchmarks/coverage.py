"""Do the intervals that rlaif prints hold the true value as often as they say? Simulated, for every kind of them.

    python benchmarks/coverage.py [--repetitions 2000] [--kinds rate ties …]

Each kind of result is drawn many times with a known truth, for 30, 100 and 300 prompts with 1, 3 and 6 results each,
whose correlation within a prompt is 0, 0.3 or 0.8; a cell is the share of the 95 % intervals that hold the truth.
`rate` stands for accuracy, win rate, harmless rate, over-refusal rate, `longer_wins` and what `audit` counts; `ties`
for the same where up to a fifth are one half; `probability` for `mean_p` and `human_share`; `reward` and `skewed` for
rewards and their differences; `equal length` for the length-controlled win rate. Kappa, ECE and Brier score have none.

Correlated results come about in two ways. "graded": each prompt has a rate of its own, from a beta distribution.
"copied": a result is, with the square root of the correlation as its probability, the one that its prompt has drawn
for all. The second is the harder one where most prompts go one way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif_cli.stats.intervals import Estimate, mean_estimate, rate_estimate
from rlaif_cli.stats.length import length_controlled_estimate

Floats = NDArray[np.float64]
Rng = np.random.Generator


class Design(NamedTuple):
    prompts: int
    pairs: int
    correlation: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.prompts, self.pairs


def uniform(rng: Rng, design: Design) -> Floats:
    """[prompts, pairs] uniform numbers, "copied" within a prompt."""
    copied = rng.random(design.shape) < np.sqrt(design.correlation)
    return np.where(copied, rng.random((design.prompts, 1)), rng.random(design.shape))


def graded_rate(rng: Rng, design: Design, truth: float) -> Floats:
    own = np.full((design.prompts, 1), truth)
    if design.correlation:
        spread = 1 / design.correlation - 1
        own = rng.beta(truth * spread, (1 - truth) * spread, size=(design.prompts, 1))
    return (rng.random(design.shape) < own).astype(float)


def copied_rate(rng: Rng, design: Design, truth: float) -> Floats:
    return (uniform(rng, design) < truth).astype(float)


def ties(rng: Rng, design: Design, truth: float) -> Floats:
    """A fifth are ties where as many are won as lost, else fewer."""
    half, u = 0.8 * truth * (1 - truth), uniform(rng, design)
    return np.select([u < truth - half / 2, u < truth + half / 2], [1.0, 0.5], 0.0)


def probability(rng: Rng, design: Design, truth: float) -> Floats:
    return np.asarray(uniform(rng, design) ** (1 / truth - 1), dtype=np.float64)


def reward(rng: Rng, design: Design, truth: float) -> Floats:
    shared, own = rng.normal(size=(design.prompts, 1)), rng.normal(size=design.shape)
    return np.asarray(truth + np.sqrt(design.correlation) * shared + np.sqrt(1 - design.correlation) * own)


def skewed(rng: Rng, design: Design, truth: float) -> Floats:
    """Gamma of shape 4 (skewness 1), about the truth."""
    shared = rng.gamma(4 * design.correlation, size=(design.prompts, 1))
    own = rng.gamma(4 * (1 - design.correlation), size=design.shape)
    return np.asarray(truth + shared + own - 4)


def _estimated(draw: Callable[[Rng, Design, float], Floats], estimate: Callable[..., Estimate]) -> Any:
    def once(rng: Rng, design: Design, truth: float) -> Estimate:
        return estimate(draw(rng, design, truth).ravel(), np.repeat(np.arange(design.prompts), design.pairs).tolist())

    return once


def equal_length(rng: Rng, design: Design, truth: float) -> Estimate:
    """Side a is longer by a third on average, and the longer one wins more often: its raw rate is above the truth."""
    log_ratio = rng.normal(0.3, 0.5, size=design.shape)
    chance = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + log_ratio)))
    wins = (uniform(rng, design) < chance).astype(float).ravel()
    lengths = np.exp(log_ratio.ravel() + 6), np.full(wins.size, np.exp(6))
    return length_controlled_estimate(wins, *lengths, np.repeat(np.arange(design.prompts), design.pairs).tolist())


RATES = (0.5, 0.8, 0.95)
KINDS: dict[str, tuple[Callable[[Rng, Design, float], Estimate], tuple[float, ...]]] = {
    "rate, graded": (_estimated(graded_rate, rate_estimate), RATES),
    "rate, copied": (_estimated(copied_rate, rate_estimate), RATES),
    "ties": (_estimated(ties, rate_estimate), RATES),
    "probability": (_estimated(probability, rate_estimate), RATES),
    "equal length": (equal_length, RATES),
    "reward": (_estimated(reward, mean_estimate), (0.2,)),
    "skewed": (_estimated(skewed, mean_estimate), (0.2,)),
}
PROMPTS, PAIRS, CORRELATIONS = (30, 100, 300), (1, 3, 6), (0.0, 0.3, 0.8)


def coverage(kind: str, design: Design, truth: float, repetitions: int, seed: int = 0) -> float:
    """The share of the intervals of `repetitions` draws that hold the truth."""
    place = list(KINDS).index(kind), round(100 * truth), design.prompts, design.pairs, round(10 * design.correlation)
    estimate, rng = KINDS[kind][0], np.random.default_rng([seed, *place])
    found = (estimate(rng, design, truth) for _ in range(repetitions))
    return sum(each.low <= truth <= each.high for each in found) / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    columns = [(prompts, pairs) for prompts in PROMPTS for pairs in PAIRS]
    print("| kind | truth | correlation |", *(f"{prompts} x {pairs} |" for prompts, pairs in columns))
    print("|---|---|---|" + "---|" * len(columns))
    lowest = highest = 0.95
    for kind in options.kinds:
        for truth in KINDS[kind][1]:
            for correlation in CORRELATIONS:
                cells = []
                for prompts, pairs in columns:
                    if pairs == 1 and correlation:  # one result a prompt correlates with none
                        cells.append("")
                        continue
                    found = coverage(kind, Design(prompts, pairs, correlation), truth, options.repetitions)
                    lowest, highest = min(lowest, found), max(highest, found)
                    cells.append(f"{100 * found:.1f}")
                print(f"| {kind} | {truth:g} | {correlation:g} | {' | '.join(cells)} |", flush=True)
    print(f"\nlowest {100 * lowest:.1f} %, highest {100 * highest:.1f} %, of {options.repetitions} intervals a cell")


if __name__ == "__main__":
    main()
