"""prompts -> revisions: a model critiques and rewrites its own responses by the constitution (Bai et al. 2022).

The model writes a first response, then in every round a critique by one principle and a revision. All rounds are kept:
`rlaif sft` trains on the last revisions, or with `--all-rounds` on those of every round, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rlaif_cli.config.engine import ReviseConfig
from rlaif_cli.data.messages import as_messages
from rlaif_cli.data.paths import file_of, rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import NO_ANSWER, PromptRecord, Revision, Round
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import Engine, EnginePool, Failed, Request, ResolvedModel, Sampling, resolve
from rlaif_cli.engines.base import request_seed
from rlaif_cli.engines.server_account import start_over, until_paused
from rlaif_cli.engines.tokenizer import open_tokenizer, too_long
from rlaif_cli.judge import prompts
from rlaif_cli.judge.constitution import Constitution, Principle
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.tokenizer import with_system
from rlaif_cli.stages.manifest import accounted, finish
from rlaif_cli.stages.ordering import Unanswered, reject
from rlaif_cli.ui.progress import ProgressCallback, no_progress

_BATCH = 64  # prompts that are revised together


@dataclass
class ReviseSummary:
    rows: int = 0
    resumed: int = 0
    rejected: int = 0


@dataclass
class _Draft:
    """A prompt in progress."""

    record: PromptRecord
    principle: Principle  # of the current round
    initial: str = ""
    critique: str = ""
    rounds: list[Round] = field(default_factory=list)
    failed: Failed | None = None

    @property
    def response(self) -> str:
        return self.rounds[-1].revision if self.rounds else self.initial

    def finish_round(self, revision: str) -> None:
        # An empty revision would erase the response, so the previous one is kept.
        revision = revision or self.response
        self.rounds.append(Round(principle=self.principle.id, critique=self.critique, revision=revision))


@until_paused
def revise(config: ReviseConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress) -> ReviseSummary:
    """Run the stage; see `ReviseConfig`.

    Raises:
        InputError: the prompts or the constitution are invalid, or a prompt is too long for its rounds.
    """
    constitution = load_constitution(config.constitution)
    if tuple(config.principles) != ("sample",):
        constitution = constitution.select(list(config.principles))
    model = resolve(config, config.model)
    source = Source(
        config.prompts,
        PromptRecord,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "revise"),
        check=_context_check(config, model, constitution),
    )
    summary = ReviseSummary(rejected=source.rejected)
    if config.dry_run:
        summary.rows = len(source)
        return summary
    settings = config.deciding() | {"input_sha256": source.sha256}
    settings["constitution_sha256"] = constitution.sha256
    start_over(config)
    output = Output(file_of(config.output), settings, overwrite=config.overwrite)
    try:
        summary.rows = summary.resumed = len(output.done)
        if not output.complete:
            engine = engines.get(config, model)
            with accounted(output, {model.name: engine}, config):
                _revise_all(config, constitution, engine, source, output, summary, progress)
        finish(output, "revise", config, model, vars(summary))
    finally:
        output.close()
    return summary


def _context_check(
    config: ReviseConfig, model: ResolvedModel, constitution: Constitution
) -> Callable[[PromptRecord], str | None]:
    """A check that the longest question about a prompt fits in the model's context."""
    tokenizer, limit = open_tokenizer(config, model)
    longest = max(constitution.principles, key=lambda principle: len(principle.text))

    def check(record: PromptRecord) -> str | None:
        if limit is None:
            return None
        tokenizer.chat(with_system(as_messages(record.prompt), config.system))  # raises if the template refuses it
        asked = prompts.revision(constitution, longest, record.prompt, "", "")
        # The response, its critique and the revision, each of maximum length.
        need = len(tokenizer.question(asked)) + 3 * config.max_tokens
        return too_long(need, limit, "the prompt, a response, its critique and the revision")

    return check


def _revise_all(
    config: ReviseConfig,
    constitution: Constitution,
    engine: Engine,
    source: Source[PromptRecord],
    output: Output,
    summary: ReviseSummary,
    progress: ProgressCallback,
) -> None:
    waiting = (record for record in source if record.id not in output.done)
    unanswered = Unanswered()
    while chunk := [_Draft(record, constitution.principles[0]) for record in islice(waiting, _BATCH)]:
        _write_drafts(config, constitution, engine, chunk)
        for draft in chunk:
            if draft.failed is not None:
                if draft.failed.retryable:
                    unanswered.add(draft.failed.reason)
                else:
                    reject(config.output, "revise", draft.record, draft.failed.reason)
                    summary.rejected += 1
                continue
            output.write(_revision(config, draft))
            summary.rows += 1
        output.flush()
        progress(summary.rows, len(source))
    unanswered.check()


def _write_drafts(config: ReviseConfig, constitution: Constitution, engine: Engine, drafts: Sequence[_Draft]) -> None:
    """Run all rounds of a batch of prompts."""

    tokenizer = engine.tokenizer

    def say(what: str, prompt: Callable[[_Draft], Sequence[Any]]) -> Iterator[tuple[_Draft, str]]:
        return _say(config, engine, drafts, what, prompt)

    def asked(draft: _Draft) -> Sequence[Any]:
        return tokenizer.chat(with_system(as_messages(draft.record.prompt), config.system))

    def criticised(draft: _Draft) -> Sequence[Any]:
        record = draft.record
        return tokenizer.question(prompts.critique(constitution, draft.principle, record.prompt, draft.response))

    def revised(draft: _Draft) -> Sequence[Any]:
        asked = (constitution, draft.principle, draft.record.prompt, draft.response, draft.critique)
        return tokenizer.question(prompts.revision(*asked))

    for draft, text in say("initial", asked):
        draft.initial = text
    for number in range(config.rounds):
        for draft in drafts:
            draft.principle = constitution.draw(f"{draft.record.id}/{number}", config.seed)
        for draft, text in say(f"critique {number}", criticised):
            draft.critique = text
        for draft, text in list(say(f"revision {number}", revised)):
            draft.finish_round(text)


def _say(
    config: ReviseConfig,
    engine: Engine,
    drafts: Sequence[_Draft],
    what: str,
    prompt: Callable[[_Draft], Sequence[Any]],
) -> Iterator[tuple[_Draft, str]]:
    """The model's reply for every draft that has not failed; `prompt` builds the question from the draft."""
    requests = [
        Request(place, prompt(draft), seed=request_seed(config.seed, draft.record.id, what))
        for place, draft in enumerate(drafts)
        if draft.failed is None
    ]
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens)
    for place, found in engine.generate(requests, sampling):
        if isinstance(found, Failed):
            drafts[place].failed = found
        elif reason := found[0].no_response or ("" if found[0].answered else NO_ANSWER):
            drafts[place].failed = Failed(reason, False)
        else:
            yield drafts[place], found[0].text.strip()


def _revision(config: ReviseConfig, draft: _Draft) -> Revision:
    return Revision(
        id=draft.record.id,
        prompt=draft.record.prompt,
        response=draft.response,
        initial=draft.initial,
        rounds=draft.rounds,
        model=config.model,
        meta=draft.record.meta,
    )


def run(config: ReviseConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it."""
    return vars(revise(config, engines, progress=progress))
