"""Render conversations with a model's chat template, and probe how it treats their parts.

Nothing is assumed about a template: rendering markers in place of messages shows how a reply begins and ends, which
roles are dropped, and which form of content is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from rlaif_cli.config.chat import template_arguments
from rlaif_cli.data.messages import Message
from rlaif_cli.errors import ConversationError, ModelError, UsageError
from rlaif_cli.models.reasoning import ReasoningMarks, closing, named_in, opened_by

# The fields of a message in which templates look for its reasoning.
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Frame:
    """What a template writes around the reply to a user's turn.

    Attributes:
        opening: from the user's text to where a reply is sampled.
        lead: from there to the text of a reply without reasoning: usually empty; else closed reasoning with nothing in
            it, a channel name, or a blank.
        reasoned: the same for a reply with reasoning: what is before it, and between it and the reply's text.
        trailer: everything after the reply's text if it is the last one.
        next_turn: everything between the reply and the next user's text.
        trims: white space around the reply's text is removed.
    """

    opening: str
    lead: str = ""
    reasoned: tuple[str, str] | None = None
    trailer: str = ""
    next_turn: str = ""
    trims: bool = False

    def before_reply(self, reasoning: str | None = None) -> str:
        """From the end of `opening` to the reply's text.

        Args:
            reasoning: the reply's own; left out if the template and its marks have no place for it.
        """
        if reasoning is None or self.reasoned is None:
            return self.lead
        before, after = self.reasoned
        return before + reasoning + after


@dataclass(frozen=True)
class ChatFormat:
    """How a user wants a model's conversations written.

    Attributes:
        arguments: variables of the chat template, such as `enable_thinking`; see `template_arguments`.
        marks: (open, close), the texts around the model's reasoning; empty: as the template says.
    """

    arguments: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        hf: a tokenizer of transformers; without a template, turns are labelled as in HH-RLHF.
        wanted: how its conversations are to be written.

    Attributes:
        given: the tokenizer has a template.
        dropped_role: roles of a conversation -> the role of a message that is dropped, or None.
        marks: how the model marks its reasoning; None if nothing says that it reasons.
        opened: the marks of reasoning that the generation prompt opens and does not close.

    Raises:
        ModelError: the template cannot render a user turn.
        UsageError: it does not use one of the arguments.
    """

    def __init__(self, hf: Any, wanted: ChatFormat = ChatFormat()) -> None:
        self._hf = hf
        self._arguments = template_arguments(wanted.arguments)
        marks = ReasoningMarks(*wanted.marks) if wanted.marks else None
        self.given = bool(hf.chat_template)
        self._check_arguments()
        self._in_parts = False
        self._in_parts = self._reads_parts()
        self._reasoning_field = ""
        self.dropped_role = lru_cache(maxsize=1024)(self._dropped_role)
        opening = self._after(_mark(0), [_mark(0)])
        self.opened = marks if marks and opening.rfind(marks.open) > opening.rfind(marks.close) else opened_by(opening)
        self.marks = marks or self.opened or named_in(self._source)
        self.frame = self._frame(opening)

    @property
    def _source(self) -> str:
        """The template's text; a model may have several, of which conversations without tools use the default."""
        found = self._hf.chat_template or ""
        return found if isinstance(found, str) else str(found.get("default", ""))

    def _check_arguments(self) -> None:
        if not self._arguments:
            return
        from jinja2 import Environment, TemplateError, meta

        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            used = meta.find_undeclared_variables(environment.parse(self._source)) if self.given else set()
        except TemplateError:  # a block that only transformers knows
            return
        for name in sorted(self._arguments.keys() - used):
            near = get_close_matches(name, used, 1)
            raise UsageError(
                f"the chat template has no variable '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""),
                where=self._hf.name_or_path,
                hint=f"it uses {', '.join(sorted(used))}" if used else None,
            )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text.

        Raises:
            ConversationError: the template refuses it, or drops a message.
        """
        roles = tuple(message.role for message in messages)
        if dropped := self.dropped_role(roles):
            what = f"the chat template drops or rewrites the {dropped} turn of this conversation"
            raise ConversationError(what, where=self._hf.name_or_path)
        texts, reasoning = (
            [message.content for message in messages],
            [message.reasoning_content for message in messages],
        )
        return self._render(roles, texts, add_generation_prompt, reasoning)

    @property
    def takes_system(self) -> bool:
        """Whether a system turn before a user turn reaches the model."""
        try:
            self.render([Message(role="system", content="a"), Message(role="user", content="b")])
        except ConversationError:
            return False
        return True

    def keep_arguments(self) -> None:
        """Write the arguments into the tokenizer's template as defaults, for other tools and later runs."""
        defaults = "".join(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {_jinja(value)} %}}{{%- endif %}}"
            for name, value in self._arguments.items()
        )
        if isinstance(self._hf.chat_template, dict):
            self._hf.chat_template = self._hf.chat_template | {"default": defaults + self._source}
        elif defaults:
            self._hf.chat_template = defaults + self._source

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

    def _frame(self, opening: str) -> Frame:
        user, reply, later = map(_mark, range(3))
        lead = closing(self.opened, opening) if self.opened else ""
        try:
            before, found, trailer = self._after(user, [user, reply]).partition(reply)
            trims = self._after(user, [user, f" {reply} "]).startswith(before + reply)
        except ConversationError:
            return Frame(opening, lead, self._reasoned(opening))
        if not found:
            return Frame(opening, lead, self._reasoned(opening))
        try:
            next_turn = self._after(reply, [user, reply, later]).partition(later)[0]
        except ConversationError:
            next_turn = ""
        # If the reply does not follow the generation prompt, assume the position where the model would sample it.
        if before.startswith(opening) and not (self.opened and self.opened.close not in before[len(opening) :]):
            lead = before[len(opening) :]
        return Frame(opening, lead, self._reasoned(opening), trailer, next_turn, trims)

    def _reasoned(self, opening: str) -> tuple[str, str] | None:
        """What is before a reply's reasoning, and between it and the reply: as the template writes it, else the marks
        in their usual layout.
        """
        user, reply, reasoning = map(_mark, range(3))
        for name in _REASONING_FIELDS if self.given else ():
            self._reasoning_field = name
            try:
                before, found, rest = self._after(user, [user, reply], reasoning).partition(reasoning)
            except ConversationError:
                continue
            if found and reply in rest and before.startswith(opening):
                return before[len(opening) :], rest.partition(reply)[0]
        self._reasoning_field = ""
        if self.marks is None or self.marks.end:
            return None
        return "" if self.opened else f"{self.marks.open}\n", f"\n{self.marks.close}\n\n"

    def _after(self, mark: str, texts: Sequence[str], reasoning: str | None = None) -> str:
        """The text rendered after a marker; turns alternate, with a generation prompt after a final user turn."""
        roles = [("user", "assistant")[place % 2] for place in range(len(texts))]
        thoughts = [*[None] * (len(texts) - 1), reasoning]
        return self._render(roles, texts, roles[-1] == "user", thoughts).partition(mark)[2]

    def _render(
        self,
        roles: Sequence[str],
        texts: Sequence[str],
        add_generation_prompt: bool,
        reasoning: Sequence[str | None] = (),
    ) -> str:
        if not self.given:
            return named_turns(roles, texts, add_generation_prompt)
        contents = [[{"type": "text", "text": text}] for text in texts] if self._in_parts else texts
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        for turn, thoughts in zip(turns, reasoning, strict=False):
            if thoughts is not None and self._reasoning_field:
                turn[self._reasoning_field] = thoughts
        try:  # transformers renders templates in a sandboxed Jinja environment
            text: str = self._hf.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, **self._arguments
            )
        except Exception as error:  # a template's own refusals, and any error in its expressions
            reason = str(error) or type(error).__name__
            what = f"the chat template refuses this conversation: {reason}"
            raise ConversationError(what, where=self._hf.name_or_path) from error
        return text


def _jinja(value: Any) -> str:
    """A JSON value as a Jinja expression."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _mark(number: int) -> str:
    """Private-use characters, which no template writes, around text that a rewriting template would change."""
    return f"\ue000{number} Some <text>, 'quoted' & cut\ue001"


def named_turns(roles: Sequence[str], texts: Sequence[str], add_generation_prompt: bool) -> str:
    """For base models without a template: turns labelled as in HH-RLHF."""
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: ", "tool": "Tool: "}
    text = "\n\n".join(names[role] + content for role, content in zip(roles, texts, strict=True))
    return text + "\n\nAssistant:" if add_generation_prompt else text
