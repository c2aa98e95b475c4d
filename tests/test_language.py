"""The program and its documentation are in plain English: phrases that made readers stumble do not come back.

Comments and docstrings count too: they are read as often as messages.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
CODE = ("src/**/*.py", "src/**/*.html", "src/**/*.j2", "scripts/*.py", "Makefile")
DOCS = ("*.md", "docs/**/*.md", "examples/**/*.md", "examples/**/*.yaml", "constitutions/*.yaml")
FILES = sorted(path for pattern in (*CODE, *DOCS) for path in TOP.glob(pattern))
# The prompt of `rlaif revise` keeps its words: another wording would be another prompt, with other revisions.
# `doctor --json` keeps the name of its field.
ALLOWED = {
    "judge/prompts.py": "with these points mended",
    "cli/doctor.py": '{"mend" if name == "fix"',
    "constitutions/summarization.yaml": "reading room",  # the room of a library, in an exemplar
}

PHRASES = {  # phrase: what to write
    r"goes on (where|from here)": "resumes",
    r"started again with the same words|the same words again": "rerun",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"cannot be had": "is not available; cannot bind port",
    r"has in work|in work when": "in flight",
    r"\bdone again\b": "recomputed",
    r"\bdear\b": "expensive",
    r"labels by people": "human labels",
    r"(told|tells?) (all )?at once": "reported together",
    r"another one than": "another, a different",
    r"everything that can be fixed": "random seed",
    r"rows that say again": "duplicate rows",
    r"\b(put|puts|putting) (aside|away)\b": "held out, set aside",
    r"by heart": "overfitting",
    r"taste for": "bias towards",
    r"own pupil": "favours its own model",
    r"\b_?[Ss]eat\b|\b_?[Rr]oom\b": "context budget, disk space",
    r"first_place": "loading device",
    r"\b[Mm]eeting\b": "rendezvous, barrier",
    r"economical": "checkpointing",
    r"goes before": "takes precedence over",
    r"for want of": "out of",
    r"held against": "compared with",
    r"stands? there|stands? beside": "is there, next to",
    r"(asked|rounds) otherwise": "asked differently, rounds differently",
    r"nats a (token|response|pair)|tokens a second": "per",
    r"reckon with": "assume",
    r"without a word|in silence": "silently",
    r"dealt out": "distributed",
    r"sittings?\b": "run",
    r"goes on (with|after|from)": "resumes, continues",
    r"clear of (0|50)": "excludes",
    r"interval (that )?holds": "includes",
    r"\bWhom we\b": "Untrusted inputs",
    r"says so by": "with",
    r"answers no label": "returns no label",
    r"is no NAME|is no JSON": "expects; is not",
    r"\bRESEARCH\b|\bDESIGN\b(?!_)|\bEXAMPLES \d|shared/": "a paper, a URL or a file of this repository",
}


@pytest.mark.parametrize("phrase", PHRASES, ids=PHRASES.values())
def test_no_phrase_that_a_native_speaker_would_not_write(phrase: str) -> None:
    found = [
        f"{path.relative_to(TOP)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if re.search(phrase, line)
        and not any(str(path).endswith(file) and allowed in line for file, allowed in ALLOWED.items())
    ]
    assert not found, f"write: {PHRASES[phrase]}"


def test_the_test_reads_the_whole_program() -> None:
    names = {str(path.relative_to(TOP)) for path in FILES}
    assert len(names) > 250
    assert {
        "README.md",
        "CHANGELOG.md",
        "docs/judging.md",
        "docs/commands/label.md",
        "examples/demo/pipeline.yaml",
    } <= names
