"""The streams and the processes that hold them: who plays where, and what happens when a process dies.

A dead host is known of within a second by the call that waited for its news. Its streams go on at once in another host
that is up already, from the snapshot that came with the last news; a new host is started beside.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.faults import ApiError, from_error
from serve.journal import Journal
from serve.metrics import Meter
from serve.settings import Settings
from serve.store import StreamRecord
from unmask.errors import UnmaskError

__all__ = ["Fleet", "Stream"]

_LOG = logging.getLogger("unmask.serve")
_POLL_S, _SILENT_S, _RETRY_S = 0.5, 30.0, 1.0
_ENDED = ("ended", "failed")


@dataclass(slots=True, eq=False)
class Stream:
    """One stream as the desk knows it."""

    record: StreamRecord
    shown: str
    host: int | None = None
    token: str = ""
    """Names its present play in the host: news of an older one is old."""
    placed_s: float = 0.0
    """When it was sent there, by `time.monotonic`."""
    stored: int = 0
    """Up to which number its host's events are stored."""
    state: str = "starting"
    change: dict[str, Any] = field(default_factory=dict)
    """The last change of its state."""
    snapshot: Mapping[str, Any] | None = None
    last: Mapping[str, Any] | None = None
    """The last score."""
    lag_s: float = 0.0
    fill: float = 0.0

    @property
    def settings(self) -> Mapping[str, Any]:
        """name, fps, model, transport, ca_file, paused, over."""
        return self.record.settings


@dataclass(slots=True, eq=False)
class _Slot:
    number: int
    actor: Any = None
    pid: int = 0
    up: bool = False


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
        self._up = asyncio.Event()
        self.streams: dict[str, Stream] = {}
        self.sockets: dict[str, int] = {}

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

    @property
    def pids(self) -> list[int]:
        """The hosts' processes that are up."""
        return [slot.pid for slot in self._slots if slot.up]

    @property
    def is_up(self) -> bool:
        """Whether a host is there."""
        return any(slot.up for slot in self._slots)

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
        loads = [s.host for s in self.streams.values()] + list(self.sockets.values())
        return min((slot for slot in self._slots if slot.up), key=lambda slot: (loads.count(slot.number), slot.number))

    # Hosts.

    async def _keep(self, slot: _Slot) -> None:
        """Keep one host up, for ever."""
        while True:
            try:
                slot.actor = self._start_host(slot.number)
                slot.pid = await asyncio.wait_for(
                    _of(slot.actor.ready.remote(self._settings.model_dump(mode="json"))), 300.0
                )
                slot.up = True
                self._up.set()
                await self._adopt_or_place(slot)
                while True:
                    await self._poll(slot)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _LOG.warning("host %d is lost (%s)", slot.number, type(error).__name__, extra={"pid": slot.pid})
                await self._lost(slot)
            await asyncio.sleep(_RETRY_S)

    async def _adopt_or_place(self, slot: _Slot) -> None:
        """What plays there already (after a restart of the desk) stays; what plays nowhere is placed."""
        reply = await asyncio.wait_for(_of(slot.actor.poll.remote({}, 0.0)), _SILENT_S)
        for stream_id in reply["streams"]:
            if stream_id not in self.streams:
                await _of(slot.actor.forget.remote(stream_id))
            elif (stream := self.streams[stream_id]).host is None:
                stream.host, stream.token = slot.number, reply["streams"][stream_id]["token"]
                stream.stored = self._stored_before(stream, reply["streams"][stream_id]["events"])
        self._book(slot, reply)
        for stream in list(self.streams.values()):
            if stream.host is None and not stream.settings.get("paused") and stream.state not in _ENDED:
                await self._place(stream)

    def _stored_before(self, stream: Stream, events: list[tuple[int, Mapping[str, Any]]]) -> int:
        """Up to which number a host's events were stored by a desk that is no more: by the events' own numbers."""
        last = self._journal.store.last_events(stream.record.id, 1)
        known = int(last[-1].data.get("seq", -1)) if last else -1
        return max((number for number, event in events if event["seq"] <= known), default=0)

    async def _poll(self, slot: _Slot) -> None:
        stored = {k: s.stored for k, s in self.streams.items() if s.host == slot.number}
        reply = await asyncio.wait_for(_of(slot.actor.poll.remote(stored, _POLL_S)), _SILENT_S)
        for stream_id in self._book(slot, reply):
            await _of(slot.actor.forget.remote(stream_id, reply["streams"][stream_id]["token"]))
        late_s = time.monotonic() - _SILENT_S
        for stream in list(self.streams.values()):
            if stream.host == slot.number and stream.record.id not in reply["streams"] and stream.placed_s < late_s:
                await self._place(stream)  # it never arrived

    def _book(self, slot: _Slot, reply: Mapping[str, Any]) -> list[str]:
        """Store what is new.

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
            self._news(stream, news)
            if news["over"]:
                stream.host, stream.stored = None, 0
                if not stream.settings.get("paused"):
                    stream.state = "failed" if news["state"] == "failed" else "ended"
                    self._change_record(stream, over=stream.state)
                finished.append(stream_id)
        return finished

    def _news(self, stream: Stream, news: Mapping[str, Any]) -> None:
        fresh = [(number, event) for number, event in news["events"] if number > stream.stored]
        stream.snapshot, stream.lag_s, stream.fill = news["snapshot"], news["lag_s"], news["fill"]
        stream.state = news["state"]
        if not fresh:
            return
        for _, event in fresh:
            if event["event"] == "score":
                stream.last = event
            elif event["event"] == "state":
                stream.change = event
        self._journal.tell(stream.record.id, [(event["event"], event) for _, event in fresh], stream.snapshot)
        stream.stored = fresh[-1][0]

    async def _lost(self, slot: _Slot) -> None:
        """A host is no more: its streams go on elsewhere, now."""
        slot.up = False
        if not self.is_up:
            self._up.clear()
        self.sockets = {k: v for k, v in self.sockets.items() if v != slot.number}
        orphans = [stream for stream in self.streams.values() if stream.host == slot.number]
        for stream in orphans:
            stream.host, stream.stored, stream.state = None, 0, "moving"
            self._meter.count("unmask_stream_resumptions", "session_lost")
        if self.is_up:
            await asyncio.gather(*(self._place(stream) for stream in orphans))

    async def _place(self, stream: Stream) -> None:
        """Let a stream play in the emptiest host. Whoever dies meanwhile, `_lost` or the next host comes back to it."""
        slot = self._emptiest()
        stream.host, stream.stored, stream.token = slot.number, 0, secrets.token_hex(4)
        stream.placed_s = time.monotonic()
        settings = stream.settings
        try:
            spec, sha256 = self._model_of(settings["model"])
            wanted = {
                "id": stream.record.id, "token": stream.token, "url": stream.record.url, "fps": settings["fps"],
                "spec": spec, "sha256": sha256, "transport": settings["transport"], "ca_file": settings.get("ca_file"),
                "resume": stream.snapshot,
            }  # fmt: skip
            await asyncio.wait_for(_of(slot.actor.start.remote(wanted)), _SILENT_S)
        except (UnmaskError, ApiError) as error:
            stream.host, stream.state = None, "failed"
            refused = error if isinstance(error, ApiError) else from_error(error)
            stream.change = {
                "event": "state",
                "state": "failed",
                "reason": refused.code.lower(),
                "message": refused.message,
            }
            self._journal.tell(stream.record.id, [("state", {**stream.change, "at": time.time()})])
        except Exception as error:
            _LOG.warning("a stream could not be placed (%s)", type(error).__name__, extra={"stream": stream.record.id})
            stream.host = None if not slot.up else stream.host

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
        if self.is_up and stream.state == "starting":
            await self._place(stream)
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
        """Change a stream's settings; it connects anew only where its address or rate changed."""
        before = stream.settings
        self._change_record(stream, **changes)
        after = stream.settings
        actor = self._slots[stream.host].actor if stream.host is not None else None
        if after["fps"] != before["fps"] or bool(after.get("paused")) != bool(before.get("paused")):
            await self._halt(stream)
            stream.state = "paused" if after.get("paused") else "starting"
            if not after.get("paused"):
                self._change_record(stream, over=None)
                if self.is_up:
                    await self._place(stream)
        elif after["model"] != before["model"] and actor is not None:
            await _of(actor.adopt.remote(stream.record.id, *self._model_of(after["model"])))
        self._journal.ring(stream.record.id)

    def reopen(self, stream: Stream) -> None:
        """One that ended may play again."""
        self._change_record(stream, over=None, paused=True)

    async def swap(self, name: str) -> None:
        """A name stands for another model: let it judge the streams that asked for that name."""
        for stream in list(self.streams.values()):
            if stream.settings["model"] == name and stream.host is not None:
                await _of(self._slots[stream.host].actor.adopt.remote(stream.record.id, *self._model_of(name)))

    async def remove(self, stream: Stream) -> None:
        """Forget a stream, whatever it is doing."""
        del self.streams[stream.record.id]
        self._journal.store.delete(stream.record.id)
        self._journal.ring(stream.record.id)
        if stream.host is not None and self._slots[stream.host].up:
            try:
                await asyncio.wait_for(_of(self._slots[stream.host].actor.forget.remote(stream.record.id)), _SILENT_S)
            except Exception as error:  # it dies with its host, or is forgotten at the next news
                _LOG.info("a host did not answer (%s)", type(error).__name__)

    async def _halt(self, stream: Stream) -> None:
        """Let a stream end where it plays, and store its last news."""
        if stream.host is None or not self._slots[stream.host].up:
            return
        slot, stream_id = self._slots[stream.host], stream.record.id
        await _of(slot.actor.stop.remote(stream_id))
        for _ in range(100):
            reply = await asyncio.wait_for(_of(slot.actor.poll.remote({stream_id: stream.stored}, 0.1)), _SILENT_S)
            self._meter.merge(reply["numbers"])
            news = reply["streams"].get(stream_id)
            if news is None:
                break
            self._news(stream, news)
            if news["over"]:
                break
        stream.host, stream.stored = None, 0
        await _of(slot.actor.forget.remote(stream_id))

    def _change_record(self, stream: Stream, **changes: Any) -> None:
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
        self.sockets[socket_id] = slot.number
        wanted = {"id": socket_id, "token": "", "url": None, "fps": None, "spec": spec, "sha256": sha256}
        try:
            await asyncio.wait_for(_of(slot.actor.start.remote(wanted)), _SILENT_S)
        except BaseException:
            self.sockets.pop(socket_id, None)
            raise
        return int(slot.number)

    def close_socket(self, socket_id: str) -> None:
        """It has ended."""
        self.sockets.pop(socket_id, None)


async def _of(answer: Any) -> Any:
    return await answer
