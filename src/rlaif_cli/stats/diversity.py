"""How much responses repeat each other: a small policy that is trained too long always responds alike."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

OPENING = 3  # words


def openings(texts: Sequence[str]) -> dict[str, Any]:
    """How similarly texts begin: their first three words, ignoring case and punctuation around words.

    A shorter text counts with the words it has; one without words has the opening "".

    Returns:
        `share` of the texts with the most common opening (the first of equally common ones), that opening as
        `commonest`, in its most frequent spelling, and the number of `distinct` openings.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("no texts to compare the openings of")
    spelled = [opening(text) for text in texts]
    counts = Counter(map(str.lower, spelled))
    commonest, count = counts.most_common(1)[0]
    spellings = Counter(each for each in spelled if each.lower() == commonest)
    return {
        "share": count / len(texts),
        "commonest": spellings.most_common(1)[0][0],
        "distinct": len(counts),
    }


def opening(text: str) -> str:
    """The first three words of a text, or fewer, as spelled there."""
    return " ".join(_words(text)[:OPENING])


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """Distinct word n-grams over all word n-grams of the texts (distinct-n, arXiv 1510.03055).

    Words as in `openings`; n-grams do not span texts. More texts share more n-grams, so only compare results of the
    same number of texts.

    Returns:
        None if no text has n words.
    """
    found = Counter(ngram for text in texts for ngram in _ngrams(_words(text.lower()), n))
    return len(found) / found.total() if found else None


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _words(text: str) -> list[str]:
    """Words separated by white space, without surrounding punctuation; punctuation alone is not a word."""
    return [word for part in text.split() if (word := _bare(part))]


def _bare(word: str) -> str:
    kept = [place for place, character in enumerate(word) if unicodedata.category(character)[0] != "P"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
