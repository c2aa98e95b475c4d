"""A scripted OpenAI-compatible server plays judges whose truth is known; the real client talks to it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, Server, first_response, message, oracle
from helpers import rlaif, rows_of
from rlaif_cli.engines.base import Failed, Request, Sampling
from rlaif_cli.engines.openai import OpenAIEngine
from rlaif_cli.errors import EngineError


def biased(body: dict[str, Any], text: str) -> dict[str, Any]:
    return message("1", {"1": 0.9, "2": 0.05, "The": 0.01})


def nonsense(body: dict[str, Any], text: str) -> dict[str, Any]:
    return message("Well", {"Well": 0.9, "Hm": 0.04, "1": 0.001, "2": 0.0005})


def silent(body: dict[str, Any], text: str) -> dict[str, Any]:
    """No log-probs; answers as the oracle does, nine times of ten."""
    drawn = random.Random(f"{body.get('seed')}{text}")
    good, bad = ("1", "2") if "gold" in first_response(text) else ("2", "1")
    return [message(good if drawn.random() < 0.9 else bad) for _ in range(body.get("n") or 1)]  # type: ignore[return-value]


def test_an_oracle_is_believed_in_either_order(serve: Any, label: Any) -> None:
    done, output = label(serve(oracle), "--price-in", "1", "--price-out", "2")
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert len(rows) == 30 and {row["chosen"][0]["content"] for row in rows} == {"gold"}
    assert [row["p_chosen"] for row in rows] == pytest.approx([0.9 / 0.95] * 30)
    assert not any(row["judge"]["flipped"] for row in rows)
    manifest = json.loads((output.parent / "prefs.jsonl.manifest.json").read_text())
    assert manifest["usage"] == {"tokens_in": 6000, "tokens_out": 60, "cost": pytest.approx(0.00612)}


def test_position_bias_averages_out_and_is_flagged(serve: Any, label: Any) -> None:
    done, output = label(serve(biased))
    assert done.returncode == 0 and "most verdicts depend on the position" in done.stderr, done.stderr
    assert all(abs(row["p_chosen"] - 0.5) < 0.02 and row["judge"]["flipped"] for row in rows_of(output))


def panel(**by_model: Answer) -> Answer:
    return lambda body, text: by_model[body["model"]](body, text)


def test_a_panel_is_averaged_and_each_judge_is_kept(serve: Any, label: Any, tmp_path: Path) -> None:
    def contrary(body: dict[str, Any], text: str) -> dict[str, Any]:
        good, bad = ("2", "1") if "gold" in first_response(text) else ("1", "2")
        return message(good, {good: 0.6, bad: 0.4})

    server = serve(panel(judge=oracle, other=contrary))
    done, output = label(server, "--judge", "other")
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert {row["chosen"][0]["content"] for row in rows} == {"gold"}
    assert [row["p_chosen"] for row in rows] == pytest.approx([(0.9 / 0.95 + 0.4) / 2] * 30)
    for row in rows:
        assert row["judge"]["model"] == "judge + other" and row["judge"]["mass"] == pytest.approx([0.975, 0.975])
        assert [vote["model"] for vote in row["judge"]["panel"]] == ["judge", "other"]
        assert [vote["p_chosen"] for vote in row["judge"]["panel"]] == pytest.approx([0.9 / 0.95, 0.4])
    audit = rlaif("audit", str(output), "--json", cwd=tmp_path)
    checks = {found["check"]: found for found in json.loads(audit.stdout)["checks"]}
    assert checks["judges"]["verdict"] == "look"
    assert checks["judges"]["numbers"]["against_the_label"] == {"other": 30}
    manifest = json.loads((tmp_path / "prefs.jsonl.manifest.json").read_text())
    assert manifest["engine"] == {"judge": "openai", "other": "openai"} and manifest["usage"]["tokens_in"] == 12000


def test_a_pair_that_one_of_a_panel_cannot_judge_is_unscored(serve: Any, label: Any, tmp_path: Path) -> None:
    done, output = label(serve(panel(judge=oracle, other=nonsense)), "--judge", "other")
    assert done.returncode == 3, done.stderr
    rows = rows_of(output.with_name("prefs.unscored.jsonl"))
    assert len(rows) == 30 and rows[0]["reason"].startswith("other: the labels hold")
    assert rows[0]["judge"]["panel"]["judge"]["mass"] == pytest.approx([0.95, 0.95])


def test_a_panel_can_be_measured_against_people(serve: Any, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response_a": "gold", "response_b": "lead", "human_fraction_a": 1} for i in range(4)]
    server = serve(panel(judge=oracle, other=biased))
    judges = ("--judge", "judge", "--judge", "other", "--engine", "openai", "--base-url", server.url)
    path = write_jsonl("pairs.jsonl", rows)
    done = rlaif("eval", "alignment", path, "--constitution", "helpfulness", *judges, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["judge"] == "judge + other" and found["accuracy"]["value"] == 1 and found["flip_rate"] == 0


def test_a_judge_cannot_sit_on_a_panel_twice(serve: Any, label: Any) -> None:
    done, _ = label(serve(oracle), "--judge", "judge")
    assert done.returncode == 2 and "'judge' is given twice" in done.stderr


def test_errors_and_time_outs_lose_nothing_and_double_nothing(serve: Any, label: Any) -> None:
    drawn = random.Random(1)
    script = [drawn.choice([429, 500, 503, 1.5]) if drawn.random() < 0.3 else 200 for _ in range(2000)]
    server = serve(oracle, lambda n: script[n])
    done, output = label(server, "--timeout", "1", "--retries", "8", count=60)
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert sorted(row["id"] for row in rows) == sorted(str(i) for i in range(60))
    assert {row["chosen"][0]["content"] for row in rows} == {"gold"}
    assert len(server.requests) > 130, "there was trouble"


def test_rows_that_got_no_answer_are_asked_again_by_the_next_run(serve: Any, label: Any) -> None:
    script = [500 if n % 3 == 0 and n < 60 else 200 for n in range(1000)]
    server = serve(oracle, lambda n: script[n])
    done, output = label(server, "--retries", "0", "--price-in", "1", "--price-out", "2")
    assert done.returncode == 1 and "rows got no answer" in done.stderr and "trouble 500" in done.stderr
    first = rows_of(output)
    assert 0 < len(first) < 30
    again = serve(oracle)  # it came back at another address
    done, output = label(again, "--retries", "0", "--price-in", "1", "--price-out", "2")
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in rows_of(output)) == sorted(str(i) for i in range(30))
    answered = sum(script[n] == 200 for n in range(len(server.requests))) + len(again.requests)
    usage = json.loads((output.parent / "prefs.jsonl.manifest.json").read_text())["usage"]
    assert usage["tokens_in"] == 100 * answered > 6000, "of both sittings"
    assert usage["cost"] == pytest.approx(usage["tokens_in"] / 1e6 + 2 * usage["tokens_out"] / 1e6)


def test_a_dead_server_stops_the_run_and_what_was_done_is_kept(serve: Any, label: Any) -> None:
    server = serve(oracle, lambda n: 200 if n < 20 else 503)
    done, output = label(server, "--retries", "0", count=100)
    assert done.returncode == 1 and "is failing" in done.stderr
    assert 5 < len(rows_of(output)) <= 10
    assert len(server.requests) < 80, "it gave up early"


def test_a_judge_without_logprobs_is_asked_for_samples(serve: Any, label: Any) -> None:
    done, _ = label(serve(silent))
    assert done.returncode == 1 and "--samples" in done.stderr
    done, output = label(serve(silent), "--samples", "20", "--overwrite")
    assert done.returncode == 0, done.stderr
    p = [row["p_chosen"] if row["chosen"][0]["content"] == "gold" else 1 - row["p_chosen"] for row in rows_of(output)]
    assert sum(p) / len(p) == pytest.approx(0.9, abs=0.05)


def test_nonsense_is_unscored(serve: Any, label: Any) -> None:
    done, output = label(serve(nonsense))
    assert done.returncode == 3 and output.read_text() == ""
    assert len(rows_of(output.parent / "prefs.unscored.jsonl")) == 30
    audited = rlaif("audit", str(output), "--strict")
    assert audited.returncode == 3 and "no labels; 30 rows unscored" in audited.stdout, audited.stderr


def test_scores_are_asked_too(serve: Any, label: Any) -> None:
    def scorer(body: dict[str, Any], text: str) -> dict[str, Any]:
        best = "10" if "[Response]\ngold" in text else "3"
        return message(best, {best: 0.9, "5": 0.05, "6": 0.03})

    done, output = label(serve(scorer), "--method", "score")
    assert done.returncode == 0, done.stderr
    assert {row["chosen"][0]["content"] for row in rows_of(output)} == {"gold"}


def test_a_key_is_refused_at_once_and_never_shown(serve: Any, label: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-7")
    server = serve(oracle, lambda n: 401)
    done, output = label(server)
    assert done.returncode == 1 and "trouble 401" in done.stderr and len(server.requests) <= 17
    assert "sk-secret-7" not in done.stderr + "".join(p.read_text() for p in output.parent.glob("prefs*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "stranger"), "does not have the model 'stranger'"),
        (("--method", "contrast"), "--method contrast needs the log-probs of given texts"),
        (("--engine", "fake"), "--base-url needs --engine openai"),
        (("--base-url", ""), "is not a server address"),
        (("--base-url", "nonsense"), "is not a server address"),
    ],
)
def test_what_a_server_cannot_do_is_said_before(serve: Any, label: Any, options: Any, said: str) -> None:
    done, _ = label(serve(oracle), *options)
    assert done.returncode in (1, 2) and said in done.stderr


def engine(server: Server, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("judge", base_url=[server.url], **({"concurrency": 4, "retries": 0, "timeout": 5.0} | options))


def test_a_begun_reply_goes_to_those_who_can_go_on_with_it(serve: Any) -> None:
    def sent(owner: str, prefix: str) -> dict[str, Any]:
        server = serve(biased, owner=owner)
        judge = engine(server)
        dict(judge.logprobs([Request("k", (("user", "?"), ("prefill", prefix)), choices=["1", "2"])]))
        judge.close()
        return server.requests[0]

    body = sent("vllm", "Number: ")
    assert body["messages"][-1] == {"role": "assistant", "content": "Number: "} and body["continue_final_message"]
    body = sent("us", "Number: ")
    assert body["messages"] == [{"role": "user", "content": "?"}] and "continue_final_message" not in body
    body = sent("us", "I like 1.\nNumber: ")
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == "I like 1."


def test_a_server_that_takes_no_n_is_asked_until_there_are_as_many(serve: Any) -> None:
    server = serve(lambda body, text: message(f"answer {body.get('seed')}"))
    request = Request("a", [("user", "Why?")], seed=5)
    [(_, completions)] = engine(server).generate([request], Sampling(n=3, max_tokens=8))
    assert [completion.text for completion in completions] == ["answer 5", "answer 6", "answer 7"]
    assert [body["n"] for body in server.requests] == [3, 2, 1]


def test_a_request_that_cannot_be_fails_alone(serve: Any) -> None:
    judge = engine(serve(biased, lambda n: 400 if n == 1 else 200), concurrency=1)
    found = dict(judge.logprobs(Request(i, (("user", str(i)),), choices=["1"]) for i in range(3)))
    assert found[1] == Failed("the server: Error code: 400 - trouble 400", retryable=False)
    assert found[0] == found[2] == pytest.approx([math.log(0.9)])


def test_a_label_that_may_hold_much_leaves_the_row_unscored(serve: Any, label: Any) -> None:
    def short_list(body: dict[str, Any], text: str) -> dict[str, Any]:
        return message("1", {"1": 0.5, "The": 0.3})

    done, output = label(serve(short_list))
    assert done.returncode == 3 and output.read_text() == ""
    assert "list of likely tokens may have up to 0.2 of" in rows_of(output.parent / "prefs.unscored.jsonl")[0]["reason"]


def keys(count: int) -> Iterator[Request]:
    return (Request(i, (("user", str(i)),), choices=["1"]) for i in range(count))


def test_a_fleet_shares_the_work(serve: Any) -> None:
    servers = [serve(biased) for _ in range(3)]
    judge = OpenAIEngine("judge", base_url=[s.url for s in servers], concurrency=2, retries=0, timeout=5.0)
    assert len(dict(judge.logprobs(keys(60)))) == 60
    assert all(10 <= len(server.requests) <= 30 for server in servers), [len(s.requests) for s in servers]


def test_what_fails_at_one_server_goes_to_another(serve: Any, label: Any) -> None:
    """One of two dies after ten requests: every row is labelled once, as by the other alone, and a warning names it."""
    _, output = label(serve(oracle), count=90)
    alone = rows_of(output)
    for path in output.parent.glob("prefs*"):
        path.unlink()
    healthy, dying = serve(oracle), serve(oracle, lambda n: 200 if n < 10 else 0.01)
    done, output = label(healthy, "--base-url", dying.url, "--concurrency", "2", "--retries", "0", count=90)
    assert done.returncode == 0, done.stderr
    assert len(healthy.requests) == 170 and len(dying.requests) >= 20
    assert sorted((r["id"], r["p_chosen"]) for r in rows_of(output)) == sorted((r["id"], r["p_chosen"]) for r in alone)
    assert f"{dying.url} is no longer used: the server is failing" in done.stderr


def test_the_last_server_of_a_fleet_stops_the_run(serve: Any) -> None:
    servers = [serve(biased, lambda n: 503) for _ in range(2)]
    judge = OpenAIEngine("judge", base_url=[s.url for s in servers], concurrency=2, retries=0, timeout=5.0)
    with pytest.raises(EngineError, match="2 of 2 servers are failing") as stopped:
        list(judge.logprobs(keys(500)))
    for server, fault in zip(servers, stopped.value.errors, strict=True):
        assert fault.startswith(f"{server.url}: ") and "503" in fault
    assert sum(len(server.requests) for server in servers) < 100
    refusing = [serve(biased, lambda n: 401), serve(biased)]
    judge = OpenAIEngine("judge", base_url=[s.url for s in refusing], concurrency=2, retries=0, timeout=5.0)
    found = dict(judge.logprobs(keys(20)))
    assert not any(isinstance(each, Failed) for each in found.values()) and len(refusing[0].requests) <= 4


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is failing"):
        OpenAIEngine("judge", base_url=["http://127.0.0.1:9/v1"], concurrency=1, retries=0, timeout=1.0)
    gone = ["http://127.0.0.1:9/v1", "http://127.0.0.1:11/v1"]
    with pytest.raises(EngineError, match="2 of 2") as stopped:
        OpenAIEngine("judge", base_url=gone, concurrency=1, retries=0, timeout=1.0)
    assert [fault.partition(": ")[0] for fault in stopped.value.errors] == gone


def test_a_judge_behind_a_server_is_a_reward(serve: Any, write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    """`eval reward` and `ppo` get their rewards by the same code."""

    def score(body: dict[str, Any], text: str) -> dict[str, Any]:
        best = "9" if "gold" in text else "2"
        return message(best, {best: 0.9} | {str(n): 0.01 for n in range(1, 11) if str(n) != best})

    server = serve(score)
    judge = ("--judge", "judge", "--constitution", "helpfulness", "--principles", "clarity", "--method", "score")
    where = ("--judge-engine", "openai", "--base-url", server.url)
    rows = [{"id": str(i), "prompt": f"q{i}", "responses": ["gold" if i % 2 else "lead"]} for i in range(4)]
    path, output = write_jsonl("candidates.jsonl", rows), tmp_path / "reward.json"
    done = rlaif("eval", "reward", path, *judge, *where, "-o", str(output))
    assert done.returncode == 0, done.stderr
    rewards = [row["reward"] for row in rows_of(tmp_path / "reward.items.jsonl")]
    mean = {"9": (0.9 * 9 + 0.01 * 46) / 0.99, "2": (0.9 * 2 + 0.01 * 53) / 0.99}
    assert rewards == pytest.approx([(2 * mean["9" if i % 2 else "2"] - 11) / 9 for i in range(4)], abs=1e-6)
    for options, said in (
        ((*judge[:-2], *where), "needs --method score"),
        ((*judge, "--base-url", server.url), "--base-url needs --judge-engine openai"),
    ):
        done = rlaif("eval", "reward", path, *options)
        assert done.returncode == 2 and said in done.stderr


def test_broken_replies_leave_the_others_alone(serve: Any, label: Any) -> None:
    """No choices, no log-probs for once, an answer that is no object: none of these stops or loses another row."""

    def moody(body: dict[str, Any], text: str) -> dict[str, Any]:
        if "q4" in text:
            return []  # type: ignore[return-value]  # an answer has no choices
        if "q7" in text:
            return message("") | {"finish_reason": "content_filter"}
        return oracle(body, text)

    done, output = label(serve(moody), "--retries", "0", count=10)
    assert done.returncode == 1 and "1 rows got no answer" in done.stderr and "has no choices" in done.stderr
    assert {row["id"].partition(":")[0] for row in rows_of(output)} == {str(i) for i in range(10)} - {"4", "7"}
    (unscored,) = rows_of(output.parent / "prefs.unscored.jsonl")
    assert "content_filter" in unscored["reason"]


@pytest.mark.parametrize("option", [("--max-length", "100"), ("--truncate", "tail")])
def test_what_needs_a_tokenizer_is_refused_for_a_server(serve: Any, label: Any, option: tuple[str, str]) -> None:
    done, _ = label(serve(oracle), *option)
    assert done.returncode == 2 and f"{option[0]} needs the model's tokenizer" in done.stderr
