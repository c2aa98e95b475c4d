"""A scripted OpenAI-compatible server: judges whose truth is known, and servers that refuse."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], str], dict[str, Any]]


def first_response(text: str) -> str:
    return text.rsplit("[Response 1]\n", 1)[1].split("\n[End")[0]


def message(text: str, top: dict[str, float] | None = None) -> dict[str, Any]:
    listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (top or {}).items()]
    content = [{**listed[0], "top_logprobs": listed}] if listed else []
    return {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": {"content": content} if listed else None,
    }


def oracle(body: dict[str, Any], text: str) -> dict[str, Any]:
    good, bad = ("1", "2") if "gold" in first_response(text) else ("2", "1")
    return message(good, {good: 0.9, bad: 0.05, "The": 0.01})


class Server:
    """A scripted server.

    Args:
        answer: (request, its texts) -> a choice, or several.
        trouble: the status of the nth request, or a number of seconds to sleep before dropping it.
        refuse: request -> the status and body with which it is refused, if it is.
        endpoint: (path, request) -> the status and body of the response, for an API that is not chat.
    """

    def __init__(
        self,
        answer: Answer,
        trouble: Callable[[int], int | float] = lambda n: 200,
        owner: str = "us",
        refuse: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None,
        endpoint: Callable[[str, dict[str, Any]], tuple[int, Any]] | None = None,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listed = [{"id": name, "object": "model", "owned_by": owner} for name in ("judge", "other")]
                self._send(200, {"object": "list", "data": listed})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                status = trouble(number)
                if isinstance(status, float):
                    time.sleep(status)
                    return
                if status != 200:
                    self._send(status, {"error": {"message": f"trouble {status}"}}, {"Retry-After": "0.01"})
                    return
                if (refused := refuse(body)) is not None:
                    self._send(*refused)
                    return
                if endpoint is not None:
                    self._send(*endpoint(self.path, body))
                    return
                found = answer(body, "\n".join(m["content"] for m in body["messages"]))
                choices = found if isinstance(found, list) else [found]
                usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
                self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "judge",
                                 "choices": choices, "usage": usage})  # fmt: skip

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Patient(ThreadingHTTPServer):
            request_queue_size = 128  # a busy machine accepts late, and what is not in the queue is refused

        self._server = Patient(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
