"""A web server that serves files, and does some of what servers do wrong: redirects, floods, drips, lies, 404."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

__all__ = ["listening", "serving"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files, and some of what servers do wrong."""

    server: "Server"

    def do_GET(self) -> None:
        if self.server.expected and self.headers.get("Authorization") != self.server.expected:
            self.send_error(401)
        elif self.path in self.server.files:
            self.answer()
            self.wfile.write(self.server.files[self.path])
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/clip.mp4")
            self.end_headers()
        elif self.path.startswith("/moved/") and self.path.endswith(".m3u8"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
        elif self.path == "/huge":
            self.answer(length=10 * 1024**3)
        elif self.path == "/huge-unannounced":
            self.answer()
            self.pour(pause_s=0)
        elif self.path == "/drip":
            self.answer()
            self.pour(pause_s=0.05, chunk=b"x")
        elif self.path == "/drip-headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self.pour(pause_s=0.05, chunk=b"X-Drop: 1\r\n")
        else:
            self.send_error(404)

    def answer(self, length: int | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def pour(self, pause_s: float, chunk: bytes = b"x" * (1 << 16)) -> None:
        with contextlib.suppress(ConnectionError):
            while not self.server.stopping.wait(pause_s):
                self.wfile.write(chunk)

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, files: dict[str, bytes], expected: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.expected = files, expected
        self.stopping = threading.Event()


@contextlib.contextmanager
def serving(files: dict[str, bytes], *, expected: str = "") -> Iterator[str]:
    """Where it is. Every request must hold the header Authorization that is `expected`, if any."""
    with Server(files, expected) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.stopping.set()
            httpd.shutdown()
            thread.join()


@contextlib.contextmanager
def listening(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[http.server.HTTPServer]:
    """A server of one thread that answers as a handler does."""
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield httpd
        finally:
            httpd.shutdown()
            thread.join()
