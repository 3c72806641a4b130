"""The home of the HTTP destination of these tests, which checks every signature that it gets.

It verifies with the `Receiver` of the PyPI SDK, as its users do.  Requests are
kept by path, and a path answers 200 unless it was told otherwise.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import qstash
from qstash.errors import SignatureError

from tests.support.program import DEADLINE_S
from waypost.domain.dev_users import DEV_USERS


@dataclass(frozen=True)
class Received:
    """One request.  Names in `header` are in lower case; `fault` is what verifying said."""

    method: str
    target: str
    header: dict[str, str]
    body: bytes
    at_ms: int
    fault: str | None


@dataclass(frozen=True)
class Reply:
    """What a path answers; the answer waits for `when`."""

    status: int = 200
    body: bytes = b""
    header: dict[str, str] = field(default_factory=dict)
    when: threading.Event | None = None


class Receiver:
    """A destination on this machine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._received: dict[str, list[Received]] = {}
        self._replies: dict[str, list[Reply]] = {}
        user = DEV_USERS[0]
        verifier = qstash.Receiver(current_signing_key=user.current, next_signing_key=user.next)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                at_ms = time.time_ns() // 1_000_000
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                header = {name.lower(): value for name, value in self.headers.items()}
                try:
                    verifier.verify(
                        signature=header.get("upstash-signature", ""),
                        body=body.decode(),
                        url=receiver.url + self.path,
                    )
                    fault = None
                except (SignatureError, UnicodeDecodeError) as error:
                    fault = repr(error)
                received = Received(self.command, self.path, header, body, at_ms, fault)
                reply = receiver._take(received)
                if reply.when is not None:
                    reply.when.wait(DEADLINE_S)
                with suppress(ConnectionError):  # whoever asked may have given up
                    self._answer(reply)

            def _answer(self, reply: Reply) -> None:
                self.send_response_only(reply.status)
                for name, value in reply.header.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(reply.body)

            def __getattr__(self, name: str) -> object:
                return self.do if name.startswith("do_") else object.__getattribute__(self, name)

            def log_message(self, *_: object) -> None:
                pass

        class Patient(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Patient(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answers(self, path: str, *replies: Reply) -> str:
        """Let a path answer this, in turn, and the last of them for ever; the URL of the path."""
        self._replies[path] = list(replies)
        return self.url + path

    def wait(self, path: str, count: int = 1) -> list[Received]:
        """What a path got, once it got so many."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.got(path)) >= count, DEADLINE_S)
            assert came, f"{path} got {len(self.got(path))} requests and not {count}"
            return list(self.got(path))

    def got(self, path: str) -> list[Received]:
        """What a path got until now."""
        return self._received.get(path, [])

    def _take(self, received: Received) -> Reply:
        path = received.target.partition("?")[0]
        with self._changed:
            self._received.setdefault(path, []).append(received)
            self._changed.notify_all()
            replies = self._replies.get(path, [Reply()])
            return replies.pop(0) if len(replies) > 1 else replies[0]
