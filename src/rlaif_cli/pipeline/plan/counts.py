"""What a pipeline will do, before it does it: rows, calls of a model, tokens, money, time and memory of every step.

Counted from the files that are there and the settings, without starting an engine. Tokens of files are about a quarter
of their characters, as English is; tokens that are to be sampled are counted as if every text ran to its limit. So
`tokens_out`, `cost` and the time to sample are bounds from above, `tokens_in` is near. Time and memory come from
what this machine was measured to do with the same models (`rates`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.inputs import raw_lines
from rlaif_cli.data.records import Candidates, Response
from rlaif_cli.engines import FAKE, SERVER, computing_engine, engine_name
from rlaif_cli.engines.server_labels import reply_tokens
from rlaif_cli.errors import RlaifError
from rlaif_cli.judge import named_principles
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.labels import ANSWER_TOKENS
from rlaif_cli.judge.prompts import LABELS, SCORES
from rlaif_cli.pipeline.file import Step
from rlaif_cli.pipeline.plan.work import File, Plan, Work
from rlaif_cli.stages.pairs import pair_chooser

_SAMPLED = 200  # rows of a file that are read for their lengths
_CHARACTERS = 4  # of a token
_FRAME = 120  # tokens of a judge's prompt around the texts: preamble and principle


def plan(steps: Iterable[Step], files: Mapping[str, File] = {}) -> list[tuple[Step, Plan]]:
    """Of every step, in order; what one writes is what a later one reads.

    Args:
        files: what inputs are taken to hold, instead of what is there.
    """
    files = dict(files)
    made_of: dict[str, str] = {}  # a checkpoint of this pipeline -> the model it begins from, which is as large
    found = []
    for step in steps:
        count = _COUNTERS.get(step.kind)
        if hasattr(step.config, "model"):
            made_of[step.output] = made_of.get(step.config.model, step.config.model)
        try:
            each, output = count(step.config, files) if count else (Plan(work=None), None)
        except (
            RlaifError,
            OSError,
            ValueError,
        ):  # an input that is not there, or cannot be read: its own stage says so
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


def _engine_work(config: Any, model: str, read: float, sampled: float) -> tuple[Work, ...] | None:
    """None: other machines'; () : the fake engine's, which takes no time."""
    engine = computing_engine(config, model)
    if engine == FAKE:
        return ()
    if engine == SERVER:
        return None
    name = engine_name(config, model)
    names = (
        ("dtype", "max_length", "tensor_parallel_size") if engine == "vllm" else ("dtype", "max_length", "batch_size")
    )
    options = [(name, value) for name in names if (value := getattr(config, name, None)) is not None]
    memory = getattr(config, "engine_memory", None)
    options += [("memory", memory)] if memory is not None and engine == "vllm" else []
    return (Work(model, name, tuple(options), read=read, sampled=sampled),)


def _trainer_work(config: Any, model: str, learned: float) -> tuple[Work, ...]:
    if model == FAKE:
        return ()
    names = ("precision", "tokens_per_batch", "lora_rank", "gradient_checkpointing", "compile", "optimizer")
    options = [(name, value) for name in names if (value := getattr(config, name, None)) not in (None, 0, False)]
    return (Work(model, "", tuple(options), learned=learned),)


# ---------------------------------------------------------------------------------------------------------- files


def _file(name: str, files: dict[str, File]) -> File:
    """Raises: InputError: it is neither there nor an earlier step's output."""
    return files[name] if name in files else measure(name)


def measure(address: str) -> File:
    """Rows, and lengths by the first `_SAMPLED` of them."""
    sampled = [json.loads(line) for _, _, line in islice(raw_lines(address), _SAMPLED)]
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


def _generate(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts = _file(config.prompts, files)
    read, sampled = round(prompts.rows * prompts.prompt), prompts.rows * config.n * config.max_tokens
    work = _engine_work(config, config.model, read, sampled)
    plan = Plan(prompts.rows, prompts.rows, read, sampled, work=work)
    return plan, File(prompts.rows, config.n, prompts.prompt, config.max_tokens)


def _revise(config: Any, files: dict[str, File]) -> tuple[Plan, File]:
    prompts, asked = _file(config.prompts, files), 1 + 2 * config.rounds
    calls = prompts.rows * asked
    # A critique reads the response, a revision both.
    each = prompts.prompt + 2 * config.rounds * (prompts.prompt + _FRAME + 1.5 * config.max_tokens)
    read, sampled = round(prompts.rows * each), calls * config.max_tokens
    plan = Plan(prompts.rows, calls, read, sampled, work=_engine_work(config, config.model, read, sampled))
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
    # (prompts, calls, their length, labels, what a prefix cache leaves to read of all prompts); a score's "10"
    # is two tokens nearly everywhere, and asked apart.
    prompts, calls, length, labels, read_once = {
        "pairwise": (2, 2, whole + 2 * texts.response, LABELS, whole + 4 * texts.response),
        "score": (
            2,
            2 if config.engine == SERVER or config.samples else 4,
            whole + texts.response,
            SCORES,
            whole + 2 * texts.response,
        ),
        "contrast": (4, 4, whole + texts.response, (), 2 * whole + 4 * texts.response),
    }[config.method]
    sampled = _answer_tokens(config, labels)
    read, asked_in_all = pairs * asked * prompts, pairs * asked * calls
    counted = read * sampled if config.samples else 0  # a label that is read off log-probs takes no time to write
    if config.cot:  # the reasoning, and then the label after it
        tokens_in = round(read * (2 * length + config.rationale_tokens))
        reasons = read * config.rationale_tokens
        work = _judges_work(config, pairs * asked * read_once + reasons, reasons + counted)
        return Plan(pairs, 2 * asked_in_all, tokens_in, read * (config.rationale_tokens + sampled), work=work)
    work = _judges_work(config, pairs * asked * read_once, counted)
    return Plan(pairs, asked_in_all, round(read * length), read * sampled, work=work)


def _answer_tokens(config: Any, labels: Sequence[str]) -> int:
    """Tokens that a judge writes to answer one question, at most: all samples, or what a server needs to show a label.

    In-process engines write one token to read the next token's log-probs. Not counted: the further replies that some
    servers are asked for where a "1" may still become "10". How often that is, only the judge's answers tell.
    """
    if not labels:
        return 0
    if config.samples:
        return int(config.samples) * ANSWER_TOKENS
    return reply_tokens(labels) if config.engine == SERVER else 1


def _judges_work(config: Any, read: float, sampled: float) -> tuple[Work, ...] | None:
    """Shared evenly by the judges of a panel."""
    count = len(config.judge)
    return _together(*(_engine_work(config, judge, read / count, sampled / count) for judge in config.judge))


def _principles(config: Any) -> int:
    """How many a comparison is judged by."""
    if tuple(config.principles) == ("sample",):
        return 1
    return len(named_principles(load_constitution(config.constitution), config.principles))


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


def _harmless_rate(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    found = _file(config.candidates, files)
    singles = found.rows * found.responses
    asked = singles * 2 * _principles(config)  # with the labels either way round
    read = asked * (found.prompt + _FRAME + found.response)
    written = asked * _answer_tokens(config, LABELS)
    work = _judges_work(config, read, written if config.samples else 0)
    return Plan(singles, asked, round(read), written, work=work), None


def _reward(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    sides = [_file(name, files) for name in (config.candidates, config.baseline) if name]
    singles = sum(side.rows * side.responses for side in sides)
    parts = [_scoring(config, side.prompt, side.response, side.rows * side.responses) for side in sides]
    return Plan(singles, work=_together(*parts)), None


def _reward_model_eval(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    pairs = _file(config.pairs, files)
    tokens = pairs.rows * (pairs.prompt + 2 * pairs.response)
    work = _together(*(_trainer_work(config, model, tokens / 3) for model in config.reward_model))
    return Plan(pairs.rows, work=work), None


def _report(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    return Plan(), None


def _epochs(config: Any, rows: int, tokens: float) -> Plan:
    """Passes over what is not held out; `tokens` of a row."""
    trained = round(rows * (1 - config.eval_fraction))
    steps = config.epochs * -(-trained // config.batch_size)
    learned = config.epochs * trained * tokens
    # At the end what is held out and, of a reward model, what was trained on goes forward once more.
    forward = (rows if hasattr(config, "preferences") else rows - trained) * tokens / 3
    return Plan(rows, steps, round(learned), 0, work=_trainer_work(config, config.model, learned + forward))


def _ppo(config: Any, files: dict[str, File]) -> tuple[Plan, None]:
    prompts = _file(config.prompts, files)
    asked = config.steps * config.prompts_per_step
    sampled = asked * config.n * config.max_tokens
    rollouts = _engine_work(config, config.model, asked * prompts.prompt, sampled)
    tokens = asked * prompts.prompt + sampled
    models = 2 if config.advantage == "gae" else 1
    # Log-probs of policy and reference (and values) before the update; then the update.
    learned = tokens * ((models + 1) / 3 + models * config.epochs)
    work = _together(
        rollouts,
        _trainer_work(config, config.model, learned),
        _scoring(config, prompts.prompt, config.max_tokens, asked * config.n),
    )
    return Plan(prompts.rows, config.steps, round(asked * prompts.prompt), sampled, work=work), None


def _scoring(config: Any, prompt: float, response: float, count: int) -> tuple[Work, ...] | None:
    """`count` responses, each by itself, by the reward models or the judge that a config names."""
    if not config.judge:
        tokens = count * (prompt + response)
        return tuple(each for model in config.reward_model for each in _trainer_work(config, model, tokens / 3))
    each = (2 if config.method == "contrast" else 1) * (prompt + _FRAME + response)
    engine = config.judge_engine or config.engine
    asked = EngineConfig.model_construct(engine=engine, dtype="auto", engine_memory=config.engine_memory)
    return _engine_work(asked, config.judge, count * each * _principles(config), 0)


def _together(*parts: tuple[Work, ...] | None) -> tuple[Work, ...] | None:
    """None where a server does one of them."""
    known = [part for part in parts if part is not None]
    return tuple(each for part in known for each in part) if len(known) == len(parts) else None


_COUNTERS: dict[str, Callable[[Any, dict[str, File]], tuple[Plan, File | None]]] = {
    "generate": _generate,
    "revise": _revise,
    "label": _label,
    "sft": _sft,
    "train-rm": _reward_model,
    "ppo": _ppo,
    "eval alignment": _alignment,
    "eval win-rate": _win_rate,
    "eval harmless-rate": _harmless_rate,
    "eval reward": _reward,
    "eval reward-model": _reward_model_eval,
    "report": _report,
}
