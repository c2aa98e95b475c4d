"""A scripted server with an OpenAI-style Batch API: lines that fail, batches that expire, calls that break off."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from chat_server import Answer

USAGE = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}


class BatchServer:
    """Batches are done as soon as they are created, unless `slow`.

    Args:
        answer: (request, its texts) -> a choice, or several.
        failing: share of the lines that fail, drawn again for every batch.
        expiring: the numbers of the batches that expire after half of their lines.
        line: (request) -> (status, body), for lines that are answered in another way.
        usage: of every answer.

    Attributes:
        charged: the bodies of the requests that were answered, in batches and directly.
        batches: all that were created, in order.
        slow: batches stay in progress.
        drop: (method, path) -> break off the connection "before" or "after" the call has its effect.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        failing: float = 0.0,
        expiring: tuple[int, ...] = (),
        line: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None,
        usage: dict[str, int] | None = USAGE,
    ) -> None:
        self.answer, self.failing, self.expiring, self.line, self.usage = answer, failing, expiring, line, usage
        self.charged: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.slow = False
        self.drop: Callable[[str, str], str] = lambda method, path: ""
        self._drawn = random.Random(7)
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._do("GET", b"")

            def do_POST(self) -> None:
                self._do("POST", self.rfile.read(int(self.headers["Content-Length"])))

            def _do(self, method: str, content: bytes) -> None:
                path = self.path.removeprefix("/v1").split("?")[0]
                dropped = outer.drop(method, path)
                if dropped != "before":
                    with outer._lock:
                        status, body = outer.respond(method, path, content, self.headers.get("Content-Type", ""))
                if dropped:
                    self.connection.close()
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # the connection that was broken off
                    self.close_connection = True

        class Patient(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Patient(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, method: str, path: str, content: bytes, kind: str) -> tuple[int, Any]:
        if path == "/models":
            listed = [{"id": name, "object": "model", "owned_by": "us"} for name in ("judge", "other")]
            return 200, {"object": "list", "data": listed}
        if (method, path) == ("POST", "/chat/completions"):
            return 200, self._answered(json.loads(content))
        if (method, path) == ("POST", "/files"):
            self.files[f"file-{len(self.files)}"] = self._uploaded(content, kind)
            return 200, {"id": f"file-{len(self.files) - 1}", "object": "file", "purpose": "batch", "bytes": 1,
                         "created_at": 0, "filename": "x", "status": "processed"}  # fmt: skip
        if (method, path) == ("POST", "/batches"):
            return 200, self._created(json.loads(content))
        if (method, path) == ("GET", "/batches"):
            return 200, {"object": "list", "data": self.batches[::-1], "has_more": False}
        if found := re.fullmatch("/files/(.+)/content", path):
            return 200, self.files[found[1]]
        return 200, self._finished(next(each for each in self.batches if path == f"/batches/{each['id']}"))

    def _uploaded(self, content: bytes, kind: str) -> bytes:
        parts = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\n\n" + content).get_payload()
        found = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}  # type: ignore[union-attr]
        assert found["purpose"] == b"batch"
        return bytes(found["file"])

    def _created(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        batch = {
            "id": f"batch-{len(self.batches)}",
            "object": "batch",
            "created_at": 0,
            "status": "in_progress",
            **asked,
        }
        self.batches.append(batch)
        return batch

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.slow or batch["status"] != "in_progress":
            return batch
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        expired = self.batches.index(batch) in self.expiring
        done, failed = list[str](), list[str]()
        for number, line in enumerate(lines):
            found: dict[str, Any] = {"id": "r", "custom_id": line["custom_id"], "response": None, "error": None}
            if expired and number >= len(lines) // 2:
                found["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
            elif self._drawn.random() < self.failing:
                found["response"] = {"status_code": 500, "request_id": "r", "body": {"error": {"message": "trouble"}}}
            elif (other := self.line(line["body"])) is not None:
                found["response"] = {"status_code": other[0], "request_id": "r", "body": other[1]}
            else:
                found["response"] = {"status_code": 200, "request_id": "r", "body": self._answered(line["body"])}
            good = found["response"] is not None and found["response"]["status_code"] == 200
            (done if good else failed).append(json.dumps(found, ensure_ascii=False))
        self._drawn.shuffle(done)
        for name, texts in (("output_file_id", done), ("error_file_id", failed)):
            if texts:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = ("\n".join(texts) + "\n").encode()
        batch["status"] = "expired" if expired else "completed"
        return batch

    def _answered(self, body: dict[str, Any]) -> dict[str, Any]:
        self.charged.append(body)
        found = self.answer(body, "\n".join(turn["content"] for turn in body["messages"]))
        choices = found if isinstance(found, list) else [found]
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": choices,
                "usage": self.usage}  # fmt: skip
