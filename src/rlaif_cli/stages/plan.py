"""What a pipeline will do, before it does it: rows, calls of a model, tokens and money of every step.

Counted from the files that are there and the settings, without starting an engine. Tokens of files are about a quarter
of their characters, as English is; tokens that are to be sampled are counted as if every text ran to its limit. So
`tokens_out` and `cost` are bounds from above, `tokens_in` is near.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif_cli import constitution as constitutions
from rlaif_cli.compression import lines
from rlaif_cli.errors import RlaifError
from rlaif_cli.judge import named_principles
from rlaif_cli.records import Candidates, Response
from rlaif_cli.stages.label import pair_chooser
from rlaif_cli.stages.pipeline import Step

_SAMPLED = 200  # rows of a file that are read for their lengths
_CHARACTERS = 4  # of a token
_FRAME = 120  # tokens of a judge's prompt around the texts: preamble and principle


@dataclass(frozen=True)
class File:
    """What stands in a file of records, or will: rows, responses of each, mean tokens of a prompt and a response."""

    rows: int
    responses: int = 0
    prompt: float = 0.0
    response: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a step will do; None where it cannot be known yet.

    Attributes:
        rows: of its input (for `label` and the evaluations: comparisons).
        calls: requests to a model; of trainers, optimizer steps.
    """

    rows: int | None = None
    calls: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None


def plan(steps: Iterable[Step]) -> list[tuple[Step, Plan]]:
    """Of every step, in order; what one writes is what a later one reads."""
    files: dict[str, File] = {}
    found = []
    for step in steps:
        count = _COUNTERS.get(step.kind)
        try:
            each, output = count(step.config, files) if count else (Plan(), None)
        except (
            RlaifError,
            OSError,
            ValueError,
        ):  # an input that is not there, or cannot be read: its own stage says so
            each, output = Plan(), None
        found.append((step, _priced(step.config, each)))
        if output is not None:
            files[step.output] = output
    return found


def _priced(config: Any, found: Plan) -> Plan:
    price_in, price_out = getattr(config, "price_in", None), getattr(config, "price_out", None)
    if price_in is None or price_out is None or found.tokens_in is None or found.tokens_out is None:
        return found
    cost = (found.tokens_in * price_in + found.tokens_out * price_out) / 1e6
    return Plan(found.rows, found.calls, found.tokens_in, found.tokens_out, round(cost, 4))


# ---------------------------------------------------------------------------------------------------------- files


def _file(name: str, files: dict[str, File]) -> File:
    """Raises: FileNotFoundError: it is neither there nor an earlier step's output."""
    return files[name] if name in files else measure(Path(name))


def measure(path: Path) -> File:
    """Rows, and lengths by the first `_SAMPLED` of them."""
    sampled = [json.loads(line) for _, line in islice(lines(path), _SAMPLED)]
    sampled = [row for row in sampled if isinstance(row, dict)]
    texts = [
        [each for key in ("responses", "response", "response_a", "chosen") for each in _list(row.get(key))]
        for row in sampled
    ]
    prompts = [row.get("prompt") or row.get("messages") or row.get("instruction") or "" for row in sampled]
    every = [text for row in texts for text in row]
    return File(
        rows=sum(1 for _ in lines(path)),
        responses=max(map(len, texts), default=0),
        prompt=_mean(_tokens(prompt) for prompt in prompts),
        response=_mean(_tokens(text) for text in every),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _tokens(text: Any) -> float:
    return len(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)) / _CHARACTERS


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


# ------------------------------------------------------------------------------------------------------ each kind


def _generate(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts = _file(config.prompts, files)
    plan = Plan(
        prompts.rows, prompts.rows, round(prompts.rows * prompts.prompt), prompts.rows * config.n * config.max_tokens
    )
    return plan, File(prompts.rows, config.n, prompts.prompt, config.max_tokens)


def _revise(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts, asked = _file(config.prompts, files), 1 + 2 * config.rounds
    calls = prompts.rows * asked
    # A critique reads the response, a revision both.
    each = prompts.prompt + 2 * config.rounds * (prompts.prompt + _FRAME + 1.5 * config.max_tokens)
    plan = Plan(prompts.rows, calls, round(prompts.rows * each), calls * config.max_tokens)
    return plan, File(prompts.rows, 1, prompts.prompt, config.max_tokens)


def _label(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    candidates = _file(config.candidates, files)
    row = Candidates.model_construct(id="", responses=[Response(text="")] * candidates.responses)
    pairs = candidates.rows * len(pair_chooser(config.pairs, config.seed)(row))
    return _judged(config, pairs, candidates), File(pairs, 2, candidates.prompt, candidates.response)


def _judged(config: Any, pairs: int, texts: File) -> Plan:
    """Comparisons by a judge, or by each of a panel."""
    asked = _principles(config) * len(config.judge)
    whole = texts.prompt + _FRAME
    # (prompts, calls, their length, tokens sampled); a score's "10" is two tokens nearly everywhere, and asked apart.
    prompts, calls, length, sampled = {
        "pairwise": (2, 2, whole + 2 * texts.response, 1),
        "score": (2, 2 if config.engine == "openai" or config.samples else 4, whole + texts.response, 1),
        "contrast": (4, 4, whole + texts.response, 0),
    }[config.method]
    sampled *= config.samples or 1
    read, asked_in_all = pairs * asked * prompts, pairs * asked * calls
    if config.cot:  # the reasoning, and then the label after it
        tokens_in = round(read * (2 * length + config.rationale_tokens))
        return Plan(pairs, 2 * asked_in_all, tokens_in, read * (config.rationale_tokens + sampled))
    return Plan(pairs, asked_in_all, round(read * length), read * sampled)


def _principles(config: Any) -> int:
    """How many a comparison is judged by."""
    if tuple(config.principles) == ("sample",):
        return 1
    return len(named_principles(constitutions.load(config.constitution), config.principles))


def _alignment(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.pairs, files)
    return _judged(config, pairs.rows, pairs), None


def _win_rate(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    a, b = _file(config.a, files), _file(config.b, files)
    return _judged(config, min(a.rows, b.rows) * min(a.responses, b.responses), a), None


def _reward_model(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.preferences, files)
    return _epochs(config, pairs.rows, pairs.prompt + 2 * pairs.response), None


def _sft(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    rows = _file(config.records, files)
    return _epochs(config, rows.rows, rows.prompt + rows.response), None


def _epochs(config: Any, rows: int, tokens: float) -> Plan:
    """Passes over what is not held out; `tokens` of a row."""
    trained = round(rows * (1 - config.eval_fraction))
    steps = config.epochs * -(-trained // config.batch_size)
    return Plan(rows, steps, round(config.epochs * trained * tokens), 0)


def _ppo(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    prompts = _file(config.prompts, files)
    asked = config.steps * config.prompts_per_step
    sampled = asked * config.n * config.max_tokens
    return Plan(prompts.rows, config.steps, round(asked * prompts.prompt), sampled), None


_COUNTERS: dict[str, Callable[[Any, dict[str, File]], tuple[Plan, File | None]]] = {
    "generate": _generate,
    "revise": _revise,
    "label": _label,
    "sft": _sft,
    "train-rm": _reward_model,
    "ppo": _ppo,
    "eval alignment": _alignment,
    "eval win-rate": _win_rate,
}
