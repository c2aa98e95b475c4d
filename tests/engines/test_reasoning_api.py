"""A hosted model that reasons: it refuses most sampling parameters, and hides its reasoning or runs out of tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_server import first_response
from helpers import rows_of

# What such an API refuses, in the words of one.
REFUSED = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
    "instead.",
    "temperature": "Unsupported parameter: 'temperature' is not supported with this model.",
    "logprobs": "Unsupported parameter: 'logprobs' is not supported with this model.",
    "seed": "Unsupported parameter: 'seed' is not supported with this model.",
    "n": "Unsupported value: 'n' must be 1 with this model.",
}
SAID = {
    "max_tokens": "using 'max_completion_tokens'",
    "temperature": "'temperature' is not accepted",
    "seed": "'seed' is not accepted",
    "n": "each sample is requested separately",
}


def refuses(body: dict[str, Any], *more: str) -> tuple[int, Any] | None:
    for name, words in (REFUSED | {name: f"Unsupported parameter: '{name}'" for name in more}).items():
        if body.get(name) and (name != "n" or body["n"] > 1):
            return 400, {
                "error": {"message": words, "type": "invalid_request_error", "param": name, "code": "unsupported"}
            }
    return None


def said(content: str | None, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content, **more}}


def best(text: str) -> str:
    return "1" if "gold" in first_response(text) else "2"


@pytest.mark.parametrize("shown", [True, False])
def test_each_parameter_is_negotiated_once_and_said_once(serve: Any, label: Any, shown: bool) -> None:
    def thinks(body: dict[str, Any], text: str) -> dict[str, Any]:
        assert body["max_completion_tokens"] == 64 + 16
        return said(best(text), **({"reasoning_content": "The first one? 2, maybe."} if shown else {}))

    server = serve(thinks, refuse=refuses)
    done, output = label(server, "--samples", "4", "--rationale-tokens", "64", "--concurrency", "4", count=8)
    assert done.returncode == 0, done.stderr
    assert {(row["chosen"][0]["content"], row["p_chosen"]) for row in rows_of(output)} == {("gold", 1.0)}
    assert {words: done.stderr.count(words) for words in SAID.values()} == dict.fromkeys(SAID.values(), 1)
    assert len(server.requests) <= 8 * 2 * 4 + 4 * len(SAID), "each of the first four may meet each refusal"


def test_a_reply_that_ran_out_of_tokens_is_no_vote(serve: Any, label: Any) -> None:
    def cut(body: dict[str, Any], text: str) -> dict[str, Any]:
        if "q1\n" in text:
            return said(None, "length", reasoning_content="1 or 2? 1")
        return said(None, "length") if "q2\n" in text else said(best(text))

    done, output = label(serve(cut, refuse=refuses), "--samples", "2", "--rationale-tokens", "64", count=4)
    assert done.returncode == 3, done.stderr
    assert sorted(row["id"] for row in rows_of(output)) == ["0", "3"]
    reasons = {row["id"]: row["reason"] for row in rows_of(output.parent / "prefs.unscored.jsonl")}
    assert "ended inside its reasoning" in reasons["1"] and "--rationale-tokens" in reasons["2"]


def test_without_samples_it_says_how(serve: Any, label: Any) -> None:
    done, _ = label(serve(lambda body, text: said("1"), refuse=refuses), count=4)
    assert done.returncode == 1 and "'logprobs'" in done.stderr and "--samples N" in done.stderr


# ----------------------------------------------------------------------------------------------- structured outputs


def test_an_answer_may_be_constrained_to_json(serve: Any, label: Any) -> None:
    def constrained(body: dict[str, Any], text: str) -> dict[str, Any]:
        form = body["response_format"]
        assert form["type"] == "json_schema" and body["messages"][-1]["role"] == "user"
        allowed = form["json_schema"]["schema"]["properties"]["number"]["enum"]
        assert allowed == [1, 2]
        return said(json.dumps({"number": int(best(text))}, indent=2))

    done, output = label(serve(constrained, owner="vllm"), "--samples", "2", "--structured", count=6)
    assert done.returncode == 0, done.stderr
    assert {row["chosen"][0]["content"] for row in rows_of(output)} == {"gold"} and len(rows_of(output)) == 6


def test_a_server_without_it_is_asked_without_it(serve: Any, label: Any) -> None:
    server = serve(lambda body, text: said(best(text)), refuse=lambda body: refuses(body, "response_format"))
    done, output = label(server, "--samples", "2", "--structured", count=6)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'response_format' is not accepted") == 1
    assert {row["chosen"][0]["content"] for row in rows_of(output)} == {"gold"}


def test_it_needs_samples_and_no_explanation(serve: Any, label: Any) -> None:
    for options, words in (((), "--structured needs --samples"), (("--samples", "2", "--cot"), "--structured leaves")):
        done, _ = label(serve(lambda body, text: said("1")), "--structured", *options, count=1)
        assert done.returncode == 2 and words in done.stderr
