"""Chat messages -> token ids, with the model's own template. Text of users and models never becomes control tokens.

An ordinary conversation is tokenized exactly as transformers and vLLM do. The text of a special token in a message
(such as "<|im_end|>" in a response) stays text (`text_encoder.py`), and how a template treats a conversation is
probed, not assumed (`chat_template.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.messages import Message
from rlaif_cli.errors import ModelError
from rlaif_cli.models.chat_template import ChatFormat, ChatTemplate, named_turns
from rlaif_cli.models.load import NO_REMOTE_CODE, load_error
from rlaif_cli.models.metadata import vocabulary_size
from rlaif_cli.models.reasoning import Reply, split_reply
from rlaif_cli.models.text_encoder import TextEncoder
from rlaif_cli.ui import messages

Spellings = tuple[tuple[tuple[Any, ...], ...], ...]  # for each label, the token sequences that write it


class ChatTokenizer:
    """Converts messages to token ids and back, with a Hugging Face tokenizer.

    Args:
        path: a checkpoint folder.
        wanted: how its conversations are to be written.

    Attributes:
        eos_ids: the tokens that end a response: the generation config's, the tokenizer's own, and last the one with
            which the template ends a reply.

    Raises:
        ModelError: the folder has no tokenizer, it belongs to another model, or it cannot place or end a response.
    """

    def __init__(self, path: Path | str, wanted: ChatFormat = ChatFormat()) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(path, **NO_REMOTE_CODE)
        except Exception as error:  # for broken files, the tokenizers library raises types without a common base
            raise load_error("the tokenizer", path, error) from error
        self._check_size(path)
        self.template = ChatTemplate(self.hf, wanted)
        self._encoder = TextEncoder(self.hf)
        self._spell = lru_cache(maxsize=256)(self._spellings)
        if not self.template.given:
            messages.warn_once(f"{path}: no chat template; turns are written as 'Human: …' and 'Assistant: …'")
        self.eos_ids = self._eos_ids(path)

    def _check_size(self, path: Path | str) -> None:
        size = vocabulary_size(path)
        used = max([self.hf.vocab_size - 1, *self.hf.added_tokens_decoder]) + 1
        if size is not None and used > size:
            raise ModelError(
                f"the tokenizer has {used} tokens (including added ones), but the model has embeddings for {size}",
                where=str(path),
                hint="it is another model's tokenizer, or tokens were added without resizing the embeddings",
            )

    def _eos_ids(self, path: Path | str) -> tuple[int, ...]:
        configured = _configured_eos_ids(Path(path))
        own = [self.hf.eos_token_id, *self._encoder.template(self._ending)[-1:]]
        own = [token for token in own if token is not None]
        if not own:
            names = ", ".join(map(repr, self.hf.convert_ids_to_tokens(configured)))
            raise ModelError(
                "the tokenizer has no token that ends a response",
                where=str(path),
                hint="set 'eos_token' in tokenizer_config.json" + (f"; the model stops at {names}" if names else ""),
            )
        return tuple(reversed(dict.fromkeys(reversed([*configured, *own]))))

    @cached_property
    def _ending(self) -> str:
        """What the template writes after a reply, including the token that ends the turn; "" if there is none.

        Some templates end only replies that are followed by a turn: the first token of that turn then ends the reply,
        as in sampling.
        """
        for trailer in (self.template.frame.trailer, self.template.frame.next_turn):
            ending = trailer[: self._encoder.after_first_added(trailer) or 0]
            if ending and not ending.endswith(self.hf.bos_token or "\0"):
                return ending
        return ""

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply.

        Raises:
            ConversationError: the template refuses the conversation, or drops a turn.
        """
        hidden: list[str] = []
        escaped = [Message(role=m.role, content=self._encoder.escape(m.content, hidden)) for m in messages]
        text = self.template.render(escaped if hidden else messages, add_generation_prompt=add_generation_prompt)
        return self._bos + self._encoder.mixed(text, hidden)

    def question(self, messages: Sequence[Message]) -> list[int]:
        """`chat` for our questions: if the template has no system turn, the system prompt goes in the user's turn."""
        if messages[0].role == "system" and not self._takes_system:
            messages = fold_system(messages)
        return self.chat(messages)

    @property
    def reasons(self) -> bool:
        """Whether the model reasons before it answers, as far as its chat template says."""
        return self.template.marks is not None

    def answers(
        self, messages: Sequence[Message], prefill: str, labels: Sequence[str], reasoning: str | None = None
    ) -> tuple[list[int], Spellings]:
        """A question with a prefilled reply, and the token sequences that continue it with each label.

        Prefill and label are tokenized together and split where the labels differ, since tokenizers merge them
        differently (" 1" is one token after "Number:" for some, "1" after "Number: " for others).

        Args:
            messages: the question.
            prefill: the beginning of the reply, before the label.
            reasoning: the model's own, before the reply.
        """
        prefix, spellings = self._spell(prefill, tuple(labels), reasoning)
        return self.question(messages) + list(prefix), spellings

    def text(self, text: str) -> list[int]:
        """Plain text as token ids; strings of special tokens stay plain text."""
        return self._encoder.data(text)

    def response(self, text: str, reasoning: str | None = None) -> list[int]:
        """A whole reply: everything after the generation prompt, including the token that ends the turn.

        Args:
            text: the answer.
            reasoning: the model's own, before the answer.
        """
        if self.template.frame.trims:
            text = text.strip()
        ids = self._reply(text, self._ending, reasoning)
        return ids if self._ending else [*ids, self.eos_ids[-1]]

    def decode(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        if ids and ids[-1] in self.eos_ids:  # not always marked as special
            ids.pop()
        text: str = self.hf.decode(ids, skip_special_tokens=True)
        return text

    def reply(self, ids: Sequence[int]) -> Reply:
        """Sampled tokens as reasoning and answer."""
        marks, lead = self.template.marks, self.template.frame.lead.strip()
        if marks is None and not lead:
            return split_reply(self.decode(ids))
        ids = list(ids[:-1] if ids and ids[-1] in self.eos_ids else ids)
        raw = self._raw(ids)
        if marks is None and raw.lstrip().startswith(lead):  # what the template writes before a reply
            return Reply(self._after_mark(ids, lead)[0])
        if marks is None:
            return split_reply(self.decode(ids))
        found = split_reply(raw, marks, opened=self.template.opened is not None)
        if found.answer is None:
            return replace(found, reasoning_tokens=len(ids))
        if marks.close not in raw:
            return Reply(self.decode(ids))
        answer, end = self._after_mark(ids, marks.close)
        return Reply(answer.strip(), found.reasoning, end)

    def _raw(self, ids: Sequence[int]) -> str:
        """With the names of special tokens, as which models often write marks."""
        text: str = self.hf.decode(ids, skip_special_tokens=False)
        return text

    def _after_mark(self, ids: list[int], mark: str) -> tuple[str, int]:
        """The text after the first `mark`, and the number of tokens up to its end.

        The last of these tokens may also hold the first characters after the mark.
        """
        end = bisect_left(range(len(ids)), True, key=lambda place: mark in self._raw(ids[: place + 1])) + 1
        return self._raw(ids[:end]).partition(mark)[2] + self.decode(ids[end:]), end

    @cached_property
    def _bos(self) -> list[int]:
        """Ids that the tokenizer puts before every text; templates write them themselves."""
        if self.template.given:
            return []
        bare, whole = self.hf("a", add_special_tokens=False)["input_ids"], self.hf("a")["input_ids"]
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])

    @cached_property
    def _takes_system(self) -> bool:
        takes = self.template.takes_system
        if not takes:
            messages.warn_once(
                f"{self.hf.name_or_path}: the chat template has no system turn; instructions to this model go before "
                "the question in the user's turn"
            )
        return takes

    def require_system(self, why: str) -> None:
        """Raises: ModelError: the template has no system turn."""
        if not self.template.takes_system:
            raise ModelError(
                f"the chat template has no system turn, {why}",
                where=self.hf.name_or_path,
                hint=f"use {option('method')} pairwise or score, or another judge",
            )

    def _reply(self, text: str, ending: str = "", reasoning: str | None = None) -> list[int]:
        """Ids of a reply's text (data), tokenized after the generation prompt."""
        opening = self.template.frame.opening
        hidden: list[str] = []
        thoughts = None if reasoning is None else self._encoder.escape(reasoning, hidden)
        reply = self.template.frame.before_reply(thoughts) + self._encoder.escape(text, hidden) + ending
        both, before = self._encoder.mixed(opening + reply, hidden), self._encoder.template(opening)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self._encoder.mixed(
            reply, hidden
        )  # the text would merge with the prompt's last token: tokenize it separately

    def _spellings(
        self, prefill: str, labels: tuple[str, ...], reasoning: str | None
    ) -> tuple[tuple[int, ...], Spellings]:
        joined = [self._reply(prefill + label, reasoning=reasoning) for label in labels]
        shared = 0
        while shared < min(map(len, joined)) - 1 and len({ids[shared] for ids in joined}) == 1:
            shared += 1
        spellings = []
        for label, ids in zip(labels, joined, strict=True):
            alone = [tuple(found) for text in (label, " " + label) if len(found := self.text(text)) == 1]
            spellings.append(tuple(dict.fromkeys([tuple(ids[shared:]), *alone])))
        if len({ways[0] for ways in spellings}) < len(labels):
            raise ModelError(
                f"the tokenizer encodes some of {', '.join(labels)} identically", where=self.hf.name_or_path
            )
        return tuple(joined[0][:shared]), tuple(spellings)


def _configured_eos_ids(folder: Path) -> list[int]:
    """End tokens of the generation config, or of the model's config if there is none."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name, error=ModelError).get("eos_token_id")
            return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]
    return []


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Move the system prompt to the beginning of the next turn."""
    system, first, *rest = messages
    return [Message(role=first.role, content=f"{system.content}\n\n{first.content}"), *rest]


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation with this system prompt, which replaces an existing one."""
    if system is None:
        return list(messages)
    return [Message(role="system", content=system), *(m for m in messages if m.role != "system")]


class FakeTokenizer:
    """One token per UTF-8 byte, without a model: for `--engine fake`."""

    eos_ids = (256,)

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        roles, texts = [message.role for message in messages], [message.content for message in messages]
        return self.text(named_turns(roles, texts, add_generation_prompt))

    question = chat
    reasons: bool | None = False

    def answers(
        self, messages: Sequence[Message], prefill: str, labels: Sequence[str], reasoning: str | None = None
    ) -> tuple[list[int], Spellings]:
        return self.chat(messages) + self.text(prefill), tuple((tuple(self.text(label)),) for label in labels)

    def require_system(self, why: str) -> None:
        pass

    def text(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def response(self, text: str, reasoning: str | None = None) -> list[int]:
        return [*self.text(text), 256]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")

    def reply(self, ids: Sequence[int]) -> Reply:
        return Reply(self.decode(ids))


class RemoteTokenizer:
    """For a chat server, whose tokenizer is unknown: a prompt is its turns, and a token is its text.

    A turn is (role, text). The prefilled beginning of a reply is a last turn with the role "prefill".
    """

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[tuple[str, str]]:
        return [(str(message.role), message.content) for message in messages]

    question = chat
    reasons: bool | None = None  # unknown

    def answers(
        self, messages: Sequence[Message], prefill: str, labels: Sequence[str], reasoning: str | None = None
    ) -> tuple[list[tuple[str, str]], Spellings]:
        return [*self.chat(messages), ("prefill", prefill)], tuple(((label,), (" " + label,)) for label in labels)

    def require_system(self, why: str) -> None:
        pass

    def text(self, text: str) -> list[str]:
        return [text] if text else []

    def response(self, text: str, reasoning: str | None = None) -> list[str]:
        return self.text(text)

    def decode(self, ids: Sequence[str]) -> str:
        return "".join(ids)


AnyTokenizer = ChatTokenizer | FakeTokenizer | RemoteTokenizer
