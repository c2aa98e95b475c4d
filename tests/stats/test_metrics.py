"""rlaif_cli.stats.agreement against hand-worked numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlaif_cli.stats.agreement import agreement_items, cohen_kappa, pair_kappa
from rlaif_cli.stats.calibration import (
    brier,
    entropy,
    expected_calibration_error,
    fit_contrast_scale,
    in_both_orders,
    reliability_bins,
)
from rlaif_cli.stats.intervals import Estimate, mean_estimate, rate_estimate, wilson_interval
from rlaif_cli.stats.length import length_controlled_estimate, longer_wins

# --- intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_by_the_table(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_is_symmetric_exact_at_the_ends_and_follows_the_level() -> None:
    low, high = wilson_interval(3, 11)
    assert wilson_interval(8, 11) == pytest.approx((1 - high, 1 - low))
    for n in range(1, 50):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0
    wide = wilson_interval(3, 11, level=0.99)
    assert wide[0] < low and wide[1] > high


def test_estimate_prints_as_percentages() -> None:
    assert str(Estimate(0.632, 0.571, 0.69, 120, 40)) == "63.2 % [57.1, 69.0], n = 120 of 40 prompts"


# --- agreement ----------------------------------------------------------------------------------------------


def test_agreement_items_by_hand() -> None:
    p_first = [0.9, 0.2, 0.5, 0.6, 0.6, 0.5]
    human_first = [1.0, 1.0, 0.0, 0.6, 0.5, 0.5]
    np.testing.assert_array_equal(agreement_items(p_first, human_first), [1.0, 0.0, 0.5, 1.0, np.nan, np.nan])


def test_agreement_does_not_change_with_the_order_of_responses() -> None:
    rng = np.random.default_rng(0)
    p, human = rng.random(100).round(1), rng.integers(0, 5, 100) / 4
    np.testing.assert_array_equal(agreement_items(p, human), agreement_items(1 - p, 1 - human))
    np.testing.assert_array_equal(agreement_items(p, human), 1 - agreement_items(1 - p, human))


def test_longer_wins() -> None:
    assert longer_wins([10, 5, 7, 0], [5, 10, 7, 0]).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_cohen_kappa_by_hand() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa 0.4
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(b, a) == pytest.approx(0.4)
    assert cohen_kappa(a, a) == 1.0
    assert cohen_kappa([0, 1], [1, 0]) == pytest.approx(-1.0)
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))
    assert cohen_kappa([1, "1", None], [1, "1", None]) == 1.0


# --- calibration --------------------------------------------------------------------------------------------


def test_brier_by_hand() -> None:
    assert brier([0.9, 0.2, 0.5], [1, 0, 0.5]) == pytest.approx((0.01 + 0.04) / 3)


def test_calibration_by_hand() -> None:
    p, y = [0.1, 0.2, 0.25, 0.8, 1.0], [0, 1, 0, 1, 1]
    bins = reliability_bins(p, y, bins=4)
    assert [(b["low"], b["high"], b["n"]) for b in bins] == [(0.0, 0.25, 2), (0.25, 0.5, 1), (0.75, 1.0, 2)]
    assert [b["mean_p"] for b in bins] == pytest.approx([0.15, 0.25, 0.9])
    assert [b["mean_y"] for b in bins] == pytest.approx([0.5, 0.0, 1.0])
    # (2 * 0.35 + 1 * 0.25 + 2 * 0.1) / 5
    assert expected_calibration_error(p, y, bins=4) == pytest.approx(0.23)
    # one bin compares the means only: 0.47 and 0.6
    assert expected_calibration_error(p, y, bins=1) == pytest.approx(0.13)


def test_bin_edges_belong_to_the_upper_bin() -> None:
    tenths = [i / 10 for i in range(11)]
    bins = reliability_bins(tenths, tenths)
    assert [b["n"] for b in bins] == [1] * 9 + [2]
    assert [b["low"] for b in bins] == tenths[:10]


def test_entropy() -> None:
    values = entropy([0.0, 1.0, 0.5, 0.7])
    assert values[:2].tolist() == [0.0, 0.0]
    assert values[2:] == pytest.approx([math.log(2), 0.6108643])


# --- fits ---------------------------------------------------------------------------------------------------


def test_length_control_finds_no_skill_when_the_longer_one_always_wins() -> None:
    a, b = np.array([100, 200, 50, 400, 80, 160]), np.array([200, 100, 400, 50, 160, 80])
    assert length_controlled_estimate((a > b).astype(float), a, b).value == pytest.approx(0.5, abs=1e-6)


def test_length_control_of_equal_lengths_is_the_raw_rate() -> None:
    lengths = [120] * 8
    assert length_controlled_estimate([1, 1, 1, 0.5, 1, 0, 0, 1], lengths, lengths).value == pytest.approx(5.5 / 8)


def test_length_control_recovers_the_rate_it_was_made_with() -> None:
    rng = np.random.default_rng(0)
    b = rng.integers(50, 500, 4000)
    a = np.round(b * np.exp(rng.normal(0.5, 0.5, 4000)))  # a is longer by 1.65 on average
    wins = 1 / (1 + np.exp(-(0.4 + 1.5 * np.log(a / b))))  # soft wins, true rate s(0.4) at equal length
    assert wins.mean() > 0.7
    assert length_controlled_estimate(wins, a, b).value == pytest.approx(1 / (1 + math.exp(-0.4)), abs=1e-5)
    sampled = (rng.random(4000) < wins).astype(float)
    assert length_controlled_estimate(sampled, a, b).value == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.03)


def test_length_control_of_the_other_side_is_the_complement() -> None:
    rng = np.random.default_rng(1)
    wins, a, b = rng.random(50), rng.integers(0, 300, 50), rng.integers(0, 300, 50)
    rate = length_controlled_estimate(wins, a, b).value
    assert length_controlled_estimate(1 - wins, b, a).value == pytest.approx(1 - rate, abs=1e-9)
    assert 0.2 < rate < 0.8


@pytest.mark.parametrize("win", [0.0, 1.0])
def test_length_control_stays_finite_when_one_side_always_wins(win: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(10, 300, 30), rng.integers(10, 300, 30)
    assert length_controlled_estimate([win] * 30, a, b).value == pytest.approx(win, abs=1e-4)


def test_contrast_scale_by_hand() -> None:
    # all differences 0.5 and three of four right: sigmoid(0.5 k) = 0.75, k = 2 log 3; orders mixed
    d, human = [0.5, -0.5, 0.5, -0.5], [1.0, 0.0, 1.0, 1.0]
    assert fit_contrast_scale(d, human) == pytest.approx(2 * math.log(3), rel=1e-9)
    for factor in (0.01, 20, 1e4):  # Newton's step alone leaves [0, 1000] for the larger ones
        k = fit_contrast_scale(np.array(d) * factor, human)
        assert k == pytest.approx(2 * math.log(3) / factor, rel=1e-6)


def test_contrast_scale_recovers_the_scale_it_was_made_with() -> None:
    d = np.random.default_rng(0).normal(0, 0.3, 200)
    for k in (0.1, 7.0, 300.0):
        assert fit_contrast_scale(d, 1 / (1 + np.exp(-k * d))) == pytest.approx(k, rel=1e-6)


def test_contrast_scale_at_its_bounds() -> None:
    assert fit_contrast_scale([0.5, -0.5], [0.0, 1.0]) == 0.0  # wrong way round
    assert fit_contrast_scale([0.0, 0.0], [1.0, 0.0]) == 0.0  # nothing to scale
    assert fit_contrast_scale([0.5, -0.5], [1.0, 1.0]) == 0.0  # no signal
    assert fit_contrast_scale([1e-3, -1e-3], [1.0, 0.0]) == 1000.0  # always right


# --- refusals and imports -----------------------------------------------------------------------------------

TWO_VECTORS: dict[str, Callable[[Any, Any], Any]] = {
    "agreement_items": agreement_items,
    "longer_wins": longer_wins,
    "brier": brier,
    "expected_calibration_error": expected_calibration_error,
    "reliability_bins": reliability_bins,
    "cohen_kappa": cohen_kappa,
    "fit_contrast_scale": fit_contrast_scale,
    "length_controlled": lambda a, b: length_controlled_estimate(a, b, b).value,
    "length_controlled, lengths": lambda a, b: length_controlled_estimate(a, a, b).value,
    "pair_kappa": pair_kappa,
    "in_both_orders": in_both_orders,
    "rate_estimate": rate_estimate,
    "mean_estimate": mean_estimate,
    "length_controlled_estimate": lambda a, b: length_controlled_estimate(a, a, a, b),
}


@pytest.mark.parametrize("name", TWO_VECTORS)
def test_empty_and_unequal_inputs_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        TWO_VECTORS[name]([], [])
    with pytest.raises(ValueError, match="lengths differ"):
        TWO_VECTORS[name]([0.5, 1.0], [1.0])


REFUSED: dict[str, Callable[[], Any]] = {
    "probability above 1": lambda: brier([1.2], [1.0]),
    "outcome below 0": lambda: expected_calibration_error([0.5], [-0.1]),
    "NaN probability": lambda: agreement_items([math.nan], [1.0]),
    "no bins": lambda: reliability_bins([0.5], [1.0], bins=0),
    "negative length": lambda: longer_wins([-1], [2]),
    "win above 1": lambda: length_controlled_estimate([2.0], [5], [5]).value,
    "two dimensions": lambda: brier([[0.5]], [[1.0]]),
    "entropy of nothing": lambda: entropy([]),
    "entropy above 1": lambda: entropy([1.5]),
    "infinite difference": lambda: fit_contrast_scale([math.inf], [1.0]),
    "rate of NaN": lambda: rate_estimate([1.0, math.nan]),
    "rate above 1": lambda: rate_estimate([1.1]),
    "rate at level 1": lambda: rate_estimate([1.0], level=1.0),
    "mean at level 0": lambda: mean_estimate([1.0], level=0.0),
    "mean of infinity": lambda: mean_estimate([math.inf]),
    "Wilson of nothing": lambda: wilson_interval(0, 0),
    "Wilson of too many": lambda: wilson_interval(3, 2),
    "Wilson at level 0": lambda: wilson_interval(1, 2, level=0.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(ValueError):
        REFUSED[name]()


def test_metrics_imports_neither_torch_nor_scipy() -> None:
    code = "import sys, rlaif_cli.stats.agreement; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
