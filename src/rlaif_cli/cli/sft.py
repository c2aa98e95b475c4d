"""rlaif sft"""

from __future__ import annotations

from typing import Any

from rlaif_cli.cli.options import partial
from rlaif_cli.config.train import SftConfig
from rlaif_cli.ui.console import Console


def run(config: SftConfig, console: Console) -> int:
    from rlaif_cli.data.paths import trainer_rejected_path
    from rlaif_cli.train.sft import train_sft

    with console.progress("sft") as progress:
        results = train_sft(config, progress=progress)
    if config.dry_run:
        console.say(f"{results['records']} records, {config.epochs} epochs of batches of {config.batch_size}")
        return 0
    console.say(summary(results))
    console.say(f"sft: the tuned model is in {config.output}")
    return partial(console, results["rejected"], str(trainer_rejected_path(config.output)))


def summary(results: dict[str, Any]) -> str:
    text = f"sft: {results['records']} records"
    if held_out := results.get("held_out"):
        text += (
            f"; held out {held_out['records']}: loss {held_out['loss_before']:.4f} -> {held_out['loss']:.4f} "
            f"nats per token, perplexity {held_out['perplexity']:.2f}"
        )
    return text
