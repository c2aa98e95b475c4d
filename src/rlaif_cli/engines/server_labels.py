"""The probabilities of labels, from the log-probs that a chat server lists along a reply.

A server writes a label in tokens of its own: "10" may be one, or "1" and "0"; a space may come before it. At each token
of the reply it lists the likeliest ones. Each of these, put behind what the reply said so far, is a text that the judge
might have begun with, and its probability. A label's probability is the sum over the texts that are this label.

What goes on is seen along the sampled reply alone. Where a text could still become a longer label ("1" and "10") and
what follows is not seen, its probability is neither label's: it is *unclear*, until an answer shows what follows.

A label that goes on as a number that is none ("18", "1.5") counts as the label, as with every engine: this too is seen
of one label alone, and taking it off would favour the others. Where that is what the label mostly is, nothing counts.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from rlaif_cli.engines.base import UNSEEN, Bound
from rlaif_cli.engines.server_answers import Position, Unusable


class LabelShares:
    """What is known of a closed set of numbers as answers to one question.

    Args:
        choices: the texts that are labels, in all spellings ("1", " 1").
        whole: labels of several digits that the server is known to write as one token.

    Attributes:
        known: the probability of each label.
        unclear: the probability of each text that may be a label or the beginning of a longer one.
        unseen: what labels that are not listed could hold together, at most.
        spoiled: of the probability of each label, what goes on as a number that is none.
    """

    def __init__(self, choices: Sequence[str], whole: Collection[str] = ()) -> None:
        self._choices = list(choices)
        self._labels = list(dict.fromkeys(choice.strip() for choice in choices))
        self.whole = set(whole)
        self.known = dict.fromkeys(self._labels, 0.0)
        self.unclear: dict[str, float] = defaultdict(float)
        self.unseen = 0.0
        self.spoiled: dict[str, float] = defaultdict(float)

    @property
    def tokens(self) -> int:
        """How many tokens of a reply are asked for to see its label, see `reply_tokens`."""
        return reply_tokens(self._labels)

    def add(self, positions: Sequence[Position], reply: str | None, before: str = "") -> None:
        """Count what an answer shows.

        Args:
            positions: of the answer's tokens.
            reply: its text; None: not told.
            before: an unclear text, to which the answer is the continuation: now it becomes clear.

        Raises:
            Unusable: the tokens are not those of the reply.
        """
        path = _along(positions, reply)
        if not path:
            raise Unusable("log-probs of another text than the answer's", again=False)
        text, share = before, self.unclear.pop(before) if before else 1.0
        self.whole |= {word.strip() for position in path for word, _ in position.listed} & set(self._labels)
        for place, position in enumerate(path):
            taken = position.taken if place + 1 < len(path) else None
            if taken is not None and self._spoils(text, position.listed[taken][0]):
                taken = None  # "8" and then "0": counted here, as its listed neighbours are
            self._split(text, share, position, taken)
            if taken is None:
                break
            word, p = position.listed[taken]
            text, share = text + word, share * p

    def _split(self, text: str, share: float, position: Position, taken: int | None) -> None:
        """Count the listed continuations of a text, without the one that is looked into further."""
        begun = self._label_of(text)
        for place, (word, p) in enumerate(position.listed):
            if place == taken:
                continue
            label = self._label_of(text + word)
            if begun is not None and self._spoils(text, word):
                self.known[begun] += share * p
                self.spoiled[begun] += share * p
            elif label is None:
                continue
            elif self._longer(label) and (text + word).lstrip() == label and word:  # an empty word is the end
                self.unclear[text + word] += share * p
            else:
                self.known[label] += share * p
        rest = share * max(0.0, 1.0 - sum(p for _, p in position.listed))
        bound = min(rest, share * position.least * self._missing(text, [word for word, _ in position.listed]))
        self.unseen += bound
        if begun is not None:  # what follows a label and is not listed leaves it as it is
            self.known[begun] += rest - bound

    def _label_of(self, text: str) -> str | None:
        """The label that a text begins with and that it can still be; "8." can, "8.5" and "81" cannot."""
        number = re.match(r"\s*([0-9]+)(?![.,]?[0-9])", text)
        return number[1] if number and number[1] in self.known else None

    def _spoils(self, text: str, word: str) -> bool:
        """Whether a text that is a label goes on as a number that is none."""
        return self._label_of(text) is not None and self._label_of(text + word) is None

    def _longer(self, label: str) -> list[str]:
        """Labels that begin with this one, and that may be written as its token and another."""
        return [other for other in self._labels if other.startswith(label) and other not in (label, *self.whole)]

    def _missing(self, text: str, words: Iterable[str]) -> int:
        """How many texts that are labels could go on from here without being listed."""
        if not text:
            return sum(choice not in words for choice in dict.fromkeys(self._choices))
        begun = text.lstrip()
        ahead = {label[len(begun)] for label in self._labels if label.startswith(begun) and label != begun}
        return len(ahead - {word[:1] for word in words})

    def settled(self, share: float = UNSEEN) -> bool:
        """Whether what is unclear holds at most this share of what is known; by default, so little that it may."""
        return sum(self.unclear.values()) <= share * sum(self.known.values())

    def fault(self) -> str | None:
        """Why no labels can be read; None if they can."""
        if not self.settled():
            text = max(self.unclear, key=self.unclear.__getitem__)
            return (
                f"'{text.strip()}' may be the beginning of another label, and the server does not show what follows it "
                f"({sum(self.unclear.values()):.3g} of the answer); --samples N counts whole answers instead"
            )
        for label, share in self.spoiled.items():
            if share > self.known[label] / 2:
                return f"where the judge begins with '{label}', it mostly goes on as another number, as 18 or 1.5 do"
        return None

    def logprobs(self) -> list[float]:
        """Of each choice; what is not known is a `Bound`, and all these add up to what is unclear or unseen.

        Where two choices are spellings of one label, the first has what both hold.
        """
        p = [0.0] * len(self._choices)
        for label, share in self.known.items():
            p[next(i for i, choice in enumerate(self._choices) if choice.strip() == label)] = share
        left = self.unseen + sum(self.unclear.values())
        unknown = [i for i, share in enumerate(p) if not share]
        if left and not unknown:  # all are known and may still hold more: the smallest one's share is given up
            unknown = [min(range(len(p)), key=p.__getitem__)]
            left += p[unknown[0]]
        bound = Bound(_log(left / len(unknown))) if unknown else None
        return [bound if bound is not None and i in unknown else _log(share) for i, share in enumerate(p)]


def reply_tokens(labels: Iterable[str]) -> int:
    """How many tokens of a reply show which label it is, at most: a space, every character, and what comes next."""
    return max(map(len, labels)) + 2


def _along(positions: Sequence[Position], reply: str | None) -> Sequence[Position]:
    """The positions that are the reply's: their tokens add up to its text (the end token apart)."""
    text, wanted = "", None if reply is None else reply.lstrip()
    for place, position in enumerate(positions):
        word = position.text
        if wanted is None or word is None:
            return positions[: place + (word is None or not place)]
        if not wanted.startswith((text + word).lstrip()):
            ended = text.strip() == wanted.strip() and not word[:1].isdigit()
            return positions[: place + ended]
        text += word
    return positions


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf
