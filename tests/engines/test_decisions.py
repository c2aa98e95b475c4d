"""Decision endpoints, in each documented wire format: scripted judges whose truth is known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_server import Server, first_response, oracle
from helpers import rlaif, rows_of
from rlaif_cli.engines.base import Failed, Relative, Request
from rlaif_cli.engines.decision_formats import Decision
from rlaif_cli.engines.decisions import DecisionsEngine
from rlaif_cli.errors import EngineError, UsageError

Truth = Callable[[str, int], list[float]]  # (what is judged, number of options) -> probabilities
Endpoint = Callable[[str, dict[str, Any]], tuple[int, Any]]


def knows_gold(text: str, options: int) -> list[float]:
    if options == 2:
        return [0.9, 0.1] if "gold" in first_response(text) else [0.1, 0.9]
    best = 9 if "[Response]\ngold" in text else 2
    return [0.91 if place == best else 0.01 for place in range(options)]


def by_position(text: str, options: int) -> list[float]:
    return [0.9, 0.1]


NOT_FOUND = (404, {"error": {"message": "Not Found"}})


def openai_api(truth: Truth = knows_gold) -> Endpoint:
    """POST /v1/decisions as OpenAI documents it; unknown fields are refused."""

    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/decisions":
            return NOT_FOUND
        assert body.keys() == {"model", "input", "questions"}
        (question,) = body["questions"]
        names = question.get("choices") or question["levels"]
        assert set(question) - {"choices", "levels"} == {"type", "name", "instructions"}
        found = truth(body["input"], len(names))
        if question["type"] == "choice":
            listed = [{"value": each["value"], "probability": p} for each, p in zip(names, found, strict=True)]
        else:
            levels = enumerate(zip(names, found, strict=True))
            listed = [{"value": place, "label": each["label"], "probability": p} for place, (each, p) in levels]
        answer = {"type": question["type"], "name": question["name"], "probabilities": listed[::-1], "confidence": 0.5}
        return 200, {"model": "judge-2026", "answers": [answer], "usage": {"input_tokens": 100, "output_tokens": 0}}

    return respond


def sglang_api(truth: Truth = knows_gold, mass: float = 0.8) -> Endpoint:
    """POST /v1/decisions as SGLang documents it."""

    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/decisions":
            return NOT_FOUND
        (question,) = body["questions"]
        if "id" not in question:
            return 400, {"error": {"message": "questions[0]: unknown field 'name'", "code": 400}}
        if question["type"] == "choice":
            names = [each["name"] for each in question["options"]]
        else:
            names = [str(place) for place in range(len(question["levels"]))]
        found = dict(zip(names, truth(body["input"], len(names)), strict=True))
        answer = {"type": question["type"], "probabilities": found, "label_mass": mass}
        usage = {"prompt_tokens": 100, "completion_tokens": 0}
        return 200, {"object": "decisions", "model": "judge", "answers": {question["id"]: answer}, "usage": usage}

    return respond


def systemone_api(truth: Truth = knows_gold, mass: float | None = None) -> Endpoint:
    """POST /v1/systemone; with `mass` as vLLM's, which reports it in `diagnostics`."""

    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/systemone":
            return NOT_FOUND
        ((name, question),) = body["questions"].items()
        assert question.keys() == {"type", "instructions", "criteria"}
        criteria = question["criteria"]
        names = list(criteria) if isinstance(criteria, dict) else [str(place) for place in range(len(criteria))]
        found = dict(zip(names, truth(body["state"], len(names)), strict=True))
        answer = {"type": question["type"], "probabilities": found, "confidence": 0.5}
        response = {"model": "judge", "answers": {name: answer}, "usage": {"input_tokens": 100, "output_tokens": 1}}
        return 200, response | ({} if mass is None else {"diagnostics": {name: {"label_mass": mass}}})

    return respond


APIS = {"decisions": openai_api, "sglang": sglang_api, "systemone": systemone_api}


def judged(serve: Any, endpoint: Endpoint, **more: Any) -> Server:
    server: Server = serve(oracle, endpoint=endpoint, **more)
    return server


DECISIONS = ("--engine", "decisions")


@pytest.mark.parametrize("name", APIS)
def test_each_format_is_found_and_asked_in_both_orders(serve: Any, label: Any, name: str) -> None:
    server = judged(serve, APIS[name]())
    done, output = label(server, *DECISIONS, "--price-in", "1", "--price-out", "2")
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert len(rows) == 30 and {row["chosen"][0]["content"] for row in rows} == {"gold"}
    assert [row["p_chosen"] for row in rows] == pytest.approx([0.9] * 30)
    assert all(row["judge"]["p_first"] == pytest.approx([0.9, 0.1]) for row in rows)
    assert [row["judge"].get("mass") for row in rows] == [[0.8, 0.8] if name == "sglang" else None] * 30
    assert done.stderr.count("--decision-format") == (name != "decisions")
    manifest = json.loads((output.parent / "prefs.jsonl.manifest.json").read_text())
    assert manifest["engine"] == {"judge": "decisions"}
    assert manifest["usage"]["tokens_in"] == 6000 and manifest["usage"]["cost"] > 0


@pytest.mark.parametrize("name", APIS)
def test_a_score_question_has_ten_levels(serve: Any, label: Any, name: str) -> None:
    done, output = label(judged(serve, APIS[name]()), *DECISIONS, "--decision-format", name, "--method", "score")
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert {row["chosen"][0]["content"] for row in rows} == {"gold"} and len(rows) == 30
    expected = [sum((0.91 if place == best else 0.01) * (place + 1) for place in range(10)) for best in (9, 2)]
    assert all(row["judge"]["scores"] == pytest.approx(expected, abs=1e-5) for row in rows)
    assert "--decision-format" not in done.stderr


def test_what_is_judged_and_the_question_are_apart(serve: Any, label: Any) -> None:
    server = judged(serve, openai_api())
    label(server, *DECISIONS, "--principles", "clarity", count=1)
    first, second = server.requests
    (question,) = first["questions"]
    assert "[Response 1]\nlead" in first["input"] and "[Response 1]\ngold" in second["input"]
    assert [each["value"] for each in question["choices"]] == ["Response 1", "Response 2"]
    assert "gold" not in question["instructions"] and "number" not in question["instructions"]


def test_position_bias_averages_out(serve: Any, label: Any) -> None:
    done, output = label(judged(serve, systemone_api(by_position)), *DECISIONS)
    assert done.returncode == 0 and "most verdicts depend on the position" in done.stderr, done.stderr
    assert all(row["p_chosen"] == 0.5 and row["judge"]["flipped"] for row in rows_of(output))


def test_a_label_mass_counts_only_where_it_is_reported(serve: Any, label: Any) -> None:
    done, output = label(judged(serve, systemone_api(mass=0.05)), *DECISIONS)
    assert done.returncode == 3
    unscored = rows_of(output.parent / "prefs.unscored.jsonl")
    assert len(unscored) == 30 and "hold only 0.05" in unscored[0]["reason"]
    done, _ = label(judged(serve, systemone_api()), *DECISIONS, "--min-mass", "1", "--overwrite")
    assert done.returncode == 0, done.stderr


BROKEN = {
    "refused to answer": lambda answer: {"type": "refusal", "name": "judge"},
    "no probability for the option 'Response 1'": lambda answer: {
        **answer,
        "probabilities": answer["probabilities"][:1],
    },
    "add up to 1.8": lambda answer: {
        **answer,
        "probabilities": [each | {"probability": 0.9} for each in answer["probabilities"]],
    },
    "is nan": lambda answer: {
        **answer,
        "probabilities": [each | {"probability": float("nan")} for each in answer["probabilities"]],
    },
    "lists an option twice": lambda answer: {**answer, "probabilities": answer["probabilities"] * 2},
    "of type 'predicate'": lambda answer: {"type": "predicate", "probability": 0.9},
    "no probabilities": lambda answer: {"type": "choice", "choice": "Response 1"},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_an_answer_that_cannot_be_used_leaves_its_row_unscored(serve: Any, reason: str) -> None:
    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        status, found = openai_api(by_position)(path, body)
        if "broken" in body["input"] and status == 200:
            found["answers"] = [BROKEN[reason](found["answers"][0])]
        return status, found

    found = ask(judged(serve, respond), "fine", "broken", "fine too")
    assert isinstance(found["broken"], Failed) and reason in found["broken"].reason and not found["broken"].retryable
    assert all(
        not isinstance(found[key], Failed) and isinstance(found[key][0], Relative) for key in ("fine", "fine too")
    )


def ask(server: Server, *texts: str, **options: Any) -> dict[str, Any]:
    judge = DecisionsEngine(
        "judge", base_url=[server.url], **({"concurrency": 1, "retries": 0, "timeout": 5.0} | options)
    )
    options_of = ("Response 1", "Response 2")
    found = dict(judge.logprobs(Request(text, [Decision(text, "Which?", options_of)], choices="12") for text in texts))
    judge.close()
    return found


def test_an_error_in_a_200_is_the_row_s(serve: Any) -> None:
    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body["input"] == "broken":
            return 200, {"error": {"message": "no capacity", "code": 400}}
        return openai_api(by_position)(path, body)

    found = ask(judged(serve, respond), "fine", "broken")
    assert "no capacity" in found["broken"].reason and not isinstance(found["fine"], Failed)


def test_what_every_request_would_get_ends_the_run_with_its_words(serve: Any) -> None:
    refused = (400, {"error": {"message": "label 'A' is not one distinct token"}})
    with pytest.raises(EngineError, match="not one distinct token"):
        ask(judged(serve, lambda path, body: refused if path == "/v1/systemone" else NOT_FOUND), *map(str, range(30)))
    with pytest.raises(EngineError, match="404"):
        ask(judged(serve, lambda path, body: NOT_FOUND), "any")
    unsupported = (501, {"error": {"message": "no read strategy for this model"}})
    with pytest.raises(EngineError, match="no read strategy"):
        ask(judged(serve, lambda path, body: unsupported), "any")


def test_errors_lose_nothing_and_double_nothing(serve: Any, label: Any) -> None:
    server = judged(serve, openai_api(), trouble=lambda n: 503 if n % 5 == 2 else 200)
    done, output = label(server, *DECISIONS, "--retries", "8")
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in rows_of(output)) == sorted(str(i) for i in range(30))
    assert len(server.requests) > 70


def test_rows_without_an_answer_are_asked_again_by_the_next_run(serve: Any, label: Any) -> None:
    server = judged(serve, openai_api(), trouble=lambda n: 500 if n % 3 == 1 and n < 40 else 200)
    done, output = label(server, *DECISIONS, "--retries", "0")
    assert done.returncode == 1 and "rows got no answer" in done.stderr
    assert 0 < len(rows_of(output)) < 30
    done, output = label(judged(serve, systemone_api()), *DECISIONS)
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in rows_of(output)) == sorted(str(i) for i in range(30))


def test_a_killed_run_resumes(serve: Any, write_jsonl: Any, tmp_path: Path) -> None:
    def slow(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.05)
        return openai_api()(path, body)

    server, output = judged(serve, slow), tmp_path / "prefs.jsonl"
    rows = [{"id": str(i), "prompt": f"q{i}", "responses": ["gold", "lead"]} for i in range(150)]
    command = ["label", write_jsonl("c.jsonl", rows), "-o", str(output), *DECISIONS, "--base-url", server.url]
    command += ["--judge", "judge", "--constitution", "helpfulness", "--concurrency", "2"]
    running = subprocess.Popen([sys.executable, "-m", "rlaif_cli", *command], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    killed = len(server.requests)
    assert 0 < killed < 300
    done = rlaif(*command)
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in rows_of(output)) == sorted(str(i) for i in range(150))
    assert len(server.requests) < killed + 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "contrast"), "needs the log-probs of given texts"),
        (("--samples", "3"), "--samples does not apply to --engine decisions"),
        (("--cot",), "--cot does not apply"),
        (("--shots", "1"), "--shots does not apply"),
        (("--truncate", "tail"), "--truncate"),
        (("--chat-template-arg", "enable_thinking=true"), "writes the model's prompt itself"),
        (("--engine", "openai", "--decision-format", "systemone"), "--decision-format needs --engine decisions"),
    ],
)
def test_what_does_not_apply_is_refused_before(serve: Any, label: Any, options: Any, said: str) -> None:
    done, _ = label(judged(serve, openai_api()), *DECISIONS, *options)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_it_writes_no_text(write_jsonl: Any, serve: Any) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": "a", "prompt": "q"}])
    where = ("--engine", "decisions", "--base-url", "http://127.0.0.1:9/v1", "--model", "judge")
    for command in (("generate",), ("revise", "--constitution", "helpfulness")):
        done = rlaif(*command, prompts, *where)
        assert done.returncode == 2 and "--engine decisions writes no text" in done.stderr
    judge = DecisionsEngine("judge", base_url=[judged(serve, openai_api()).url], concurrency=1, retries=0, timeout=5.0)
    with pytest.raises(UsageError, match="writes no text"):
        judge.generate([], None)  # type: ignore[arg-type]
    judge.close()


def test_a_dry_run_counts_without_a_server(write_jsonl: Any) -> None:
    path = write_jsonl("c.jsonl", [{"id": "a", "prompt": "q", "responses": ["a", "b"]}])
    where = ("--engine", "decisions", "--base-url", "http://user:pw@127.0.0.1:9/v1", "--judge", "judge")
    done = rlaif("label", path, *where, "--constitution", "helpfulness", "--dry-run")
    assert done.returncode == 0 and "1 pairs to judge" in done.stderr and "pw" not in done.stderr, done.stderr
