"""A host's plays: which one runs, how late it is, and what becomes of one that nobody reads."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serve import host as module
from serve.host import Host
from serve.settings import Settings
from unmask.errors import UsageError

WANTED: Mapping[str, Any] = {
    "id": "x", "token": "one", "url": None, "fps": None, "spec": "", "sha256": "", "transport": "tcp",
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Settings(state=tmp_path, detect="scorer").model_dump(mode="json"), "unmask")


def test_a_play_makes_way_for_one_with_another_token(host: Host) -> None:
    async def scene() -> None:
        await host.start(WANTED)
        first = host._plays["x"]
        await host.start(WANTED)
        assert host._plays["x"] is first
        await asyncio.gather(host.start({**WANTED, "token": "two"}), host.start({**WANTED, "token": "three"}))
        assert host._plays["x"].token == "three"
        assert first.task is not None
        await asyncio.wait_for(first.task, 10)
        await host.forget("x", "one")  # that of the old one's news
        assert host._plays["x"].token == "three"
        starting = asyncio.create_task(host.start({**WANTED, "token": "four"}))
        await asyncio.sleep(0)
        await host.forget("x")
        await starting
        assert host._plays == {}

    asyncio.run(scene())


def test_a_socket_that_nobody_reads_ends(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        await host.start(WANTED)
        await host.start({**WANTED, "id": "read"})
        monkeypatch.setattr(module, "_UNPULLED_S", 0.3)
        after, deadline = 0, time.monotonic() + 10
        while (await host.poll({}, 0.05))["sockets"] != ["read"]:
            events, _ = await host.pull("read", after, 0.0)
            after = max([after, *(number for number, _ in events)])
            assert time.monotonic() < deadline
        with pytest.raises(UsageError):
            await host.pull("x", 0, 0.0)
        assert not await host.push("x", b"x", 0.0)
        await host.forget("read")

    asyncio.run(scene())


def test_an_empty_room_is_not_late(host: Host) -> None:
    async def scene() -> None:
        await host.start(WANTED)
        play = host._plays["x"]
        for event, is_answer in (
            ({"event": "dropped", "reason": "queue_full", "count": 1}, False),
            ({"event": "dropped", "reason": "no_face", "count": 1}, True),
            ({"event": "gap", "reason": "session_lost"}, False),
        ):
            play.answered_s = time.monotonic() - 60
            host._tell(play, [event])
            assert (host._state(play)["lag_s"] < 30) == is_answer
        await host.forget("x")

    asyncio.run(scene())


def test_between_two_frames_that_are_due_nothing_is_late(host: Host) -> None:
    async def scene() -> None:
        await host.start({**WANTED, "fps": 0.1})
        play = host._plays["x"]
        for ago_s, late_s in ((8.0, 0.0), (15.0, 5.0)):
            play.answered_s = time.monotonic() - ago_s
            assert host._state(play)["lag_s"] == pytest.approx(late_s, abs=1.0)
        await host.forget("x")

    asyncio.run(scene())
