"""The page of `rlaif annotate`, served only to this machine.

It listens on 127.0.0.1, requires a secret in the URL, and refuses requests with a foreign Host or Origin, so that
other web pages can neither read nor answer the pairs.
"""

from __future__ import annotations

import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.errors import RlaifError
from rlaif_cli.stages.annotate import Session

_PAGE = Path(__file__).with_name("annotate.html")
_MAX_BYTES = 10_000  # of a request
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_server(session: Session, port: int) -> tuple[HTTPServer, str]:
    """A server that is not running yet, and its URL.

    Raises:
        RlaifError: the port is taken.
    """
    secret = secrets.token_urlsafe(16)

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # seconds of idle connections: browsers open some that they never use

        def do_GET(self) -> None:
            if not self._allowed():
                return
            if self.path == f"/{secret}/":
                nonce = secrets.token_urlsafe(12)
                self._send(200, "text/html; charset=utf-8", _PAGE.read_text("utf-8").replace("{nonce}", nonce), nonce)
            elif self.path == f"/{secret}/state":
                self._send_state()
            else:
                self._refuse(404, "not found")

        def do_POST(self) -> None:
            if not self._allowed():
                return
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if length > _MAX_BYTES:
                    self._refuse(413, f"the request is larger than {_MAX_BYTES} bytes")
                    return
                body = json.loads(self.rfile.read(length)) if length > 0 else {}
                if self.path == f"/{secret}/answer":
                    session.answer(str(body.get("id")), str(body.get("answer")))
                elif self.path == f"/{secret}/undo":
                    session.undo()
                else:
                    self._refuse(404, "not found")
                    return
            except (ValueError, AttributeError) as error:
                self._refuse(400, f"invalid request: {error}")
            except RlaifError as error:
                self._refuse(409, str(error))
            else:
                self._send_state()

        def _allowed(self) -> bool:
            port = server.server_address[1]
            here = {f"127.0.0.1:{port}", f"localhost:{port}"}
            origin = self.headers.get("Origin")
            if self.headers.get("Host") in here and (origin is None or origin.removeprefix("http://") in here):
                return True
            self._refuse(403, "only the page on this machine may do this")
            return False

        def _send_state(self) -> None:
            self._send(200, "application/json", json.dumps(session.state(), ensure_ascii=False))

        def _refuse(self, status: int, why: str) -> None:
            self._send(status, "application/json", json.dumps({"error": why}))

        def _send(self, status: int, kind: str, text: str, nonce: str = "") -> None:
            data = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            for name, value in _HEADERS.items():
                self.send_header(name, value.replace("{nonce}", nonce))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # otherwise the page was closed
                super().handle_error(request, client_address)

    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise RlaifError(
            f"cannot bind port {port}: {error.strerror}", hint=f"use another {option('port')}, or 0 for a free one"
        ) from error
    return server, f"http://127.0.0.1:{server.server_address[1]}/{secret}/"
