"""What the door says itself: addresses that are none, and where an event stream begins."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve.api import make_api
from serve.client import DeskClient
from serve.journal import Journal
from serve.schemas import ErrorResponse
from serve.settings import Settings
from serve.store import Store
from tests.actors import Method


class Desk:
    """Answers of events as the desk gives them, of a stream `s`; it is over after the first that waits."""

    def __init__(self, store: Store) -> None:
        self._journal = Journal(store)
        self.asked: list[int | None] = []

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self, f"_{name}"))

    async def _count(self, numbers: Any) -> None:
        del numbers

    async def _events(self, owner: str, after: int | None, wait_s: float, last: int = 0) -> dict[str, Any]:
        self.asked.append(after)
        store = self._journal.store
        if wait_s:
            self._journal.tell(owner, [("score", {"n": "new"})])
        events = store.last_events(owner, last) if after is None else store.events(owner, after=after)
        return {"ok": {"events": [{"id": e.id, "kind": e.kind, "data": e.data} for e in events], "over": wait_s > 0}}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Store(tmp_path / "s") as store:
        made = Desk(store)
        made._journal.tell("s", [("score", {"n": n}) for n in range(20)])
        yield made


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    logger = logging.getLogger("unmask")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def http(tmp_path: Path, desk: Desk) -> TestClient:
    api = make_api(Settings(state=tmp_path), DeskClient(desk), frozenset())
    return TestClient(api, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1))


@pytest.mark.parametrize(
    ("query", "header", "told"),
    [
        ("last=0", None, ["new"]),
        ("last=2", None, [18, 19, "new"]),
        ("last=2", "17", [17, 18, 19, "new"]),
        ("last=0&follow=false", None, []),
        ("last=2", "9" * 40, []),
        ("last=2", str(2**63), []),
    ],
)
def test_events_begin_where_they_are_to(http: TestClient, query: str, header: str | None, told: list[Any]) -> None:
    headers = {} if header is None else {"Last-Event-ID": header}
    answer = http.get(f"/v1/streams/s/events?{query}", headers=headers)
    assert answer.status_code == 200
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data == ['{"n":"new"}' if n == "new" else f'{{"n":{n}}}' for n in told]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/none", 404, "NOT_FOUND"), ("DELETE", "/v1/models", 405, "METHOD_NOT_ALLOWED")],
)
def test_addresses_that_are_none_say_so_like_all_refusals(
    http: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert ErrorResponse.model_validate(answer.json()).error.code == code
