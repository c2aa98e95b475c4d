"""Broken answers of a chat server, for `fuzz.py --servers`: a field is removed, null, of another type, or there twice.

A server in this process answers the real client of the real stages with a valid answer in which one to three fields,
however deep, are broken; all its answers are, or every other one. What a stage writes is then compared with what was
sent, by a reader of our own: a response that no answer to this prompt holds, or a label for which no answer lists its
tokens, is *invented*.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import random
import re
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.judge import LabelConfig

PLACE = "127.0.0.1"
OTHER: list[Any] = [
    0, 1, -1, 2.5, 1e308, 10**400, float("nan"), float("inf"), True, False, "", " ", "1", "2", "length", "error",
    "x" * 3000, "\ud800", [], [[]], {}, [None], [1, "1"], {"text": "1"}, [{"type": "text", "text": 3}], {"message": []},
    [[[[[{}]]]]],
]  # fmt: skip
AGAIN = "\ue000"  # at the end of a key: the key is written without it, so that it stands there twice


class Invented(Exception):
    """A stage wrote what no answer says."""


# ------------------------------------------------------------------------------------------------------ valid answers


def chat(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    wanted = body.get("n") or 1
    asked = "\n".join(str(turn["content"]) for turn in body["messages"])
    write = listed if body.get("logprobs") else sampled if "reply with" in asked.lower() else answered
    return {
        "id": f"chatcmpl-{chance.random()}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": place, **write(asked, chance)} for place in range(wanted)],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3 * wanted, "total_tokens": 10 + 3 * wanted},
    }


def answered(asked: str, chance: random.Random) -> dict[str, Any]:
    text: Any = f"Answer {chance.random()} to {asked}"
    if chance.random() < 0.3:
        text = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    message = {"role": "assistant", "content": text, "refusal": None, "tool_calls": None, "reasoning_content": "hm"}
    return {"message": message, "finish_reason": chance.choice(["stop", "length"]), "logprobs": None}


def sampled(asked: str, chance: random.Random) -> dict[str, Any]:
    text = chance.choice(["1", "2", "Number: 1", "2.", "<think>1</think>\n2", "Well"])
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}


def listed(asked: str, chance: random.Random) -> dict[str, Any]:
    """A judge whose tokenizer writes single digits; a score is a 10 half of the time."""
    scores = "from 1 (it would" in asked
    first = {"1": 0.5, "9": 0.3, "7": 0.15} if scores else {"1": 0.8, "2": 0.15}
    after = {"0": 0.98, "\n": 0.01} if scores else {"\n": 0.9, ".": 0.05}
    said = chance.choice(list(first))
    content = [_token(said, first | {"The": 0.01}), _token(*chosen(after if said == "1" else {"\n": 1.0}))]
    text = "".join(token["token"] for token in content)
    return {
        "message": {"role": "assistant", "content": text.strip()},
        "finish_reason": "stop",
        "logprobs": {"content": content, "refusal": None},
    }


def chosen(listed: dict[str, float]) -> tuple[str, dict[str, float]]:
    return max(listed, key=listed.__getitem__), listed


def _token(said: str, listed: dict[str, float]) -> dict[str, Any]:
    top = [{"token": text, "logprob": math.log(p), "bytes": list(text.encode())} for text, p in listed.items()]
    return {**next(each for each in top if each["token"] == said), "top_logprobs": top}


def models(chance: random.Random) -> dict[str, Any]:
    owner = chance.choice(["us", "us", "vllm"])
    listed = [{"id": name, "object": "model", "owned_by": owner, "max_model_len": 4096} for name in ("m", "other")]
    return {"object": "list", "data": listed}


# --------------------------------------------------------------------------------------------------- breaking of them


def broken(answer: Any, recipe: random.Random) -> bytes:
    """The answer with one to three fields broken; the same recipe breaks the same places of like answers."""
    answer = copy.deepcopy(answer)
    for _ in range(recipe.choice([1, 1, 2, 3])):
        places = list(_places(answer))
        if not places:
            break
        holder, key = recipe.choice(places)
        _break(holder, key, recipe)
    return re.sub(r"(?:\\ue000)+\"", '"', json.dumps(answer)).encode()


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _break(holder: Any, key: Any, recipe: random.Random) -> None:
    kind = recipe.choice(["removed", "null", "retyped", "retyped", "doubled"])
    value = holder[key]
    if kind == "removed":
        del holder[key]
    elif kind == "null":
        holder[key] = None
    elif kind == "retyped":
        holder[key] = copy.deepcopy(recipe.choice([*OTHER, str(value), [value], {"value": value}]))
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif recipe.random() < 0.5:
        holder[key + AGAIN] = copy.deepcopy(recipe.choice(OTHER))
    else:
        holder[key] = [value, value] if isinstance(value, dict) or value is None else value * 2


# --------------------------------------------------------------------------------------------------------- the server


class BrokenServer:
    """Answers in this process.

    Attributes:
        sent: what was answered to each question, by its text.
    """

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with outer._lock:
                    content = outer._written(models(outer._chance), outer._in_list)
                self._send(content)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    content = outer._written(chat(body, outer._chance), not outer._in_list)
                    outer.sent["\n".join(turn["content"] for turn in body["messages"])].append(json.loads(content))
                self._send(content)

            def _send(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Patient(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass  # a run that stops leaves its other requests

        self._lock = threading.Lock()
        self.begin(random.Random(0))
        server = Patient((PLACE, 0), Handler)
        self.url = f"http://{PLACE}:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def begin(self, chance: random.Random) -> None:
        """From now on, another way to be broken."""
        with self._lock:
            self.sent: dict[str, list[Any]] = defaultdict(list)
            self._recipe, self._chance = chance.getrandbits(32), random.Random(chance.getrandbits(32))
            self._in_list = chance.random() < 0.2
            self._always = chance.random() < 0.7

    def _written(self, answer: dict[str, Any], may_break: bool) -> bytes:
        if may_break and (self._always or self._chance.random() < 0.5):
            return broken(answer, random.Random(self._recipe))
        return json.dumps(answer).encode()


# --------------------------------------------------------------------------------------------- what was really said


def texts(answer: Any) -> set[str]:
    """All that an answer says as a reply: whole contents, joined parts, refusals."""
    found: set[str] = set()
    listed = answer.get("choices") if isinstance(answer, dict) else None
    for choice in listed if isinstance(listed, list) else []:
        message = choice.get("message") if isinstance(choice, dict) else None
        for said in (message.get("content"), message.get("refusal")) if isinstance(message, dict) else ():
            parts = said if isinstance(said, list) else [said]
            shown = [part.get("text") if isinstance(part, dict) else part for part in parts]
            found.add("".join(text for text in shown if isinstance(text, str)).strip())
    return found - {""}


def says_a_label(answer: Any) -> bool:
    return any(re.search(r"(^|\n|Number:\s*)\s*([1-9]|10)\.?$", text) for text in texts(answer))


def listed_shares(answer: Any) -> dict[str, float]:
    """Of each label, the probability that an answer lists for its first token; {} where it lists none."""
    found: dict[str, float] = defaultdict(float)
    try:
        choices = answer["choices"]
        first = next(choice for choice in choices if isinstance(choice, dict))["logprobs"]["content"][0]
        top = first["top_logprobs"]
    except (KeyError, TypeError, IndexError, StopIteration):
        return {}
    seen = []
    for each in [*top, first] if isinstance(top, list) else []:
        token, value = (each.get("token"), each.get("logprob")) if isinstance(each, dict) else (None, None)
        number = isinstance(value, int | float) and not isinstance(value, bool) and value <= 0.001
        known = each is first and token in (text for text, _ in seen)
        if isinstance(token, str) and number and (token, value) not in seen and not known:
            seen.append((token, value))
            found[token.strip()] += math.exp(max(value, -1e3))
    return {label: share for label, share in found.items() if label in map(str, range(1, 11))}


# -------------------------------------------------------------------------------------------------------- the readers

Reader = Callable[[Path, random.Random], None]


def readers() -> dict[str, Reader]:
    """Each runs one stage against one way to be broken, and compares."""
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.errors import RlaifError
    from rlaif_cli.stages.generate import generate
    from rlaif_cli.stages.label import label

    ssl.create_default_context = functools.cache(ssl.create_default_context)  # a third of the time of an input
    server = BrokenServer()

    def where(**more: Any) -> dict[str, Any]:
        return {"engine": "openai", "base_url": server.url, "retries": 0, "timeout": 5.0, "concurrency": 4, **more}

    def rows(folder: Path, run: Callable[[str], Any]) -> list[dict[str, Any]]:
        """What a stage wrote; its error is raised where nothing was."""
        output = folder / "output.jsonl"
        failed: RlaifError | None = None
        try:
            run(str(output))
        except RlaifError as error:
            failed = error
        found = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
        if failed is not None and not found:
            raise failed
        return found

    def generated(folder: Path, chance: random.Random) -> None:
        server.begin(chance)
        path, n = folder / "prompts.jsonl", chance.choice([1, 2, 3])
        asked = ({"id": f"p{i}", "prompt": f"Why {i} {chance.random()}?"} for i in range(3))
        path.write_text("".join(json.dumps(prompt) + "\n" for prompt in asked))

        def run(output: str) -> None:
            with EnginePool() as engines:
                generate(GenerateConfig(prompts=str(path), model="m", n=n, output=output, **where()), engines)

        for row in rows(folder, run):
            said = set().union(*(texts(answer) for answer in server.sent[row["prompt"]]))
            reasoned = [each for each in row["responses"] if "reasoning" in each and not each["text"]]  # no answer
            if any(each["reasoning"] not in str(server.sent[row["prompt"]]) for each in reasoned):
                raise Invented(f"{row['id']}: {reasoned!r:.300}")
            wrong = [each["text"] for each in row["responses"] if each not in reasoned and each["text"] not in said]
            if wrong or not 1 <= len(row["responses"]) <= n:
                raise Invented(f"{row['id']}: {wrong or row['responses']!r:.300}")

    def judged(method: str, samples: int, folder: Path, chance: random.Random) -> None:
        server.begin(chance)
        path = folder / "candidates.jsonl"
        pairs = (
            {"id": f"p{i}", "prompt": f"Why {i} {chance.random()}?", "responses": ["gold", "lead"]} for i in range(3)
        )
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

        def run(output: str) -> None:
            given = {"judge": "m", "constitution": "helpfulness", "method": method, "samples": samples}
            with EnginePool() as engines:
                label(LabelConfig(candidates=str(path), output=output, **given, **where()), engines)

        for row in rows(folder, run):
            questions = {
                text: sent for text, sent in server.sent.items() if f"\n{row['prompt'][0]['content']}\n" in text
            }
            if len(questions) < 2:
                raise Invented(f"{row['id']}: {len(questions)} questions")
            for text, sent in questions.items():
                check_label(row, text, sent, method, samples)

    def check_label(row: dict[str, Any], text: str, sent: list[Any], method: str, samples: int) -> None:
        if samples:
            if not any(map(says_a_label, sent)):
                raise Invented(f"{row['id']}: no answer says a label: {sent!r:.600}")
            return
        found = [shares for answer in sent if (shares := listed_shares(answer))]
        if not found:
            raise Invented(f"{row['id']}: no answer lists a label: {sent!r:.600}")
        if method == "pairwise":
            shown = text.rsplit("[Response 1]\n", 1)[1].split("\n[End")[0]
            p = row["judge"]["p_first"][0 if shown == row["chosen"][0]["content"] else 1]
            true = [of.get("1", 0.0) / total for of in found if (total := of.get("1", 0.0) + of.get("2", 0.0))]
            if not any(abs(p - each) < 0.06 or abs(1 - p - each) < 0.06 for each in true):
                raise Invented(f"{row['id']}: p_first {p}, listed {true}: {sent!r:.600}")

    def asked(method: str, samples: int) -> Reader:
        return lambda folder, chance: judged(method, samples, folder, chance)

    return {
        "generate": generated,
        "label pairwise": asked("pairwise", 0),
        "label score": asked("score", 0),
        "label --samples": asked("pairwise", 4),
    }
