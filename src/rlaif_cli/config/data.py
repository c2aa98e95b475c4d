"""Settings of the `rlaif data` tools."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import FROM, OUTPUT, InputConfig, StageConfig, setting
from rlaif_cli.config.naming import SettingError, option

Kind = Literal["prompts", "candidates", "preferences", "pairs", "demonstrations", "revisions"]


class DataConfig(InputConfig):
    """A file of records."""

    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    kind: Kind | None = setting(
        None,
        "prompts, candidates, preferences, pairs, demonstrations or revisions. Default: detected from the first row.",
    )


class ParallelConfig(DataConfig):
    """Records whose files are read in parallel."""

    num_workers: int | None = setting(
        None, "Processes that read the input files in parallel. Default: one per core.", ge=1, output=False
    )


class ValidateConfig(ParallelConfig):
    """List every error in a file by line and field."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data validate rows.jsonl",
        "rlaif data validate rows.jsonl --kind prompts --fix fixed.jsonl",
    )
    fix: str | None = setting(
        None,
        "Write a repaired copy here; lines without one obvious repair go to a file next to it.",
    )


class StatsConfig(ParallelConfig):
    """Summarize a file: rows, prompts, duplicates, lengths, labels, sources."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data stats preferences.jsonl",)
    as_json: bool = setting(False, "Print the numbers as one JSON object.", flag="--json", section=OUTPUT, output=False)


class RewriteConfig(DataConfig):
    """Records rewritten into another file."""

    output: str = setting("-", "Output file; - is stdout.", short="-o", section=OUTPUT, output=False)


FormatName = Literal[
    "trl-preference",
    "trl-prompt-completion",
    "hh-rlhf",
    "ultrafeedback",
    "ultrafeedback-binarized",
    "openrlhf",
    "argilla",
    "argilla-records",
    "openai-chat",
]


class ConvertConfig(RewriteConfig):
    """Convert rows between our formats and those of other tools."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data convert trl.jsonl --from trl-preference -o preferences.jsonl",
        "rlaif data convert preferences.jsonl --to openai-chat -o chats.jsonl",
    )
    from_format: FormatName | None = setting(None, "Format of the input. Default: our own records.", flag="--from")
    to_format: FormatName | None = setting(None, "Format of the output. Default: our own records.", flag="--to")

    @model_validator(mode="after")
    def _changes_something(self) -> ConvertConfig:
        if self.from_format == self.to_format:
            both = f"{option('from_format')} and {option('to_format')}"
            raise SettingError(f"{both} must differ; the default of both is our own format")
        if self.kind is not None:
            either = f"{option('from_format')} or {option('to_format')}"
            raise SettingError(
                f"{option('kind')} cannot be combined with {either}: the format determines the kind of row"
            )
        return self


class SplitConfig(RewriteConfig):
    """Split into two files with no prompt in common."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data split preferences.jsonl --fraction 0.1 --held-out test.jsonl -o train.jsonl",
    )
    held_out: str = setting(help="Output file for the held-out rows.", output=False)
    fraction: float = setting(0.1, "Fraction of the prompts to hold out.", gt=0, lt=1)


class DedupeConfig(RewriteConfig, ParallelConfig):
    """Remove duplicate rows."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data dedupe prompts.jsonl --by prompt -o distinct.jsonl",)
    by: Literal["content", "prompt"] = setting(
        "content", "content: rows with equal prompt and responses are duplicates; prompt: keep one row per prompt."
    )


class ShardConfig(StageConfig):
    """Split an input into many files in a new folder. Lines are copied unchanged and not checked."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data shard preferences.jsonl --rows 100000 -o shards",
        "rlaif data shard 's3://bucket/part-*.jsonl' --megabytes 256 -o shards",
    )
    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    output: str = setting(
        help="Folder for the shards: NAME-00000-of-00012.jsonl.zst and so on.",
        short="-o",
        section=OUTPUT,
        output=False,
    )
    rows: int | None = setting(None, "Rows per shard.", ge=1)
    megabytes: int | None = setting(None, "Start a new shard after this many MB of text, before compression.", ge=1)
    compress: Literal["zst", "gz", "none"] = setting("zst", "Compression: zst, gz or none.")

    @model_validator(mode="after")
    def _one_size(self) -> ShardConfig:
        if (self.rows is None) == (self.megabytes is None):
            raise SettingError(f"a shard needs a size: either {option('rows')} or {option('megabytes')}")
        return self
