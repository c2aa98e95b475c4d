"""`--batch` against a scripted Batch API: nothing is lost, doubled, mislabelled or paid for twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_server import BatchServer
from chat_server import first_response, message, oracle
from helpers import rlaif, rows_of
from rlaif_cli.config.engine import GenerateConfig, ReviseConfig
from rlaif_cli.config.evaluate import AlignmentConfig, HarmlessRateConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.data.append_log import AppendLog
from rlaif_cli.engines import EnginePool, server_batch
from rlaif_cli.engines.server_journal import Journal, journal_path
from rlaif_cli.engines.server_kept import answers_path
from rlaif_cli.errors import EngineError, InputError, Paused, UsageError
from rlaif_cli.evaluation.alignment import alignment
from rlaif_cli.evaluation.harmless_rate import harmless_rate
from rlaif_cli.stages.generate import generate
from rlaif_cli.stages.label import label
from rlaif_cli.stages.revise import revise

PRICES = {"price_in": 1.0, "price_out": 2.0}  # an answer of the scripted server costs 0.000102 USD
EACH = 0.000102


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BatchServer]]:
    monkeypatch.setattr(server_batch, "_SETTLED", 0.0)
    made: list[BatchServer] = []

    def start(*arguments: Any, **options: Any) -> BatchServer:
        made.append(BatchServer(*arguments, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def candidates(write_jsonl: Any) -> Callable[[int], str]:
    def write(count: int) -> str:
        rows = [
            {"id": str(i), "prompt": f"q{i}", "responses": ["gold", "lead"] if i % 2 else ["lead", "gold"]}
            for i in range(count)
        ]
        return str(write_jsonl("candidates.jsonl", rows))

    return write


def labelling(server: BatchServer, path: str, **settings: Any) -> LabelConfig:
    common: dict[str, Any] = {"judge": "judge", "batch": True, "retries": 0, "constitution": "helpfulness", **PRICES}
    common |= {"candidates": path, "output": str(Path(path).with_name("prefs.jsonl"))}
    common |= {"engine": "openai", "base_url": server.url}
    return LabelConfig(**common | settings)


def until_done(stage: Callable[..., Any], config: Any, most: int = 20) -> tuple[Any, int]:
    """Run a command again and again, each time as a new process would; (its result, how often it was run)."""
    for run in range(1, most + 1):
        try:
            with EnginePool() as engines:
                return stage(config, engines), run
        except Paused:
            pass
    raise AssertionError("it never ends")


def check_labels(config: LabelConfig, count: int) -> dict[str, Any]:
    """Every row is there once and right; returns the usage of the manifest."""
    rows = rows_of(config.output)
    assert sorted(row["id"] for row in rows) == sorted(str(i) for i in range(count))
    assert {row["chosen"][0]["content"] for row in rows} == {"gold"}
    assert [row["p_chosen"] for row in rows] == pytest.approx([0.9 / 0.95] * count)
    output = Path(config.output)
    assert not answers_path(output).exists() and not journal_path(output).exists()
    usage: dict[str, Any] = json.loads(output.with_name(output.name + ".manifest.json").read_text())["usage"]
    return usage


def unpaid_twice(server: BatchServer) -> None:
    assert set(Counter(json.dumps(body, sort_keys=True) for body in server.charged).values()) == {1}


def test_failing_lines_and_an_expired_batch_lose_and_double_nothing(batches: Any, candidates: Any) -> None:
    server = batches(oracle, failing=0.1, expiring=(1,))
    config = labelling(server, candidates(100), batch_requests=60)
    summary, runs = until_done(label, config)
    assert summary.pairs == 100 and summary.unscored == 0 and runs > 2
    usage = check_labels(config, 100)
    assert len(server.charged) == 200
    unpaid_twice(server)
    assert usage == {"tokens_in": 20000, "tokens_out": 200, "cost": pytest.approx(200 * EACH)}


def test_the_rows_are_those_of_a_run_without_batches(batches: Any, candidates: Any, tmp_path: Path) -> None:
    server, path = batches(oracle), candidates(12)
    until_done(label, labelling(server, path))
    plain = labelling(server, path, batch=False).model_copy(update={"output": str(tmp_path / "plain.jsonl")})
    until_done(label, plain)
    by_id = [{row["id"]: row for row in rows_of(tmp_path / name)} for name in ("prefs.jsonl", "plain.jsonl")]
    assert by_id[0] == by_id[1]


def test_the_command_submits_leaves_and_collects(batches: Any, candidates: Any, tmp_path: Path) -> None:
    server = batches(oracle)
    server.slow = True
    command = ("label", candidates(6), "--judge", "judge", "--constitution", "helpfulness", "-o", "prefs.jsonl",
               "--engine", "openai", "--base-url", server.url, "--batch")  # fmt: skip
    first = rlaif(*command, cwd=tmp_path)
    assert first.returncode == 3, first.stderr
    assert f"paused: 12 requests in batch batch-0 at {server.url}; 0 rows are done" in first.stderr
    assert "rerun the same command" in first.stderr
    again = rlaif(*command, cwd=tmp_path)
    assert again.returncode == 3 and len(server.batches) == 1
    server.slow = False
    assert "would be discarded by --overwrite" in rlaif(*command, "--overwrite", cwd=tmp_path).stderr
    assert "must be collected first" in rlaif(*command[:-1], cwd=tmp_path).stderr
    assert not server.charged
    done = rlaif(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "prefs.jsonl")) == 6 and len(server.charged) == 12


def test_batch_wait_collects_in_the_same_run(batches: Any, candidates: Any) -> None:
    server = batches(oracle, failing=0.2)
    config = labelling(server, candidates(30), batch_wait=20, retries=9)
    with EnginePool() as engines:
        label(config, engines)
    check_labels(config, 30)
    assert len(server.batches) > 1
    unpaid_twice(server)


# ------------------------------------------------------------------------------------------------------ kills


class Killed(BaseException):
    pass


@pytest.mark.parametrize("event", ["submitting", "uploaded", "submitted", "collected"])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_any_step_pays_for_nothing_twice(
    batches: Any, candidates: Any, monkeypatch: pytest.MonkeyPatch, event: str, before: bool
) -> None:
    server = batches(oracle, failing=0.1)
    config = labelling(server, candidates(40), batch_requests=30)
    record, killed = Journal._record, list[str]()

    def interrupted(self: Journal, row: dict[str, Any]) -> None:
        due = row["event"] == event and not killed
        if due:
            killed.append(event)
        if not (due and before):
            record(self, row)
        if due:
            raise Killed

    monkeypatch.setattr(Journal, "_record", interrupted)
    for _ in range(3):
        try:
            until_done(label, config)
            break
        except Killed:
            pass
    assert killed
    usage = check_labels(config, 40)
    unpaid_twice(server)
    assert usage["cost"] == pytest.approx(80 * EACH) and len(server.charged) == 80


@pytest.mark.parametrize("dropped", ["before", "after"])
@pytest.mark.parametrize("call", [("POST", "/files"), ("POST", "/batches")])
def test_a_call_that_breaks_off_is_looked_up_and_not_repeated(
    batches: Any, candidates: Any, dropped: str, call: tuple[str, str]
) -> None:
    server = batches(oracle)
    config = labelling(server, candidates(5))
    calls: list[tuple[str, str]] = []

    def drop(method: str, path: str) -> str:
        calls.append((method, path))
        return dropped if (method, path) == call and calls.count(call) == 1 else ""

    server.drop = drop
    with pytest.raises(EngineError, match="the Batch API is failing"), EnginePool() as engines:
        label(config, engines)
    until_done(label, config)
    check_labels(config, 5)
    unpaid_twice(server)
    assert len(server.batches) == 1


def test_a_server_that_forgets_metadata_is_searched_by_file(batches: Any, candidates: Any) -> None:
    server = batches(oracle)
    config = labelling(server, candidates(3))
    server.drop = lambda method, path: "after" if (method, path) == ("POST", "/batches") else ""
    with pytest.raises(EngineError), EnginePool() as engines:
        label(config, engines)
    server.batches[0]["metadata"] = None
    server.drop = lambda method, path: ""
    until_done(label, config)
    assert len(server.batches) == 1


def test_a_log_drops_a_line_that_a_kill_cut_and_reports_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    log = AppendLog(path)
    place = log.append({"text": "a\u2028\ud800"})
    log.append({"n": 2})
    assert log.at(place) == {"text": "a\u2028\ud800"}
    with pytest.raises(UsageError, match="another process"):
        AppendLog(path)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3')
    log = AppendLog(path)
    assert [row for row, _ in log.rows()] == [{"text": "a\u2028\ud800"}, {"n": 2}]
    log.append({"n": 4})
    log.close()
    assert path.read_bytes() == whole + b'{"n":4}\n'
    path.write_bytes(b"damaged\n" + whole)
    with pytest.raises(InputError, match="line 1: this is not a JSON object"):
        list(AppendLog(path).rows())


# --------------------------------------------------------------------------------------------- several rounds


def test_each_phase_of_a_judgement_is_a_round(batches: Any, candidates: Any) -> None:
    def reasons(body: dict[str, Any], text: str) -> dict[str, Any]:
        return oracle(body, text) if body.get("logprobs") else message("the first one is short")

    server = batches(reasons, failing=0.1)
    config = labelling(server, candidates(300), cot=True, judge=["judge", "other"])
    _, runs = until_done(label, config)
    check_labels(config, 300)
    unpaid_twice(server)
    assert len(server.charged) == 300 * 2 * 2 * 2
    assert {json.loads(line)["body"]["model"] for line in server.files["file-0"].splitlines()} == {"judge"}
    assert runs < 12, "chunks of a panel or of chains of thought are not rounds of their own"


def test_samples_of_equal_requests_are_drawn_one_by_one(batches: Any, candidates: Any) -> None:
    """A server without `n` and `seed` is asked with one and the same body for each sample."""
    count = iter(range(1000))

    def votes(body: dict[str, Any], text: str) -> dict[str, Any]:
        good = "1" if "gold" in first_response(text) else "2"
        return message(good if next(count) % 4 else "3")

    def line(body: dict[str, Any]) -> tuple[int, Any] | None:
        refused = next((name for name in ("n", "seed") if name in body), None)
        return (
            (400, {"error": {"message": f"Unsupported parameter: '{refused}'", "param": refused}}) if refused else None
        )

    server = batches(votes, line=line)
    config = labelling(server, candidates(4), samples=4, min_mass=0.0)
    until_done(label, config)
    assert len(server.charged) == 4 * 2 * 4
    assert {row["chosen"][0]["content"] for row in rows_of(config.output)} == {"gold"}
    assert {tuple(row["judge"]["mass"]) for row in rows_of(config.output)} != {(1.0, 1.0)}


def test_generating_and_revising(batches: Any, write_jsonl: Any, tmp_path: Path) -> None:
    def echo(body: dict[str, Any], text: str) -> Any:
        return [message(f"{body['seed']} {k}") for k in range(body.get("n") or 1)]

    server = batches(echo, failing=0.1, expiring=(0,))
    prompts = write_jsonl("p.jsonl", [{"id": str(i), "prompt": f"q{i}"} for i in range(150)])
    common: dict[str, Any] = {"model": "judge", "engine": "openai", "base_url": server.url, "prompts": prompts,
                              "retries": 0, "batch": True}  # fmt: skip
    until_done(generate, GenerateConfig(output=str(tmp_path / "c.jsonl"), n=3, **common))
    rows = rows_of(tmp_path / "c.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 150 == len(server.charged)
    assert {len({response["text"] for response in row["responses"]}) for row in rows} == {3}
    server.charged.clear()
    revising = ReviseConfig(output=str(tmp_path / "r.jsonl"), rounds=1, constitution="harmlessness", **common)
    _, runs = until_done(revise, revising)
    assert len(rows_of(tmp_path / "r.jsonl")) == 150 and len(server.charged) == 450 and runs < 12


def test_evaluations_wait_for_all_answers(batches: Any, candidates: Any, write_jsonl: Any, tmp_path: Path) -> None:
    server = batches(oracle, failing=0.1)
    pairs = [{"prompt": f"q{i}", "response_a": "gold", "response_b": "lead", "human_fraction_a": 1} for i in range(30)]
    common: dict[str, Any] = {"judge": "judge", "engine": "openai", "base_url": server.url, "retries": 0, "batch": True,
                              **PRICES}  # fmt: skip
    output = str(tmp_path / "alignment.json")
    path = write_jsonl("pairs.jsonl", pairs)
    config = AlignmentConfig(pairs=path, constitution="helpfulness", output=output, **common)
    found, runs = until_done(alignment, config)
    assert found["n"] == 30 and found["unscored"] == 0 and found["accuracy"]["value"] == 1 and runs > 1
    manifest = json.loads((tmp_path / "alignment.json.manifest.json").read_text())
    assert manifest["usage"]["cost"] == pytest.approx(60 * EACH) and len(server.charged) == 60
    assert not answers_path(Path(output)).exists()

    server.answer = lambda body, text: message("1", {"1": 0.6, "2": 0.38})
    output = str(tmp_path / "harmless.json")
    harmless, _ = until_done(harmless_rate, HarmlessRateConfig(candidates=candidates(5), output=output, **common))
    assert harmless["n"] == 10 and harmless["unscored"] == 0


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_a_server_refuses_in_every_line_is_asked_in_another_way_or_ends_the_run(
    batches: Any, candidates: Any
) -> None:
    def line(body: dict[str, Any]) -> tuple[int, Any] | None:
        if "max_tokens" in body:
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": words, "param": "max_tokens"}}
        return None

    server = batches(oracle, line=line)
    config = labelling(server, candidates(5))
    until_done(label, config)
    check_labels(config, 5)

    server.line = lambda body: (400, {"error": {"message": "logprobs are not supported", "param": "logprobs"}})
    config = labelling(server, candidates(6))
    Path(config.output).unlink()
    with pytest.raises(EngineError, match="the server refuses 'logprobs'"):
        until_done(label, config)
    server.line = lambda body: None
    until_done(label, config)
    check_labels(config, 6)


def test_a_line_that_is_too_long_is_unscored(batches: Any, candidates: Any) -> None:
    def line(body: dict[str, Any]) -> tuple[int, Any] | None:
        long = "q3" in json.dumps(body)
        return (400, {"error": {"message": "the maximum context length is 5 tokens"}}) if long else None

    server = batches(oracle, line=line)
    config = labelling(server, candidates(5))
    summary, _ = until_done(label, config)
    assert summary.unscored == 1 and len(rows_of(config.output)) == 4


def test_a_batch_that_is_refused_or_answers_nothing_ends_the_run(batches: Any, candidates: Any) -> None:
    server = batches(oracle, line=lambda body: (404, {"error": {"message": "no such model"}}))
    with pytest.raises(EngineError, match="10 of 10 requests of batch batch-0 failed: Error code: 404 - no such model"):
        until_done(label, labelling(server, candidates(5)))
    with pytest.raises(Paused), EnginePool() as engines:
        label(labelling(server, candidates(5)), engines)
    errors = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]}
    server.batches[-1].update(status="failed", errors=errors)
    with pytest.raises(EngineError, match="refused batch batch-1: Enqueued token limit"):
        until_done(label, labelling(server, candidates(5)))


def test_requests_that_keep_failing_are_left_to_the_next_run(batches: Any, candidates: Any) -> None:
    bad = {"on": True}
    server = batches(oracle, line=lambda body: (500, {}) if bad["on"] and "q1" in json.dumps(body) else None)
    config = labelling(server, candidates(5), batch_wait=20, retries=1)
    with pytest.raises(EngineError, match="1 rows got no answer"), EnginePool() as engines:
        label(config, engines)
    assert len(server.batches) == 2 and len(rows_of(config.output)) == 4
    bad["on"] = False
    with EnginePool() as engines:
        label(config, engines)
    check_labels(config, 5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "vllm", "base_url": ()}, "batch needs engine openai"),
        ({"output": "-"}, "batch needs an output file"),
        ({"base_url": ("http://a/v1", "http://b/v1")}, "batch needs a single base_url"),
        ({"ordered": True}, "ordered does not apply to batch"),
        ({"batch": False, "batch_wait": 5.0}, "batch_wait needs batch"),
        ({"batch": False, "max_cost": 1.0}, "max_cost needs prices"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    plain: dict[str, Any] = {"candidates": "c", "judge": "j", "constitution": "helpfulness", "engine": "openai",
                             "base_url": "http://a/v1", "output": "o.jsonl", "batch": True}  # fmt: skip
    with pytest.raises(ValueError, match=said):
        LabelConfig(**plain | settings)


def test_open_batches_stay_with_their_server(batches: Any, candidates: Any) -> None:
    server, other = batches(oracle), batches(oracle)
    path = candidates(3)
    with pytest.raises(Paused), EnginePool() as engines:
        label(labelling(server, path), engines)
    with pytest.raises(UsageError, match="a batch of this output is at"), EnginePool() as engines:
        label(labelling(other, path), engines)
