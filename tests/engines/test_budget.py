"""`--max-cost`: never passed, told to the cent, and resumed with a higher one. Prices in `rlaif.toml`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_server import BatchServer
from chat_server import message, oracle
from helpers import rlaif, rows_of
from rlaif_cli.config.engine import GenerateConfig, ReviseConfig
from rlaif_cli.config.evaluate import AlignmentConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Usage
from rlaif_cli.engines.server_budget import Budget, NotNow, Prices, most_tokens
from rlaif_cli.errors import EngineError, Paused, UsageError
from rlaif_cli.evaluation.alignment import alignment
from rlaif_cli.stages.generate import generate
from rlaif_cli.stages.revise import revise

EACH = 0.000102  # USD: what an answer of the scripted server costs at 1 and 2 USD per million tokens


@pytest.fixture
def server() -> Iterator[BatchServer]:
    made = BatchServer(lambda body, text: [message("fine") for _ in range(body.get("n") or 1)])  # type: ignore[arg-type,return-value]
    yield made
    made.close()


def settings(server: BatchServer, **others: Any) -> dict[str, Any]:
    return {"engine": "openai", "base_url": server.url, "price_in": 1.0, "price_out": 2.0} | others


@pytest.fixture
def generating(server: BatchServer, write_jsonl: Any, tmp_path: Path) -> Callable[..., GenerateConfig]:
    prompts = write_jsonl("p.jsonl", [{"id": str(i), "prompt": f"q{i}"} for i in range(30)])

    def config(**others: Any) -> GenerateConfig:
        common = {"model": "judge", "prompts": prompts, "output": str(tmp_path / "c.jsonl"), "n": 1, "max_tokens": 16}
        return GenerateConfig(**settings(server, **common) | others)

    return config


def run(stage: Callable[..., Any], config: Any) -> Any:
    with EnginePool() as engines:
        return stage(config, engines)


def test_a_stage_stops_before_the_budget_and_resumes_with_a_higher_one(server: BatchServer, generating: Any) -> None:
    limit = 10 * EACH
    with pytest.raises(Paused, match=r"might pass --max-cost 0.00102; \d rows are done; 0.000\d+ USD spent") as stopped:
        run(generate, generating(max_cost=limit))
    assert stopped.value.exit_code == 3 and "higher --max-cost resumes" in (stopped.value.hint or "")
    worst = (258 + 2 * 16) / 1e6
    assert limit - worst - EACH < len(server.charged) * EACH <= limit
    assert len(rows_of(generating().output)) == len(server.charged)
    with pytest.raises(Paused):
        run(generate, generating(max_cost=limit))
    run(generate, generating(max_cost=1.0))
    assert len(server.charged) == 30 == len({row["id"] for row in rows_of(generating().output)})
    manifest = json.loads(Path(generating().output + ".manifest.json").read_text())
    assert manifest["usage"] == {"tokens_in": 3000, "tokens_out": 30, "cost": pytest.approx(30 * EACH)}


def test_what_earlier_runs_cost_counts(server: BatchServer, generating: Any) -> None:
    server.drop = lambda method, path: "before" if len(server.charged) >= 20 and "chat" in path else ""
    with pytest.raises(EngineError):
        run(generate, generating(retries=0, concurrency=1))
    server.drop = lambda method, path: ""
    done = len(server.charged)
    with pytest.raises(Paused, match=f"; {done} rows are done"):
        run(generate, generating(max_cost=done * EACH))
    assert len(server.charged) == done
    run(generate, generating(max_cost=1.0))
    manifest = json.loads(Path(generating().output + ".manifest.json").read_text())
    assert manifest["usage"]["cost"] == pytest.approx(30 * EACH) and len(server.charged) == 30


def test_a_revision_that_a_budget_interrupts_pays_for_no_phase_twice(
    server: BatchServer, write_jsonl: Any, tmp_path: Path
) -> None:
    prompts = write_jsonl("p.jsonl", [{"id": str(i), "prompt": f"q{i}"} for i in range(8)])
    common: dict[str, Any] = {"model": "judge", "prompts": prompts, "output": str(tmp_path / "r.jsonl"), "rounds": 1,
                              "constitution": "harmlessness", "max_tokens": 16}  # fmt: skip
    for limit in (0.0018, 0.002, 0.0022):
        with pytest.raises(Paused):
            run(revise, ReviseConfig(**settings(server, **common), max_cost=limit))
        assert len(server.charged) * EACH <= limit
    run(revise, ReviseConfig(**settings(server, **common), max_cost=1.0))
    assert len(server.charged) == 8 * 3


def test_an_evaluation_resumes_from_its_kept_answers(server: BatchServer, write_jsonl: Any, tmp_path: Path) -> None:
    server.answer = oracle
    pairs = [{"prompt": f"q{i}", "response_a": "gold", "response_b": "lead", "human_fraction_a": 1} for i in range(20)]
    path = write_jsonl("pairs.jsonl", pairs)
    common: dict[str, Any] = {"judge": "judge", "pairs": path, "constitution": "helpfulness",
                              "output": str(tmp_path / "a.json")}  # fmt: skip
    with pytest.raises(Paused, match="the answers so far are kept"):
        run(alignment, AlignmentConfig(**settings(server, **common), max_cost=0.0035))
    assert 0 < len(server.charged) < 40 and not (tmp_path / "a.json").exists()
    found = run(alignment, AlignmentConfig(**settings(server, **common), max_cost=1.0))
    assert found["n"] == 20 and found["unscored"] == 0 and len(server.charged) == 40
    manifest = json.loads((tmp_path / "a.json.manifest.json").read_text())
    assert manifest["usage"]["cost"] == pytest.approx(40 * EACH)


def test_a_batch_is_as_large_as_the_budget_allows(server: BatchServer, generating: Any) -> None:
    with pytest.raises(Paused, match=r"20 requests in batch batch-0 .*, and the next request might pass --max-cost"):
        run(generate, generating(batch=True, max_cost=20 * 291 / 1e6))
    for _ in range(9):
        try:
            run(generate, generating(batch=True, max_cost=30 * EACH + 290 / 1e6))
            break
        except Paused:
            pass
    assert len(server.charged) == 30 and len(rows_of(generating().output)) == 30


def test_a_server_that_counts_no_tokens_cannot_keep_a_budget(server: BatchServer, generating: Any) -> None:
    server.usage = None
    with pytest.raises(EngineError, match="does not report how many tokens"):
        run(generate, generating(max_cost=1.0))
    with pytest.raises(UsageError, match=r"the cost of \d+ earlier answers is unknown"):
        run(generate, generating(max_cost=1.0))
    run(generate, generating())


def test_a_reservation_waits_for_those_in_flight_before_it_gives_up() -> None:
    body = {"messages": [{"role": "user", "content": "é"}], "max_completion_tokens": 10, "n": 2}
    assert most_tokens(body) == (2 + 256, 20)
    usage = Usage()
    budget = Budget(1.5 * 258, Prices(1e6, 0.0), 0.0, usage)
    got, release = [], threading.Event()

    def ask() -> None:
        try:
            with budget.reserved(body):
                release.wait(10)
                usage.add(10, 1)
                got.append(True)
        except NotNow:
            got.append(False)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not budget.exhausted
    release.set()
    for thread in threads:
        thread.join(10)
    assert got == [True, True, True] and budget.spent == 30


# ------------------------------------------------------------------------------------------------------ prices


def test_prices_in_rlaif_toml(server: BatchServer, write_jsonl: Any, tmp_path: Path) -> None:
    write_jsonl("p.jsonl", [{"prompt": "q"}])
    command = ("generate", "p.jsonl", "-n", "1", "--model", "judge", "--engine", "openai", "--base-url", server.url)
    toml = tmp_path / "rlaif.toml"
    toml.write_text('[prices."judge"]\nin = 1\nout = 2.0\n')
    done = rlaif(*command, "-o", "a.jsonl", "--max-cost", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prices from rlaif.toml: 1 in, 2 out per million tokens of judge" in done.stderr
    assert json.loads((tmp_path / "a.jsonl.manifest.json").read_text())["usage"]["cost"] == pytest.approx(EACH)
    done = rlaif(*command, "-o", "b.jsonl", "--price-in", "10", "--price-out", "20", cwd=tmp_path)
    assert "rlaif.toml" not in done.stderr
    assert json.loads((tmp_path / "b.jsonl.manifest.json").read_text())["usage"]["cost"] == pytest.approx(10 * EACH)
    toml.write_text('[prices."judge"]\nin = -1\n')
    done = rlaif(*command, "-o", "c.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and '[prices."judge"] needs two numbers, in and out' in done.stderr


def test_one_cost_needs_one_price(tmp_path: Path) -> None:
    (tmp_path / "rlaif.toml").write_text("[prices]\na = {in = 1, out = 2}\nb = {in = 3, out = 4}\n")
    panel = ("--judge", "a", "--judge", "b", "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1")
    done = rlaif("label", "c.jsonl", *panel, "--constitution", "helpfulness", cwd=tmp_path)
    assert done.returncode == 2 and "different prices, or none, for a, b" in done.stderr


# ------------------------------------------------------------------------------------------- with several judges


def test_prices_are_those_of_the_name_wherever_its_server_is(tmp_path: Path) -> None:
    (tmp_path / "rlaif.toml").write_text("[prices]\na = {in = 1, out = 2}\nb = {in = 1, out = 2}\n")
    judges = ("--judge", "a@http://127.0.0.1:9/v1", "--judge", "b@http://127.0.0.1:8/v1", "--engine", "decisions")
    done = rlaif("label", "c.jsonl", *judges, "--constitution", "helpfulness", cwd=tmp_path)
    assert "prices from rlaif.toml: 1 in, 2 out per million tokens of a, b" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "decisions"}, "max_cost needs engine openai"),
        ({"judge": ("j@http://a/v1", "j@http://b/v1")}, "need judges of different names"),
        ({"recheck": 5, "base_url": "http://a/v1"}, "max_cost does not apply to recheck"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(given: dict[str, Any], said: str) -> None:
    plain = {"candidates": "c", "judge": "j", "constitution": "helpfulness", "engine": "openai", "output": "o.jsonl"}
    with pytest.raises(ValueError, match=said):
        LabelConfig(**plain | {"price_in": 1.0, "price_out": 2.0, "max_cost": 1.0} | given)


def test_who_answered_is_counted_once(server: BatchServer, generating: Any, tmp_path: Path) -> None:
    """With a budget and with batches, over all runs."""
    for options in ({"max_cost": 10 * EACH}, {"batch": True}):
        for most in range(2):
            more = {"overwrite": most == 0} | ({"max_cost": 1.0} if most and "max_cost" in options else {})
            try:
                run(generate, generating(**options | more))
            except Paused:
                assert most == 0
        manifest = json.loads((tmp_path / "c.jsonl.manifest.json").read_text())
        assert manifest["servers"] == {"judge": {"model": {"judge": 30}}}
