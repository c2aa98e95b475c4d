"""Ask a judge some rows of a finished output again: has it drifted?

A judge behind a server can change under an unchanged name. Each drawn pair is judged twice now; `stats/drift.py` says
what is compared with what.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.atomic import read_json, write_json
from rlaif_cli.data.compression import lines
from rlaif_cli.data.messages import prompt_key
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PairsOnly
from rlaif_cli.data.run_settings import refuse_changed_settings
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import request_seed
from rlaif_cli.errors import EngineError, UsageError
from rlaif_cli.judge import Comparison, Judge
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.judge.session import check_principles
from rlaif_cli.stages.label import comparisons, label_settings
from rlaif_cli.stages.manifest import identities
from rlaif_cli.stages.pairs import pair_id
from rlaif_cli.stats.drift import drift
from rlaif_cli.ui.progress import ProgressCallback, no_progress


def recheck(config: LabelConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """The result as written to `<output>.recheck.json`.

    Raises:
        UsageError: the output is not finished, has no scored rows, or was made with other settings.
        EngineError: the judge answers none of the rows.
    """
    assert config.recheck is not None
    path = Path(config.output)
    manifest = _manifest(path)
    constitution = load_constitution(config.constitution)
    check_principles(config, constitution)
    source = Source(config.candidates, PairsOnly, skip_invalid=config.skip_invalid)
    refuse_changed_settings(manifest, label_settings(config, constitution, source), path)
    earlier = drawn(path, config.recheck, config.seed)
    if config.dry_run:
        return {"rows": len(earlier)}
    budget = ContextBudget(config, constitution)
    asked = list(comparisons(config, constitution, source, earlier.__contains__, budget))
    judge, started = budget.session.start(engines)
    known = identities(started)
    found: list[dict[str, float]] = []
    reasons: Counter[str] = Counter()
    for number in range(2):
        found.append(_p_first_response(judge, asked, reasons))
        progress((number + 1) * len(asked), 2 * len(asked))
    both = [each for each in asked if all(pair_id(*each.key) in p for p in found)]
    if not both:
        raise EngineError(f"none of the {len(asked)} rows could be judged again: {next(iter(reasons), 'no rows')}")
    ids = [pair_id(*each.key) for each in both]
    first, second = ([p[name] for name in ids] for p in found)
    before = [_earlier_p(earlier[name], each) for name, each in zip(ids, both, strict=True)]
    compared = drift(before, first, second, [prompt_key(each.prompt) for each in both])
    servers = {"earlier": manifest.get("servers", {}), "now": identities(started, known)}
    result = {
        "output": config.output,
        "rows": len(both),
        "unscored": len(asked) - len(both),
        "reasons": dict(reasons),
        "seed": config.seed,
        **compared,
        "servers": servers,
    }
    write_json(sidecar(path, "recheck.json"), result)
    return result


def _manifest(path: Path) -> dict[str, Any]:
    place = sidecar(path, "manifest.json")
    if not (path.exists() and place.exists()):
        raise UsageError(
            f"{option('recheck')} needs a finished output", where=str(path), hint="run `rlaif label` to its end first"
        )
    return read_json(place, settings=dict)


def drawn(path: Path, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """That many rows of preferences by id; which ones depends on the seed and the ids alone.

    Raises:
        UsageError: there are none.
    """
    rows = (json.loads(line) for _, line in lines(path))
    ranked = ((request_seed(seed, "recheck", row["id"]), row["id"], row) for row in rows)
    found = {name: row for _, name, row in heapq.nsmallest(count, ranked, key=lambda each: each[:2])}
    if not found:
        raise UsageError("the output has no scored rows to ask again", where=str(path))
    return found


def _p_first_response(judge: Judge, asked: list[Comparison], reasons: Counter[str]) -> dict[str, float]:
    """P(the response that comes first in the candidates wins), without unscored pairs."""
    found = {}
    for comparison, judgement in judge.compare(iter(asked)):
        if judgement.p_a is None:
            reasons[judgement.reason or ""] += 1
        else:
            found[pair_id(*comparison.key)] = judgement.p_a
    return found


def _earlier_p(row: dict[str, Any], comparison: Comparison) -> float:
    """The same of a preference, whose `chosen` may be either response."""
    _, i, _ = comparison.key
    p = float(row["p_chosen"])
    return p if row["meta"]["pair"][0] == i else 1 - p
