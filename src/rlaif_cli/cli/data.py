"""rlaif data validate | stats | convert | split | dedupe | shard"""

from __future__ import annotations

import json
from typing import Any

import typer

from rlaif_cli.cli.options import command, partial
from rlaif_cli.config.data import (
    ConvertConfig,
    DataConfig,
    DedupeConfig,
    ShardConfig,
    SplitConfig,
    StatsConfig,
    ValidateConfig,
)
from rlaif_cli.errors import EXIT_FAILED
from rlaif_cli.ui.console import Console
from rlaif_cli.ui.text import counted

app = typer.Typer(help="Check, repair, count, convert and split records.", no_args_is_help=True)


def _kind(console: Console, config: DataConfig) -> str:
    from rlaif_cli.data.tools.kinds import kind_of

    kind = kind_of(config)
    if config.kind is None:
        console.say(f"read as {kind}; use --kind to read it as another kind")
    return kind


def _validate(config: ValidateConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.data.tools.kinds import KINDS
    from rlaif_cli.data.tools.repair import repair
    from rlaif_cli.data.tools.validate import invalid_lines

    kind = _kind(console, config)
    if config.fix is not None and not config.dry_run:
        found = repair(config, KINDS[kind])
        fixed = ", ".join(f"{what}: {count}" for what, count in found["fixed"].items() if count) or "nothing"
        console.say(f"validate: {counted(found['rows'], 'row')} ({kind}) written to {config.fix}; fixed: {fixed}")
        return partial(console, found["rejected"], str(rejected_path(config.fix, "validate")))
    good, bad = invalid_lines(config, kind)
    for fault in bad:
        console.show_line(fault)
    console.say(f"validate: {kind}: {good} valid, {len(bad)} invalid")
    return EXIT_FAILED if bad else 0


def _stats(config: StatsConfig, console: Console) -> int:
    from rlaif_cli.data.tools.stats import stats

    kind = _kind(console, config)
    with console.progress("stats") as progress:
        found = stats(config, kind, progress=progress)
    if config.as_json:
        console.records.write(json.dumps(found, ensure_ascii=False) + "\n")
    else:
        _show(console, found)
    return 0


def _show(console: Console, found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("statistic", "value", box=None, pad_edge=False)
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part}: {number}" for part, number in value.items())
        if value not in (None, 0):
            table.add_row(name.replace("_", " "), Text(str(value)))
    console.show(table)


def _convert(config: ConvertConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.data.tools.convert import convert

    if config.dry_run:
        return 0
    with console.progress("convert") as progress:
        found = convert(config, progress=progress)
    console.say(f"convert: {counted(found['rows'], 'row')}")
    if left_out := found.get("answers_not_submitted"):
        console.warn(f"{counted(left_out, 'answer')} left out: drafts or discarded")
    if unknown := found.get("answers_without_status"):
        console.warn(f"{counted(unknown, 'answer')} without a status were kept: some may be drafts or discarded")
    return partial(console, found["rejected"], str(rejected_path(config.output, "convert")))


def _split(config: SplitConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.data.tools.split import split

    kind = _kind(console, config)
    if config.dry_run:
        return 0
    with console.progress("split") as progress:
        found = split(config, kind, progress=progress)
    console.say(f"split: {counted(found['rows'], 'row')} in {config.output}, {found['held_out']} in {config.held_out}")
    if not found["rows"] or not found["held_out"]:
        console.warn("one side is empty: too few prompts, or --fraction is too close to 0 or 1")
    return partial(console, found["rejected"], str(rejected_path(config.output, "split")))


def _dedupe(config: DedupeConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.data.tools.dedupe import dedupe

    kind = _kind(console, config)
    if config.dry_run:
        return 0
    with console.progress("dedupe") as progress:
        found = dedupe(config, kind, progress=progress)
    console.say(f"dedupe: {counted(found['rows'], 'row')} kept, {counted(found['repeats'], 'duplicate')} removed")
    return partial(console, found["rejected"], str(rejected_path(config.output, "dedupe")))


def _shard(config: ShardConfig, console: Console) -> int:
    from rlaif_cli.data.tools.shard import shard

    if config.dry_run:
        return 0
    with console.progress("shard") as progress:
        found = shard(config, progress=progress)
    rows, shards = counted(found["rows"], "row"), counted(found["shards"], "file")
    console.say(f"shard: {rows} in {shards} in {config.output}")
    return 0


command(app, "validate", ValidateConfig, _validate)
command(app, "stats", StatsConfig, _stats)
command(app, "convert", ConvertConfig, _convert)
command(app, "split", SplitConfig, _split)
command(app, "dedupe", DedupeConfig, _dedupe)
command(app, "shard", ShardConfig, _shard)
