"""What is too long is cut by a stated rule, and the row keeps what was cut away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import rlaif, rows_of
from rlaif_cli.data.messages import Message
from rlaif_cli.judge.base import Comparison
from rlaif_cli.judge.truncate import MARK, common_length, truncate
from rlaif_cli.models.tokenizer import FakeTokenizer


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 200))
def test_the_common_length_is_the_largest_that_fits(lengths: list[int], total: int) -> None:
    length = common_length(lengths, total)
    assert sum(min(size, length) for size in lengths) <= total
    if length < max(lengths):
        assert sum(min(size, length + 1) for size in lengths) > total


def need(comparison: Comparison) -> int:
    prompt = comparison.prompt if isinstance(comparison.prompt, str) else "".join(m.content for m in comparison.prompt)
    return sum(len(text.encode()) for text in (prompt, comparison.a, comparison.b))


@pytest.mark.parametrize(
    ("cut", "seen"), [("head", MARK + "UVWXYZ"), ("tail", "abcdef" + MARK), ("middle", "abc" + MARK + "XYZ")]
)
def test_the_longest_text_is_cut_where_it_was_said(cut: Any, seen: str) -> None:
    long = Comparison("k", "why?", ascii_letters, "ok", ())
    found = truncate(long, need, 4 + 6 + 2 + 3 * len(MARK.encode()), FakeTokenizer(), cut)
    assert found is not None and (found.prompt, found.b) == ("why?", "ok")
    assert found.a == seen


def test_what_fits_is_left_alone_and_what_cannot_fit_is_said() -> None:
    comparison = Comparison("k", [Message(role="user", content="why?")], "a", "b", ())
    assert truncate(comparison, need, 6, FakeTokenizer(), "tail") is comparison
    assert truncate(comparison, lambda _: 100, 6, FakeTokenizer(), "tail") is None


def test_the_longest_turn_of_a_conversation_is_cut() -> None:
    turns = [Message(role="user", content="x" * 100), Message(role="user", content="short")]
    found = truncate(Comparison("k", turns, "a", "b", ()), need, 60, FakeTokenizer(), "tail")
    assert found is not None and need(found) <= 60
    assert isinstance(found.prompt, list) and found.prompt[0].content.endswith(MARK)
    assert found.prompt[1].content == "short"


def test_label_counts_what_it_cut_and_keeps_it_whole(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    texts = ["x" * 100_000, "fine"]
    path = write_jsonl("c.jsonl", [{"prompt": "q", "responses": texts}, {"prompt": "r", "responses": ["a", "b"]}])
    command = ("label", path, "--judge", "fake", "--constitution", "helpfulness", "--max-length", "4000")
    done = rlaif(*command, "-o", "refused.jsonl", cwd=tmp_path)
    assert done.returncode == 2 or done.returncode == 1
    assert "line 1" in done.stderr and not (tmp_path / "refused.jsonl").exists()
    done = rlaif(*command, "-o", "out.jsonl", "--truncate", "middle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert sorted(m["content"] for m in (rows[0]["chosen"] + rows[0]["rejected"])) == sorted(texts)
    assert [row["judge"].get("truncated") for row in rows] == [True, None]
    assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["counts"]["truncated"] == 1
