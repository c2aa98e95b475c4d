"""Text -> token ids, with template text and data kept apart.

In a chat template's text, the string of an added token ("<|im_end|>") is that token. In data, which users and models
wrote, it is plain text: no message can end a turn, start another, or start thinking. This includes added tokens that
are not marked as special ("<think>" and "</tool_call>" in many tokenizers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from rlaif_cli.errors import ModelError

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters around the index of a piece of escaped text


class _Added(NamedTuple):
    id: int
    lstrip: bool  # absorbs the white space before it
    rstrip: bool


class TextEncoder:
    """Encodes template text and data.

    Args:
        hf: a tokenizer of transformers.
    """

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._added: dict[str, _Added] = {}
        # White space that is an added token (such as runs of line feeds) controls nothing and is ordinary text.
        for number, token in hf.added_tokens_decoder.items():
            if token.content.strip():
                self._added[token.content] = _Added(number, bool(token.lstrip), bool(token.rstrip))
        for text in hf.all_special_tokens:
            if text.strip():
                self._added.setdefault(text, _Added(hf.convert_tokens_to_ids(text), False, False))
        # Unknown characters become the unknown token, in data too.
        self._ids = frozenset(added.id for added in self._added.values()) - {hf.unk_token_id}
        longest_first = sorted(self._added, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._names = re.compile(names)
        self._to_escape = re.compile(f"{_OPEN}|{names}")
        self._in_escaped = re.compile(f"{_OPEN}(?P<hidden>[0-9]+){_CLOSE}|{names}")

    def template(self, text: str) -> list[int]:
        """Ids of template text."""
        ids: list[int] = self._hf(text, add_special_tokens=False)["input_ids"]
        return ids

    def data(self, text: str) -> list[int]:
        """Ids of data."""
        if not text:
            return []
        hidden: list[str] = []
        return self.mixed(self.escape(text, hidden), hidden)

    def escape(self, text: str, hidden: list[str]) -> str:
        """Escape data for use in a template: strings of added tokens are replaced by markers.

        Args:
            hidden: the replaced strings are appended, at the index in their markers; use one list per rendering.
        """

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"{_OPEN}{len(hidden) - 1}{_CLOSE}"

        return self._to_escape.sub(hide, text)

    def mixed(self, text: str, hidden: list[str]) -> list[int]:
        """Ids of template text that contains escaped data."""
        if not hidden:
            ids = self.template(text)
            # Equal unless a normalizer turns a look-alike into an added token.
            if sum(number in self._ids for number in ids) == sum(1 for _ in self._names.finditer(text)):
                return ids
        return [number for piece in self._pieces(text, hidden) for number in piece]

    def after_first_added(self, text: str) -> int | None:
        """The end of the first added token in template text; None if there is none."""
        match = self._names.search(text)
        return match.end() if match else None

    def _pieces(self, text: str, hidden: list[str]) -> Iterator[list[int]]:
        """Ids of the template's added tokens and of the text between them, in order."""
        segment, position, first = "", 0, True
        for match in self._in_escaped.finditer(text):
            segment += text[position : match.start()]
            position = match.end()
            if match["hidden"] is not None and int(match["hidden"]) < len(hidden):
                segment += hidden[int(match["hidden"])]
                continue
            added = self._added[match[0]]
            yield self._plain(segment.rstrip() if added.lstrip else segment, first=first)
            yield [added.id]
            segment, first = "", False
            if added.rstrip:
                position += len(text[position:]) - len(text[position:].lstrip())
        yield self._plain(segment + text[position:], first=first)

    def _plain(self, text: str, *, first: bool) -> list[int]:
        """Ids of text without any added token.

        Args:
            first: it begins the whole text (some tokenizers then prepend a blank).
        """
        if not text:
            return []
        ids = self._encode_first(text) if first else self._encode_later(text)
        if not self._ids.isdisjoint(ids):
            what = "the tokenizer turns plain text into control tokens"
            raise ModelError(what, where=self._hf.name_or_path, hint="use a model with another tokenizer")
        return ids

    @cached_property
    def _encode_first(self) -> Callable[[str], list[int]]:
        return self._without_added_tokens(first=True)

    @cached_property
    def _encode_later(self) -> Callable[[str], list[int]]:
        return self._without_added_tokens(first=False)

    def _without_added_tokens(self, *, first: bool) -> Callable[[str], list[int]]:
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:  # Python tokenizers split special tokens on request; `_plain` checks the rest
            return lambda text: self._hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        from tokenizers import Tokenizer

        spec = json.loads(backend.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].strip()]
        spec["truncation"] = spec["padding"] = None
        if spec["model"]["type"] == "Unigram":  # its vocabulary contains control pieces
            pieces = spec["model"]["vocab"]
            spec["model"]["vocab"] = [
                [f"{_OPEN}{place}{_CLOSE}" if piece in self._added else piece, score]
                for place, (piece, score) in enumerate(pieces)
            ]
        if not first:
            for part in _parts(spec["pre_tokenizer"]):
                if part.get("prepend_scheme") == "first":
                    part["prepend_scheme"] = "never"
        core = Tokenizer.from_str(json.dumps(spec))
        return lambda text: core.encode(text, add_special_tokens=False).ids


def _parts(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer as a list, or the members of a sequence."""
    if pre_tokenizer is None:
        return []
    return pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
