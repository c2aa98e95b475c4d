"""What servers send is data: labels are read along whole replies, and nothing is made of what is not there."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chat_server import Server, message, oracle
from helpers import rlaif, rows_of
from rlaif_cli.config.base import address_fault
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import server_answers, server_errors
from rlaif_cli.engines.base import Bound, Completion, Failed, Request, Sampling, Usage
from rlaif_cli.engines.openai import OpenAIEngine
from rlaif_cli.engines.server_answers import Unusable
from rlaif_cli.engines.server_dialect import Dialect
from rlaif_cli.engines.server_labels import LabelShares
from rlaif_cli.errors import EngineError, RlaifWarning, UsageError
from rlaif_cli.judge.labels import Labels, sampled_label
from rlaif_cli.stages.manifest import accounted

SCORES = [spelled for number in range(1, 11) for spelled in (str(number), f" {number}")]
SCORE_LABELS = [str(number) for number in range(1, 11)]


def entry(token: str, listed: dict[str, float] | list[tuple[str, float]]) -> dict[str, Any]:
    """One token of a reply, as OpenAI documents it."""
    pairs = list(listed.items()) if isinstance(listed, dict) else listed
    top = [{"token": text, "logprob": math.log(p) if p else -9999.0} for text, p in pairs]
    return {
        "token": token,
        "logprob": dict((t["token"], t["logprob"]) for t in reversed(top))[token],
        "top_logprobs": top,
    }


def choice(text: str | None, *content: dict[str, Any], reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    logprobs = {"content": list(content)} if content else None
    said = {"role": "assistant", "content": text, **more}
    return {"index": 0, "message": said, "finish_reason": reason, "logprobs": logprobs}


# ------------------------------------------------------------------------------------------------- replies as answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", "1"),
        (" 2.\n", "2"),
        ("Number: 1", "1"),
        ("10", "10"),
        ("<think>\n1 or 2?</think>\n\n2", "2"),
        ("Both are fine.\n\nNumber: 2.", "2"),
        ("Response 1 is better", None),
        ("Comparing 1 and 2: 1", None),
        ("1 or 2", None),
        ("8/10", None),
        ("8.5", None),
        ("11", None),
        ("-1", None),
        ("<think>\nResponse 1", None),
        ("<think>\nSo the answer is\n1", None),
        ("1\nBecause it is longer.", None),
        ("On a scale of 1 to 10, I", None),
        ("", None),
        ('{"number": 1}', "1"),
        ('{\n  "number": 10\n}\n', "10"),
        ('<think>\nHm.</think>{"number":2}', "2"),
        ('{"number": 11}', None),
        ('{"number": 1.0}', None),
        ('{"number": 1, "number": 2}', None),
        ('{"number": 1, "why": ""}', None),
        ('{"answer": 1}', None),
        ('Here it is: {"number": 1}', None),
        ('[{"number": 1}]', None),
    ],
)
def test_a_sampled_answer_counts_only_if_the_reply_is_that_answer(text: str, found: str | None) -> None:
    assert sampled_label(server_answers.completion(choice(text), may_be_empty=True), SCORE_LABELS) == found


def test_a_reply_that_was_cut_is_no_answer() -> None:
    assert sampled_label(Completion("Here are my reasons:\n1.", finish_reason="length"), SCORE_LABELS) is None


# ------------------------------------------------------------------------------------------------- answers, and none


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (choice("It is blue."), "It is blue.", "stop"),
        (choice("It is", reason="length"), "It is", "length"),
        (choice("It is blue.", reason=None), "It is blue.", None),
        (choice(None, refusal="I cannot help with that."), "I cannot help with that.", "refusal"),
        (choice("Sure: ", refusal="I cannot help with that."), "I cannot help with that.", "refusal"),
        (choice("I cannot.", refusal=True), "I cannot.", "refusal"),
        (choice([{"type": "refusal", "refusal": "No."}]), "No.", "refusal"),  # type: ignore[arg-type]
        (choice([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Yes."}]), "Yes.", "stop"),  # type: ignore[arg-type]  # noqa: E501
        (choice(["It is ", {"type": "text", "text": "blue."}, {"type": "image_url"}, 3]), "It is blue.", "stop"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_the_text_of_an_answer(answer: dict[str, Any], text: str, reason: str | None) -> None:
    found = server_answers.completion(answer)
    assert (found.text, found.finish_reason, found.no_text) == (text, reason, "")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (choice(None, reason="content_filter"), "content_filter"),
        (choice(None, reason="tool_calls", tool_calls=[{"id": "1"}]), "a tool call"),
        (choice("", reason="length"), "cut off at --max-tokens"),
        (choice("  \n"), "finish reason: stop"),
        (choice({"text": "x"}), "finish reason: stop"),  # type: ignore[arg-type]
        (choice(5), "finish reason: stop"),  # type: ignore[arg-type]
        (choice("half \ud800"), "half a character"),
        (choice("It is", reason="content_filter"), "content filter"),
        (choice("Let me look.", tool_calls=[{"id": "1"}]), "a tool call besides the text"),
        (choice("Let me look.", reason="function_call"), "a tool call besides the text"),
    ],
)
def test_an_answer_without_text_is_no_response(answer: dict[str, Any], why: str) -> None:
    found = server_answers.completion(answer)
    assert found.text == "" and why in found.no_text


@pytest.mark.parametrize(
    "answer",
    [
        choice("", reason="error"),
        choice("half") | {"error": {"code": 502, "message": "upstream died"}},
        choice("x") | {"message": None},
        {"index": 0},
    ],
)
def test_an_error_in_place_of_an_answer_is_asked_again(answer: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as failed:
        server_answers.completion(answer)
    assert failed.value.retryable


@pytest.mark.parametrize(
    ("content", "again"),
    [
        (b"<html>", True),
        (b"", True),
        (b"[" * 100_000, True),
        (b"[1]", True),
        (b'{"error": {"message": "overloaded", "code": 529}}', True),
        (b'{"error": {"message": "too long", "code": 400}}', False),
        (b'{"error": {"code": [400]}}', True),
        (b'{"error": "no"}', True),
    ],
)
def test_what_is_no_answer_at_all(content: bytes, again: bool) -> None:
    with pytest.raises(Unusable) as failed:
        server_answers.parsed(content)
    assert failed.value.retryable == again


def test_usage_counts_what_can_be_counted() -> None:
    def counted(usage: Any) -> tuple[int | None, int | None]:
        return server_answers.usage({"usage": usage})

    assert counted({"prompt_tokens": 10, "completion_tokens": None}) == (10, None)
    assert counted({"prompt_tokens": True, "completion_tokens": 10**400}) == (None, None)
    for odd in (None, [], "10", {"input_tokens": 10}, {"prompt_tokens": -1, "completion_tokens": "7"}):
        assert counted(odd) == (None, None)


def test_a_cost_that_is_not_known_is_not_written(tmp_path: Path) -> None:
    """Not in this sitting, nor where a later one is counted."""
    config = GenerateConfig(prompts="-", model="m", engine="openai", price_in=1.0, price_out=2.0)
    output = Output(tmp_path / "out.jsonl", {})
    output.write(PromptRecord(id="a", prompt="q"))

    def sitting(*counts: tuple[int | None, int | None]) -> dict[str, float]:
        counting: Any = SimpleNamespace(usage=Usage())
        with accounted(output, {"m": counting}, config):
            for each in counts:
                counting.usage.add(*each)
        return dict(output.usage)

    assert sitting((10, 5)) == {"tokens_in": 10, "tokens_out": 5, "cost": pytest.approx(2e-5)}
    with pytest.warns(RlaifWarning, match="does not report the tokens of 2 answers, so the cost is unknown") as said:
        assert sitting((10, None), (None, None)) == {"tokens_in": 20, "tokens_out": 5, "uncounted": 2}
    assert len(said) == 1
    assert sitting((10, 5)) == {"tokens_in": 30, "tokens_out": 10, "uncounted": 2}
    output.close()
    assert Output(tmp_path / "out.jsonl", {}).usage["uncounted"] == 2


def test_a_panels_tokens_add_up(tmp_path: Path) -> None:
    output, config = Output(tmp_path / "out.jsonl", {}), GenerateConfig(prompts="-", model="m", engine="openai")
    judges: Any = {
        "a": SimpleNamespace(usage=Usage(7, 0)),
        "b": SimpleNamespace(usage=Usage()),
        "c": SimpleNamespace(),
    }
    with accounted(output, judges, config):
        judges["a"].usage.add(10, 0)
        judges["b"].usage.add(20, 0)
    assert output.usage == {"tokens_in": 30, "tokens_out": 0}


@pytest.mark.parametrize("listed", ["<html>", "[]", '{"data": null}', '{"data": []}', '{"data": [{"id": null}]}', "3"])
def test_a_list_of_models_that_cannot_be_read_is_none(listed: str) -> None:
    assert server_answers.model_list(listed.encode()) is None


def test_lists_of_models() -> None:
    assert list(server_answers.model_list(b'[{"id": "m"}]') or ()) == ["m"]
    assert list(server_answers.model_list(b'{"data": [{"id": "m"}, {"id": "n"}]}') or ()) == ["m", "n"]


# ------------------------------------------------------------------------------------------------- labels in log-probs


def shares(reply: str | None, *content: dict[str, Any], choices: list[str] | None = None) -> LabelShares:
    found = LabelShares(choices or SCORES)
    found.add(server_answers.positions(choice(reply, *content)), reply)
    return found


def test_a_ten_of_two_tokens_is_no_one() -> None:
    """Seen along the reply, it is counted as what it is; not seen, as neither."""
    first = {"1": 0.93, "9": 0.05}
    seen = shares("10", entry("1", first), entry("0", {"0": 0.98, "\n": 0.01}))
    assert seen.settled() and seen.known["10"] == pytest.approx(0.93 * 0.98)
    assert seen.known["1"] == pytest.approx(0.93 * 0.02) and seen.known["9"] == pytest.approx(0.05)
    unseen = shares("9", entry("9", first))
    assert not unseen.settled() and unseen.known["1"] == unseen.known["10"] == 0
    assert unseen.unclear == {"1": pytest.approx(0.93)} and "'1' may be the beginning" in (unseen.problem() or "")


def test_a_ten_of_one_token_shows_that_a_one_is_a_one() -> None:
    found = shares("1", entry("1", {"1": 0.6, "10": 0.3, "9": 0.05}))
    assert found.settled() and found.known["1"] == pytest.approx(0.6) and found.known["10"] == pytest.approx(0.3)


def test_equal_texts_add_up_and_a_token_that_is_there_twice_counts_once() -> None:
    listed = [("1", 0.55), ("2", 0.20), ("2", 0.15), ("1", 0.05), ("the", 0.01)]
    found = shares("1", entry("1", listed), choices=["1", " 1", "2", " 2"])
    assert found.known == {"1": pytest.approx(0.60), "2": pytest.approx(0.35)}
    twice = shares("1", entry("1", [("1", 0.55), ("2", 0.2), ("2", 0.2)]), choices=["1", "2"])
    assert twice.known == {"1": pytest.approx(0.55), "2": pytest.approx(0.2)}


def test_white_space_before_a_label() -> None:
    """Where a server trims "Number: ", the space is the reply's."""
    spaced = shares("10", entry(" ", {" ": 0.9, "\n": 0.05}), entry("1", {"1": 0.8, "7": 0.2}), entry("0", {"0": 1.0}))
    assert spaced.known["10"] == pytest.approx(0.72) and spaced.known["7"] == pytest.approx(0.18)
    joined = shares("7", entry(" 7", {" 7": 0.8, "7": 0.1}))
    assert joined.known["7"] == pytest.approx(0.9)
    for shown in ("▁7", "Ġ7"):
        assert shares("7", entry(shown, {shown: 0.8})).known["7"] == pytest.approx(0.8)


def test_what_follows_a_label() -> None:
    """A full stop, a line or the end leave it a label; so does a digit now and then, as in every engine."""
    for follows in (".", "\n", "", "<|im_end|>", " because"):
        found = shares("7" + follows.replace("<|im_end|>", ""), entry("7", {"7": 0.9}), entry(follows, {follows: 1.0}))
        assert found.known["7"] == pytest.approx(0.9) and found.problem() is None
    for text, tokens in (("75", "75"), ("7.5", "7.5")):
        found = shares(text, *(entry(token, {token: 0.9}) for token in tokens))
        assert "mostly continue to another number" in (found.problem() or "")
    rarely = shares("7", entry("7", {"7": 0.8, "8": 0.1}), entry("\n", {"\n": 0.7, "5": 0.2}))
    assert rarely.known["7"] == pytest.approx(0.8) and rarely.known["8"] == pytest.approx(0.1)
    assert rarely.problem() is None


@pytest.mark.parametrize("sampled", ["75", "75\n", "7\n", "8", "8.5\n", "100\n", "10", "no"])
def test_a_label_holds_the_same_whichever_reply_was_sampled(sampled: str) -> None:
    """A reply that goes on from a label as another number ("75", "100") takes nothing off what the label holds."""
    after = {
        "": {"7": 0.4, "8": 0.3, "10": 0.2, "n": 0.1},
        "7": {"5": 0.3, "\n": 0.7},
        "8": {".": 0.6, "": 0.4},
        "8.": {"": 0.5, "5": 0.5},
        "10": {"0": 0.4, "": 0.6},
    }
    tokens = re.findall("10|.|\n", sampled)
    begun = ["".join(tokens[:place]) for place in range(len(tokens))]
    content = [entry(token, after.get(text, {token: 1.0})) for token, text in zip(tokens, begun, strict=True)]
    found = shares(sampled, *content)
    assert {label: p for label, p in found.known.items() if p} == pytest.approx({"7": 0.4, "8": 0.3, "10": 0.2})


def test_what_is_not_listed_is_bounded_and_not_guessed() -> None:
    def logprobs(listed: dict[str, float], *choices: str) -> list[float]:
        return shares("1", entry(next(iter(listed)), listed), choices=list(choices)).logprobs()

    one, two = logprobs({"1": 0.9, "The": 0.06}, "1", "2")
    assert one == pytest.approx(math.log(0.9)) and isinstance(two, Bound)
    assert math.exp(two) == pytest.approx(0.04)  # what is left over is less than the last one listed
    *_, two = logprobs({"1": 0.9, "The": 0.001}, "1", "2")
    assert math.exp(two) == pytest.approx(0.001)
    digits = shares("1", entry("1", {"1": 0.9, "5": 0.02}), entry(".", {".": 0.9, "\n": 0.05}))
    assert digits.known["1"] + digits.unseen == pytest.approx(0.9 + min(0.08, 0.02 * 18), abs=1e-6)


def test_a_number_without_a_log_prob_may_hold_all_that_is_left() -> None:
    broken = entry("1", {"1": 0.6, "2": 0.3})
    broken["top_logprobs"][1]["logprob"] = None
    found = LabelShares(["1", "2"])
    found.add(server_answers.positions(choice("1", broken)), "1")
    assert found.known == {"1": pytest.approx(0.6), "2": 0} and found.unseen == pytest.approx(0.4)


def test_log_probs_of_another_text_are_none() -> None:
    with pytest.raises(Unusable, match="another text"):
        shares("1", entry("<think>", {"<think>": 0.999, "1": 0.0005}))
    doubled = entry("1", {"1": 0.9, "2": 0.05})
    assert shares("1", doubled, doubled, choices=["1", "2"]).known["1"] == pytest.approx(0.9)


@pytest.mark.parametrize("value", [None, "x", True, 5.0, float("nan"), 10**400, [1]])
def test_what_is_no_log_prob(value: Any) -> None:
    broken = {"token": "1", "logprob": value, "top_logprobs": [{"token": "1", "logprob": value}]}
    assert server_answers.positions(choice("1", broken)) == []


def test_more_than_everything_is_no_distribution() -> None:
    with pytest.raises(Unusable, match="more than 1"):
        server_answers.positions(choice("1", entry("1", {"1": 0.9, "2": 0.5})))


# --------------------------------------------------------------------------------------- a judge whose truth is known

TRUTH = {"10": 0.5, "1": 0.2, "9": 0.2, "7": 0.1}


def digit_judge(body: dict[str, Any], text: str, truth: dict[str, float] = TRUTH) -> list[dict[str, Any]]:
    """Draws from TRUTH and writes every digit as a token of its own; continues what was begun."""
    last = body["messages"][-1]
    begun = last["content"].removeprefix("Number: ") if last["role"] == "assistant" else ""
    made = []
    for _ in range(body.get("n") or 1):
        said, content = begun, []
        while len(content) < body["max_tokens"]:
            ahead: dict[str, float] = {}
            for number, p in truth.items():
                if number.startswith(said):
                    following = number[len(said) :][:1] or "<|end|>"
                    ahead[following] = ahead.get(following, 0) + p
            total = sum(ahead.values())
            ahead = {token: p / total for token, p in ahead.items()} | {"x": 1e-9}
            token = random.choices(list(ahead), list(ahead.values()))[0]
            content.append(entry(token, ahead))
            if token not in "0123456789":
                break
            said += token
        made.append(choice(said[len(begun) :], *content))
    return made


def engine(server: Server, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("judge", base_url=[server.url], **({"concurrency": 2, "retries": 0, "timeout": 5.0} | options))


def asked(key: Any = "k", begun: str = "Number: ", **more: Any) -> Request:
    return Request(key, (("user", f"How good? {key}"), ("prefill", begun)), choices=SCORES, **more)


@pytest.mark.parametrize("owner", ["vllm", "us"])
def test_scores_behind_a_digit_tokenizer_are_the_judges_own(serve: Any, owner: str) -> None:
    """A judge at 50 % "10" was read as one at 70 % "1": an expectation of 3.2 in place of 7.7."""
    server = serve(digit_judge, owner=owner)
    for _, found in engine(server).logprobs([asked(key) for key in range(8)]):
        p = dict.fromkeys(SCORE_LABELS, 0.0)
        for spelled, logprob in zip(SCORES, found, strict=True):
            p[spelled.strip()] += 0 if isinstance(logprob, Bound) else math.exp(logprob)
        assert {label: share for label, share in p.items() if share > 1e-6} == pytest.approx(TRUTH)
    if owner == "vllm":
        assert {body["messages"][-1]["content"] for body in server.requests} <= {"Number: ", "Number: 1"}


def test_a_ten_that_the_server_never_shows_leaves_the_row_unscored(serve: Any) -> None:
    server = serve(lambda body, text: message("1", {"1": 0.93, "9": 0.05} | {f"w{i}": 1e-5 for i in range(18)}))
    [(_, found)] = engine(server).logprobs([asked()])
    assert isinstance(found, Failed) and not found.retryable and "--samples N" in found.reason
    assert len(server.requests) <= 1 + 16


LISTED_ONE = entry("1", {"1": 0.9, "2": 0.08})
NO_ANSWERS = [
    (choice(None, LISTED_ONE, reason="tool_calls", tool_calls=[{"id": "1"}]), "a tool call"),
    (choice("1", LISTED_ONE, tool_calls=[{"id": "1"}]), "a tool call"),
    (choice(None, LISTED_ONE, function_call={"name": "f"}), "a tool call"),
    (choice("1", LISTED_ONE, reason="content_filter"), "content filter"),
    (choice("1", LISTED_ONE, refusal=True), "refused"),
    (choice("1", LISTED_ONE, refusal="I cannot."), "refused to answer: I cannot."),
    (choice(None, LISTED_ONE), "has no text"),
    (choice(5, LISTED_ONE), "has no text"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("answer", "why"), NO_ANSWERS)
@pytest.mark.parametrize("sampled", [False, True])
def test_what_is_no_answer_is_no_label_whatever_comes_with_it(serve: Any, answer: Any, why: str, sampled: bool) -> None:
    one = engine(serve(lambda body, text: answer))
    labels = Labels(one.tokenizer, ["1", "2"], samples=2 if sampled else 0)
    question = labels.question([Message(role="user", content="Which?")], "Number: ")
    [(_, [found])] = labels.ask(one, [("pair", [question])])
    assert found.failed is not None and why in found.failed.reason and not found.failed.retryable


def test_an_empty_reply_still_shows_what_could_have_been_said(serve: Any) -> None:
    """The judge ended at once, as it does once in twenty times; its log-probs are as good as any others."""
    server = serve(lambda body, text: choice("", entry("<|end|>", {"1": 0.8, "2": 0.15, "<|end|>": 0.05})))
    [(_, found)] = engine(server).logprobs([Request(0, (("user", "?"),), choices=["1", "2"])])
    assert found == pytest.approx([math.log(0.8), math.log(0.15)])


# ------------------------------------------------------------------------------------------ answers without log-probs

UNREADABLE = {"token": "1", "logprob": "x", "top_logprobs": [{"token": "1", "logprob": "-0.1"}]}


@pytest.mark.parametrize(
    ("bad", "said"), [(choice("1"), "no log-probs"), (choice("1", UNREADABLE), "log-probs that cannot be read")]
)
@pytest.mark.parametrize("place", [0, 3])
def test_one_answer_without_log_probs_is_that_rows_fault_wherever_it_comes(
    serve: Any, bad: Any, said: str, place: int
) -> None:
    server = serve(lambda body, text: bad if text == "?bad" else choice("1", LISTED_ONE))
    requests = [Request(key, (("user", f"?{key}"),), choices=["1", "2"]) for key in range(6)]
    requests.insert(place, Request("bad", (("user", "?bad"),), choices=["1", "2"]))
    found = dict(engine(server, concurrency=1).logprobs(requests))
    assert len(found) == 7 and [key for key, each in found.items() if isinstance(each, Failed)] == ["bad"]
    assert said in found["bad"].reason and not found["bad"].retryable  # type: ignore[union-attr]


def test_the_only_row_left_can_be_the_one_without_log_probs(serve: Any) -> None:
    [(_, found)] = engine(serve(lambda body, text: choice("1"))).logprobs([asked()])
    assert isinstance(found, Failed) and "no log-probs" in found.reason and "--samples" in found.reason


@pytest.mark.parametrize(
    ("bad", "said"), [(choice("1"), "no log-probs"), (choice("1", UNREADABLE), "log-probs that cannot be read")]
)
def test_a_server_without_log_probs_stops_the_run_after_a_few_answers(serve: Any, bad: Any, said: str) -> None:
    server = serve(lambda body, text: bad)
    with pytest.raises(EngineError, match=f"the server returns {said}") as stopped:
        list(engine(server).logprobs([asked(key) for key in range(30)]))
    assert "--samples" in (stopped.value.hint or "") and len(server.requests) <= 7


# ------------------------------------------------------------------------------------------ what a server does not take


class Picky(Server):
    """A server that refuses with a status and a body, as long as `refuses(request)`."""

    def __init__(self, refuses: Callable[[dict[str, Any]], Any], answer: Any = oracle, status: int = 400) -> None:
        super().__init__(answer, refuse=lambda body: (status, found) if (found := refuses(body)) else None)


@pytest.fixture
def picky() -> Iterator[Callable[..., Picky]]:
    made: list[Picky] = []

    def start(*arguments: Any, **options: Any) -> Picky:
        made.append(Picky(*arguments, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def openai_error(message: str, param: str | None = None, code: str | None = "unsupported_parameter") -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


EQUIVALENTS = {
    "max_tokens": (
        lambda b: "max_tokens" in b and openai_error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),  # noqa: E501
        lambda b: b["max_completion_tokens"] == 8,
        "using 'max_completion_tokens'",
    ),
    "n": (
        lambda b: b.get("n", 1) > 1 and {"error": {"message": "'n' : number must be at most 1"}},
        lambda b: "n" not in b,
        "one answer per request",
    ),
    "seed": (
        lambda b: "seed" in b and {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": "temperature"}]},  # noqa: E501
        lambda b: "seed" not in b and b["temperature"] == 0.7,
        "are not reproducible",
    ),
    "system": (
        lambda b: b["messages"][0]["role"] == "system" and openai_error("System role not supported", "messages"),
        lambda b: b["messages"] == [{"role": "user", "content": "Be kind.\n\nWhy?"}],
        "before the question in the user's turn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_the_same_is_asked_in_another_way(picky: Any, name: str) -> None:
    refuses, adapted, said = EQUIVALENTS[name]
    server = picky(refuses, lambda body, text: message(f"answer {len(text)}"))
    requests = [Request(i, (("system", "Be kind."), ("user", "Why?")), seed=i) for i in range(6)]
    with pytest.warns(RlaifWarning, match=re.escape(said)) as warned:
        found = dict(engine(server).generate(requests, Sampling(n=2, temperature=0.7, max_tokens=8)))
    assert {len(completions) for completions in found.values()} == {2}
    assert adapted(server.requests[-1]) and len(warned) == 1


def test_fewer_log_probs_than_twenty(picky: Any) -> None:
    def refuses(body: dict[str, Any]) -> Any:
        return body["top_logprobs"] > 5 and openai_error("Invalid value for 'top_logprobs': must be at most 5.", None)

    server = picky(refuses, lambda body, text: message("1", {"1": 0.9, "2": 0.05}))
    [(_, found)] = engine(server).logprobs([Request(0, (("user", "?"),), choices=["1", "2"])])
    assert found == pytest.approx([math.log(0.9), math.log(0.05)]) and server.requests[-1]["top_logprobs"] == 5


@pytest.mark.parametrize(
    ("parameter", "words", "hint"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model.", "--temperature"),
        ("stop", "'stop' is not supported with this model", "--stop"),
        ("top_p", "top_p must be 1", "--top-p"),
    ],
)
def test_a_setting_that_the_server_refuses_stops_the_run(picky: Any, parameter: str, words: str, hint: str) -> None:
    server = picky(lambda body: openai_error(words, None, None) if parameter in body else None)
    sampling = Sampling(temperature=0.7, top_p=0.9, stop=("END",), max_tokens=8)
    with pytest.raises(EngineError, match=f"refuses '{parameter}'") as stopped:
        list(engine(server).generate([Request(i, (("user", str(i)),)) for i in range(100)], sampling))
    assert words in str(stopped.value) and hint in (stopped.value.hint or "") and len(server.requests) <= 8


def test_a_row_that_is_too_long_is_that_rows_error(picky: Any) -> None:
    long = "'max_tokens' is too large: 8. This model's maximum context length is 100 tokens and your request has 99."
    server = picky(lambda body: openai_error(long, "max_tokens") if "3" in body["messages"][0]["content"] else None)
    requests = [Request(i, (("user", str(i)),), choices=["1"]) for i in (3, 0, 1, 2)]
    server_answer = dict(engine(picky(lambda b: None, lambda b, t: message("1", {"1": 0.9}))).logprobs(requests))
    assert not any(isinstance(found, Failed) for found in server_answer.values())
    [(key, found)] = engine(server).logprobs(requests[:1])
    assert key == 3 and isinstance(found, Failed) and not found.retryable and "maximum context length" in found.reason


def test_what_is_refused_to_every_row_stops_the_run_and_is_asked_again(picky: Any, label: Any, serve: Any) -> None:
    server = picky(lambda body: {"error": {"message": f"request {len(server.requests)}: no such tenant"}})
    done, output = label(server)
    assert done.returncode == 1 and "refuses every request" in done.stderr and "no such tenant" in done.stderr
    assert len(server.requests) <= 5 + 16 and not output.with_name("prefs.unscored.jsonl").exists()
    done, output = label(serve(oracle))
    assert done.returncode == 0 and len(rows_of(output)) == 30, done.stderr


def test_a_few_refused_rows_among_answered_ones_are_unscored(picky: Any, label: Any) -> None:
    server = picky(lambda body: "q1?" if "[Prompt]\nq1\n" in body["messages"][-1]["content"] else None)
    done, output = label(server)
    assert done.returncode == 3 and len(rows_of(output)) == 29, done.stderr
    assert "--overwrite judges all pairs again" in done.stderr
    assert len(rows_of(output.with_name("prefs.unscored.jsonl"))) == 1


def test_a_judge_without_a_system_turn(picky: Any, label: Any) -> None:
    def refuses(body: dict[str, Any]) -> Any:
        return body["messages"][0]["role"] == "system" and openai_error("System role not supported", "messages")

    done, output = label(picky(refuses))
    assert done.returncode == 0 and "no system turn is accepted" in done.stderr, done.stderr
    assert {row["chosen"][0]["content"] for row in rows_of(output)} == {"gold"}


def test_a_dialect_adapts_to_a_refusal_only_once() -> None:
    dialect = Dialect(continues_prefill=True)
    body = dialect.body(asked(), {"max_tokens": 4, "temperature": 1.0})
    assert body["extra_body"]["continue_final_message"]
    assert dialect.adapt("continue_final_message", body, "extra_forbidden")
    assert "extra_body" not in dialect.body(asked(), {}) and not dialect.adapt("continue_final_message", body, "")
    assert dialect.adapt("temperature", body, "no") and "temperature" not in dialect.body(asked(), {"temperature": 1.0})
    assert dialect.adapt("temperature", {"temperature": 0.7}, "no") is None


# ------------------------------------------------------------------------------------------------------- whole stages


def generate(server: Server, path: str, output: Path, *options: str) -> Any:
    where = ("--engine", "openai", "--base-url", server.url, "--model", "judge", "--max-tokens", "8", "--retries", "0")
    return rlaif("generate", path, "-o", str(output), *where, *options)


def test_answers_without_text_are_set_aside_or_left_out(
    serve: Any, write_jsonl: Callable[..., str], tmp_path: Path
) -> None:
    nothing = choice(None, reason="content_filter")

    def moody(body: dict[str, Any], text: str) -> Any:
        return {
            "q0": [choice("a"), choice("b"), nothing],
            "q1": [nothing, nothing, nothing],
            "q2": [choice("a"), nothing, nothing],
            "q3": [choice(None, refusal="No."), choice("a"), choice("b")],
        }[text]

    path = write_jsonl("prompts.jsonl", [{"id": f"q{i}", "prompt": f"q{i}"} for i in range(4)])
    done = generate(serve(moody), path, tmp_path / "out.jsonl", "-n", "3")
    assert done.returncode == 3 and "1 answers were not usable responses" in done.stderr, done.stderr
    rows = {row["id"]: [r["text"] for r in row["responses"]] for row in rows_of(tmp_path / "out.jsonl")}
    assert rows == {"q0": ["a", "b"], "q3": ["No.", "a", "b"]}
    rejected = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out.rejected.jsonl")}
    assert "content_filter" in rejected["q1"] and "2 of 3 answers are not usable responses" in rejected["q2"]
    counts = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["counts"]
    assert counts["refused"] == 1 and counts["without_text"] == 1 and counts["rejected"] == 2


def test_an_error_in_a_choice_is_asked_again_within_the_run(serve: Any) -> None:
    def once(body: dict[str, Any], text: str) -> Any:
        return choice("", reason="error") if len(server.requests) == 1 else choice("fine")

    server = serve(once)
    [(_, found)] = engine(server, retries=1).generate([Request(0, (("user", "?"),))], Sampling())
    assert [completion.text for completion in found] == ["fine"] and len(server.requests) == 2


THOUGHTS = [
    "<think>Hm.</think>Blue.",
    "<think>Hm, so the",
    "Hm.</think>\n\nBlue.",
    "<|channel|>analysis<|message|>Hm.<|end|>",
    "[THINK]Hm.[/THINK]Blue.",
]


@pytest.mark.parametrize("n", [1, 3])
def test_reasoning_is_kept_apart(serve: Any, write_jsonl: Callable[..., str], tmp_path: Path, n: int) -> None:
    texts = [*THOUGHTS, "Blue."]
    path = write_jsonl("prompts.jsonl", [{"id": str(i), "prompt": str(i)} for i in range(len(texts))])
    server = serve(lambda body, text: [choice(texts[int(text)], reason="length") for _ in range(n)])
    done = generate(server, path, tmp_path / "out.jsonl", "-n", str(n))
    assert done.returncode == 0, done.stderr
    found = {row["id"]: row["responses"] for row in rows_of(tmp_path / "out.jsonl")}
    said = [(found[key][0]["text"], found[key][0].get("reasoning")) for key in sorted(found)]
    assert said == [
        ("Blue.", "Hm."),
        ("", "Hm, so the"),
        ("Blue.", "Hm."),
        ("", "Hm."),
        ("Blue.", "Hm."),
        ("Blue.", None),
    ]
    assert all(len(responses) == n for responses in found.values())


def test_reasoning_is_no_revision(serve: Any, write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    path = write_jsonl("prompts.jsonl", [{"id": key, "prompt": key} for key in ("plain", "thinks", "never ends")])
    replies = {"thinks": "<think>Hm.</think>Blue.", "never ends": "<think>Hm."}
    server = serve(lambda body, text: choice(next((replies[key] for key in replies if key in text), "Blue.")))
    where = ("--engine", "openai", "--base-url", server.url, "--model", "judge", "--constitution", "helpfulness")
    done = rlaif("revise", path, "-o", str(tmp_path / "out.jsonl"), *where)
    assert done.returncode == 3, done.stderr
    found = {row["id"]: (row["initial"], row["response"]) for row in rows_of(tmp_path / "out.jsonl")}
    assert found == {"plain": ("Blue.", "Blue."), "thinks": ("Blue.", "Blue.")}
    [rejected] = rows_of(tmp_path / "out.rejected.jsonl")
    assert rejected["id"] == "never ends" and rejected["reason"] == "it ended inside its reasoning, without an answer"


# ------------------------------------------------------------------------------------------------ the server's words


@pytest.mark.parametrize(
    "body",
    [
        b'{"detail": "Model is not loaded"}',
        b'{"error": "Model is not loaded"}',
        b'{"error": {"message": "Model is not loaded", "code": 400}}',
        b'{"message": "Model is not loaded", "object": "error"}',
        b'{"detail": [{"loc": ["body", "x"], "msg": "Model is not loaded", "input": 3}]}',
        b'{"reason": {"text": "Model is not loaded"}}',
        b"Model is not loaded",
    ],
)
def test_a_servers_words_are_shown_whatever_form_it_gives_them(serve: Any, body: bytes) -> None:
    server = serve(oracle, refuse=lambda _: (400, body))
    with pytest.raises(EngineError) as stopped:
        list(engine(server).generate([Request(0, (("user", "?"),))], Sampling()))
    assert "Error code: 400 - " in stopped.value.what and "Model is not loaded" in stopped.value.what
    assert ("body.x: Model" in stopped.value.what) == (b"loc" in body)


def test_a_long_refusal_is_cut(serve: Any) -> None:
    with pytest.raises(EngineError) as stopped:
        list(engine(serve(oracle, refuse=lambda _: (400, b"no " * 999))).generate([asked()], Sampling()))
    assert len(stopped.value.what.partition("every request: ")[2]) in (299, 300)


def test_an_error_inside_an_answer_is_said_in_the_same_words() -> None:
    with pytest.raises(Unusable, match=r"in place of an answer: body\.x: bad"):
        server_answers.parsed(b'{"error": {"detail": [{"loc": ["body", "x"], "msg": "bad"}]}}')


@pytest.mark.parametrize(("key", "shown"), [("x", "x-ray sk-12345"), ("sk-12345", "x-ray …")])
def test_a_key_is_hidden_and_a_placeholder_hides_nothing(monkeypatch: Any, key: str, shown: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert server_errors.describe(ValueError("x-ray sk-12345")) == shown


# --------------------------------------------------------------------------------------------- addresses and settings


@pytest.mark.parametrize(
    "address", ["http://localhost:PORT/v1", "http://h:9/v1\n", "http://h:99999/v1", "http:///v1", "http://a b/v1", "h"]
)
def test_what_is_no_address(address: str) -> None:
    assert "is not a server address" in (address_fault(address) or "")


def test_addresses() -> None:
    for address in ("http://h", "https://user:pw@h:1/v1?x=y", "http://[::1]:8000/v1"):
        assert address_fault(address) is None


def test_a_404_from_everything_hints_at_the_address(picky: Any) -> None:
    server = picky(lambda body: {"detail": "Not Found"}, status=404)
    with pytest.raises(EngineError) as stopped:
        list(engine(server).generate([Request(0, (("user", "?"),))], Sampling()))
    assert "ends in /v1" in (stopped.value.hint or "")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:1080/", "ALL_PROXY=socks://127.0.0.1:1080/"),
        ("OPENAI_API_KEY", "sk-secret\n", "OPENAI_API_KEY contains a character"),
        ("OPENAI_API_KEY", "ключ", "OPENAI_API_KEY contains a character"),
    ],
)
def test_an_environment_that_cannot_be_used(monkeypatch: Any, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as refused:
        OpenAIEngine("m", base_url=["http://127.0.0.1:9/v1"], concurrency=1, retries=0, timeout=1.0)
    assert said in str(refused.value) and "secret" not in str(refused.value)


def test_an_address_in_the_environment_is_looked_at_too(monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:PORT/v1")
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        OpenAIEngine("m", concurrency=1, retries=0, timeout=1.0)
