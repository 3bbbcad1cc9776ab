"""The session of one live stream: takes what its source gives, and says what is to be thought of each face.

A frame is looked at once and each face passes the backbone once, by way of a `Scorer`, which may be in this process or
serve many streams elsewhere. All that is concluded goes through the same `Tally` as a file's frames. A session holds
nothing that grows: scores of the last `memory_s` of each track, and tracks that were seen in the last `forget_s`.

Axes: N faces, H rows, W columns, C = 3 channels, D features.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.checkpoints import Description
from unmask.errors import Reason, UsageError
from unmask.faces import crop
from unmask.follow import Follower, follow_with
from unmask.frame_queue import FrameQueue, Gap, LiveFrame, Lost, StateChange, StreamItem, StreamState
from unmask.models import ForgeryModel
from unmask.quality import measured
from unmask.records import ErrorInfo, Faces, Frame, FrameCount, Status, Verdict
from unmask.scoring import ScoringOptions, TrackScores, deciding_track, judge
from unmask.tally import Awaited, Tally, TrackTally, usable_rows
from unmask.tracks import TrackedFrame, Tracker, reason_not_to_look
from unmask.transforms import resize

__all__ = ["Event", "LiveOptions", "LiveSession", "LiveSource", "Scorer", "play", "resume_clock"]

_LOG = logging.getLogger(__name__)

Event: TypeAlias = dict[str, Any]
"""One thing that happened, ready for `json.dumps`: `event` says what, `seq` counts from 0, `at` is Unix time."""

# Frames a second where a source's rate is not known, for the length of the memory only.
_USUAL_FPS = 30.0
_SNAPSHOT = 1
# A scorer that is away fails every frame of every stream; each stream tells of it so often.
_WARN_EVERY_S = 60.0
_LOST = "The process that scored this stream was lost; another one goes on."
_STOPPED = "This stream was stopped on purpose, and goes on."


class Scorer(Protocol):
    """Looks at pictures. It keeps nothing from call to call, so one may serve many streams and batch across them."""

    async def find(self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None) -> Faces:
        """The faces of a frame.

        Args:
            image_HWC: RGB, uint8 (H, W, 3).
            near_N4: Boxes float32 (N, 4) near which faces are expected: one answer each, in their order, as
                `MTCNN.refine` gives them. None: search everywhere, as `MTCNN.search`.
        """
        ...

    async def embed(self, crops_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 (N, D) of crops uint8 (N, H, W, 3), cut and resized as the model's preprocessing says."""
        ...


class LiveSource(Protocol):
    """Anything that fills a queue: `StreamSource`, `PushSource`."""

    queue: FrameQueue

    def start(self) -> None:
        """Begin."""

    def close(self, wait_s: float | None = 0.0) -> bool:
        """End, at any moment."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What a session keeps in mind.

    Raises:
        UsageError: A field is out of its range.
    """

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    """What counts as evidence."""
    fps: float | None = 5.0
    """Frames a second that the source gives; None: all that it has."""
    memory_s: float = 30.0
    """A track's score and verdict speak of its last so many seconds."""
    stale_s: float | None = 0.5
    """Frames older than this when their turn comes are dropped; None: never."""
    forget_s: float = 10.0
    """A track that was not seen for so long ends."""
    account_every_s: float = 10.0
    """The account of the frames is told so often."""
    phase: float = 0.0
    """As of `Follower`: where the first regular search for faces lies, in [0, 1)."""

    def __post_init__(self) -> None:
        numbers = (self.memory_s, self.forget_s, self.account_every_s, self.stale_s or 1.0, self.fps or 1.0)
        if not all(number > 0 and math.isfinite(number) for number in numbers):
            raise UsageError(f"the options of a live session are above 0; got {self}")

    @property
    def memory_frames(self) -> int:
        """How many of a track's scores are kept."""
        return max(1, math.ceil(self.memory_s * (self.fps or _USUAL_FPS)))


def resume_clock(snapshot: Mapping[str, Any]) -> float:
    """At which time a stream goes on now that was last heard of in a snapshot; the `clock_s` of its new source."""
    return float(snapshot["pts_s"]) + max(0.0, time.time() - float(snapshot["at"]))


class LiveSession:
    """What is known of one stream. Feed it every item of the source's queue, in order, one at a time.

    Args:
        model: Its head judges; the backbone is not used and may be missing.
        description: The model's.
        scorer: Looks at the frames.
        stream_id: In every event.
        shown: The source as it may be shown: without passwords.
        options: What to keep in mind.
        resume: What `snapshot` gave in a session that is no more: the account, the events' numbers and the tracks' ids
            go on, and the time between is a gap. Whoever resumes may add the gap's "reason": session_lost where
            there is none, interrupted where the stream was stopped on purpose.

    Raises:
        UsageError: `resume` is of another version.

    Attributes:
        resets: How often a track's window began anew, by reason.
        reconnects: How often the source was connected to again, by reason.
    """

    def __init__(
        self,
        model: ForgeryModel,
        description: Description,
        scorer: Scorer,
        *,
        stream_id: str,
        shown: str,
        options: LiveOptions | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.stream_id, self.shown = options or LiveOptions(), stream_id, shown
        self._model, self._description, self._scorer = model, description, scorer
        self._tally = Tally(model, description, self.options.scoring)
        self.resets: Counter[Reason] = Counter()
        self.reconnects: Counter[Reason] = Counter()
        self._before = FrameCount()
        self._seq, self._last_track, self._pts_s = 0, 0, 0.0
        self._resumed = resume is not None
        self._away = Reason((resume or {}).get("reason") or Reason.SESSION_LOST)
        if resume is not None:
            self._restore(resume)
        self._tracker = Tracker(first_id=self._last_track + 1)
        self._follower = self._new_follower()
        self._seen: dict[int, tuple[int, float]] = {}  # of each track: the frame in which it was scored last, and when
        self._break: tuple[int, Reason] = (0, Reason.INTERRUPTED)
        self._cut = False
        self._failures, self._quiet_until_s = 0, -math.inf
        self._error: ErrorInfo | None = None
        self._accounted_s = time.monotonic()
        self._finished = False

    # --- what it tells ----------------------------------------------------------------------------------------------

    @property
    def frames(self) -> FrameCount:
        """The account of all frames: received = scored + sum of dropped."""
        before, now = self._before, self._tally.frames
        dropped = Counter(before.dropped) + Counter(now.dropped)
        return FrameCount(before.received + now.received, before.scored + now.scored, dict(dropped))

    @property
    def window_fill(self) -> dict[int, float]:
        """For each track the share of its window that is filled, in (0, 1]."""
        length = self._model.config.window
        return {
            track_id: track.scores.window_lengths[-1] / length
            for track_id, track in self._tally.tracks.items()
            if len(track.scores)
        }

    def snapshot(self) -> dict[str, Any]:
        """All that a new process needs to go on: small, and ready for `json.dumps`."""
        return {
            "version": _SNAPSHOT,
            "stream": self.stream_id,
            "at": time.time(),
            "seq": self._seq,
            "pts_s": self._pts_s,
            "last_track": self._last_track,
            "frames": asdict(self.frames),
            "resets": dict(self.resets),
            "reconnects": dict(self.reconnects),
        }

    def _new_follower(self) -> Follower:
        return Follower(None, phase=self.options.phase)

    def _restore(self, snapshot: Mapping[str, Any]) -> None:
        if snapshot.get("version") != _SNAPSHOT:
            raise UsageError(f"a snapshot of version {snapshot.get('version')} cannot be read; start the stream anew")
        counts = snapshot["frames"]
        dropped = {Reason(reason): int(count) for reason, count in counts["dropped"].items()}
        self._before = FrameCount(int(counts["received"]), int(counts["scored"]), dropped)
        self._seq, self._last_track = int(snapshot["seq"]), int(snapshot["last_track"])
        self._pts_s = float(snapshot["pts_s"])
        self.resets = Counter({Reason(reason): int(n) for reason, n in snapshot["resets"].items()})
        self.reconnects = Counter({Reason(reason): int(n) for reason, n in snapshot["reconnects"].items()})

    def _event(self, event: str, **fields: Any) -> Event:
        seq, self._seq = self._seq, self._seq + 1
        return {"event": event, "seq": seq, "stream": self.stream_id, "at": time.time(), **fields}

    def begin(self) -> list[Event]:
        """Say which stream this is, and which model judges it."""
        return [self._event("start", input=self.shown, resumed=self._resumed, **self._judged_by())]

    def _judged_by(self) -> dict[str, Any]:
        description, calibration = self._description, self._description.calibration
        calibrated = description.trained and calibration.fitted
        kind = "calibrated_probability" if calibrated else "uncalibrated_probability"
        return {
            "model": asdict(description.info()),
            "score_kind": kind if description.trained else "untrained",
            "calibrated": calibrated,
            "threshold": calibration.threshold,
            "band": list(calibration.band),
            "window": self._model.config.window,
            "fps": self.options.fps,
        }

    def adopt(self, model: ForgeryModel, description: Description, scorer: Scorer) -> list[Event]:
        """Let another model judge from now on. The stream goes on; windows begin anew."""
        known, self._before = dict(self._seen), self.frames
        events = [self._end_of(track_id) for track_id in list(self._tally.tracks)]
        self._model, self._description, self._scorer = model, description, scorer
        self._tally = Tally(model, description, self.options.scoring)
        self._seen = known
        self._interrupt(Reason.MODEL_CHANGED)
        return [*events, self._event("start", input=self.shown, resumed=True, **self._judged_by())]

    # --- what it takes ----------------------------------------------------------------------------------------------

    async def take(self, item: StreamItem) -> list[Event]:
        """Take the next item of the source's queue.

        Returns:
            What is to be told of it, in order.
        """
        assert not self._finished, "the session is over"
        if isinstance(item, LiveFrame):
            events = await self._look(item)
        elif isinstance(item, Lost):
            events = self._lose(item.pts_s, item.reason, item.count)
        elif isinstance(item, Gap):
            events = self._mark(item)
        else:
            events = [self._changed(item)]
        return [*events, *self._housekeeping()]

    def finish(self, reason: Reason | None = None) -> list[Event]:
        """The end: what became of the faces that are left, and the account. Does nothing the second time.

        Args:
            reason: Why, where the stream did not end by itself.
        """
        if self._finished:
            return []
        self._finished = True
        events = [self._end_of(track_id) for track_id in list(self._tally.tracks)]
        frames = self.frames
        status = Status.SCORED if frames.scored else Status.FAILED if self._error else Status.UNSCORED
        error = self._error or (None if frames.scored else ErrorInfo(*_nothing(frames, self.shown)))
        end = self._event(
            "end", reason=reason, status=status, **self._account(), error=asdict(error) if error is not None else None
        )
        return [*events, end]

    def _account(self) -> dict[str, Any]:
        return {"frames": asdict(self.frames), "resets": dict(self.resets), "reconnects": dict(self.reconnects)}

    def _changed(self, change: StateChange) -> Event:
        if change.state is StreamState.RECONNECTING and change.reason is not None:
            self.reconnects[change.reason] += 1
        if change.state is StreamState.FAILED and change.reason is not None:
            self._error = ErrorInfo(change.reason, change.message or "")
        return self._event("state", **asdict(change))

    def _mark(self, gap: Gap) -> list[Event]:
        """No window goes past a gap, and no face is looked for where it was."""
        self._interrupt(gap.reason)
        self._follower = self._new_follower()
        self._cut = self._cut or gap.reason is Reason.RESOLUTION_CHANGED
        return [self._event("gap", **asdict(gap))]

    def _interrupt(self, reason: Reason) -> None:
        self._tracker.skip()
        self._break = (self._tally.received + self._before.received, reason)

    def _lose(self, pts_s: float, reason: Reason, count: int = 1) -> list[Event]:
        self._tracker.skip(count)
        self._tally.lose(reason, count)
        self._break = (self._tally.received + self._before.received, reason)
        self._pts_s = max(self._pts_s, pts_s)
        return [self._event("dropped", pts_s=pts_s, reason=reason, count=count)]

    async def _look(self, item: LiveFrame) -> list[Event]:
        frame, stale_s = item.frame, self.options.stale_s
        events = self._welcome_back(frame.pts_s)
        if stale_s is not None and time.monotonic() - item.arrived_s > stale_s:
            return events + self._lose(frame.pts_s, Reason.STALE_FRAME)
        height, width, _ = frame.image_HWC.shape
        reason = reason_not_to_look(height, width, is_corrupt=frame.is_corrupt)
        if reason is not None:
            return events + self._lose(frame.pts_s, reason)
        try:
            faces, features_ND = await self._scored_elsewhere(frame)
        except Exception as error:
            self._warn(error)
            self._follower = self._new_follower()
            return events + self._lose(frame.pts_s, Reason.SCORER_FAILED)
        return events + self._conclude(item, faces, features_ND)

    def _warn(self, error: Exception) -> None:
        """Tell of a scorer that failed, where that was not told just now."""
        self._failures += 1
        if time.monotonic() < self._quiet_until_s:
            return
        _LOG.warning("the scorer failed on %d frame(s) of %s", self._failures, self.shown, exc_info=error)
        self._failures, self._quiet_until_s = 0, time.monotonic() + _WARN_EVERY_S

    def _welcome_back(self, pts_s: float) -> list[Event]:
        """The first frame of a stream that is resumed ends a gap that no source can know of."""
        if not self._resumed:
            return []
        self._resumed = False
        message = _LOST if self._away is Reason.SESSION_LOST else _STOPPED
        return self._mark(Gap(self._away, self._pts_s, max(pts_s, self._pts_s), message))

    async def _scored_elsewhere(self, frame: Frame) -> tuple[Faces, NDArray[np.float32]]:
        """The faces of a frame, and the features float32 (N, D) of the usable ones."""
        scorer, preprocessing = self._scorer, self._description.preprocessing
        faces = await follow_with(self._follower, frame.image_HWC, frame.pts_s, scorer.find)
        faces = measured(frame.image_HWC, faces)
        rows = usable_rows(faces, self.options.scoring)
        if not rows:
            return faces, np.zeros((0, self._model.dim), np.float32)
        crops = [
            resize(crop(frame.image_HWC, faces.boxes_N4[row], faces.landmarks_NK2[row], preprocessing), preprocessing)
            for row in rows
        ]
        features_ND = await scorer.embed(np.stack(crops))
        if features_ND.shape != (len(rows), self._model.dim) or not np.isfinite(features_ND).all():
            raise ValueError(f"features are finite, ({len(rows)}, {self._model.dim}); got {features_ND.shape}")
        return faces, features_ND

    # --- what it concludes ------------------------------------------------------------------------------------------

    def _conclude(self, item: LiveFrame, faces: Faces, features_ND: NDArray[np.float32]) -> list[Event]:
        pts_s = item.frame.pts_s
        cut, self._cut = self._cut or self._follower.cut, False
        tracked = self._tracker.track(pts_s, item.frame.index, faces, cut=cut)
        awaited = self._tally.add(tracked)
        self._pts_s = pts_s
        if not awaited:
            reason = tracked.reason or Reason.FACE_TOO_SMALL
            self._break = (self._tally.received + self._before.received, reason)
            return [self._event("dropped", pts_s=pts_s, reason=reason, count=1)]
        try:
            self._tally.score(awaited, torch.from_numpy(features_ND))
        except ValueError as error:  # what the heads make of the features is not finite
            return self._give_up(awaited, pts_s, error)
        for face in awaited:
            self._note(face)
        return [self._score(item, tracked, awaited)]

    def _give_up(self, awaited: list[Awaited], pts_s: float, error: Exception) -> list[Event]:
        self._warn(error)
        self._tally.give_up(awaited, Reason.SCORER_FAILED)
        self._break = (self._tally.received + self._before.received, Reason.SCORER_FAILED)
        return [self._event("dropped", pts_s=pts_s, reason=Reason.SCORER_FAILED, count=1)]

    def _note(self, face: Awaited) -> None:
        """Keep the books of a track that was just scored."""
        number = self._tally.received + self._before.received
        before = self._seen.get(face.track_id)
        if face.after_gap and before is not None:
            at, reason = self._break
            self.resets[reason if at >= before[0] else Reason.NO_FACE] += 1
        self._seen[face.track_id] = (number, face.pts_s)
        self._last_track = max(self._last_track, face.track_id)
        self._tally.tracks[face.track_id].keep_last(self.options.memory_frames)

    def _score(self, item: LiveFrame, tracked: TrackedFrame, awaited: list[Awaited]) -> Event:
        scoring = self.options.scoring
        tracks = [self._tally.tracks[face.track_id] for face in awaited]
        deciding = deciding_track([track.scores for track in tracks], scoring)
        rows = sorted(
            zip(awaited, tracks, strict=True),
            key=lambda pair: (pair[0].track_id != deciding.track_id, -pair[1].scores.score(scoring.aggregation)),
        )
        faces = [self._face(face, track, tracked.faces) for face, track in rows]
        return self._event(
            "score",
            pts_s=item.frame.pts_s,
            latency_s=time.monotonic() - item.arrived_s,
            verdict=faces[0]["verdict"],
            score=faces[0]["score"],
            warnings=faces[0]["warnings"],
            faces=faces,
        )

    def _face(self, face: Awaited, track: TrackTally, faces: Faces) -> dict[str, Any]:
        verdict, warnings = self._verdict(track.scores)
        scores = track.scores
        return {
            "track_id": face.track_id,
            "score": scores.score(self.options.scoring.aggregation),
            "uncertainty": scores.uncertainty(),
            "verdict": verdict,
            "warnings": warnings,
            "frame_score": scores.frame_scores[-1],
            "window_score": scores.window_scores[-1],
            "window_frames": scores.window_lengths[-1],
            "after_gap": face.after_gap,
            "box": [round(float(v), 1) for v in faces.boxes_N4[face.row]],
            "probability": round(float(faces.probabilities_N[face.row]), 4),
            "quality": asdict(face.quality),
        }

    def _verdict(self, scores: TrackScores) -> tuple[Verdict, list[str]]:
        description = self._description
        judgement = judge(
            scores, description.calibration, self.options.scoring, trained=description.trained, damaged=0.0
        )
        return judgement.verdict, list(judgement.reasons)

    def _end_of(self, track_id: int) -> Event:
        track = self._tally.forget(track_id)
        self._seen.pop(track_id, None)
        verdict, warnings = self._verdict(track.scores)
        summary = track.scores.summary(self.options.scoring.aggregation, 1.0 / (self.options.fps or _USUAL_FPS))
        return self._event("track_end", face=asdict(summary), verdict=verdict, warnings=warnings)

    def _housekeeping(self) -> list[Event]:
        gone = [t for t, (_, pts_s) in self._seen.items() if self._pts_s - pts_s > self.options.forget_s]
        events = [self._end_of(track_id) for track_id in gone if track_id in self._tally.tracks]
        for track_id in gone:  # those that no new model has seen, too
            self._seen.pop(track_id, None)
        if time.monotonic() - self._accounted_s >= self.options.account_every_s:
            self._accounted_s = time.monotonic()
            events.append(self._event("account", **self._account()))
        return events


def _nothing(frames: FrameCount, shown: str) -> tuple[Reason, str]:
    """Why nothing was scored."""
    if not frames.received:
        return Reason.NO_FRAMES, f"{shown} gave no frame."
    reason = max(frames.dropped, key=lambda r: frames.dropped[r])
    return reason, f"None of {frames.received} frames of {shown} was scored; the most were dropped as {reason}."


async def play(session: LiveSession, source: LiveSource) -> AsyncIterator[Event]:
    """A stream from its beginning to its end. Closing the source ends it, and so does closing this.

    Yields:
        Its events.
    """
    source.start()
    try:
        for event in session.begin():
            yield event
        while (item := await source.queue.next()) is not None:
            for event in await session.take(item):
                yield event
            await asyncio.sleep(0)  # a scorer in this process never gives way
        for event in session.finish(Reason.INTERRUPTED if source.queue.was_dropped else None):
            yield event
    finally:
        source.close()
