"""rlaif revise"""

from __future__ import annotations

from rlaif_cli.cli.options import partial
from rlaif_cli.config.engine import ReviseConfig
from rlaif_cli.ui.console import Console


def run(config: ReviseConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.stages.revise import revise

    with EnginePool() as engines, console.progress("revise") as progress:
        summary = revise(config, engines, progress=progress)
    if config.dry_run:
        console.say(f"{summary.rows} prompts, {1 + 2 * config.rounds} generations each")
        return 0
    console.say(f"revise: {summary.rows} rows of {config.rounds} rounds, {summary.resumed} already done")
    return partial(console, summary.rejected, str(rejected_path(config.output, "revise")))
