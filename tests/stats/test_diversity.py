"""How much responses repeat each other, on texts that can be counted by hand."""

from __future__ import annotations

import pytest

from rlaif_cli.stats.diversity import distinct_ngrams, openings


def test_openings_are_the_first_three_words_without_case_and_punctuation() -> None:
    texts = [
        "A plain kettle.",
        "I'm thrilled to own it.",
        '"i\'m *thrilled* to, well, see it"',
        "I'm thrilled to — say so.",
        "I'm thrilled too.",
    ]
    assert openings(texts) == {"share": 0.6, "commonest": "I'm thrilled to", "distinct": 3}


def test_of_equally_common_openings_the_first_is_named() -> None:
    assert openings(["b c d e", "a c d e"])["commonest"] == "b c d"


def test_short_and_empty_texts_are_openings_too() -> None:
    assert openings(["Yes!", "yes", "", " … "]) == {"share": 0.5, "commonest": "Yes", "distinct": 2}
    assert openings(["", "-", "one two three"]) == {"share": 2 / 3, "commonest": "", "distinct": 2}


def test_other_scripts_have_words_and_punctuation_too() -> None:
    found = openings(["«Élan vital, enfin» oui", "élan VITAL enfin non"])
    assert (found["share"], found["distinct"]) == (1, 1)
    assert openings(["$5 off today", "5 off today"])["distinct"] == 2, "a sign of money is no punctuation"


def test_no_texts_have_no_openings() -> None:
    with pytest.raises(ValueError, match="no texts"):
        openings([])


def test_distinct_ngrams_are_counted_within_texts() -> None:
    # the dog, dog ran | The dog, dog sat: 3 distinct of 4; "ran the" belongs to no text
    assert distinct_ngrams(["the dog ran.", "The dog sat"], 2) == 0.75
    assert distinct_ngrams(["the dog ran.", "The dog sat"], 1) == 4 / 6
    assert distinct_ngrams(["one two"] * 4, 2) == 0.25


def test_texts_without_ngrams_have_no_share() -> None:
    assert distinct_ngrams(["one", "", "two"], 2) is None
