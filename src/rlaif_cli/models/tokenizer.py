"""Chat messages -> token ids, by the model's own template. Text of users and models is data, never control tokens.

An ordinary conversation is tokenized exactly as transformers and vLLM would. What a message holds of a special token's
text ("<|im_end|>" in a response, say) stays text (`text_encoder.py`), and what a template does with a conversation's
parts is found out, not assumed (`chat_template.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.messages import Message
from rlaif_cli.errors import ModelError
from rlaif_cli.models.chat_template import ChatTemplate, named_turns
from rlaif_cli.models.load import NO_PROGRAMS, not_loaded
from rlaif_cli.models.metadata import vocabulary_size
from rlaif_cli.models.text_encoder import TextEncoder
from rlaif_cli.ui import console

Spellings = tuple[tuple[tuple[Any, ...], ...], ...]  # of each label, the token sequences that write it


class ChatTokenizer:
    """A Hugging Face tokenizer seen as: messages in, token ids out, and back.

    Args:
        path: a checkpoint folder.

    Attributes:
        eos_ids: the tokens that end a response: those of the generation config, the tokenizer's own, and last the one
            that the template ends a reply with.

    Raises:
        ModelError: there is no tokenizer in the folder, it is another model's, or no response could be placed and
            ended with it.
    """

    def __init__(self, path: Path | str) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(path, **NO_PROGRAMS)
        except Exception as error:  # broken files make the tokenizers library raise its own, without a common base
            raise not_loaded("the tokenizer", path, error) from error
        self._check_size(path)
        self.template = ChatTemplate(self.hf)
        self._encoder = TextEncoder(self.hf)
        self._spell = lru_cache(maxsize=256)(self._spellings)
        if not self.template.given:
            console.warn_once(f"{path}: no chat template; turns are written as 'Human: …' and 'Assistant: …'")
        if mark := self.template.opens_thoughts():
            raise ModelError(
                f"the chat template begins every reply inside thoughts ({mark}), and rlaif does not support thinking "
                "models yet",
                where=str(path),
                hint="use a model, or a copy of this one with a chat template, that answers at once",
            )
        self.eos_ids = self._eos_ids(path)

    def _check_size(self, path: Path | str) -> None:
        size = vocabulary_size(path)
        used = max([self.hf.vocab_size - 1, *self.hf.added_tokens_decoder]) + 1
        if size is not None and used > size:
            raise ModelError(
                f"the tokenizer has {used} tokens (added ones included) and the model embeddings for {size}",
                where=str(path),
                hint="it is another model's tokenizer, or tokens were added without resizing the model's embeddings",
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
                hint="name one as 'eos_token' in tokenizer_config.json"
                + (f"; the model stops at {names}" if names else ""),
            )
        return tuple(reversed(dict.fromkeys(reversed([*configured, *own]))))

    @cached_property
    def _ending(self) -> str:
        """What the template writes from the end of a reply to the token that ends the turn, with it; else nothing.

        Some write none after the last reply: there the next turn's first token ends it, as it does when sampling.
        """
        for trailer in (self.template.frame.trailer, self.template.frame.next_turn):
            ending = trailer[: self._encoder.after_first_added(trailer) or 0]
            if ending and not ending.endswith(self.hf.bos_token or "\0"):
                return ending
        return ""

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply.

        Raises:
            ConversationError: the template refuses the conversation, or leaves a turn out.
        """
        hidden: list[str] = []
        shielded = [Message(role=m.role, content=self._encoder.shield(m.content, hidden)) for m in messages]
        text = self.template.render(shielded if hidden else messages, add_generation_prompt=add_generation_prompt)
        return self._bos + self._encoder.mixed(text, hidden)

    def question(self, messages: Sequence[Message]) -> list[int]:
        """`chat` for our own question: its system prompt moves into the user's turn where a template has none."""
        if messages[0].role == "system" and not self._takes_system:
            messages = fold_system(messages)
        return self.chat(messages)

    def answers(self, messages: Sequence[Message], begun: str, labels: Sequence[str]) -> tuple[list[int], Spellings]:
        """A question whose reply is begun, and the ways in which each label can go on with it.

        Beginning and label are tokenized together and split where the labels part, since many tokenizers join what
        stands at that place (" 1" is one token after "Number:" for some, and "1" after "Number: " for others).

        Args:
            messages: the question.
            begun: what the reply says before the label.
        """
        prefix, spellings = self._spell(begun, tuple(labels))
        return self.question(messages) + list(prefix), spellings

    def text(self, text: str) -> list[int]:
        """Plain text as token ids; special-token strings in it stay plain text."""
        return self._encoder.data(text)

    def response(self, text: str) -> list[int]:
        """A whole reply: all that stands after the generation prompt, up to the token that ends the turn."""
        if self.template.frame.trims:
            text = text.strip()
        ids = self._reply(text, self._ending)
        return ids if self._ending else [*ids, self.eos_ids[-1]]

    def decode(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        if ids and ids[-1] in self.eos_ids:  # not always marked as special
            ids.pop()
        text: str = self.hf.decode(ids, skip_special_tokens=True)
        return text

    @cached_property
    def _bos(self) -> list[int]:
        """What the tokenizer puts before every text; a template writes it itself."""
        if self.template.given:
            return []
        bare, whole = self.hf("a", add_special_tokens=False)["input_ids"], self.hf("a")["input_ids"]
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])

    @cached_property
    def _takes_system(self) -> bool:
        takes = self.template.takes_system
        if not takes:
            console.warn_once(
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
                hint="--method pairwise or score, or another judge",
            )

    def _reply(self, text: str, ending: str = "") -> list[int]:
        """Ids of a reply's text (data) as it is tokenized after the generation prompt."""
        opening, lead = self.template.frame.opening, self.template.frame.lead
        hidden: list[str] = []
        reply = lead + self._encoder.shield(text, hidden) + ending
        both, before = self._encoder.mixed(opening + reply, hidden), self._encoder.template(opening)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self._encoder.mixed(reply, hidden)  # text that joins the prompt's last token: the prompt stays as it is

    def _spellings(self, begun: str, labels: tuple[str, ...]) -> tuple[tuple[int, ...], Spellings]:
        joined = [self._reply(begun + label) for label in labels]
        shared = 0
        while shared < min(map(len, joined)) - 1 and len({ids[shared] for ids in joined}) == 1:
            shared += 1
        spellings = []
        for label, ids in zip(labels, joined, strict=True):
            alone = [tuple(found) for text in (label, " " + label) if len(found := self.text(text)) == 1]
            spellings.append(tuple(dict.fromkeys([tuple(ids[shared:]), *alone])))
        if len({ways[0] for ways in spellings}) < len(labels):
            raise ModelError(f"the tokenizer writes some of {', '.join(labels)} alike", where=self.hf.name_or_path)
        return tuple(joined[0][:shared]), tuple(spellings)


def _configured_eos_ids(folder: Path) -> list[int]:
    """End tokens that the generation config names, or the model's config where there is none."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name, error=ModelError).get("eos_token_id")
            return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]
    return []


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """A conversation whose system prompt stands at the head of the first turn after it."""
    system, first, *rest = messages
    return [Message(role=first.role, content=f"{system.content}\n\n{first.content}"), *rest]


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation under a system prompt; one that it already has gives way."""
    if system is None:
        return list(messages)
    return [Message(role="system", content=system), *(m for m in messages if m.role != "system")]


class FakeTokenizer:
    """One token a UTF-8 byte, no model: for `--engine fake`."""

    eos_ids = (256,)

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        roles, texts = [message.role for message in messages], [message.content for message in messages]
        return self.text(named_turns(roles, texts, add_generation_prompt))

    question = chat

    def answers(self, messages: Sequence[Message], begun: str, labels: Sequence[str]) -> tuple[list[int], Spellings]:
        return self.chat(messages) + self.text(begun), tuple((tuple(self.text(label)),) for label in labels)

    def require_system(self, why: str) -> None:
        pass

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

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[tuple[str, str]]:
        return [(str(message.role), message.content) for message in messages]

    question = chat

    def answers(
        self, messages: Sequence[Message], begun: str, labels: Sequence[str]
    ) -> tuple[list[tuple[str, str]], Spellings]:
        return [*self.chat(messages), ("begun", begun)], tuple(((label,), (" " + label,)) for label in labels)

    def require_system(self, why: str) -> None:
        pass

    def text(self, text: str) -> list[str]:
        return [text] if text else []

    def response(self, text: str) -> list[str]:
        return self.text(text)

    def decode(self, ids: Sequence[str]) -> str:
        return "".join(ids)


AnyTokenizer = ChatTokenizer | FakeTokenizer | RemoteTokenizer
