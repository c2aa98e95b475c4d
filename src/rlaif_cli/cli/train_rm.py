"""rlaif train-rm"""

from __future__ import annotations

from typing import Any

from rlaif_cli.cli.options import partial
from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.ui.console import Console


def run(config: RewardModelConfig, console: Console) -> int:
    from rlaif_cli.data.paths import trainer_rejected_path
    from rlaif_cli.train.reward_model import train_reward_model

    with console.progress("train-rm") as progress:
        results = train_reward_model(config, progress=progress)
    if config.dry_run:
        console.say(f"{results['pairs']} pairs, {config.epochs} epochs of batches of {config.batch_size}")
        return 0
    console.say(summary(results))
    console.say(f"train-rm: the reward model is in {config.output}")
    code = partial(console, results["human_rejected"], str(trainer_rejected_path(config.output, "human.rejected")))
    return partial(console, results["rejected"], str(trainer_rejected_path(config.output))) or code


def summary(results: dict[str, Any]) -> str:
    weights = results["weights"]
    text = f"train-rm: {count(results['train_pairs'], 'pair')}"
    if ties := results["ties"]:
        text += f" ({count(ties, 'tie')} left out)" if results["ties_dropped"] else f" ({ties} of them ties)"
    if weights["step"] < weights["of"]:
        text += f"; kept the weights of step {weights['step']} of {weights['of']}, which had the lowest held-out loss"
    if held_out := results.get("held_out"):
        text += _measured("held out", held_out)
        if results.get("chosen_on", {}).get("also_reported"):
            text += " (the weights were chosen on these same pairs)"
    else:
        text += "; not evaluated, because no pair with a preference was held out"
    text += _measured("people", results.get("human"))
    return text + f"; reward {results['reward_mean']:.3f} ± {results['reward_std']:.3f}"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _measured(name: str, found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    accuracy = ""
    if "accuracy" in found:
        low, high = found["accuracy_interval"]
        accuracy = f"accuracy {found['accuracy']:.3f} [{low:.3f}, {high:.3f}], "
    return (
        f"; {name} {count(found['pairs'], 'pair')} of {count(found['prompts'], 'prompt')}: {accuracy}"
        f"loss {found['loss']:.4f} (floor {found['entropy_floor']:.4f}), "
        f"ECE {found['ece']:.3f}, Brier {found['brier']:.3f}"
    )
