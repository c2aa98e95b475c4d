"""prompts -> candidates: n sampled responses per prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.data.messages import Message, as_messages
from rlaif_cli.data.paths import file_of, rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates, PromptRecord, Response, has_answer
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import Engine, EnginePool, Failed, Request, ResolvedModel, Sampling, resolve
from rlaif_cli.engines.base import Completion, request_seed
from rlaif_cli.engines.server_account import start_over, until_paused
from rlaif_cli.engines.tokenizer import open_tokenizer, too_long
from rlaif_cli.models.tokenizer import with_system
from rlaif_cli.stages.manifest import accounted, finish
from rlaif_cli.stages.ordering import InOrder, Unanswered, reject
from rlaif_cli.stages.prompt_tokens import PromptTokens
from rlaif_cli.ui.progress import ProgressCallback, no_progress


@dataclass
class GenerateSummary:
    """Counts of the whole output, including rows of an earlier, killed run."""

    rows: int = 0
    resumed: int = 0  # how many of them already existed
    responses: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unfinished: int = 0  # responses cut by --max-tokens
    unanswered: int = 0  # responses that are all reasoning
    refused: int = 0  # responses that the server marked as refusals
    without_text: int = 0  # answers that are not usable responses, in rows that have others
    rejected: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """row: candidates, as in the file."""
        self.rows += 1
        self.responses += len(row["responses"])
        self.tokens_out += sum(response.get("tokens") or 0 for response in row["responses"])
        reasons = [response.get("finish_reason") for response in row["responses"]]
        self.unfinished += reasons.count("length")
        self.refused += reasons.count("refusal")
        self.unanswered += sum(not has_answer(each["text"], each.get("reasoning")) for each in row["responses"])


@until_paused
def generate(
    config: GenerateConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress
) -> GenerateSummary:
    """Run the stage; see `GenerateConfig`.

    Raises:
        InputError: the prompts are invalid, or one does not fit in the model's context.
    """
    model = resolve(config, config.model)
    with closing(_Prompts(config, model)) as prompts:
        return _generate(config, model, prompts, engines, progress)


def _generate(
    config: GenerateConfig,
    model: ResolvedModel,
    prompts: _Prompts,
    engines: EnginePool,
    progress: ProgressCallback,
) -> GenerateSummary:
    summary = GenerateSummary()
    source = Source(
        config.prompts,
        PromptRecord,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "generate"),
        check=prompts.check,
        restart=prompts.restart,
    )
    summary.tokens_in = prompts.tokens_in
    summary.rejected = source.rejected
    if config.dry_run:
        summary.rows = len(source)
        return summary
    settings = config.deciding() | {"input_sha256": source.sha256}
    start_over(config)
    output = Output(file_of(config.output), settings, overwrite=config.overwrite, on_row=summary.add)
    try:
        summary.resumed = len(output.done)
        if not output.complete:
            engine = engines.get(config, model)
            with accounted(output, {model.name: engine}, config):
                _sample(config, source, prompts.tokenized(source), output, engine, summary, progress)
        summary.without_text = summary.rows * config.n - summary.responses
        # A server reports the total tokens of the n responses, but not those of each.
        summary.tokens_out = summary.tokens_out or int(output.usage["tokens_out"])
        finish(output, "generate", config, model, vars(summary))
    finally:
        output.close()
    return summary


class _Prompts:
    """Checks that prompts fit in the model's context. Their tokens are kept, so that each is tokenized only once."""

    def __init__(self, config: GenerateConfig, model: ResolvedModel) -> None:
        self._config = config
        self._tokenizer, self._limit = open_tokenizer(config, model)
        self._tokens = PromptTokens()
        self.tokens_in = 0

    def close(self) -> None:
        self._tokens.close()

    def restart(self) -> None:
        self._tokens.clear()
        self.tokens_in = 0

    def check(self, record: PromptRecord) -> str | None:
        if self._limit is None:  # a server, which gets the texts
            return None
        ids: list[Any] = self._tokenizer.chat(_messages(self._config, record))
        reason = too_long(len(ids) + self._config.max_tokens, self._limit, "prompt and response")
        if reason is None:
            self.tokens_in += len(ids)
            if not self._config.dry_run:
                self._tokens.add(ids)
        return reason

    def tokenized(self, source: Iterable[PromptRecord]) -> Iterator[tuple[PromptRecord, Sequence[Any]]]:
        """Each record of the source that was checked, and its prompt as the engine takes it."""
        if self._limit is None:
            return ((record, self._tokenizer.chat(_messages(self._config, record))) for record in source)
        return zip(source, self._tokens, strict=True)


def _messages(config: GenerateConfig, record: PromptRecord) -> list[Message]:
    return with_system(as_messages(record.prompt), config.system)


def _sample(
    config: GenerateConfig,
    source: Source[PromptRecord],
    prompts: Iterable[tuple[PromptRecord, Sequence[Any]]],
    output: Output,
    engine: Engine,
    summary: GenerateSummary,
    progress: ProgressCallback,
) -> None:
    sampling = Sampling(config.n, config.temperature, config.top_p, config.max_tokens, config.stop)
    order, unanswered = InOrder(config.ordered), Unanswered()

    def requests() -> Iterator[Request]:
        for record, prompt in prompts:
            if record.id not in output.done:
                order.expect(record.id)
                yield Request(record, prompt, seed=request_seed(config.seed, record.id))

    def settle(record: PromptRecord, completions: list[Completion] | Failed) -> None:
        if isinstance(completions, Failed) and completions.retryable:
            unanswered.add(completions.reason)
            return
        responses, reason = _responses(completions)
        if len(responses) < min(config.n, 2):  # with two of several responses left, they can still be compared
            reject(config.output, "generate", record, reason)
            summary.rejected += 1
        else:
            row = _candidates(config, record, responses)
            output.write(row)
            summary.add(row.model_dump())
            progress(summary.rows, len(source))

    for record, completions in engine.generate(requests(), sampling):
        order.settle(record.id, partial(settle, record, completions))
    unanswered.check()


def _responses(completions: list[Completion] | Failed) -> tuple[list[Completion], str]:
    """The usable responses, and why the others are not usable."""
    if isinstance(completions, Failed):
        return [], completions.reason
    faults = [completion.no_response for completion in completions]
    missing = [fault for fault in faults if fault]
    reason = (
        f"{len(missing)} of {len(completions)} answers are not usable responses; the last reason: {missing[-1]}"
        if missing
        else ""
    )
    if len(missing) == len(completions) == 1:
        reason = missing[0]
    return [completion for completion, fault in zip(completions, faults, strict=True) if not fault], reason


def _candidates(config: GenerateConfig, record: PromptRecord, completions: list[Completion]) -> Candidates:
    responses = [
        Response(
            text=c.reply,
            reasoning=c.reasoning,
            finish_reason=c.finish_reason,
            tokens=len(c.token_ids) or None,
            logprob=round(sum(c.logprobs), 4) if c.logprobs else None,
        )
        for c in completions
    ]
    return Candidates(
        id=record.id,
        prompt=_messages(config, record) if config.system else record.prompt,
        responses=responses,
        model=config.model,
        meta=record.meta | ({"reference": record.reference} if record.reference else {}),
    )


def run(config: GenerateConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it."""
    return vars(generate(config, engines, progress=progress))
