"""`rlaif data convert`: between record formats."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rlaif_cli.config.data import ConvertConfig
from rlaif_cli.data.formats import FORMATS, NO_STATUS, NOT_SUBMITTED
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Record
from rlaif_cli.data.tools.rows import rewritten
from rlaif_cli.errors import UsageError
from rlaif_cli.ui.progress import ProgressCallback, no_progress


def convert(config: ConvertConfig, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Convert rows of another tool to ours, or ours to another tool's.

    Raises:
        InputError: the format cannot represent some rows; all of them are listed.
    """
    origin, target = (FORMATS.get(name or "") for name in (config.from_format, config.to_format))
    if origin and target and origin.record is not target.record:
        theirs, wanted = origin.record.__name__, target.record.__name__
        raise UsageError(f"{config.from_format} has {theirs} rows, but {config.to_format} needs {wanted} rows")
    reader = origin.reader() if origin else target.record if target else Record
    write = target.write if target else None

    def cannot_represent(row: Any) -> str | None:
        try:
            if write is not None:
                write(row)
        except ValueError as error:
            return f"{config.to_format} cannot represent it: {error}"
        return None

    counted_fields = (NOT_SUBMITTED, NO_STATUS) if config.from_format == "argilla-records" else ()
    answers = Counter[str]()
    rejected = rejected_path(config.output, "convert")
    source = Source(
        config.records, reader, skip_invalid=config.skip_invalid, rejected_path=rejected, check=cannot_represent
    )
    with rewritten(config, source) as write_line:
        for count, row in enumerate(source, start=1):
            write_line(json.dumps(write(row), ensure_ascii=False) if write else row.model_dump_json(exclude_none=True))
            answers.update({name: row.meta.get(name, 0) for name in counted_fields})
            progress(count, len(source))
    return {"rows": len(source), "rejected": source.rejected} | answers
