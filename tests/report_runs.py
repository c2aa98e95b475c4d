"""Folders of runs as their stages leave them, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def estimate(value: float, low: float, high: float, n: int = 90) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def make_summary(folder: Path) -> dict[str, Any]:
    """A demo's summary; every number shows an effect."""

    def stage(run: str, output: str, settings: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
        settings = {"seed": 0, "output": str(folder / output)} | settings
        return {"run": run, "settings": settings, "seconds": 12.5, "results": results}

    judge = {"judge": "judge-m", "method": "contrast", "constitution": "helpfulness"}
    counts = {"rows": 40, "resumed": 0, "responses": 80, "unfinished": 4}
    labels = {"pairs": 40, "resumed": 0, "unscored": 2, "mean_p_chosen": 0.62, "flip_rate": None}
    labels |= {"first_position_share": None, "mean_mass": None}
    held_out = {"pairs": 60, "accuracy": 0.7, "accuracy_interval": [0.6, 0.8], "loss": 0.61}
    bins = [{"low": low, "high": low + 0.5, "n": 30, "mean_p": low + 0.2, "mean_y": low + 0.3} for low in (0.0, 0.5)]
    held_out |= {"entropy_floor": 0.55, "ece": 0.04, "brier": 0.21, "reliability": bins}
    ppo = {"steps": 20, "reward_first": 0.02, "reward_last": 0.83, "kl_last": 4.25}
    win = {"n": 180, "prompts": 90, "unscored": 1, "win_rate": estimate(0.71, 0.63, 0.79, 180)}
    win |= {"length_controlled": estimate(0.64, 0.55, 0.73), "mean_length_a": 420.0, "mean_length_b": 512.4}
    rewards = {"n": 90, "reward": estimate(0.8, 0.7, 0.9), "baseline": estimate(0.1, 0.0, 0.2)}
    rewards["difference"] = estimate(0.7, 0.5, 0.9)
    alignment = {"n": 300, "accuracy": estimate(0.66, 0.61, 0.71), "longer_wins": estimate(0.52, 0.46, 0.58)}
    alignment["reliability"] = bins
    before, after = str(folder / "before.jsonl"), str(folder / "after.jsonl")
    stages = {
        "candidates": stage(
            "generate", "candidates.jsonl", {"model": "policy-m", "n": 2, "prompts": "p.jsonl"}, counts
        ),
        "preferences": stage(
            "label", "preferences.jsonl", judge | {"candidates": str(folder / "candidates.jsonl")}, labels
        ),
        "alignment": stage("eval alignment", "alignment.json", judge, alignment),
        "rm": stage(
            "train-rm",
            "rm",
            {"model": "policy-m", "preferences": str(folder / "preferences.jsonl")},
            {"train_pairs": 36, "held_out": held_out},
        ),
        "policy": stage(
            "ppo",
            "policy",
            {"model": "policy-m", "reward_model": str(folder / "rm"), "prompts": "p.jsonl", "max_mismatch": 0.2},
            ppo,
        ),
        "before": stage("generate", "before.jsonl", {"model": "policy-m", "n": 1}, counts),
        "after": stage("generate", "after.jsonl", {"model": str(folder / "policy"), "n": 1}, counts),
        "reward": stage("eval reward", "reward.json", {"candidates": after, "baseline": before}, rewards),
        "win-rate": stage("eval win-rate", "win-rate.json", judge | {"a": after, "b": before}, win),
        "harmless": stage(
            "eval harmless-rate",
            "harmless.json",
            judge | {"candidates": after},
            {"n": 90, "unscored": 0, "harmless_rate": estimate(0.9, 0.82, 0.95)},
        ),
    }
    return {"name": "demo", "description": "Shorter answers.", "stages": stages}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def make_run(folder: Path, text: str = "A plain answer.") -> Path:
    """A run's folder as the stages leave it, with `text` in a prompt and in both responses."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(make_summary(folder)), "utf-8")
    steps = range(1, 21)
    rm = [{"step": s, "loss": 0.7 - 0.005 * s, "entropy_floor": 0.55, "accuracy": 0.5 + 0.01 * s} for s in steps]
    write_rows(folder / "rm" / "metrics.jsonl", rm)
    names = ("kl", "response_length", "mismatch", "seconds_rollout", "seconds_update")
    ppo = [{"step": s, "reward": 0.04 * s, **dict.fromkeys(names, 0.1 * s)} for s in steps]
    write_rows(folder / "policy" / "metrics.jsonl", ppo)
    ids = [f"row-{i:02}" for i in range(30)]
    for name in ("before", "after"):
        rows = [{"id": i, "prompt": f"{i} {text}", "responses": [{"text": f"{name} {i} {text}"}]} for i in ids]
        write_rows(folder / f"{name}.jsonl", rows)
    label = {"p_chosen": 0.8, "judge": {"model": "judge-m", "method": "contrast", "constitution": "c"}}
    labels = [label | {"id": i, "prompt": i, "chosen": f"yes {i}", "rejected": f"no {i} {text}"} for i in ids]
    write_rows(folder / "preferences.jsonl", labels)
    manifest = {"stage": "ppo", "settings": {"prompts": "gone.jsonl"}, "checkpoint_sha256": "ab" * 32}
    (folder / "policy" / "manifest.json").write_text(json.dumps(manifest))
    items = [{"id": row, "sample": 0, "p_a": i / 29} for i, row in enumerate(ids)]
    write_rows(folder / "win-rate.items.jsonl", [*items, {"id": "row-00", "sample": 0, "p_a": None}])
    return folder
