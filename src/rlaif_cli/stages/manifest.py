"""What a stage records in its manifest when it is finished."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.resumable_output import Output, Servers
from rlaif_cli.engines import Engine, ResolvedModel, engine_name
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.ui.messages import warn_once


@contextlib.contextmanager
def accounted(output: Output, engines: Mapping[str, Engine], config: EngineConfig) -> Iterator[None]:
    """Add what servers count in this context, and say of themselves, to the output, even after an error or Ctrl-C.

    With `--price-in` and `--price-out` also the cost, if every answer was counted. Other engines count nothing.
    """
    counted = [usage for engine in engines.values() if (usage := getattr(engine, "usage", None)) is not None]

    def totals() -> Counter[str]:
        return sum((Counter(vars(usage)) for usage in counted), Counter())

    before, known = totals(), identities(engines)
    try:
        yield
    finally:
        used: dict[str, float] = dict(totals() - before)
        if used:
            tokens_in, tokens_out = used.setdefault("tokens_in", 0), used.setdefault("tokens_out", 0)
            if config.price_in is not None and config.price_out is not None:
                used["cost"] = round((tokens_in * config.price_in + tokens_out * config.price_out) / 1e6, 6)
                if uncounted := used.get("uncounted"):
                    warn_once(f"the server does not report the tokens of {uncounted} answers, so the cost is unknown")
        servers = identities(engines, known)
        if used or servers:
            output.spend(used, servers)


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
