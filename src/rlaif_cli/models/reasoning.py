"""How models mark their reasoning ("thinking"), and where the answer begins.

Only the answer is judged, scored and shown. A reply that ends inside its reasoning has no answer, which is not the
same as an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts around a model's reasoning.

    Attributes:
        open: precedes the reasoning.
        close: the answer follows it.
        end: ends the reasoning if that is earlier than `close`.
    """

    open: str
    close: str
    end: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply in its parts.

    Attributes:
        answer: None if the reply ended inside its reasoning.
        reasoning: None if there is none.
        reasoning_tokens: the sampled tokens up to the answer, marks included, where they are known.
    """

    answer: str | None
    reasoning: str | None = None
    reasoning_tokens: int = 0


FAMILIES = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("<thinking>", "</thinking>"),
    ReasoningMarks("<thought>", "</thought>"),
    ReasoningMarks("<reasoning>", "</reasoning>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningMarks("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>"),  # Harmony
    ReasoningMarks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ReasoningMarks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)


def opened_by(prompt: str) -> ReasoningMarks | None:
    """The marks of reasoning that a prompt opens and does not close."""
    return next((marks for marks in FAMILIES if prompt.rfind(marks.open) > prompt.rfind(marks.close)), None)


def named_in(template: str) -> ReasoningMarks | None:
    """The marks that a chat template's source writes, whatever it writes them for."""
    return next((marks for marks in FAMILIES if marks.open in template and marks.close in template), None)


def first_mark(text: str) -> str | None:
    """The first mark of any family in a text; None if there is none."""
    found = [mark for marks in FAMILIES for mark in (marks.open, marks.close) if mark in text]
    return min(found, key=text.index, default=None)


def split_reply(text: str, marks: ReasoningMarks | None = None, *, opened: bool = False) -> Reply:
    """Separate the reasoning of a reply from its answer; without reasoning, the answer is the text as it is.

    Args:
        marks: of the model; None if they are unknown: those of the family with which the reply begins, or which it
            only closes (the prompt, which we may not see, has opened them).
        opened: the prompt has opened the reasoning already.
    """
    whole = text.lstrip()
    marks = marks or _recognized(whole)
    if marks is None:
        return Reply(text)
    thinks = opened or whole.startswith(marks.open)
    before, closed, answer = whole.removeprefix(marks.open).partition(marks.close)
    if not closed and not thinks:
        return Reply(text)
    reasoning = (before.partition(marks.end)[0] if marks.end else before).strip()
    return Reply(answer.strip() if closed else None, reasoning if thinks else reasoning or None)


def _recognized(reply: str) -> ReasoningMarks | None:
    begun = (marks for marks in FAMILIES if reply.startswith(marks.open))
    closed = (marks for marks in FAMILIES if marks.close in reply and marks.open not in reply)
    return next(begun, None) or next(closed, None)


def closing(marks: ReasoningMarks, opening: str) -> str:
    """What ends reasoning that `opening` has opened, with nothing in it: `<think>\\n\\n</think>\\n\\n` as a whole."""
    return ("" if opening.endswith("\n") else "\n") + f"\n{marks.close}\n\n"
