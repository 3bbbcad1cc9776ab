"""Callbacks: signed, tried again, and sent nowhere private."""

import asyncio
import hashlib
import hmac
import json

import pytest

from serve.callbacks import call_back
from tests.callbacks import failing
from unmask.addresses import AddressPolicy

SECRET = b"a secret of the service"
ANYWHERE = AddressPolicy()


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
    monkeypatch.setattr("serve.callbacks._CALL_PAUSE_S", 0.0)
    with failing(times=99) as httpd:
        url = f"http://127.0.0.1:{httpd.server_port}/done"
        assert asyncio.run(call_back(url, {}, SECRET, AddressPolicy(allow_private=False))) == "refused"
        assert httpd.taken == []
        assert asyncio.run(call_back(url, {}, SECRET, ANYWHERE)) == "failed"
        assert len(httpd.taken) == 7
