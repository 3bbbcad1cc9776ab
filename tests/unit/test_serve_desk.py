"""The desk without Ray: it works before anybody asks, remembers models, and clears away what nobody needs."""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve as ray_serve

from serve.desk import Desk
from serve.logs import JsonLines
from serve.settings import Settings
from serve.store import AnalysisRecord, Store, StreamRecord
from tests.actors import Host, ended, playing
from unmask.errors import ModelError, Reason

STREAM = StreamRecord(
    id="st_1", url="rtsp://ann:secret@x/1", created_s=1.0,
    settings={"name": "door", "fps": 5.0, "model": "default", "transport": "tcp", "paused": False},
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray_serve, "get_replica_context", lambda: SimpleNamespace(app_name="unmask"))
    logger = logging.getLogger("unmask")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@asynccontextmanager
async def desk(path: Path, host: Host, **settings: Any) -> AsyncIterator[Desk]:
    values = Settings(state=path, hosts=1, analysts=0, **settings).model_dump(mode="json")
    monkey = type("HereDesk", (Desk,), {"_host": lambda _, __: host})
    made = monkey(values, None)
    try:
        yield made
    finally:
        begun = made._begun
        await ended([*made._fleet._tasks, *([begun] if begun is not None else [])])
        made._store.close()


async def until_ready(made: Desk) -> None:
    async with asyncio.timeout(10):
        while not (await made.ready())["ready"]:
            await asyncio.sleep(0.01)


def test_a_desk_that_was_started_again_works_before_anybody_asks(tmp_path: Path) -> None:
    with Store(tmp_path / "unmask.sqlite") as store:
        store.put_stream(STREAM)

    async def scene() -> None:
        host = Host()
        async with desk(tmp_path, host) as made:
            # The first to ask may be a reader: there are no streams is not true at any time.
            assert [s["id"] for s in (await made.streams())["ok"]] == ["st_1"]
        async with desk(tmp_path, host) as made:
            await made.check_health()
            async with asyncio.timeout(10):
                while not host.plays:
                    await asyncio.sleep(0.01)

    asyncio.run(scene())


def test_a_change_before_it_is_known_what_plays_where_is_to_come_again(tmp_path: Path) -> None:
    with Store(tmp_path / "unmask.sqlite") as store:
        store.put_stream(STREAM)

    async def scene() -> None:
        host = Host(starts_s=0.2)
        host.plays["st_1"] = playing("old")
        async with desk(tmp_path, host) as made:
            refused = (await made.change_stream("st_1", {"fps": 2.0}))["refused"]
            assert (refused["code"], refused["retry_after_s"]) == ("NOT_READY", 5)
            await until_ready(made)
            assert (await made.change_stream("st_1", {"fps": 2.0}))["ok"]["fps"] == 2.0

    asyncio.run(scene())


def test_models_that_were_put_are_remembered(tmp_path: Path) -> None:
    async def scene() -> None:
        async with desk(tmp_path, Host()) as made:
            await until_ready(made)
            assert "ok" in await made.put_model("default", "finer")
            assert "ok" in await made.put_model("other", "another")
        async with desk(tmp_path, Host()) as made:
            await until_ready(made)
            known = {m["name"]: m["model"] for m in (await made.models())["ok"]}
            assert known == {"default": "finer", "other": "another"}
        # What is named at the start anew is meant.
        async with desk(tmp_path, Host(), model="newest") as made:
            await until_ready(made)
            known = {m["name"]: m["model"] for m in (await made.models())["ok"]}
            assert known == {"default": "newest", "other": "another"}

    asyncio.run(scene())


def test_a_model_that_is_gone_does_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    async def scene() -> None:
        async with desk(tmp_path, Host()) as made:
            await until_ready(made)
            await made.put_model("default", "finer")
        host = Host()
        host.refuses = ModelError(Reason.MISSING_FILE, "There is no finer.")
        async with desk(tmp_path, host) as made:
            await until_ready(made)
            assert [m["model"] for m in (await made.models())["ok"]] == ["ours"]

    asyncio.run(scene())


def test_files_that_nobody_waits_for_are_cleared_away(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    left, coming, waits = spool / "left.upload", spool / "coming.upload", spool / "waits.upload"
    for path in (left, coming, waits):
        path.write_bytes(b"x")
    for path in (left, waits):
        os.utime(path, (time.time() - 1000,) * 2)
    with Store(tmp_path / "unmask.sqlite") as store:
        request = {"path": str(waits)}
        store.put_analysis(AnalysisRecord(id="a", state="running", input="x", created_s=1.0, request=request))

    async def scene() -> None:
        async with desk(tmp_path, Host()) as made:
            await until_ready(made)
            async with asyncio.timeout(10):
                while left.exists():
                    await asyncio.sleep(0.01)
            assert coming.exists()
            assert waits.exists()

    asyncio.run(scene())


def test_the_same_key_twice_at_once_leaves_one_file(tmp_path: Path) -> None:
    async def scene() -> None:
        async with desk(tmp_path, Host()) as made:
            await until_ready(made)
            paths = [tmp_path / "spool" / f"{n}.upload" for n in range(2)]
            answers = []
            for path in paths:
                path.write_bytes(b"x")
                wanted = {"shown": "x", "model": "default", "key": "k", "fingerprint": "f", "path": str(path)}
                answers.append((await made.submit(wanted))["ok"]["id"])
            assert answers[0] == answers[1]
            assert [path.exists() for path in paths] == [True, False]

    asyncio.run(scene())


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scene() -> None:
        async with desk(tmp_path, Host(), allow_private=True) as made:
            await until_ready(made)
            monkeypatch.setattr(made._store, "put_stream", full)
            wanted = {"url": "rtsp://127.0.0.1:9/1", "name": None, "fps": 5.0, "model": "default", "transport": "tcp"}
            assert (await made.add_stream(wanted))["refused"]["code"] == "NOT_READY"
            assert (await made.streams())["ok"] == []

    asyncio.run(scene())


def test_all_of_unmask_logs_in_the_form_of_the_service(tmp_path: Path) -> None:
    async def scene() -> None:
        async with desk(tmp_path, Host()):
            handler = next(h for h in logging.getLogger("unmask").handlers if isinstance(h.formatter, JsonLines))
            lines: list[str] = []
            handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
            logging.getLogger("unmask.streams").warning("lost %s", "rtsp://ann:hunter2@cam/1")
            logging.getLogger("unmask.serve").warning("once")
            assert len(lines) == 2
            assert '"logger": "unmask.streams"' in lines[0]
            assert "hunter2" not in lines[0]

    asyncio.run(scene())
