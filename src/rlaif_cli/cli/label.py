"""rlaif label"""

from __future__ import annotations

from rlaif_cli.cli.options import partial
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.ui.console import Console

WARN_ABOVE_FLIP_RATE = 0.6  # where `rlaif audit` says stop


def run(config: LabelConfig, console: Console) -> int:
    from rlaif_cli.data.paths import beside, rejected_path
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.stages.label import label

    with EnginePool() as engines, console.progress("label") as progress:
        summary = label(config, engines, progress=progress)
    if config.dry_run:
        console.say(f"{summary.pairs} pairs to judge")
        return 0
    numbers = summary.as_numbers()
    shown = (f"{name.replace('_', ' ')} {value}" for name, value in numbers.items() if value is not None)
    console.say("label: " + ", ".join(shown))
    if (numbers["flip_rate"] or 0) > WARN_ABOVE_FLIP_RATE:
        console.warn(
            "most verdicts depend on the position and not on the responses, so these labels carry little information; "
            "see `rlaif audit`, and for small judges --method contrast"
        )
    code = partial(console, summary.unscored, str(beside(config.output, "label", "unscored")))
    if summary.unscored:
        console.warn("resuming does not retry unscored pairs; --overwrite judges all pairs again")
    return partial(console, summary.rejected, str(rejected_path(config.output, "label"))) or code
