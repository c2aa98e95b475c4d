"""Render conversations with a model's chat template, and probe how it treats their parts.

Nothing is assumed about a template: rendering markers in place of messages shows how a reply begins and ends, which
roles are dropped, and which form of content is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlaif_cli.data.messages import Message
from rlaif_cli.errors import ConversationError, ModelError

# How models mark the beginning and the end of their thinking.
THINKING_MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis", "<|end|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
_ENDS_TURNS_TOO = "<|end|>"  # also ends ordinary turns


def thinking_marker(text: str) -> str | None:
    """The first thinking marker in a text, also of incomplete thinking; None if there is none."""
    marks = [mark for pair in THINKING_MARKERS for mark in pair if mark in text and mark != _ENDS_TURNS_TOO]
    return min(marks, key=text.index, default=None)


@dataclass(frozen=True)
class Frame:
    """What a template writes around the reply to a user's turn.

    Attributes:
        opening: from the user's text to where a reply is sampled.
        lead: from there to the reply's text: usually empty; else closed thinking, a channel name, or a blank.
        trailer: everything after the reply's text if it is the last one.
        next_turn: everything between the reply and the next user's text.
        trims: white space around the reply's text is removed.
    """

    opening: str
    lead: str = ""
    trailer: str = ""
    next_turn: str = ""
    trims: bool = False


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        hf: a tokenizer of transformers; without a template, turns are labelled as in HH-RLHF.

    Attributes:
        given: the tokenizer has a template.
        dropped_role: roles of a conversation -> the role of a message that is dropped, or None.

    Raises:
        ModelError: the template cannot render a user turn.
    """

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self.given = bool(hf.chat_template)
        self._in_parts = False
        self._in_parts = self._reads_parts()
        self.dropped_role = lru_cache(maxsize=1024)(self._dropped_role)
        self.frame = self._frame()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text.

        Raises:
            ConversationError: the template refuses it, or drops a message.
        """
        roles = tuple(message.role for message in messages)
        if dropped := self.dropped_role(roles):
            what = f"the chat template drops or rewrites the {dropped} turn of this conversation"
            raise ConversationError(what, where=self._hf.name_or_path)
        return self._render(roles, [message.content for message in messages], add_generation_prompt)

    @property
    def takes_system(self) -> bool:
        """Whether a system turn before a user turn reaches the model."""
        try:
            self.render([Message(role="system", content="a"), Message(role="user", content="b")])
        except ConversationError:
            return False
        return True

    def _reads_parts(self) -> bool:
        """Whether it reads a message's content as a list of parts, as templates of multimodal models do."""
        reason = "it drops or rewrites the user's text"
        for self._in_parts in (False, True):
            try:
                if _mark(0) in self._render(("user",), [_mark(0)], True):
                    return self._in_parts
            except ConversationError as error:
                reason = error.what
        raise ModelError(f"the chat template does not render a user turn: {reason}", where=self._hf.name_or_path)

    def _dropped_role(self, roles: tuple[str, ...]) -> str | None:
        """The role of a message that is missing from a rendered conversation of these roles."""
        try:
            text = self._render(roles, [_mark(place) for place in range(len(roles))], True)
        except ConversationError:
            return None  # rendering the conversation itself reports it
        return next((role for place, role in enumerate(roles) if _mark(place) not in text), None)

    def _frame(self) -> Frame:
        user, reply, later = map(_mark, range(3))
        opening = self._after(user, [user])
        try:
            before, found, trailer = self._after(user, [user, reply]).partition(reply)
            trims = self._after(user, [user, f" {reply} "]).startswith(before + reply)
        except ConversationError:
            return Frame(opening)
        if not found:
            return Frame(opening)
        try:
            next_turn = self._after(reply, [user, reply, later]).partition(later)[0]
        except ConversationError:
            next_turn = ""
        # If the reply does not follow the generation prompt, assume the position where the model would sample it.
        lead = before[len(opening) :] if before.startswith(opening) else ""
        return Frame(opening, lead, trailer, next_turn, trims)

    def _after(self, mark: str, texts: Sequence[str]) -> str:
        """The text rendered after a marker; turns alternate, with a generation prompt after a final user turn."""
        roles = [("user", "assistant")[place % 2] for place in range(len(texts))]
        return self._render(roles, texts, roles[-1] == "user").partition(mark)[2]

    def opens_thinking(self) -> str | None:
        """The marker with which the generation prompt opens thinking that it does not close."""
        text = self.frame.opening
        return next((begin for begin, end in THINKING_MARKERS if text.rfind(begin) > text.rfind(end)), None)

    def _render(self, roles: Sequence[str], texts: Sequence[str], add_generation_prompt: bool) -> str:
        if not self.given:
            return named_turns(roles, texts, add_generation_prompt)
        contents = [[{"type": "text", "text": text}] for text in texts] if self._in_parts else texts
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:  # transformers renders templates in a sandboxed Jinja environment
            text: str = self._hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # a template's own refusals, and any error in its expressions
            reason = str(error) or type(error).__name__
            what = f"the chat template refuses this conversation: {reason}"
            raise ConversationError(what, where=self._hf.name_or_path) from error
        return text


def _mark(number: int) -> str:
    """Private-use characters, which no template writes, around text that a rewriting template would change."""
    return f"\ue000{number} Some <text>, 'quoted' & cut\ue001"


def named_turns(roles: Sequence[str], texts: Sequence[str], add_generation_prompt: bool) -> str:
    """For base models without a template: turns labelled as in HH-RLHF."""
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: ", "tool": "Tool: "}
    text = "\n\n".join(names[role] + content for role, content in zip(roles, texts, strict=True))
    return text + "\n\nAssistant:" if add_generation_prompt else text
