"""What a stage records in its manifest when it is finished."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import LOCAL, Engine, computing_engine, engine_name
from rlaif_cli.engines.server_account import attached, discard, open_account, prices_of
from rlaif_cli.errors import RowsUnanswered
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.ui.console import warn_once


def model_hash(config: EngineConfig, model: str) -> str | None:
    return checkpoint_hash(resolve_model(model)) if computing_engine(config, model) in LOCAL else None


@contextlib.contextmanager
def accounted(output: Output, engines: Sequence[Engine], config: EngineConfig) -> Iterator[None]:
    """Add what servers count in this context to the usage of the output, even after an error or Ctrl-C.

    With `--price-in` and `--price-out` also the cost, if every answer was counted. Other engines count nothing.
    With `--batch` or `--max-cost` answers are kept beside the output, and are counted when it is finished.

    Raises:
        Paused: rows are waiting for a batch or a higher budget.
    """
    counted = [usage for engine in engines if (usage := getattr(engine, "usage", None)) is not None]

    def totals() -> Counter[str]:
        return sum((Counter(vars(usage)) for usage in counted), Counter())

    before = totals()
    with open_account(config, output.usage) as account:
        try:
            with attached(engines, account):
                yield
        except RowsUnanswered:
            if account is not None:
                account.check(f"{len(output.done) + output.written} rows are done")
            raise
        finally:
            if account is None and (used := totals() - before):
                output.spend(priced(dict(used), config))
        if account is not None and (used := +Counter(vars(account.kept.usage))):
            output.spend(priced(dict(used), config), for_resume=False)


def priced(used: dict[str, float], config: EngineConfig) -> dict[str, float]:
    """Token counts with their cost, if it is known."""
    tokens_in, tokens_out = used.setdefault("tokens_in", 0), used.setdefault("tokens_out", 0)
    if (prices := prices_of(config)) is not None:
        used["cost"] = round(prices.cost(tokens_in, tokens_out), 6)
        if uncounted := used.get("uncounted"):
            warn_once(f"the server does not report the tokens of {uncounted:g} answers, so the cost is unknown")
    return used


def finish(
    output: Output, stage: str, config: EngineConfig, model: str | tuple[str, ...], counts: dict[str, Any]
) -> None:
    """Complete an output; its manifest records what made it (several models by name)."""

    def each(of: Callable[[EngineConfig, str], str | None]) -> Any:
        return of(config, model) if isinstance(model, str) else {name: of(config, name) for name in model}

    output.finish({"stage": stage, "model_sha256": each(model_hash), "engine": each(engine_name), "counts": counts})
    if output.path is not None:
        discard(output.path)
