"""The streams and the processes that hold them: who plays where, and what happens when a process dies.

A dead host is known of within a second by the call that waited for its news. Its streams go on at once in another host
that is up already, from the snapshot that came with the last news; a new host is started beside. A new desk asks all
hosts first what they play: that stays where it is. A stream that was there when three hosts died within ten minutes is
`failed`: it may be the cause. So are those that shared all three with it: nobody can tell them apart from outside, and
each goes on when it is resumed.
"""

import asyncio
import itertools
import logging
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serve.faults import ApiError, from_error
from serve.journal import Journal
from serve.metrics import Meter
from serve.settings import Settings
from serve.store import StreamRecord
from serve.stream import DEATHS_S, Stream
from serve.within import within
from unmask.errors import Reason, UnmaskError

__all__ = ["Fleet"]

_LOG = logging.getLogger("unmask.serve")
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, lie apart however many there are
_POLL_S, _SILENT_S, _RETRY_S, _LOAD_S = 0.5, 30.0, 1.0, 120.0
# How long the other hosts may take to say what they play, once the first one did.
_SETTLE_S = 5.0
_MOST_DEATHS = 3
_ENDED = ("ended", "failed")


@dataclass(slots=True, eq=False)
class _Slot:
    number: int
    actor: Any = None
    pid: int = 0
    up: bool = False


@dataclass(slots=True, eq=False)
class _Socket:
    host: int
    opened_s: float = math.inf
    """Since when its host is to know of it."""


class Fleet:
    """Keeps streams playing.

    Args:
        settings: Of the service.
        journal: Gets the events.
        meter: Gets the numbers.
        start_host: From a number to the handle of that host's actor, started where there is none.
        model_of: From a model's name to its spec and digest.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        meter: Meter,
        start_host: Callable[[int], Any],
        model_of: Callable[[str], tuple[str, str]],
    ) -> None:
        self._settings, self._journal, self._meter = settings, journal, meter
        self._start_host, self._model_of = start_host, model_of
        self._slots = [_Slot(number) for number in range(settings.hosts)]
        self._tasks: list[asyncio.Task[None]] = []
        self._changes: set[asyncio.Task[None]] = set()
        self._up, self._settled = asyncio.Event(), asyncio.Event()
        self._store_fails = False
        # Cameras are often started together; their frames need not come together.
        self._phases = (n * _GOLDEN % 1 for n in itertools.count())
        self.streams: dict[str, Stream] = {}
        self.sockets: dict[str, _Socket] = {}

    def begin(self, shown: Callable[[str], str]) -> None:
        """Start the hosts, and let the streams of the store play again."""
        for record in self._journal.store.streams():
            snapshot = self._journal.store.note(record.id)
            stream = Stream(record, shown(record.url), snapshot=snapshot)
            last = [e for e in self._journal.store.last_events(record.id, 20) if e.kind == "score"]
            stream.last = last[-1].data if last else None
            stream.state = record.settings.get("over") or ("paused" if record.settings.get("paused") else "starting")
            self.streams[record.id] = stream
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        self._tasks.append(asyncio.create_task(self._settle()))

    async def _settle(self) -> None:
        """Once a host is there, wait a little for the others: what plays in one of them is not to move."""
        await self._up.wait()
        deadline = time.monotonic() + _SETTLE_S
        while not all(slot.up for slot in self._slots) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._settled.set()
        await self._place_idle()

    @property
    def pids(self) -> list[int]:
        """The hosts' processes that are up."""
        return [slot.pid for slot in self._slots if slot.up]

    @property
    def is_up(self) -> bool:
        """Whether a host is there."""
        return any(slot.up for slot in self._slots)

    @property
    def is_ready(self) -> bool:
        """Whether streams are taken: it is known what plays where, and what happens can be stored."""
        return self.is_up and self._settled.is_set() and not self._store_fails

    async def any_host(self, wait_s: float = 60.0) -> Any:
        """A host that is up, the emptiest.

        Raises:
            ApiError: NOT_READY.
        """
        deadline = time.monotonic() + wait_s
        while not self.is_up:
            try:
                await asyncio.wait_for(self._up.wait(), max(deadline - time.monotonic(), 0.01))
            except TimeoutError:
                raise ApiError("NOT_READY", "No process that holds streams is up yet; try again", 5) from None
        return self._emptiest()

    def _emptiest(self) -> _Slot:
        loads = [s.host for s in self.streams.values()] + [s.host for s in self.sockets.values()]
        return min((slot for slot in self._slots if slot.up), key=lambda slot: (loads.count(slot.number), slot.number))

    # Hosts.

    async def _keep(self, slot: _Slot) -> None:
        """Keep one host up, for ever."""
        while True:
            try:
                slot.actor = self._start_host(slot.number)
                slot.pid = await within(300.0, slot.actor.ready.remote(self._settings.model_dump(mode="json")))
                await self._adopt(slot)
                slot.up = True
                self._up.set()
                while True:
                    await self._poll(slot)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _LOG.warning("host %d is lost (%s)", slot.number, type(error).__name__, extra={"pid": slot.pid})
                await self._lost(slot)
            await asyncio.sleep(_RETRY_S)

    async def _adopt(self, slot: _Slot) -> None:
        """What plays there already (after a restart of the desk) stays, if it is to play and does nowhere else."""
        reply = await within(_SILENT_S, slot.actor.poll.remote({}, 0.0))
        for stream_id, news in reply["streams"].items():
            stream = self.streams.get(stream_id)
            if stream is not None and stream.host is None and self._is_wanted(stream) and not stream.turn.locked():
                stream.host, stream.token = slot.number, news["token"]
                stream.stored = self._stored_before(stream, news["events"])
        await self._take(slot, reply)

    def _stored_before(self, stream: Stream, events: list[tuple[int, Mapping[str, Any]]]) -> int:
        """Up to which number a host's events were stored by a desk that is no more: by the events' own numbers."""
        last = self._journal.store.last_events(stream.record.id, 1)
        known = int(last[-1].data.get("seq", -1)) if last else -1
        return max((number for number, event in events if event["seq"] <= known), default=0)

    async def _poll(self, slot: _Slot) -> None:
        asked_s = time.monotonic()
        stored = {k: s.stored for k, s in self.streams.items() if s.host == slot.number}
        reply = await within(_SILENT_S, slot.actor.poll.remote(stored, _POLL_S))
        await self._take(slot, reply)
        for stream in self.streams.values():
            never_arrived = stream.placed_s < asked_s - _SILENT_S and stream.record.id not in reply["streams"]
            if stream.host == slot.number and never_arrived and not stream.turn.locked():
                stream.host = None
        known = set(reply["sockets"])
        self.sockets = {
            k: s for k, s in self.sockets.items() if s.host != slot.number or s.opened_s > asked_s or k in known
        }
        await self._place_idle()
        if self._store_fails:  # the host answers at once while it has something to tell
            await asyncio.sleep(_RETRY_S)

    async def _take(self, slot: _Slot, reply: Mapping[str, Any]) -> None:
        for stream_id in self._book(slot, reply):
            await within(_SILENT_S, slot.actor.forget.remote(stream_id, reply["streams"][stream_id]["token"]))

    def _book(self, slot: _Slot, reply: Mapping[str, Any]) -> list[str]:
        """Store what is new. What cannot be stored is told again by the host.

        Returns:
            Streams of which the host need not know any more.
        """
        self._meter.merge(reply["numbers"])
        finished = []
        for stream_id, news in reply["streams"].items():
            stream = self.streams.get(stream_id)
            if stream is None or (stream.host, stream.token) != (slot.number, news["token"]):
                finished.append(stream_id)
                continue
            is_stored = self._news(stream, news)
            # One that is being halted is ended by who halts it.
            if news["over"] and is_stored and not stream.turn.locked():
                stream.host, stream.stored = None, 0
                if not stream.settings.get("paused"):
                    self._end(stream, "failed" if news["state"] == "failed" else "ended")
                finished.append(stream_id)
        return finished

    def _news(self, stream: Stream, news: Mapping[str, Any]) -> bool:
        """Note a stream's news. Whether all of them are stored."""
        fresh = [(number, event) for number, event in news["events"] if number > stream.stored]
        stream.snapshot, stream.lag_s, stream.fill = news["snapshot"], news["lag_s"], news["fill"]
        stream.state = news["state"]
        if not fresh or self.streams.get(stream.record.id) is not stream:
            return True
        for _, event in fresh:
            if event["event"] == "score":
                stream.last = event
            elif event["event"] == "state":
                stream.change = event
        with self._storing():
            self._journal.tell(stream.record.id, [(event["event"], event) for _, event in fresh], stream.snapshot)
            stream.stored = fresh[-1][0]
        return bool(stream.stored == fresh[-1][0])

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Outlive a store that takes nothing (a full disk), and say so once."""
        try:
            yield
        except sqlite3.Error as error:
            if not self._store_fails:
                _LOG.error("the store cannot be written (%s): nothing more is taken until it can", error)
            self._store_fails = True
        else:
            self._store_fails = False

    async def _lost(self, slot: _Slot) -> None:
        """A host is no more: its streams go on elsewhere, now."""
        slot.up = False
        if not self.is_up:
            self._up.clear()
        self.sockets = {k: v for k, v in self.sockets.items() if v.host != slot.number}
        for stream in [stream for stream in self.streams.values() if stream.host == slot.number]:
            stream.host, stream.stored, stream.state, stream.gap = None, 0, "moving", Reason.SESSION_LOST
            self._meter.count("unmask_stream_resumptions", "session_lost")
            self._note_death(stream)
        await self._place_idle()

    def _note_death(self, stream: Stream) -> None:
        if (deaths := stream.died()) >= _MOST_DEATHS:
            message = (
                f"The process that scored it died {deaths} times within {DEATHS_S / 60:g} minutes; it may be the "
                "cause, so it is not tried again until it is resumed."
            )
            self._fail(stream, Reason.SESSION_LOST, message)
            self._end(stream, "failed")

    def _end(self, stream: Stream, state: str) -> None:
        """It plays no more, not even after a restart."""
        stream.state = state
        with self._storing():
            self._change_record(stream, over=state)

    def _fail(self, stream: Stream, reason: str, message: str) -> None:
        stream.host, stream.state = None, "failed"
        stream.change = {"event": "state", "state": "failed", "reason": reason, "message": message}
        with self._storing():
            self._journal.tell(stream.record.id, [("state", {**stream.change, "at": time.time()})])

    def _is_wanted(self, stream: Stream) -> bool:
        """Whether it is to play."""
        is_ours = self.streams.get(stream.record.id) is stream
        return is_ours and not stream.settings.get("paused") and stream.state not in _ENDED

    async def _place_idle(self) -> None:
        """Let what plays nowhere play, once it is known what plays where. Who has the turn does so himself."""
        if self._settled.is_set():
            idle = [s for s in self.streams.values() if s.host is None and self._is_wanted(s) and not s.turn.locked()]
            await asyncio.gather(*(self._resume(stream) for stream in idle))

    async def _resume(self, stream: Stream) -> None:
        async with stream.turn:
            if stream.host is None and self._is_wanted(stream) and self.is_up:
                await self._place(stream)

    async def _place(self, stream: Stream) -> None:
        """Let a stream play in the emptiest host; the turn is the caller's. If that fails, `_place_idle` comes back."""
        slot, token = self._emptiest(), secrets.token_hex(4)
        stream.host, stream.stored, stream.token, stream.placed_s = slot.number, 0, token, time.monotonic()
        settings, snapshot = stream.settings, stream.snapshot
        try:
            spec, sha256 = self._model_of(settings["model"])
            wanted = {
                "id": stream.record.id, "token": token, "url": stream.record.url, "fps": settings["fps"],
                "spec": spec, "sha256": sha256, "transport": settings["transport"], "ca_file": settings.get("ca_file"),
                "phase": next(self._phases),
                "resume": {**snapshot, "reason": stream.gap.value} if snapshot is not None else None,
            }  # fmt: skip
            await within(_SILENT_S, slot.actor.start.remote(wanted))
        except (UnmaskError, ApiError) as error:
            refused = error if isinstance(error, ApiError) else from_error(error)
            if self.streams.get(stream.record.id) is stream and stream.token == token:
                self._fail(stream, refused.code.lower(), refused.message)
        except Exception as error:
            _LOG.warning("a stream could not be placed (%s)", type(error).__name__, extra={"stream": stream.record.id})
            if stream.token == token and not slot.up:
                stream.host = None

    # Streams.

    def running(self) -> int:
        """How many streams and sockets run."""
        return sum(s.state not in (*_ENDED, "paused") for s in self.streams.values()) + len(self.sockets)

    def check_room(self) -> None:
        """See that one more stream may run.

        Raises:
            ApiError: BUSY.
        """
        if self.running() >= self._settings.max_streams:
            most = self._settings.max_streams
            raise ApiError("BUSY", f"All {most} streams that this service may run are taken; remove one first", 30)

    async def add(self, record: StreamRecord, shown: str) -> Stream:
        """Take a new stream."""
        stream = Stream(record, shown)
        stream.state = "paused" if record.settings.get("paused") else "starting"
        self._journal.store.put_stream(record)
        self.streams[record.id] = stream
        if self._settled.is_set():
            await self._resume(stream)
        return stream

    def get(self, stream_id: str) -> Stream:
        """A stream.

        Raises:
            ApiError: NOT_FOUND.
        """
        if stream_id not in self.streams:
            raise ApiError("NOT_FOUND", f"There is no stream {stream_id}")
        return self.streams[stream_id]

    async def change(self, stream: Stream, changes: Mapping[str, Any]) -> None:
        """Change a stream's settings; it connects anew only where its rate changed, or it is resumed.

        Raises:
            ApiError: NOT_READY, NOT_FOUND (it was removed meanwhile), BUSY.
            UnmaskError: The model cannot be had. Nothing is changed then.
        """
        if not self._settled.is_set():
            raise ApiError("NOT_READY", "It is not known yet what plays where; try again", 5)
        # A caller who goes away leaves nothing half changed.
        work = asyncio.create_task(self._changed(stream, changes))
        self._changes.add(work)
        work.add_done_callback(self._changes.discard)
        await asyncio.shield(work)

    async def _changed(self, stream: Stream, changes: Mapping[str, Any]) -> None:
        async with stream.turn:
            self._check_here(stream)
            if changes.get("paused") is False and stream.state in ("paused", *_ENDED):
                self.check_room()
                stream.deaths.clear()
                self._change_record(stream, over=None, paused=True)
            await self._change(stream, changes)
        self._journal.ring(stream.record.id)

    async def _change(self, stream: Stream, changes: Mapping[str, Any]) -> None:
        before, after = stream.settings, {**stream.settings, **changes}
        if after["model"] != before["model"] and stream.host is not None:
            actor = self._slots[stream.host].actor
            await within(_LOAD_S, actor.adopt.remote(stream.record.id, *self._model_of(after["model"])))
            self._check_here(stream)
        self._change_record(stream, **changes)
        if after["fps"] == before["fps"] and bool(after.get("paused")) == bool(before.get("paused")):
            return
        await self._halt(stream)
        self._check_here(stream)
        stream.state, stream.gap = "paused" if after.get("paused") else "starting", Reason.INTERRUPTED
        if not after.get("paused"):
            self._change_record(stream, over=None)
            if self.is_up:
                await self._place(stream)

    def _check_here(self, stream: Stream) -> None:
        if self.get(stream.record.id) is not stream:
            raise ApiError("NOT_FOUND", f"Stream {stream.record.id} was removed")

    async def swap(self, name: str) -> None:
        """A name stands for another model: let it judge the streams that asked for that name."""
        for stream in list(self.streams.values()):
            async with stream.turn:
                if stream.settings["model"] != name or stream.host is None:
                    continue
                try:
                    actor = self._slots[stream.host].actor
                    await within(_LOAD_S, actor.adopt.remote(stream.record.id, *self._model_of(name)))
                except Exception as error:  # where its host dies, the next one takes the new model
                    _LOG.warning("a model was not taken (%s)", error, extra={"stream": stream.record.id})

    async def remove(self, stream: Stream) -> None:
        """Forget a stream, whatever it is doing and whoever has the turn."""
        self._journal.store.delete(stream.record.id)
        del self.streams[stream.record.id]
        self._journal.ring(stream.record.id)
        if stream.host is not None and self._slots[stream.host].up:
            try:
                await within(_SILENT_S, self._slots[stream.host].actor.forget.remote(stream.record.id))
            except Exception as error:  # it dies with its host, or is forgotten at the next news
                _LOG.info("a host did not answer (%s)", type(error).__name__)

    async def _halt(self, stream: Stream) -> None:
        """Let a stream end where it plays, and store its last news."""
        if stream.host is not None and self._slots[stream.host].up:
            try:
                await self._drain(stream, self._slots[stream.host])
            except Exception as error:  # it dies with its host, or its next play takes its place
                _LOG.info("a host did not answer (%s)", type(error).__name__)
        stream.host, stream.stored = None, 0

    async def _drain(self, stream: Stream, slot: _Slot) -> None:
        stream_id, token = stream.record.id, stream.token
        await within(_SILENT_S, slot.actor.stop.remote(stream_id))
        for _ in range(100):
            reply = await within(_SILENT_S, slot.actor.poll.remote({stream_id: stream.stored}, 0.1))
            self._meter.merge(reply["numbers"])
            news = reply["streams"].get(stream_id)
            if news is None or news["token"] != token:
                break
            self._news(stream, news)
            if news["over"]:
                break
        await within(_SILENT_S, slot.actor.forget.remote(stream_id, token))

    def _change_record(self, stream: Stream, **changes: Any) -> None:
        if self.streams.get(stream.record.id) is not stream:
            return
        settings = {**stream.record.settings, **changes}
        stream.record = StreamRecord(
            id=stream.record.id, url=stream.record.url, created_s=stream.record.created_s, settings=settings
        )
        self._journal.store.put_stream(stream.record)

    # Sockets.

    async def open_socket(self, socket_id: str, model: str) -> int:
        """Let a stream play whose pictures a caller pushes; the number of its host."""
        slot = await self.any_host()
        spec, sha256 = self._model_of(model)
        self.sockets[socket_id] = _Socket(slot.number)
        wanted = {"id": socket_id, "token": "", "url": None, "fps": None, "spec": spec, "sha256": sha256}
        try:
            await within(_SILENT_S, slot.actor.start.remote(wanted))
        except BaseException:
            self.sockets.pop(socket_id, None)
            raise
        if socket_id in self.sockets:
            self.sockets[socket_id].opened_s = time.monotonic()
        return int(slot.number)

    def close_socket(self, socket_id: str) -> None:
        """It has ended."""
        self.sockets.pop(socket_id, None)
