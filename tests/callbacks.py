"""A server that takes callbacks, the first few of them in vain."""

import http.server
from collections.abc import Iterator
from contextlib import contextmanager

from tests.webserver import listening

__all__ = ["failing"]


class Callback(http.server.BaseHTTPRequestHandler):
    """Takes POSTs; the first `server.failures` of them in vain."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((dict(self.headers), body))
        failing = len(self.server.taken) <= self.server.failures
        self.send_response(503 if failing else 204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def failing(times: int) -> Iterator[http.server.HTTPServer]:
    with listening(Callback) as httpd:
        httpd.taken, httpd.failures = [], times
        yield httpd
