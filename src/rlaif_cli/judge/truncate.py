"""Truncate a comparison that is too long for its judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from rlaif_cli.data.messages import Message
from rlaif_cli.judge.base import Comparison

Cut = Literal["head", "tail", "middle"]
MARK = " […] "


def truncate(
    comparison: Comparison, need: Callable[[Comparison], int], limit: int, tokenizer: Any, cut: Cut
) -> Comparison | None:
    """The comparison with its longest texts cut to one common length, so that it needs at most `limit` tokens.

    The prompt's longest message and the two responses count as its texts; `MARK` marks the cuts.

    Args:
        need: the tokens that a comparison needs.
        cut: which part of a text is removed: its head, its tail or its middle.

    Returns:
        None if it cannot be cut to fit.
    """
    for _ in range(8):  # tokens at a cut can merge or split, so count again
        over = need(comparison) - limit
        if over <= 0:
            return comparison
        texts = [_longest_message(comparison.prompt), comparison.a, comparison.b]
        tokens = [tokenizer.text(text) for text in texts]
        marks = 3 * len(tokenizer.text(MARK))
        length = common_length([len(ids) for ids in tokens], sum(map(len, tokens)) - over - marks)
        if length < 1:
            return None
        prompt, a, b = (
            text if len(ids) <= length else _cut(ids, length, cut, tokenizer)
            for text, ids in zip(texts, tokens, strict=True)
        )
        comparison = replace(comparison, prompt=_with_longest(comparison.prompt, prompt), a=a, b=b)
    return None


def common_length(lengths: Sequence[int], total: int) -> int:
    """The largest L with sum(min(length, L)) <= total; below 0 if not even 0 fits."""
    if total < 0:
        return -1
    left, remaining = total, sorted(lengths)
    for place, length in enumerate(remaining):
        share = left // (len(remaining) - place)
        if length > share:
            return share
        left -= length
    return remaining[-1]


def _cut(ids: Sequence[int], length: int, cut: Cut, tokenizer: Any) -> str:
    if cut == "head":
        return MARK + str(tokenizer.decode(ids[len(ids) - length :]))
    if cut == "tail":
        return str(tokenizer.decode(ids[:length])) + MARK
    before = length // 2
    after = length - before
    return str(tokenizer.decode(ids[:before])) + MARK + str(tokenizer.decode(ids[len(ids) - after :]))


def _longest(prompt: Sequence[Message]) -> int:
    return max(range(len(prompt)), key=lambda i: len(prompt[i].content))


def _longest_message(prompt: str | list[Message]) -> str:
    return prompt if isinstance(prompt, str) else prompt[_longest(prompt)].content


def _with_longest(prompt: str | list[Message], text: str) -> str | list[Message]:
    if isinstance(prompt, str):
        return text
    place = _longest(prompt)
    return [m if i != place else Message(role=m.role, content=text) for i, m in enumerate(prompt)]
