"""The probabilities of labels, from the log-probs that a chat server returns with a reply.

Servers tokenize labels differently: "10" may be one token, or "1" and "0"; a space may come first. At each token of the
reply the server lists the most likely ones. Each of these, appended to the reply so far, is a text that the judge might
have started with, with its probability. A label's probability is the sum over the texts that are this label.

Continuations are only visible along the sampled reply. If a text could still become a longer label ("1" and "10") and
its continuation is not visible, its probability belongs to neither: it is *unclear* until an answer shows what follows.

A label that continues to a number that is not a label ("18", "1.5") counts as the label, as with every engine: this too
is only visible for one label, and subtracting it would favour the others. If most of a label's probability continues
this way, the answer is unusable.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from rlaif_cli.engines.base import UNSEEN, Bound
from rlaif_cli.engines.server_answers import Position, Unusable


class LabelShares:
    """The probabilities of a closed set of numeric labels as answers to one question, as far as known.

    Args:
        choices: the labels in all spellings ("1", " 1").
        single_token: labels of several digits that the server is known to write as one token.

    Attributes:
        known: the probability of each label.
        unclear: the probability of each text that may be a label or the beginning of a longer one.
        unseen: upper bound for the total probability of labels that are not listed.
        spoiled: the part of each label's probability that continues to a number that is not a label.
    """

    def __init__(self, choices: Sequence[str], single_token: Collection[str] = ()) -> None:
        self._choices = list(choices)
        self._labels = list(dict.fromkeys(choice.strip() for choice in choices))
        self.single_token = set(single_token)
        self.known = dict.fromkeys(self._labels, 0.0)
        self.unclear: dict[str, float] = defaultdict(float)
        self.unseen = 0.0
        self.spoiled: dict[str, float] = defaultdict(float)

    @property
    def tokens(self) -> int:
        """How many tokens of a reply are needed to see its label, see `reply_tokens`."""
        return reply_tokens(self._labels)

    def add(self, positions: Sequence[Position], reply: str | None, before: str = "") -> None:
        """Add the evidence of an answer.

        Args:
            positions: of the answer's tokens.
            reply: its text; None: not reported.
            before: an unclear text that the answer continues, which resolves it.

        Raises:
            Unusable: the tokens do not match the reply.
        """
        path = _along(positions, reply)
        if not path:
            raise Unusable("the log-probs do not match the answer: they are of another text", retryable=False)
        text, share = before, self.unclear.pop(before) if before else 1.0
        self.single_token |= {word.strip() for position in path for word, _ in position.listed} & set(self._labels)
        for place, position in enumerate(path):
            taken = position.taken if place + 1 < len(path) else None
            if taken is not None and self._spoils(text, position.listed[taken][0]):
                taken = None  # "8" and then "0": counted here, like its listed alternatives
            self._split(text, share, position, taken)
            if taken is None:
                break
            word, p = position.listed[taken]
            text, share = text + word, share * p

    def _split(self, text: str, share: float, position: Position, taken: int | None) -> None:
        """Count the listed continuations of a text, except the one that is followed further."""
        label_so_far = self._label_of(text)
        for place, (word, p) in enumerate(position.listed):
            if place == taken:
                continue
            label = self._label_of(text + word)
            if label_so_far is not None and self._spoils(text, word):
                self.known[label_so_far] += share * p
                self.spoiled[label_so_far] += share * p
            elif label is None:
                continue
            elif self._longer(label) and (text + word).lstrip() == label and word:  # an empty token is the end
                self.unclear[text + word] += share * p
            else:
                self.known[label] += share * p
        rest = share * max(0.0, 1.0 - sum(p for _, p in position.listed))
        bound = min(rest, share * position.least * self._missing(text, [word for word, _ in position.listed]))
        self.unseen += bound
        if label_so_far is not None:  # an unlisted continuation does not change the label
            self.known[label_so_far] += rest - bound

    def _label_of(self, text: str) -> str | None:
        """The label that a text is, or None; "8." is label 8, "8.5" and "81" are not."""
        number = re.match(r"\s*([0-9]+)(?![.,]?[0-9])", text)
        return number[1] if number and number[1] in self.known else None

    def _spoils(self, text: str, word: str) -> bool:
        """Whether `word` turns a label into a number that is not a label."""
        return self._label_of(text) is not None and self._label_of(text + word) is None

    def _longer(self, label: str) -> list[str]:
        """Longer labels that may be written as this label's token and another."""
        return [other for other in self._labels if other.startswith(label) and other not in (label, *self.single_token)]

    def _missing(self, text: str, words: Iterable[str]) -> int:
        """How many unlisted continuations could lead to a label."""
        if not text:
            return sum(choice not in words for choice in dict.fromkeys(self._choices))
        label_so_far = text.lstrip()
        ahead = {
            label[len(label_so_far)]
            for label in self._labels
            if label.startswith(label_so_far) and label != label_so_far
        }
        return len(ahead - {word[:1] for word in words})

    def settled(self, share: float = UNSEEN) -> bool:
        """Whether the unclear probability is at most this share of the known one."""
        return sum(self.unclear.values()) <= share * sum(self.known.values())

    def problem(self) -> str | None:
        """Why the labels cannot be used; None if they can."""
        if not self.settled():
            text = max(self.unclear, key=self.unclear.__getitem__)
            return (
                f"'{text.strip()}' may be the beginning of another label, and the server does not show what follows it "
                f"({sum(self.unclear.values()):.3g} of the answer); --samples N counts whole answers instead"
            )
        for label, share in self.spoiled.items():
            if share > self.known[label] / 2:
                return f"answers that begin with '{label}' mostly continue to another number, such as 18 or 1.5"
        return None

    def logprobs(self) -> list[float]:
        """Log-prob of each choice; an unknown one is a `Bound`, and all bounds add up to what is unclear or unseen.

        If two choices are spellings of one label, the first gets the probability of both.
        """
        p = [0.0] * len(self._choices)
        for label, share in self.known.items():
            p[next(i for i, choice in enumerate(self._choices) if choice.strip() == label)] = share
        left = self.unseen + sum(self.unclear.values())
        unknown = [i for i, share in enumerate(p) if not share]
        if left and not unknown:  # all are known but may be larger: treat the smallest as unknown
            unknown = [min(range(len(p)), key=p.__getitem__)]
            left += p[unknown[0]]
        bound = Bound(_log(left / len(unknown))) if unknown else None
        return [bound if bound is not None and i in unknown else _log(share) for i, share in enumerate(p)]


def reply_tokens(labels: Iterable[str]) -> int:
    """The tokens of a reply that are needed, at most, to see its label: a space, every character, and what follows."""
    return max(map(len, labels)) + 2


def _along(positions: Sequence[Position], reply: str | None) -> Sequence[Position]:
    """The positions that belong to the reply: their tokens add up to its text (except the end token)."""
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
