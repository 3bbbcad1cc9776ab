"""The page alone, before an API that says what a test wants it to say."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from serve.page_files import page_router
from tests.browser import browsing
from tests.service import free_port

STREAM: dict[str, Any] = {
    "id": "st_1", "name": "door", "url": "rtsp://cam/1", "model": "default", "fps": 5.0, "transport": "tcp",
    "paused": False, "created_at": 1.0, "state": "live", "reason": None, "message": None, "error": None,
    "retry_in_s": None, "media": None, "lag_s": 0.0, "window_fill": 0.0, "last": None,
    "frames": {"received": 0, "scored": 0, "dropped": {}}, "resets": {}, "reconnects": {},
}  # fmt: skip


class Api:
    """Answers as the service does, of one stream.

    Attributes:
        changes: What was to be changed of the stream.
        key: What lets in.
    """

    def __init__(self) -> None:
        self.stream, self.changes, self.key = dict(STREAM), list[Any](), ""

    def made(self) -> FastAPI:
        api = FastAPI()
        api.include_router(page_router())

        @api.middleware("http")
        async def guarded(request: Request, call_next: Any) -> Any:
            is_open = not request.url.path.startswith("/v1/")
            if is_open or request.headers.get("authorization", "") == (f"Bearer {self.key}" if self.key else ""):
                return await call_next(request)
            return Response('{"error": {"code": "KEY_REQUIRED", "message": "A key."}}', 401)

        @api.get("/healthz")
        async def healthz() -> Any:
            return {"status": "ok", "version": "1"}

        @api.get("/v1/models")
        @api.get("/v1/analyses")
        async def none() -> Any:
            return []

        @api.get("/v1/streams")
        async def streams() -> Any:
            return [self.stream]

        @api.patch("/v1/streams/st_1")
        async def change(request: Request) -> Any:
            self.changes.append(await request.json())
            return self.stream

        return api


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def url(api: Api) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api.made(), port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_the_button_does_what_it_says(api: Api, url: str, tmp_path: Path) -> None:
    with browsing(tmp_path) as page:
        page.open(url + "/")
        button = "[...document.querySelectorAll('#streams button')].find((b) => b.textContent === '{}')"
        for state, paused, says, sends in (
            ("live", False, "Pause", True),
            ("failed", False, "Resume", False),
            ("ended", False, "Resume", False),
            ("paused", True, "Resume", False),
        ):
            api.stream |= {"state": state, "paused": paused}
            shown = f"document.querySelector('#streams .badge')?.textContent.toLowerCase() === '{state}'"
            page.until(f"{shown} && {button.format(says)} !== undefined")
            page.run(f"{button.format(says)}.click()")
            deadline = time.monotonic() + 20
            while api.changes != [{"paused": sends}]:
                assert time.monotonic() < deadline, (state, api.changes)
                time.sleep(0.02)
            api.changes.clear()


def test_links_that_need_a_key_are_not_shown(api: Api, url: str, tmp_path: Path) -> None:
    with browsing(tmp_path) as page:
        page.open(url + "/")
        page.until("document.body?.dataset.ready")
        assert page.run("document.querySelector('#links').hidden") is False
        api.key = "a-key-that-is-long-enough"
        page.open(url + "/")
        page.until("document.querySelector('#keyform')?.hidden === false")
        assert page.run("document.querySelector('#links').hidden") is True
        page.run("document.querySelector('#key').focus()")
        page.do("Input.insertText", text=api.key)
        page.press("Enter")
        page.until("document.body?.dataset.ready")
        assert page.run("document.querySelector('#links').hidden") is True
