"""An HTTP proxy on loopback that fails on command: what a network and a store do on a bad day."""

import http.client
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}
_CODES = {"403": "AccessDenied", "500": "InternalError", "503": "ServiceUnavailable"}


@dataclass
class Fault:
    """What happens to requests of a method whose path contains a text, so many times."""

    kind: str
    method: str
    part: str
    times: float


class Proxy:
    """Forwards to `target`; `fail` makes it fail, `heal` ends that."""

    def __init__(self, target: str) -> None:
        self.failed = 0
        self.happened = threading.Event()
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._healed = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy
            upstream = target.removeprefix("http://")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, kind: str, method: str, part: str, times: float = float("inf")) -> None:
        """Fail such requests.

        A status is answered; `drop` ends the connection in the middle of the request, `half` in the
        middle of the answer, `lost` before it, though the request is done; `stall` is silent.
        """
        self.failed = 0
        self.happened.clear()
        self._healed.clear()
        self._fault = Fault(kind, method, part, times)

    def heal(self) -> None:
        """Forward everything again; what is stalled is dropped."""
        self._fault = None
        self._healed.set()

    def close(self) -> None:
        """End it."""
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def take(self, method: str, path: str) -> str | None:
        """The kind of fault that this request gets, if any."""
        with self._lock:
            fault = self._fault
            if fault is None or method != fault.method or fault.part not in path:
                return None
            if self.failed >= fault.times:
                return None
            self.failed += 1
            self.happened.set()
            return fault.kind

    def wait(self) -> None:
        """Hold a request until the proxy is healed."""
        self._healed.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy
    upstream: str

    def _forward(self) -> None:
        kind = self.owner.take(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        assert "chunked" not in self.headers.get("Transfer-Encoding", "")
        if kind == "drop":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if kind == "stall":
            self.owner.wait()
            self.close_connection = True
        elif kind in _CODES:
            text = (
                f"<Error><Code>{_CODES[kind]}</Code><Message>a bad day</Message></Error>".encode()
            )
            self._answer(int(kind), {"Content-Type": "application/xml"}, text)
        else:
            status, headers, content = self._ask(body)
            if kind == "lost":
                self.close_connection = True
                return
            self._answer(status, headers, content, half=kind == "half")

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in _HOP}
        connection.close()
        return response.status, headers, content

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, *, half: bool = False
    ) -> None:
        self.send_response(status)
        if self.command != "HEAD" and status != 204:
            headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Be silent."""
