"""The tokenizer of an engine's model."""

from __future__ import annotations

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.engines import DECISIONS, FAKE, ResolvedModel, computing_engine
from rlaif_cli.engines.decisions import DecisionTokenizer
from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.tokenizer import AnyTokenizer, ChatTokenizer, FakeTokenizer, RemoteTokenizer


def open_tokenizer(config: EngineConfig, model: ResolvedModel) -> tuple[AnyTokenizer, int | None]:
    """The model's tokenizer and its context length in tokens (None: only its server knows), without starting an engine.

    Raises:
        ModelError: the model has no tokenizer.
    """
    if model.path is not None:
        limit = context_length(model.path)
        return ChatTokenizer(model.path, ChatFormat(*config.chat_format)), min(limit, config.max_length or limit)
    engine = computing_engine(config, model.name)
    if engine == FAKE:
        return FakeTokenizer(), config.max_length or 1 << 20
    return (DecisionTokenizer() if engine == DECISIONS else RemoteTokenizer()), None


def too_long(tokens: int, limit: int | None, what: str) -> str | None:
    """The error of a row that does not fit the model's context; None if it fits."""
    if limit is None or tokens <= limit:
        return None
    return f"{what} need {tokens} tokens, but the model's context holds {limit}"
