"""Callbacks: signed, tried again, and sent nowhere private."""

import asyncio
import hashlib
import hmac
import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.callbacks import call_back
from tests.webserver import listening
from unmask.addresses import AddressPolicy

SECRET = b"a secret of the service"
ANYWHERE = AddressPolicy()


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


def test_a_callback_is_signed_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.callbacks._CALL_PAUSE_S", 0.01)
    with failing(times=2) as httpd:
        outcome = asyncio.run(call_back(f"http://127.0.0.1:{httpd.server_port}/done", {"id": "an_1"}, SECRET, ANYWHERE))
        headers, body = httpd.taken[-1]
        assert (outcome, len(httpd.taken)) == ("delivered", 3)
    signed = headers["X-Unmask-Timestamp"].encode() + b"." + body
    assert headers["X-Unmask-Signature"] == "sha256=" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    assert json.loads(body) == {"id": "an_1"}


def test_callbacks_go_nowhere_private_and_end_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.callbacks._CALL_PAUSE_S", 0.01)
    with failing(times=99) as httpd:
        url = f"http://127.0.0.1:{httpd.server_port}/done"
        assert asyncio.run(call_back(url, {}, SECRET, AddressPolicy(allow_private=False))) == "refused"
        assert httpd.taken == []
        assert asyncio.run(call_back(url, {}, SECRET, ANYWHERE)) == "failed"
        assert len(httpd.taken) == 4
