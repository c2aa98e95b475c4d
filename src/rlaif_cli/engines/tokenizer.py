"""The tokenizer of an engine's model."""

from __future__ import annotations

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.engines import DECISIONS, FAKE, SERVER, computing_engine
from rlaif_cli.engines.decisions import DecisionTokenizer
from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import AnyTokenizer, ChatTokenizer, FakeTokenizer, RemoteTokenizer


def open_tokenizer(config: EngineConfig, model: str) -> tuple[AnyTokenizer, int | None]:
    """The model's tokenizer and its context length in tokens (None: only its server knows), without starting an engine.

    Raises:
        ModelError: the model cannot be found or has no tokenizer.
    """
    engine = computing_engine(config, model)
    if engine == FAKE:
        return FakeTokenizer(), config.max_length or 1 << 20
    if engine == SERVER:
        return RemoteTokenizer(), None
    if engine == DECISIONS:
        return DecisionTokenizer(), None
    path = resolve_model(model)
    limit = context_length(path)
    return ChatTokenizer(path, ChatFormat(*config.chat_format)), min(limit, config.max_length or limit)


def too_long(tokens: int, limit: int | None, what: str) -> str | None:
    """The error of a row that does not fit the model's context; None if it fits."""
    if limit is None or tokens <= limit:
        return None
    return f"{what} need {tokens} tokens, but the model's context holds {limit}"
