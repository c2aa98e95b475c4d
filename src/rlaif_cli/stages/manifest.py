"""What a stage records in its manifest when it is finished."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.resumable_output import Output, Servers
from rlaif_cli.engines import Engine, ResolvedModel, engine_name
from rlaif_cli.engines.server_account import attached, discard, open_account, prices_of
from rlaif_cli.errors import RowsUnanswered
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.ui.messages import warn_once


@contextlib.contextmanager
def accounted(output: Output, engines: Mapping[str, Engine], config: EngineConfig) -> Iterator[None]:
    """Add what servers count in this context, and say of themselves, to the output, even after an error or Ctrl-C.

    With `--price-in` and `--price-out` also the cost, if every answer was counted. Other engines count nothing.
    With `--batch` or `--max-cost` answers are kept beside the output, and are counted when it is finished.

    Raises:
        Paused: rows are waiting for a batch or a higher budget.
    """
    counted = [usage for engine in engines.values() if (usage := getattr(engine, "usage", None)) is not None]

    def totals() -> Counter[str]:
        return sum((Counter(vars(usage)) for usage in counted), Counter())

    before, known = totals(), identities(engines)
    with open_account(config, output.usage) as account:
        try:
            with attached(list(engines.values()), account):
                yield
        except RowsUnanswered:
            if account is not None:
                account.check(f"{len(output.done) + output.written} rows are done")
            raise
        finally:
            used = {} if account is not None else dict(totals() - before)
            servers = identities(engines, known)
            if used or servers:
                output.spend(priced(used, config) if used else {}, servers)
        if account is not None and (kept := +Counter(vars(account.kept.usage))):
            output.spend(priced(kept, config), for_resume=False)


def priced(counts: Mapping[str, float], config: EngineConfig) -> dict[str, float]:
    """Token counts with their cost, if it is known."""
    used = dict(counts)
    tokens_in, tokens_out = used.setdefault("tokens_in", 0), used.setdefault("tokens_out", 0)
    if (prices := prices_of(config)) is not None:
        used["cost"] = round(prices.cost(tokens_in, tokens_out), 6)
        if uncounted := used.get("uncounted"):
            warn_once(f"the server does not report the tokens of {uncounted:g} answers, so the cost is unknown")
    return used


def identities(engines: Mapping[str, Engine], before: Servers | None = None) -> Servers:
    """What the servers behind engines said that they are; `before`: what had been said earlier, which is left out."""
    found: Servers = {}
    for model, engine in engines.items():
        for (name, value), count in getattr(engine, "identity", {}).items():
            new = count - (before or {}).get(model, {}).get(name, {}).get(value, 0)
            if new:
                found.setdefault(model, {}).setdefault(name, {})[value] = new
    return found


def finish(
    output: Output,
    stage: str,
    config: EngineConfig,
    model: ResolvedModel | Mapping[str, ResolvedModel],
    counts: dict[str, Any],
) -> None:
    """Complete an output; its manifest records what made it (several models by name)."""

    def each(of: Callable[[ResolvedModel], str | None]) -> Any:
        return of(model) if isinstance(model, ResolvedModel) else {name: of(one) for name, one in model.items()}

    hashes = each(lambda one: checkpoint_hash(one.path) if one.path else None)
    names = each(lambda one: engine_name(config, one.name))
    output.finish({"stage": stage, "model_sha256": hashes, "engine": names, "counts": counts})
    if output.path is not None:
        discard(output.path)
