"""A process that holds live streams: sources, tracks, windows. The desk starts several; their streams move if one dies.

It keeps what happened until the desk says that it is stored. A host that no desk has asked for five minutes ends.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from serve.logs import set_up
from serve.metrics import Meter
from serve.remote import RemoteScorer
from serve.scorer import ModelKey, Models
from serve.settings import SCORER, Settings
from unmask.addresses import AddressPolicy
from unmask.card import model_card
from unmask.checkpoints import Description
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import Reason, UnmaskError, UsageError
from unmask.frame_queue import LiveFrame
from unmask.live import Event, LiveOptions, LiveSession, resume_clock
from unmask.models import ForgeryModel
from unmask.mtcnn import MTCNN
from unmask.push import PushSource
from unmask.records import FrameCount
from unmask.scoring import ScoringOptions
from unmask.streams import StreamOptions, StreamSource
from unmask.workers import cores

__all__ = ["Host"]

# A head that is restarted brings the desk back within minutes.
_LEASE_S = 300.0
_MOST_KEPT = 20_000
# A socket whose events nobody asked for so long has lost its door.
_UNPULLED_S = 30.0
# A frame was looked at, and there was nothing to score.
_NOTHING_THERE = {Reason.NO_FACE, Reason.NO_USABLE_FACE, Reason.FACE_TOO_SMALL, Reason.FRAME_TOO_SMALL}


@dataclass(slots=True, eq=False)
class _Play:
    """One stream that plays here."""

    session: LiveSession
    source: StreamSource | PushSource
    via: str
    scorer: RemoteScorer
    model: str
    token: str
    task: "asyncio.Task[None] | None" = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    """What the desk has not stored yet, numbered from 1."""
    told: int = 0
    counted: FrameCount = field(default_factory=FrameCount)
    resets: dict[Reason, int] = field(default_factory=dict)
    reconnects: dict[Reason, int] = field(default_factory=dict)
    answered_s: float = field(default_factory=time.monotonic)
    """When a frame was last scored, or had nothing to score."""
    pulled_s: float = field(default_factory=time.monotonic)
    over: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """A model is not changed while a frame is on its way through the old one."""


class Host:
    """Holds streams; an asynchronous Ray actor.

    Args:
        settings: As of `Settings`, in plain values.
        app: Name of the Serve application whose scorer it asks.
    """

    def __init__(self, settings: Mapping[str, Any], app: str) -> None:
        self._settings, self._app = Settings(**settings), app
        self._log = set_up()
        torch.set_num_threads(1)
        self._models = Models(torch.device("cpu"))
        self._meter = Meter()
        self._plays: dict[str, _Play] = {}
        self._wanted: dict[str, str] = {}  # the token of the play that is to be, by stream
        self._news = asyncio.Event()
        self._asked_s = time.monotonic()
        self._lease: asyncio.Task[None] | None = None
        in_session = self._settings.detect == "session" or (
            self._settings.detect == "auto" and not self._settings.on_gpu
        )
        self._detector = MTCNN(device="cpu", thresholds=SCORING_THRESHOLDS) if in_session else None
        self._pool = ThreadPoolExecutor(max(2, min(cores(), 8)), thread_name_prefix="unmask-host")
        self._handle: Any = None

    async def ready(self, settings: Mapping[str, Any]) -> int:
        """The process's id, once the scorer can be asked and the first model's head is here.

        Args:
            settings: Those of the desk that asks; a host that was started with others ends.
        """
        from ray import serve as ray_serve

        if Settings(**settings) != self._settings:
            self._log.warning("the settings have changed: this host ends")
            os._exit(0)
        if self._handle is None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._head, ModelKey(self._settings.model))
            self._handle = await loop.run_in_executor(
                self._pool, lambda: ray_serve.get_deployment_handle(SCORER, app_name=self._app)
            )
        self._asked_s = time.monotonic()
        if self._lease is None:
            self._lease = asyncio.create_task(self._end_without_desk())
        return os.getpid()

    async def _end_without_desk(self) -> None:
        while time.monotonic() - self._asked_s < _LEASE_S:
            await asyncio.sleep(1.0)
        self._log.warning("no desk has asked for %g s: this host ends", _LEASE_S)
        os._exit(0)

    async def describe(self, spec: str) -> dict[str, Any]:
        """What a model is: the fields of its `ModelInfo`, and the sections of its card.

        Raises:
            UnmaskError: It cannot be had.
        """
        loop = asyncio.get_running_loop()
        _, description = await loop.run_in_executor(self._pool, self._head, ModelKey(spec))
        return {**asdict(description.info()), "card": [section.to_json() for section in model_card(description)]}

    def _head(self, key: ModelKey) -> tuple[ForgeryModel, Description]:
        return self._models.get(key)

    async def _judging(self, spec: str, sha256: str) -> tuple[ForgeryModel, Description, RemoteScorer]:
        loop = asyncio.get_running_loop()
        model, description = await loop.run_in_executor(self._pool, self._head, ModelKey(spec, sha256))
        key = ModelKey(spec, description.sha256)
        return model, description, RemoteScorer(self._handle, key, self._meter, self._detector, self._pool)

    async def start(self, stream: Mapping[str, Any]) -> None:
        """Let a stream play, if it does not; a play with another token makes way for it.

        Args:
            stream: id, token (comes back with the news), url (None for one whose frames are pushed), fps, spec and
                sha256 of its model, transport, ca_file, resume (a snapshot or None).

        Raises:
            UnmaskError: Its address cannot be played, or its model not be had.
        """
        stream_id, token = stream["id"], stream["token"]
        if (before := self._plays.get(stream_id)) is not None and before.token == token:
            return
        self._wanted[stream_id] = token
        judging = await self._judging(stream["spec"], stream["sha256"])
        resume = stream.get("resume")
        clock_s = resume_clock(resume) if resume else 0.0
        source = self._source(stream, clock_s)
        # Credits bound what waits of a socket's pictures: none is too old.
        stale_s = None if stream["url"] is None else LiveOptions().stale_s
        scoring = ScoringOptions(aggregation=self._settings.aggregation)
        phase = stream.get("phase", 0.0)
        options = LiveOptions(scoring=scoring, fps=stream["fps"], stale_s=stale_s, phase=phase)
        session = LiveSession(*judging, stream_id=stream_id, shown=source.shown, options=options, resume=resume)
        via = "socket" if stream["url"] is None else "stream"
        play = _Play(session, source, via, judging[2], judging[1].name, token, counted=session.frames)
        play.resets, play.reconnects = dict(session.resets), dict(session.reconnects)
        if self._wanted.get(stream_id) != token:  # asked for another one, or for none, meanwhile
            return
        del self._wanted[stream_id]
        if (before := self._plays.get(stream_id)) is not None:
            before.source.close()
        self._plays[stream_id] = play
        play.task = asyncio.create_task(self._run(play))

    def _source(self, stream: Mapping[str, Any], clock_s: float) -> StreamSource | PushSource:
        if stream["url"] is None:
            options = StreamOptions(fps=stream["fps"], queue_frames=16)
            return PushSource(options, shown="socket", clock_s=clock_s)
        ca_file = stream.get("ca_file")
        options = StreamOptions(
            fps=stream["fps"],
            phase=stream["phase"],
            transport=stream["transport"],
            ca_file=Path(ca_file) if ca_file else None,
        )
        policy = AddressPolicy(allow_private=self._settings.allow_private)
        return StreamSource(stream["url"], options, policy, clock_s=clock_s)

    async def _run(self, play: _Play) -> None:
        session, source = play.session, play.source
        try:
            self._tell(play, session.begin())
            source.start()
            while (item := await source.queue.next()) is not None:
                async with play.turn:
                    play.scorer.arrived_s = item.arrived_s if isinstance(item, LiveFrame) else None
                    self._tell(play, await session.take(item))
            self._tell(play, session.finish(Reason.INTERRUPTED if source.queue.was_dropped else None))
        except Exception as error:
            self._log.exception("a stream ended by an error of ours", extra={"stream": session.stream_id})
            self._tell(play, session.finish(error.reason if isinstance(error, UnmaskError) else Reason.INTERNAL))
        finally:
            play.over = True
            source.close()
            self._news.set()

    def _tell(self, play: _Play, events: list[Event]) -> None:
        for event in events:
            play.told += 1
            play.events.append((play.told, event))
            self._count(play, event)
        self._count_frames(play)
        # Without a desk, the oldest news goes: scores before the account of them.
        del play.events[:-_MOST_KEPT]
        if events:
            self._news.set()

    def _count(self, play: _Play, event: Event) -> None:
        if event["event"] == "score" or event.get("reason") in _NOTHING_THERE:
            play.answered_s = time.monotonic()
        if event["event"] != "score":
            return
        self._meter.observe("unmask_frame_to_score_seconds", event["latency_s"], play.via)
        for fill in play.session.window_fill.values():
            self._meter.observe("unmask_window_fill", fill)
        for face in event["faces"]:
            self._meter.observe("unmask_scores", face["window_score"], play.model)

    def _count_frames(self, play: _Play) -> None:
        """Put into the meter by how much the stream's own account has grown."""
        before, play.counted = play.counted, play.session.frames
        now = play.counted
        self._meter.count("unmask_frames_received", play.via, by=now.received - before.received)
        self._meter.count("unmask_frames_scored", play.via, by=now.scored - before.scored)
        for reason, number in now.dropped.items():
            if grown := number - before.dropped.get(reason, 0):
                self._meter.count("unmask_frames_dropped", play.via, reason, by=grown)
        for name, was, counts in (
            ("unmask_window_resets", play.resets, play.session.resets),
            ("unmask_stream_reconnects", play.reconnects, play.session.reconnects),
        ):
            for reason, number in counts.items():
                if grown := number - was.get(reason, 0):
                    self._meter.count(name, reason, by=grown)
                    was[reason] = number

    async def stop(self, stream_id: str) -> None:
        """End a stream, whatever it is doing. Its last events can still be polled."""
        if (play := self._plays.get(stream_id)) is not None:
            play.source.close()

    async def forget(self, stream_id: str, token: str | None = None) -> None:
        """End a stream of which nothing more is to be told; only the play with this token, where one is given."""
        if token in (None, self._wanted.get(stream_id)):
            self._wanted.pop(stream_id, None)
        play = self._plays.get(stream_id)
        if play is not None and token in (None, play.token):
            del self._plays[stream_id]
            play.source.close()

    async def adopt(self, stream_id: str, spec: str, sha256: str) -> None:
        """Let another model judge a stream from now on.

        Raises:
            UnmaskError: The model cannot be had.
        """
        judging = await self._judging(spec, sha256)
        if (play := self._plays.get(stream_id)) is None:
            return
        async with play.turn:
            if not play.over:
                play.model, play.scorer = judging[1].name, judging[2]
                self._tell(play, play.session.adopt(*judging))

    async def push(self, stream_id: str, data: bytes, pts_s: float) -> bool:
        """Push a picture, or a unit of H.264, into a stream without an address. Whether it still runs."""
        play = self._plays.get(stream_id)
        if play is None or play.over or not isinstance(play.source, PushSource):
            return False
        source = play.source
        await asyncio.get_running_loop().run_in_executor(self._pool, source.push, data, pts_s)
        return True

    async def end(self, stream_id: str) -> None:
        """No more pictures will be pushed; those that wait are still scored."""
        if (play := self._plays.get(stream_id)) is not None and isinstance(play.source, PushSource):
            await asyncio.get_running_loop().run_in_executor(self._pool, play.source.end)

    async def pull(self, stream_id: str, after: int, wait_s: float) -> tuple[list[tuple[int, Event]], bool]:
        """The numbered events of one stream after a number, waiting for the first; and whether it is over.

        Raises:
            UsageError: There is no such stream here.
        """
        deadline = time.monotonic() + wait_s
        while True:
            if (play := self._plays.get(stream_id)) is None:
                raise UsageError(f"stream {stream_id} does not run here")
            play.pulled_s = time.monotonic()
            play.events = [pair for pair in play.events if pair[0] > after]
            if play.events or play.over or time.monotonic() >= deadline:
                return list(play.events), play.over
            await self._wait(deadline - time.monotonic())

    async def poll(self, stored: Mapping[str, int], wait_s: float) -> dict[str, Any]:
        """What is new, for the desk.

        Args:
            stored: Up to which number the events of each stream are stored, and not wanted again.
            wait_s: How long to wait for news.

        Returns:
            streams: by id, events (numbered), a snapshot as of the last of them, state, lag_s, fill, over; sockets are
            left out. numbers: what the meter gained. sockets: ids. pid.
        """
        self._asked_s = time.monotonic()
        self._end_unpulled()
        for stream_id, number in stored.items():
            if (play := self._plays.get(stream_id)) is not None:
                play.events = [pair for pair in play.events if pair[0] > number]
        streams = {k: play for k, play in self._plays.items() if play.via == "stream"}
        if not any(play.events for play in streams.values()):
            await self._wait(wait_s)
        self._asked_s = time.monotonic()
        return {
            "pid": os.getpid(),
            "numbers": self._meter.drain(),
            "streams": {k: self._state(p) for k, p in self._plays.items() if p.via == "stream"},
            "sockets": [k for k, p in self._plays.items() if p.via == "socket"],
        }

    def _end_unpulled(self) -> None:
        late_s = time.monotonic() - _UNPULLED_S
        for stream_id, play in list(self._plays.items()):
            if play.via == "socket" and play.pulled_s < late_s:
                self._log.warning("nobody reads a socket's scores: it ends", extra={"stream": stream_id})
                del self._plays[stream_id]
                play.source.close()

    async def playing(self) -> dict[str, Any]:
        """This process's id, and the ids of what plays here."""
        return {"pid": os.getpid(), "streams": list(self._plays)}

    async def _wait(self, wait_s: float) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(wait_s, 0.0))

    def _state(self, play: _Play) -> dict[str, Any]:
        return {
            "token": play.token,
            "events": list(play.events),
            "snapshot": play.session.snapshot(),
            "state": str(play.source.state),
            # Between two frames that are due, nothing is late.
            "lag_s": max(0.0, time.monotonic() - play.answered_s - 1.0 / (play.session.options.fps or math.inf)),
            "fill": max(play.session.window_fill.values(), default=0.0),
            "over": play.over,
        }
