"""Settings of the `rlaif data` tools."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import FROM, OUTPUT, InputConfig, StageConfig, setting

Kind = Literal["prompts", "candidates", "preferences", "pairs", "demonstrations", "revisions"]


class DataConfig(InputConfig):
    """A file of records."""

    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    kind: Kind | None = setting(
        None,
        "prompts, candidates, preferences, pairs, demonstrations or revisions. Default: what the first row looks like.",
    )


class ParallelConfig(DataConfig):
    """Records whose files are read side by side."""

    num_workers: int | None = setting(
        None, "Processes that read the files of an input side by side. Default: one a core.", ge=1, output=False
    )


class ValidateConfig(ParallelConfig):
    """Every fault of a file, by line and field."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data validate rows.jsonl",
        "rlaif data validate rows.jsonl --kind prompts --fix fixed.jsonl",
    )
    fix: str | None = setting(
        None,
        "Write a copy here with everything fixed that can be fixed without a judgement; the rest goes beside it.",
    )


class StatsConfig(ParallelConfig):
    """What is in a file: rows, prompts, repeats, lengths, labels, sources."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data stats preferences.jsonl",)
    as_json: bool = setting(False, "The numbers as one JSON object.", flag="--json", section=OUTPUT, output=False)


class RewriteConfig(DataConfig):
    """Records into another file."""

    output: str = setting("-", "Where the rows go; - is stdout.", short="-o", section=OUTPUT, output=False)


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
    """Rows of other tools into ours, and ours into theirs."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data convert trl.jsonl --from trl-preference -o preferences.jsonl",
        "rlaif data convert preferences.jsonl --to openai-chat -o chats.jsonl",
    )
    from_format: FormatName | None = setting(None, "What the file is; default: our own records.", flag="--from")
    to_format: FormatName | None = setting(None, "What it is to become; default: our own records.", flag="--to")

    @model_validator(mode="after")
    def _changes_something(self) -> ConvertConfig:
        if self.from_format == self.to_format:
            raise ValueError("--from or --to must name another format than the other; without a name it is our own")
        if self.kind is not None:
            raise ValueError("--kind: the format says what its rows are")
        return self


class SplitConfig(RewriteConfig):
    """Two files with no prompt in common."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data split preferences.jsonl --fraction 0.1 --held-out test.jsonl -o train.jsonl",
    )
    held_out: str = setting(help="Where the held-out rows go.", output=False)
    fraction: float = setting(0.1, "The share of the prompts held out.", gt=0, lt=1)


class DedupeConfig(RewriteConfig, ParallelConfig):
    """Without rows that say again what an earlier one says."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data dedupe prompts.jsonl --by prompt -o distinct.jsonl",)
    by: Literal["content", "prompt"] = setting(
        "content", "content: prompt and responses are equal; prompt: one row a prompt."
    )


class ShardConfig(StageConfig):
    """An input as many files, in a new folder. Lines are copied as they are, without a look at what they say."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data shard preferences.jsonl --rows 100000 -o shards",
        "rlaif data shard 's3://bucket/part-*.jsonl' --megabytes 256 -o shards",
    )
    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    output: str = setting(
        help="The folder of the shards, NAME-00000-of-00012.jsonl.zst and so on.",
        short="-o",
        section=OUTPUT,
        output=False,
    )
    rows: int | None = setting(None, "Rows of a shard.", ge=1)
    megabytes: int | None = setting(None, "MB of text, before compression, from which on a shard is full.", ge=1)
    compress: Literal["zst", "gz", "none"] = setting("zst", "zst, gz or none.")

    @model_validator(mode="after")
    def _one_size(self) -> ShardConfig:
        if (self.rows is None) == (self.megabytes is None):
            raise ValueError("a shard needs a size: either --rows or --megabytes")
        return self
