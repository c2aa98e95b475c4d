"""Checks to make before training on labels. Each check has one finding with numbers and a verdict.

The file is read row by row, and checks keep counts instead of texts. Memory per row: eight bytes for duplicates, eight
for prompts, and six for each rate, whose interval is over prompts. The thresholds of each verdict are documented at
its check and in docs/judging.md.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rlaif_cli.config.judge import AuditConfig
from rlaif_cli.data.compression import lines
from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.paths import beside
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Preference
from rlaif_cli.errors import InputError
from rlaif_cli.stages.audit_checks import (
    Check,
    Decided,
    Finding,
    Judges,
    Length,
    Level,
    Mass,
    Position,
    Principles,
    Prompts,
    Repeats,
    Responses,
    Scored,
)
from rlaif_cli.ui.progress import ProgressCallback, no_progress

_ORDER: dict[Level, int] = {"ok": 0, "look": 1, "stop": 2}


def audit(config: AuditConfig, *, progress: ProgressCallback = no_progress) -> list[Finding]:
    """All findings in display order; none in a dry run.

    Raises:
        InputError: the file cannot be read as preferences.
    """
    given = files(config.preferences)
    reasons = _unscored_reasons(given)
    if reasons and all(file.path.stat().st_size == 0 for file in given):
        return [Scored(reasons).finding()]  # the judge labelled nothing
    source = Source(config.preferences, Preference, skip_invalid=config.skip_invalid)
    if config.dry_run:
        return []
    prompts = HashSet()
    checks: list[Check] = [
        Scored(reasons, source.rejected),
        Decided(prompts),
        Position(prompts),
        Mass(),
        Principles(prompts),
        Judges(prompts),
        Length(prompts),
        Repeats(),
        Responses(),
        Prompts(prompts),
    ]
    for count, row in enumerate(source, start=1):
        prompts.add(*(message.content for message in row.prompt))
        for check in checks:
            check.add(row)
        if count % 256 == 0:
            progress(count, len(source))
    return [finding for check in checks if (finding := check.finding()) is not None]


def worst(findings: Iterable[Finding]) -> Level:
    return max((finding.verdict for finding in findings), key=_ORDER.__getitem__, default="ok")


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"verdict": worst(findings), "checks": [asdict(finding) for finding in findings]}


def _unscored_reasons(preferences: Iterable[InputFile]) -> Counter[str]:
    """Count the reasons in the files of unscored rows that `label` writes next to its outputs."""
    reasons: Counter[str] = Counter()
    for path in (beside(str(file.path), "label", "unscored") for file in preferences):
        for number, line in lines(path) if path.exists() else ():
            try:
                reason = str(json.loads(line)["reason"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError("not an unscored row", where=f"{path} line {number}") from error
            reasons[re.sub(r"\d[\d.e+-]*", "…", reason)] += 1  # merge reasons that differ only in numbers
    return reasons
