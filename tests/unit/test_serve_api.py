"""What the door says itself: addresses that are none, and where an event stream begins."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
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
        self.counted: list[Any] = []
        self.answers = asyncio.Event()
        self.answers.set()

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self, f"_{name}"))

    async def _count(self, numbers: Any) -> None:
        await self.answers.wait()
        self.counted += numbers

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


def test_who_is_refused_does_not_wait_for_a_desk_that_is_lost(tmp_path: Path, desk: Desk) -> None:
    async def refused() -> None:
        api = make_api(Settings(state=tmp_path), DeskClient(desk), frozenset())
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1))
        async with asyncio.timeout(5), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
            desk.answers.clear()
            for _ in range(3):
                assert (await http.get("/v1/none")).status_code == 404
            assert not desk.counted
            desk.answers.set()
            while sum(growth[0] for _, _, growth in desk.counted) < 3:
                await asyncio.sleep(0.01)
        assert {labels for _, labels, _ in desk.counted} == {("NOT_FOUND",)}

    asyncio.run(refused())


def test_refusals_that_the_desk_could_not_take_are_told_later(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.client._ANSWER_S", 0.05)

    async def refused() -> None:
        api = make_api(Settings(state=tmp_path), DeskClient(desk), frozenset())
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1))
        async with asyncio.timeout(5), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
            desk.answers.clear()
            await http.get("/v1/none")
            while len(asyncio.all_tasks()) > 1:  # the desk's time is not over yet
                await asyncio.sleep(0.01)
            desk.answers.set()
            await http.get("/v1/none")
            while not desk.counted:
                await asyncio.sleep(0.01)
        assert desk.counted == [("unmask_refusals", ("NOT_FOUND",), [2.0])]

    asyncio.run(refused())


def test_the_description_names_every_event_and_where_a_key_is_needed(tmp_path: Path) -> None:
    api = make_api(Settings(state=tmp_path), DeskClient(None), frozenset())
    described = api.openapi()
    schemas, paths = described["components"]["schemas"], described["paths"]

    def told(path: str, word: str) -> list[Any]:
        schema = paths[path]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
        assert "type" not in schema
        return [schemas[option["$ref"].rpartition("/")[2]] for option in schema[word]]

    events = told("/v1/streams/{stream_id}/events", "oneOf")
    kinds = {event["properties"]["event"]["const"] for event in events}
    assert kinds == {"start", "state", "gap", "score", "dropped", "track_end", "account", "end"}
    assert [list(e["properties"]) for e in told("/v1/analyses/{analysis_id}/events", "anyOf")] == [
        ["ahead"], ["done"], ["result"],
    ]  # fmt: skip
    (scheme,) = described["components"]["securitySchemes"]
    asked = {path: [{scheme: []}] == method.get("security") for path, of in paths.items() for method in of.values()}
    assert {path for path, needed in asked.items() if not needed} == {"/healthz"}
