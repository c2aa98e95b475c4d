"""rlaif ppo"""

from __future__ import annotations

from typing import Any

from rlaif_cli.cli.options import partial
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.ui.console import Console


def run(config: PPOConfig, console: Console) -> int:
    from rlaif_cli.data.paths import trainer_rejected_path
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.train.ppo_stage import run as ppo

    with EnginePool() as engines, console.progress("ppo") as progress:
        results = ppo(config, engines, progress=progress)
    if config.dry_run:
        sequences = config.prompts_per_step * config.n
        console.say(f"{results['prompts']} prompts, {config.steps} steps of {sequences} sequences")
        return 0
    console.say(summary(results))
    console.say(f"ppo: the tuned policy is in {config.output}")
    return partial(console, results["rejected"], str(trainer_rejected_path(config.output)))


def summary(results: dict[str, Any]) -> str:
    stopped = ", stopped by --max-kl before the last one's update" if results.get("stopped_by_kl") else ""
    if unscored := results.get("unscored"):
        stopped += f", {unscored} unscored responses (not trained on; listed in unscored.jsonl)"
    if weights := results.get("weights"):
        stopped += f", {choice(weights)}"
    measured = f"; {found}" if (found := held_out(results.get("evaluations"))) else ""
    return (
        f"ppo: {results['steps']} steps{stopped}, reward {results['reward_first']:.3f} -> {results['reward_last']:.3f} "
        f"(first and last fifth), KL {results['kl_last']:.2f} nats per response, "
        f"{results['samples_per_second']:.1f} samples/s{measured}"
    )


def held_out(evaluations: dict[str, Any] | None) -> str:
    """The values of the functions of --eval-function for the initial and the final weights; "" without any."""
    if not evaluations or not evaluations["last"]["functions"]:
        return ""
    end = evaluations.get("kept", evaluations["last"])
    said = [_from_start_to_end(name, evaluations, end) for name in end["functions"]]
    return f"on {end['prompts']} held-out prompts {', '.join(said)}"


def _from_start_to_end(name: str, evaluations: dict[str, Any], end: dict[str, Any]) -> str:
    change = end["functions_change"][name]
    if change is None:
        return f"{name}: no scores to compare"
    before, after = (row["functions"][name]["value"] for row in (evaluations["first"], end))
    bounds = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
    peak = evaluations["peak"][name]
    below = peak["last_below"]
    fell = end is evaluations["last"] and below is not None and below["high"] is not None and below["high"] < 0
    lower = f"; highest after step {peak['step']}, and clearly lower at the end" if fell else ""
    return f"{name} {before:.3f} -> {after:.3f} (change {change['value']:+.3f}{bounds}{lower})"


def choice(weights: dict[str, Any]) -> str:
    """Which weights were kept, why, and their win rate."""
    by = f"{weights['highest_win_rate']:.3f}, n = {weights['highest_win_rate_n']}"
    kept = (
        f"the weights of step {weights['step']} (the highest held-out win rate of {weights['looks']} evaluations: {by}"
    )
    found = weights["win_rate"]
    if found is None:
        return f"{kept}; the judge was undecided on the prompts that were not used for the choice)"
    low, high = found["low"], found["high"]
    return (
        f"{kept}; on prompts that were not used for the choice {found['value']:.3f} [{low:.3f}, {high:.3f}], "
        f"n = {found['n']} of {weights['prompts']} prompts)"
    )
