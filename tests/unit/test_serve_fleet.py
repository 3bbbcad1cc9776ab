"""Who plays where: after a restart, after a death, while two ask at once, and where nothing can be stored."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve import fleet
from serve.faults import ApiError
from serve.fleet import Fleet
from serve.journal import Journal
from serve.metrics import Meter
from serve.settings import Settings
from serve.store import Event, Store, StreamRecord
from tests.actors import Host, ended, playing
from unmask.errors import ModelError, Reason

MODEL = ("spec", "digest")


def record(number: int, **settings: Any) -> StreamRecord:
    known = {"name": None, "fps": 5.0, "model": "default", "transport": "tcp", "paused": False}
    return StreamRecord(id=f"s{number}", url="rtsp://x/1", created_s=float(number), settings={**known, **settings})


@dataclass
class Stage:
    """A fleet that plays."""

    fleet: Fleet
    hosts: list[Host]
    store: Store
    meter: Meter


async def until(found: Callable[[], Any], within_s: float = 5.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.005)
    return value


@asynccontextmanager
async def staged(
    path: Path, hosts: list[Host], streams: Iterable[StreamRecord] = (), model: Callable[[str], Any] = lambda _: MODEL
) -> AsyncIterator[Stage]:
    with Store(path / "s") as store:
        for stream in streams:
            store.put_stream(stream)
        meter = Meter()
        made = Fleet(Settings(hosts=len(hosts), state=path), Journal(store), meter, hosts.__getitem__, model)
        made.begin(lambda url: url)
        try:
            yield Stage(made, hosts, store, meter)
        finally:
            await ended(made._tasks)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_RETRY_S", 0.05)


def test_what_plays_stays_where_it_plays_when_the_desk_starts_again(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(), Host(starts_s=0.1)]
        for n in range(8):
            hosts[n % 2].plays[f"s{n}"] = playing(f"t{n}")
        hosts[1].plays["s7"]["token"] = "paused meanwhile"
        records = [record(n, paused=n == 7) for n in range(8)]
        async with staged(tmp_path, hosts, records) as stage:
            await until(lambda: stage.fleet.is_ready)
            await until(lambda: "s7" not in hosts[1].plays)
            found = {k: (s.host, s.token) for k, s in stage.fleet.streams.items() if k != "s7"}
            assert found == {f"s{n}": (n % 2, f"t{n}") for n in range(7)}
            assert [h.started for h in hosts] == [[], []]
            assert hosts[0].forgotten == []

    asyncio.run(scene())


def test_a_silent_host_does_not_hold_the_others_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_SETTLE_S", 0.1)

    async def scene() -> None:
        hosts = [Host(), Host(starts_s=60.0)]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: stage.fleet.is_ready)
            await until(lambda: hosts[0].plays)

    asyncio.run(scene())


def test_streams_are_spread_over_hosts_that_start_one_after_the_other(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(), Host(starts_s=0.1)]
        async with staged(tmp_path, hosts, [record(n) for n in range(8)]) as stage:
            await until(lambda: sum(len(h.plays) for h in hosts) == 8)
            assert [len(h.plays) for h in hosts] == [4, 4]
            # One dies: the other has all; the next stream goes to the one that came back.
            hosts[0].is_dead = True
            await until(lambda: len(hosts[1].plays) == 8)
            hosts[0].plays.clear()
            hosts[0].is_dead = False
            await until(lambda: len(stage.fleet.pids) == 2)
            added = await stage.fleet.add(record(8), "x")
            assert added.host == 0

    asyncio.run(scene())


def test_a_full_disk_loses_no_events_and_no_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        hosts = [Host(), Host()]
        async with staged(tmp_path, hosts, [record(n) for n in range(2)]) as stage:
            await until(lambda: all(h.plays for h in hosts))
            append = stage.store.append
            calls = []

            def full(*args: Any) -> list[Event]:
                calls.append(args)
                raise sqlite3.OperationalError("database or disk is full")

            monkeypatch.setattr(stage.store, "append", full)
            for host in hosts:
                for play in host.plays.values():
                    play["events"] = [(1, {"event": "score", "seq": 1, "at": time.time()})]
            await until(lambda: len(calls) > 6)
            assert not stage.fleet.is_ready
            assert len(stage.fleet.pids) == 2
            assert [len(h.started) for h in hosts] == [1, 1]
            assert stage.meter.total("unmask_stream_resumptions", "session_lost") == 0
            monkeypatch.setattr(stage.store, "append", append)
            await until(lambda: stage.fleet.is_ready)
            await until(lambda: not any(p["events"] for h in hosts for p in h.plays.values()))
            assert [len(stage.store.events(f"s{n}")) for n in range(2)] == [1, 1]

    asyncio.run(scene())


@pytest.mark.parametrize("changes", [{"fps": 2.0}, {"paused": True}, {"model": "other"}])
def test_a_stream_that_is_removed_while_it_changes_stays_removed(tmp_path: Path, changes: dict[str, Any]) -> None:
    async def scene() -> None:
        hosts = [Host(halts_s=0.2)]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: hosts[0].plays)
            stream = stage.fleet.get("s0")
            change = asyncio.create_task(stage.fleet.change(stream, changes))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await stage.fleet.remove(stream)
            with pytest.raises(ApiError, match="s0"):
                await change
            await until(lambda: not hosts[0].plays)
            assert (stage.store.streams(), stage.fleet.streams, stage.store.events("s0")) == ([], {}, [])

    asyncio.run(scene())


def test_two_changes_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(halts_s=0.1), Host(halts_s=0.1)]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: stage.fleet.get("s0").host is not None and any(h.plays for h in hosts))
            stream = stage.fleet.get("s0")
            await asyncio.gather(*(stage.fleet.change(stream, {"fps": fps}) for fps in (2.0, 3.0, 4.0)))
            plays = [play["token"] for h in hosts for play in h.plays.values()]
            assert plays == [stream.token]
            assert [w["fps"] for h in hosts for w in h.started if w["token"] == stream.token] == [4.0]
            assert (stream.state, stage.store.streams()[0].settings["fps"]) == ("starting", 4.0)
            await until(lambda: stream.state == "live")

    asyncio.run(scene())


def test_who_goes_away_leaves_nothing_half_changed(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(halts_s=0.1)]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: hosts[0].plays)
            change = asyncio.create_task(stage.fleet.change(stage.fleet.get("s0"), {"fps": 2.0}))
            await asyncio.sleep(0.02)
            change.cancel()
            await until(lambda: hosts[0].started[-1]["fps"] == 2.0)
            assert stage.fleet.get("s0").settings.get("over") is None

    asyncio.run(scene())


def test_a_model_that_cannot_be_had_is_not_stored(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host()]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: hosts[0].plays)
            hosts[0].refuses = ModelError(Reason.CHECKPOINT_HASH, "It was changed on disk.")
            with pytest.raises(ModelError):
                await stage.fleet.change(stage.fleet.get("s0"), {"model": "other", "name": "door"})
            assert stage.store.streams() == [record(0)]
            await stage.fleet.swap("default")  # one that cannot take it plays on

    asyncio.run(scene())


def test_the_gap_says_why(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(), Host()]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            await until(lambda: hosts[0].plays)
            stream = stage.fleet.get("s0")
            hosts[0].plays["s0"]["snapshot"] = {"seq": 7}
            await until(lambda: stream.snapshot)
            await stage.fleet.change(stream, {"paused": True})
            await stage.fleet.change(stream, {"paused": False})
            assert hosts[0].started[-1]["resume"] == {"seq": 7, "reason": "interrupted"}
            await stage.fleet.change(stream, {"fps": 2.0})
            assert hosts[0].started[-1]["resume"]["reason"] == "interrupted"
            hosts[0].is_dead = True
            await until(lambda: hosts[1].started)
            assert hosts[1].started[-1]["resume"]["reason"] == "session_lost"

    asyncio.run(scene())


def test_a_stream_that_kills_its_hosts_is_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host(), Host()]
        async with staged(tmp_path, hosts, [record(0)]) as stage:
            stream = stage.fleet.get("s0")
            for _ in range(3):
                await until(lambda: len(stage.fleet.pids) == 2 and stream.state == "live")
                assert stream.host is not None
                host = hosts[stream.host]
                host.is_dead = True
                await until(lambda: len(stage.fleet.pids) == 1)
                host.plays.clear()
                host.is_dead = False
            await until(lambda: stream.state == "failed")
            assert (stream.change["reason"], stream.settings["over"]) == ("session_lost", "failed")
            await until(lambda: len(stage.fleet.pids) == 2)
            assert not any(h.plays for h in hosts)
            await stage.fleet.change(stream, {"paused": False})
            await until(lambda: stream.state == "live")

    asyncio.run(scene())


def test_a_socket_that_its_host_ended_is_not_counted(tmp_path: Path) -> None:
    async def scene() -> None:
        hosts = [Host()]
        async with staged(tmp_path, hosts) as stage:
            await until(lambda: stage.fleet.is_ready)
            await stage.fleet.open_socket("ws_1", "default")
            await stage.fleet.open_socket("ws_2", "default")
            hosts[0].sockets.remove("ws_1")
            await until(lambda: list(stage.fleet.sockets) == ["ws_2"])
            assert stage.fleet.running() == 1

    asyncio.run(scene())
