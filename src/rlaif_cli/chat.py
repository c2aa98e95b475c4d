"""Chat messages -> token ids, by the model's own template. Text of users and models is data, never control tokens.

An ordinary conversation is tokenized exactly as transformers and vLLM would. Where a message holds the text of a
special token ("<|im_end|>" in a response, say), the message is encoded apart from the template with
`split_special_tokens`, so that only the template can end a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif_cli import models
from rlaif_cli.errors import ModelError
from rlaif_cli.records import Message

_MARK = "\ue000{}\ue001"  # private-use characters: where a message's text goes while the template is rendered


class ChatTokenizer:
    """A Hugging Face tokenizer seen as: messages in, token ids out, and back.

    Args:
        path: a checkpoint folder.

    Raises:
        ModelError: there is no tokenizer in the folder, or one of another model.
    """

    def __init__(self, path: Path | str) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(path, **models.NO_PROGRAMS)
        except Exception as error:  # broken files make the tokenizers library raise its own, without a common base
            raise models.not_loaded("the tokenizer", path, error) from error
        size = models.vocabulary_size(path)
        if size is not None and self.hf.vocab_size > size:
            raise ModelError(
                f"the tokenizer has {self.hf.vocab_size} tokens and the model {size}: it is another model's",
                where=str(path),
            )
        self.has_template = bool(self.hf.chat_template)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: the tokenizer's own, and those that the template ends a turn with."""
        ids = [self.hf.eos_token_id]
        if self.has_template:
            end = self._encode(self._render([Message(role="assistant", content="x")], False).rpartition("x")[2])
            ids += [token for token in end[:1] if token in self.hf.added_tokens_decoder]
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    def chat(self, messages: Sequence[Message], *, prefix: str = "", add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply.

        Args:
            messages: the turns so far.
            prefix: text that the reply already begins with (a judge's answer up to the label).
        """
        if not self._hostile(messages):
            ids = self._encode(self._render(messages, add_generation_prompt))
        else:
            ids = self._chat_piecewise(messages, add_generation_prompt)
        return ids + self.text(prefix)

    def text(self, text: str) -> list[int]:
        """Plain text as token ids; special-token strings in it stay plain text."""
        if not text:
            return []
        ids: list[int] = self.hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def response(self, text: str) -> list[int]:
        """A whole reply: its text and the token that ends a turn."""
        return [*self.text(text), self.eos_ids[-1]]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.hf.decode(list(ids), skip_special_tokens=True)
        return text

    def _hostile(self, messages: Sequence[Message]) -> bool:
        return any(token in message.content for message in messages for token in self._special_strings)

    @cached_property
    def _special_strings(self) -> list[str]:
        # `added_tokens_decoder` holds control tokens that are not in `all_special_tokens` too, <think> and the like.
        added = (token.content for token in self.hf.added_tokens_decoder.values())
        return [text for text in dict.fromkeys([*self.hf.all_special_tokens, *added]) if text.strip()]

    def _chat_piecewise(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        marked = [Message(role=message.role, content=_MARK.format(index)) for index, message in enumerate(messages)]
        rest = self._render(marked, add_generation_prompt)
        ids: list[int] = []
        for index, message in enumerate(messages):
            before, mark, rest = rest.partition(_MARK.format(index))
            if not mark:
                raise ModelError(f"the chat template drops the {message.role} message", where=self.hf.name_or_path)
            ids += self._encode(before) + self.text(message.content)
        return ids + self._encode(rest)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [message.model_dump() for message in messages]
        if not self.has_template:
            return _plain_template(turns, add_generation_prompt)
        from jinja2 import TemplateError

        try:  # transformers renders templates in a sandboxed Jinja environment
            text: str = self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses this conversation: {error}", where=self.hf.name_or_path
            ) from error
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.hf(text, add_special_tokens=False)["input_ids"]
        return ids


def _plain_template(turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """For base models, which bring no template: named turns, as HH-RLHF writes them."""
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: ", "tool": "Tool: "}
    text = "\n\n".join(names[turn["role"]] + turn["content"] for turn in turns)
    return text + "\n\nAssistant:" if add_generation_prompt else text


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation under a system prompt; one that it already has gives way."""
    if system is None:
        return list(messages)
    return [Message(role="system", content=system), *(m for m in messages if m.role != "system")]


class FakeTokenizer:
    """One token a UTF-8 byte, no model: for `--engine fake`."""

    has_template = True
    eos_ids = (256,)

    def chat(self, messages: Sequence[Message], *, prefix: str = "", add_generation_prompt: bool = True) -> list[int]:
        turns = [message.model_dump() for message in messages]
        return self.text(_plain_template(turns, add_generation_prompt) + prefix)

    def text(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def response(self, text: str) -> list[int]:
        return [*self.text(text), 256]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


class RemoteTokenizer:
    """For a chat server, which keeps its tokenizer to itself: a prompt is its turns, and a token is its text.

    A turn is (role, text). The text that a reply already begins with is a last turn of the role "begun".
    """

    has_template = True

    def chat(
        self, messages: Sequence[Message], *, prefix: str = "", add_generation_prompt: bool = True
    ) -> list[tuple[str, str]]:
        turns = [(str(message.role), message.content) for message in messages]
        return [*turns, ("begun", prefix)] if prefix else turns

    def text(self, text: str) -> list[str]:
        return [text] if text else []

    def response(self, text: str) -> list[str]:
        return self.text(text)

    def decode(self, ids: Sequence[str]) -> str:
        return "".join(ids)


AnyTokenizer = ChatTokenizer | FakeTokenizer | RemoteTokenizer
