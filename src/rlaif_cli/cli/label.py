"""rlaif label"""

from __future__ import annotations

from typing import Any

from rlaif_cli.cli.options import partial
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.errors import EXIT_PARTIAL
from rlaif_cli.ui.console import Console

WARN_ABOVE_FLIP_RATE = 0.6  # where `rlaif audit` says stop


def run(config: LabelConfig, console: Console) -> int:
    return _recheck(config, console) if config.recheck else _label(config, console)


def _recheck(config: LabelConfig, console: Console) -> int:
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.stages.recheck import recheck

    with EnginePool() as engines, console.progress("recheck") as progress:
        found = recheck(config, engines, progress=progress)
    if config.dry_run:
        console.say(f"{found['rows']} rows to ask again, each twice")
        return 0
    console.say(
        f"recheck: {found['rows']} rows asked again, each twice, {found['unscored']} unscored; "
        f"winners changed: {_with_interval(found['changed_winners'])}, between the two new judgements "
        f"{_with_interval(found['changed_between_the_new'])}; where winners differ, the earlier one stands apart in "
        f"{found['earlier_stands_apart']} of {found['pairs_with_different_winners']} (p = {found['p_value']:.3g}); "
        f"mean change of the winner's p: {_with_interval(found['mean_change'])}"
    )
    earlier, now = (
        {judge: {name: sorted(values) for name, values in fields.items()} for judge, fields in servers.items()}
        for servers in found["servers"].values()
    )
    if earlier != now:
        console.warn(
            f"what the server says of itself has changed: {earlier or 'nothing'} earlier, {now or 'nothing'} now"
        )
    if found["drifted"]:
        console.warn(f"the judge has drifted since it made these labels; see {config.output}.recheck.json")
        return EXIT_PARTIAL
    console.say("recheck: no sign of drift")
    return 0


def _with_interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _label(config: LabelConfig, console: Console) -> int:
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
