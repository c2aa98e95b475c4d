"""Estimate what a pipeline will do: rows, model calls, tokens, cost, time and memory of every step.

The estimates come from the settings and existing files, without starting an engine. Tokens of files are estimated as a
quarter of their characters, as in English; sampled texts are assumed to reach their token limit. So `tokens_out`,
`cost` and the decoding time are upper bounds, and `tokens_in` is approximate. Time and memory are based on what was
measured on this machine for the same models (throughput.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.inputs import raw_lines
from rlaif_cli.data.records import Candidates, Response
from rlaif_cli.engines import DECISIONS, FAKE, SERVER, SERVERS, computing_engine, engine_name
from rlaif_cli.engines.server_labels import reply_tokens
from rlaif_cli.errors import RlaifError
from rlaif_cli.judge import named_principles
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.labels import ANSWER_TOKENS, JSON_TOKENS
from rlaif_cli.judge.prompts import LABELS, SCORES
from rlaif_cli.pipeline.file import Step
from rlaif_cli.pipeline.plan.work import File, Plan, Work
from rlaif_cli.registry import STAGES, part
from rlaif_cli.stages.pairs import pair_chooser

_ROWS_READ = 200  # rows of a file that are read to estimate lengths
_CHARACTERS = 4  # per token
_FRAME = 120  # tokens of a judge's prompt besides the texts: preamble and principle


def plan(steps: Iterable[Step], files: Mapping[str, File] = {}) -> list[tuple[Step, Plan]]:
    """The plan of every step, in order; the output of one is the input of a later one.

    Args:
        files: sizes to assume for inputs, instead of their real ones.
    """
    files = dict(files)
    made_of: dict[str, str] = {}  # a checkpoint of this pipeline -> the model it starts from, which has the same size
    found = []
    for step in steps:
        count = STAGES[step.kind].counter
        if hasattr(step.config, "model"):
            made_of[step.output] = made_of.get(step.config.model, step.config.model)
        try:
            each, output = part(count)(step.config, files) if count else (Plan(work=None), None)
        except (
            RlaifError,
            OSError,
            ValueError,
        ):  # an input is missing or unreadable; its own stage reports that
            each, output = Plan(work=None), None
        work = each.work and tuple(replace(one, model=made_of.get(one.model, one.model)) for one in each.work)
        found.append((step, replace(_priced(step.config, each), work=work)))
        if output is not None:
            files[step.output] = output
    return found


def _priced(config: Any, found: Plan) -> Plan:
    price_in, price_out = getattr(config, "price_in", None), getattr(config, "price_out", None)
    if price_in is None or price_out is None or found.tokens_in is None or found.tokens_out is None:
        return found
    cost = (found.tokens_in * price_in + found.tokens_out * price_out) / 1e6
    return replace(found, cost=round(cost, 4))


def _engine_work(config: Any, model: str, prefill: float, decode: float) -> tuple[Work, ...] | None:
    """None if a server does the work; () for the fake engine, which takes no time."""
    engine = computing_engine(config, model)
    if engine == FAKE:
        return ()
    if engine in SERVERS:
        return None
    name = engine_name(config, model)
    names = (
        ("dtype", "max_length", "tensor_parallel_size") if engine == "vllm" else ("dtype", "max_length", "batch_size")
    )
    options = [(name, value) for name in names if (value := getattr(config, name, None)) is not None]
    memory = getattr(config, "engine_memory", None)
    options += [("memory", memory)] if memory is not None and engine == "vllm" else []
    return (Work(model, name, tuple(options), prefill=prefill, decode=decode),)


def _trainer_work(config: Any, model: str, train: float) -> tuple[Work, ...]:
    if model == FAKE:
        return ()
    names = ("precision", "tokens_per_batch", "lora_rank", "gradient_checkpointing", "compile", "optimizer")
    options = [(name, value) for name in names if (value := getattr(config, name, None)) not in (None, 0, False)]
    return (Work(model, "", tuple(options), train=train),)


# ---------------------------------------------------------------------------------------------------------- files


def _file(name: str, files: dict[str, File]) -> File:
    """Raises: InputError: it is neither a file nor the output of an earlier step."""
    return files[name] if name in files else measure(name)


def measure(address: str) -> File:
    """The number of rows, and mean lengths estimated from the first `_ROWS_READ` rows."""
    sampled = [json.loads(line) for _, _, line in islice(raw_lines(address), _ROWS_READ)]
    sampled = [row for row in sampled if isinstance(row, dict)]
    texts = [
        [each for key in ("responses", "response", "response_a", "chosen") for each in _list(row.get(key))]
        for row in sampled
    ]
    prompts = [row.get("prompt") or row.get("messages") or row.get("instruction") or "" for row in sampled]
    every = [text for row in texts for text in row]
    return File(
        rows=sum(1 for _ in raw_lines(address)),
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
# Counters of `registry.py`: from a config and the sizes of files, the plan and the size of the output.


def generate(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts = _file(config.prompts, files)
    tokens_in, tokens_out = round(prompts.rows * prompts.prompt), prompts.rows * config.n * config.max_tokens
    work = _engine_work(config, config.model, tokens_in, tokens_out)
    plan = Plan(prompts.rows, prompts.rows, tokens_in, tokens_out, work=work)
    return plan, File(prompts.rows, config.n, prompts.prompt, config.max_tokens)


def revise(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts, asked = _file(config.prompts, files), 1 + 2 * config.rounds
    calls = prompts.rows * asked
    # A critique prompt contains the response, a revision prompt both.
    each = prompts.prompt + 2 * config.rounds * (prompts.prompt + _FRAME + 1.5 * config.max_tokens)
    tokens_in, tokens_out = round(prompts.rows * each), calls * config.max_tokens
    work = _engine_work(config, config.model, tokens_in, tokens_out)
    plan = Plan(prompts.rows, calls, tokens_in, tokens_out, work=work)
    return plan, File(prompts.rows, 1, prompts.prompt, config.max_tokens)


def label(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    candidates = _file(config.candidates, files)
    row = Candidates.model_construct(id="", responses=[Response(text="")] * candidates.responses)
    pairs = candidates.rows * len(pair_chooser(config.pairs, config.seed)(row))
    return _judged(config, pairs, candidates), File(pairs, 2, candidates.prompt, candidates.response)


def _judged(config: Any, pairs: int, texts: File) -> Plan:
    """The plan of comparisons by a judge or a panel."""
    asked = _principles(config) * len(config.judge)
    whole = texts.prompt + _FRAME
    # (prompts, calls, tokens per prompt, labels, tokens to prefill in total with a prefix cache). The score "10" is two
    # tokens for nearly every tokenizer and needs a call of its own.
    prompts, calls, length, labels, uncached = {
        "pairwise": (2, 2, whole + 2 * texts.response, LABELS, whole + 4 * texts.response),
        "score": (
            2,
            2 if config.engine in SERVERS or config.samples else 4,
            whole + texts.response,
            SCORES,
            whole + 2 * texts.response,
        ),
        "contrast": (4, 4, whole + texts.response, (), 2 * whole + 4 * texts.response),
    }[config.method]
    answer = _answer_tokens(config, labels)
    all_prompts, all_calls = pairs * asked * prompts, pairs * asked * calls
    decoded = all_prompts * answer if config.samples else 0  # labels read from log-probs take no time to decode
    if config.cot and not config.samples:  # the reasoning, then the label after it; a sample has both
        tokens_in = round(all_prompts * (2 * length + config.rationale_tokens))
        reasoning = all_prompts * config.rationale_tokens
        work = _judges_work(config, pairs * asked * uncached + reasoning, reasoning + decoded)
        return Plan(pairs, 2 * all_calls, tokens_in, all_prompts * (config.rationale_tokens + answer), work=work)
    work = _judges_work(config, pairs * asked * uncached, decoded)
    return Plan(pairs, all_calls, round(all_prompts * length), all_prompts * answer, work=work)


def _answer_tokens(config: Any, labels: Sequence[str]) -> int:
    """Tokens that a judge decodes for one question, at most: all samples, or what a server needs to show a label.

    In-process engines decode one token to get its log-probs. Not counted are the extra replies that some servers are
    asked for when a "1" may still become "10"; how often that happens depends on the judge.
    """
    if not labels or config.engine == DECISIONS:
        return 0
    if config.samples:
        reasoning = config.rationale_tokens if config.engine == SERVER or getattr(config, "cot", False) else 0
        return int(config.samples) * ((JSON_TOKENS if config.structured else ANSWER_TOKENS) + reasoning)
    return reply_tokens(labels) if config.engine == SERVER else 1


def _judges_work(config: Any, prefill: float, decode: float) -> tuple[Work, ...] | None:
    """The work split evenly among the judges of a panel."""
    count = len(config.judge)
    return _combined(*(_engine_work(config, judge, prefill / count, decode / count) for judge in config.judge))


def _principles(config: Any) -> int:
    """How many principles a comparison is judged by."""
    if tuple(config.principles) == ("sample",):
        return 1
    return len(named_principles(load_constitution(config.constitution), config.principles))


def alignment(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.pairs, files)
    return _judged(config, pairs.rows, pairs), None


def win_rate(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    a, b = _file(config.a, files), _file(config.b, files)
    return _judged(config, min(a.rows, b.rows) * min(a.responses, b.responses), a), None


def train_rm(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.preferences, files)
    return _epochs(config, pairs.rows, pairs.prompt + 2 * pairs.response), None


def sft(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    rows = _file(config.records, files)
    return _epochs(config, rows.rows, rows.prompt + rows.response), None


def harmless_rate(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    found = _file(config.candidates, files)
    singles = found.rows * found.responses
    asked = singles * 2 * _principles(config)  # with the labels in both orders
    tokens_in = asked * (found.prompt + _FRAME + found.response)
    tokens_out = asked * _answer_tokens(config, LABELS)
    work = _judges_work(config, tokens_in, tokens_out if config.samples else 0)
    return Plan(singles, asked, round(tokens_in), tokens_out, work=work), None


def reward(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    sides = [_file(name, files) for name in (config.candidates, config.baseline) if name]
    singles = sum(side.rows * side.responses for side in sides)
    parts = [_scoring(config, side.prompt, side.response, side.rows * side.responses) for side in sides]
    return Plan(singles, work=_combined(*parts)), None


def reward_model(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.pairs, files)
    tokens = pairs.rows * (pairs.prompt + 2 * pairs.response)
    work = _combined(*(_trainer_work(config, model, tokens / 3) for model in config.reward_model))
    return Plan(pairs.rows, work=work), None


def report(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    return Plan(), None


def _epochs(config: Any, rows: int, tokens: float) -> Plan:
    """The plan of training for epochs over what is not held out; `tokens` is per row."""
    trained = round(rows * (1 - config.eval_fraction))
    steps = config.epochs * -(-trained // config.batch_size)
    train = config.epochs * trained * tokens
    # The final evaluation runs forward over what is held out; that of a reward model also over what it was trained on.
    forward = (rows if hasattr(config, "preferences") else rows - trained) * tokens / 3
    return Plan(rows, steps, round(train), 0, work=_trainer_work(config, config.model, train + forward))


def ppo(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    prompts = _file(config.prompts, files)
    asked = config.steps * config.prompts_per_step
    tokens_out = asked * config.n * config.max_tokens
    rollouts = _engine_work(config, config.model, asked * prompts.prompt, tokens_out)
    tokens = asked * prompts.prompt + tokens_out
    models = 2 if config.advantage == "gae" else 1
    # Forward passes of policy, reference and value model before the update; then the update.
    train = tokens * ((models + 1) / 3 + models * config.epochs)
    work = _combined(
        rollouts,
        _trainer_work(config, config.model, train),
        _scoring(config, prompts.prompt, config.max_tokens, asked * config.n),
    )
    return Plan(
        prompts.rows,
        config.steps,
        round(asked * prompts.prompt),
        tokens_out,
        work=work,
        sequential=config.steps * config.max_tokens,  # of each step, the tokens of the longest response
    ), None


def _scoring(config: Any, prompt: float, response: float, count: int) -> tuple[Work, ...] | None:
    """The work of scoring `count` single responses with the reward models or the judge of a config."""
    if not config.judge:
        tokens = count * (prompt + response)
        return tuple(each for model in config.reward_model for each in _trainer_work(config, model, tokens / 3))
    each = (2 if config.method == "contrast" else 1) * (prompt + _FRAME + response)
    engine = config.judge_engine or config.engine
    asked = EngineConfig.model_construct(engine=engine, dtype="auto", engine_memory=config.engine_memory)
    return _engine_work(asked, config.judge, count * each * _principles(config), 0)


def _combined(*parts: tuple[Work, ...] | None) -> tuple[Work, ...] | None:
    """All parts together; None if a server does one of them."""
    known = [part for part in parts if part is not None]
    return tuple(each for part in known for each in part) if len(known) == len(parts) else None
