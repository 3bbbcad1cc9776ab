"""The session of a live stream, fed by hand: the account, gaps, windows, failures, moving to another process."""

import asyncio
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from serve.events import StreamEvent
from unmask.checkpoints import Description
from unmask.errors import Reason, UsageError
from unmask.frame_queue import Gap, LiveFrame, Lost, StateChange, StreamState
from unmask.live import Event, LiveOptions, LiveSession, play, resume_clock
from unmask.models import ForgeryModel
from unmask.presets import resolve
from unmask.push import PushSource
from unmask.records import Faces, Frame
from unmask.streams import StreamOptions
from unmask.window import RollingWindow

SIDE = 240
SCHEMA: TypeAdapter[Any] = TypeAdapter(StreamEvent)
# Cut off, and pointing outside.
BROKEN_EXIF = [
    b"Exif\0\0" + rest
    for rest in (
        b"",
        b"II",
        b"II*\0",
        b"II*\0\x08\0\0\0\x05",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\1\0\x12\1\5\0\1\0\0\0\xff\0\0\0",
    )
]


class Drawn:
    """A scorer that reads what is drawn: a frame's first pixels say where its face is, its crops say what they are."""

    def __init__(self, dim: int) -> None:
        self.dim, self.fails, self.found, self.embedded = dim, False, 0, 0

    async def find(self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None) -> Faces:
        if self.fails:
            raise RuntimeError("the scorer is gone")
        self.found += 1
        faces, x, side = image_HWC[0, 0].tolist()
        if not faces:
            return Faces.none()
        box = [x, 40, x + side, 40 + side]
        marks = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]]) * side + [x, 40]
        return Faces(np.array([box], np.float32), np.array([0.99], np.float32), marks[None].astype(np.float32))

    async def embed(self, crops_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.embedded += len(crops_NHWC)
        means_N1 = crops_NHWC.reshape(len(crops_NHWC), -1).mean(1, keepdims=True) / 255
        return (means_N1 * np.linspace(-1, 1, self.dim)).astype(np.float32)


@pytest.fixture(scope="module")
def temporal() -> tuple[ForgeryModel, Description]:
    return resolve("mobilenetv3-small-temporal", pretrained=False)


@pytest.fixture
def session(temporal: tuple[ForgeryModel, Description]) -> LiveSession:
    return new(temporal)


def new(model: tuple[ForgeryModel, Description], **options: Any) -> LiveSession:
    resume = options.pop("resume", None)
    options = {"stale_s": None, **options}  # a test's machine may be slow
    scorer = Drawn(model[0].dim)
    return LiveSession(*model, scorer, stream_id="s1", shown="drawn", options=LiveOptions(**options), resume=resume)


def picture(k: int, *, faces: int = 1, side: int = 100) -> NDArray[np.uint8]:
    """A scene that flickers less than a cut."""
    image = np.random.default_rng(0).integers(0, 200, (SIDE, SIDE, 3), np.uint8) + np.uint8(k % 16)
    image[0, 0] = faces, 60, side
    return image


def frame(k: int, *, age_s: float = 0.0, **drawn: int) -> LiveFrame:
    return LiveFrame(Frame(picture(k, **drawn), k * 0.2, k), time.monotonic() - age_s)


def feed(session: LiveSession, *items: Any) -> list[Event]:
    async def all_of_them() -> list[Event]:
        return [event for item in items for event in await session.take(item)]

    events = asyncio.run(all_of_them())
    counts = session.frames  # checks that received = scored + dropped
    check(events)
    assert counts.received >= counts.scored
    return events


def check(events: list[Event]) -> None:
    """They are what the service's description says: no field is missing, and none is there besides."""
    plain = json.loads(json.dumps(events, allow_nan=False))
    assert plain
    for event in plain:
        SCHEMA.validate_python(event)


def kinds(events: list[Event]) -> list[str]:
    return [event["event"] for event in events]


def test_frames_become_scores_of_one_track_whose_window_fills(session: LiveSession) -> None:
    events = feed(session, *(frame(k) for k in range(20)))
    assert kinds(events) == ["score"] * 20
    assert [event["faces"][0]["window_frames"] for event in events] == [min(k + 1, 16) for k in range(20)]
    assert {event["faces"][0]["track_id"] for event in events} == {1}
    assert [event["faces"][0]["after_gap"] for event in events] == [True] + [False] * 19
    assert events[-1]["pts_s"] == pytest.approx(3.8)
    assert session.window_fill == {1: 1.0}
    assert not session.resets
    first = session.begin()[0]
    assert first["model"]["name"] == "mobilenetv3-small-temporal"
    # It was never trained, and says so.
    assert all(event["verdict"] == "inconclusive" for event in events)


def test_a_frame_is_looked_at_once_and_embedded_once(session: LiveSession) -> None:
    feed(session, *(frame(k) for k in range(30)))
    scorer = session._scorer
    assert isinstance(scorer, Drawn)
    assert (scorer.found, scorer.embedded) == (30, 30)


BREAKS = {
    Reason.STREAM_STALLED: Gap(Reason.STREAM_STALLED, 0.8, 4.0, "It stalled."),
    Reason.RESOLUTION_CHANGED: Gap(Reason.RESOLUTION_CHANGED, 1.0, 1.0, "Other sizes."),
    Reason.QUEUE_FULL: Lost(1.0, Reason.QUEUE_FULL),
    Reason.CORRUPT_FRAME: Lost(1.0, Reason.CORRUPT_FRAME, 3),
    Reason.STALE_FRAME: frame(5, age_s=3600.0),
    Reason.NO_FACE: frame(5, faces=0),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_no_window_goes_past_what_is_missing(temporal: tuple[ForgeryModel, Description], reason: Reason) -> None:
    session = new(temporal, stale_s=600.0)
    feed(session, *(frame(k) for k in range(5)))
    broken = BREAKS[reason]
    events = feed(session, broken, frame(6))
    face = events[-1]["faces"][0]
    assert face["after_gap"]
    assert face["window_frames"] == 1
    dropped = session.frames.dropped
    if isinstance(broken, Gap):
        assert events[0] | {"seq": 0, "at": 0} == {
            "event": "gap", "seq": 0, "stream": "s1", "at": 0, "reason": reason, "start_s": broken.start_s,
            "end_s": broken.end_s, "message": broken.message,
        }  # fmt: skip
        assert not dropped
    else:
        assert kinds(events) == ["dropped", "score"]
        assert dropped == {reason: broken.count if isinstance(broken, Lost) else 1}
    same_track = face["track_id"] == 1
    assert session.resets == ({reason: 1} if same_track else {})


def test_a_face_that_is_too_small_is_no_evidence(session: LiveSession) -> None:
    (event,) = feed(session, frame(0, side=20))
    assert (event["event"], event["reason"]) == ("dropped", Reason.FACE_TOO_SMALL)
    assert session.frames.scored == 0


def test_a_scorer_that_fails_drops_the_frame_and_no_more(session: LiveSession) -> None:
    feed(session, *(frame(k) for k in range(5)))
    session._scorer.fails = True  # type: ignore[attr-defined]
    events = feed(session, frame(5))
    assert [(e["event"], e["reason"]) for e in events] == [("dropped", Reason.SCORER_FAILED)]
    session._scorer.fails = False  # type: ignore[attr-defined]
    events = feed(session, frame(6))
    assert events[0]["faces"][0]["window_frames"] == 1
    assert session.resets == {Reason.SCORER_FAILED: 1}


def test_what_the_heads_make_nothing_of_is_dropped(temporal: tuple[ForgeryModel, Description]) -> None:
    session, model = new(temporal), temporal[0]
    parameter = next(model.head.parameters())
    whole = parameter.detach().clone()
    events = []
    for k, fails in enumerate([True, False, True, False, False]):
        with torch.no_grad():
            parameter.copy_(torch.full_like(whole, torch.nan) if fails else whole)
        events += feed(session, frame(k))
        if k == 0:
            assert not session._tally.tracks  # nothing is known of it
    assert kinds(events) == ["dropped", "score", "dropped", "score", "score"]
    assert {event["reason"] for event in events if event["event"] == "dropped"} == {Reason.SCORER_FAILED}
    assert [e["faces"][0]["window_frames"] for e in events if e["event"] == "score"] == [1, 1, 2]
    counts = session.frames
    assert (counts.received, counts.scored, counts.dropped) == (5, 3, {Reason.SCORER_FAILED: 2})
    assert session.resets == {Reason.SCORER_FAILED: 1}
    assert session.finish()[-1]["status"] == "scored"


def test_many_losses_cost_no_more_than_one(session: LiveSession) -> None:
    feed(session, frame(0))
    began_s = time.monotonic()
    (event,) = feed(session, Lost(0.2, Reason.DECODE_FAILED, 10**9))
    assert time.monotonic() - began_s < 1.0
    assert event["count"] == session.frames.dropped[Reason.DECODE_FAILED] == 10**9
    (event,) = feed(session, frame(2))
    assert event["faces"][0]["after_gap"]


def test_a_scorer_that_is_away_is_told_of_now_and_then(session: LiveSession, caplog: pytest.LogCaptureFixture) -> None:
    session._scorer.fails = True  # type: ignore[attr-defined]
    feed(session, *(frame(k) for k in range(20)))
    assert len(caplog.records) == 1
    session._quiet_until_s = 0.0
    feed(session, frame(20))
    assert "20 frame(s)" in caplog.records[-1].message


def test_windows_hold_the_moments_of_their_features(temporal: tuple[ForgeryModel, Description]) -> None:
    """Against windows that are recomputed from the crops by hand."""
    session, model = new(temporal), temporal[0]
    features: list[NDArray[np.float32]] = []
    embed = session._scorer.embed

    async def noted(crops_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        features.append((await embed(crops_NHWC))[0])
        return features[-1][None]

    session._scorer.embed = noted  # type: ignore[method-assign]
    feed(session, *(frame(k) for k in range(10)), Lost(2.0, Reason.QUEUE_FULL), *(frame(k) for k in range(11, 31)))
    window = session._tally.tracks[1]._features
    assert isinstance(window, RollingWindow)
    kept = window.to_arrays()["features_TD"]
    assert np.array_equal(kept, np.stack(features[-model.config.window :]))


def test_a_stream_goes_on_in_another_process(temporal: tuple[ForgeryModel, Description]) -> None:
    first = new(temporal)
    told = first.begin() + feed(first, *(frame(k) for k in range(8)), Lost(1.6, Reason.CORRUPT_FRAME, 2))
    snapshot = json.loads(json.dumps(first.snapshot()))
    assert len(json.dumps(snapshot)) < 4096
    snapshot["at"] -= 3.0
    assert resume_clock(snapshot) == pytest.approx(1.6 + 3.0, abs=0.5)
    second = new(temporal, resume=snapshot)
    told += second.begin() + feed(second, StateChange(StreamState.LIVE), *(frame(k) for k in range(25, 30)))
    assert [event["seq"] for event in told] == list(range(len(told)))
    (gap,) = [event for event in told if event["event"] == "gap"]
    assert (gap["reason"], gap["start_s"], gap["end_s"]) == (Reason.SESSION_LOST, pytest.approx(1.6), 5.0)
    assert second.frames.received == 15
    assert second.frames.scored == 13
    assert second.frames.dropped == {Reason.CORRUPT_FRAME: 2}
    assert told[-1]["faces"][0]["track_id"] == 2
    assert told[-1]["faces"][0]["window_frames"] == 5
    with pytest.raises(UsageError, match="version"):
        new(temporal, resume={**snapshot, "version": 99})


def test_a_stream_that_was_stopped_on_purpose_says_so(temporal: tuple[ForgeryModel, Description]) -> None:
    first = new(temporal)
    feed(first, frame(0))
    resume = {**first.snapshot(), "reason": "interrupted"}
    gap, _ = feed(new(temporal, resume=resume), frame(9))
    assert (gap["event"], gap["reason"]) == ("gap", Reason.INTERRUPTED)
    assert "lost" not in gap["message"]


def test_another_model_takes_over_without_a_loss(temporal: tuple[ForgeryModel, Description]) -> None:
    session = new(temporal)
    feed(session, *(frame(k) for k in range(8)))
    frames_model = resolve("mobilenetv3-small", pretrained=False)
    events = session.adopt(*frames_model, Drawn(frames_model[0].dim))
    assert kinds(events) == ["track_end", "start"]
    assert events[1]["model"]["name"] == "mobilenetv3-small"
    events = feed(session, *(frame(k) for k in range(8, 12)))
    assert [event["faces"][0]["window_frames"] for event in events] == [1, 2, 3, 4]
    assert session.frames.scored == 12
    assert session.resets == {Reason.MODEL_CHANGED: 1}


def test_a_track_that_no_new_model_sees_is_forgotten(temporal: tuple[ForgeryModel, Description]) -> None:
    session = new(temporal, forget_s=2.0)
    feed(session, *(frame(k) for k in range(8)))
    session.adopt(*temporal, Drawn(temporal[0].dim))
    feed(session, *(frame(k, faces=0) for k in range(8, 40)))
    assert not session._seen
    assert not session.resets


def test_nothing_grows(temporal: tuple[ForgeryModel, Description]) -> None:
    """Faces come and go for a long time; what is kept depends on the memory alone."""
    session = new(temporal, memory_s=2.0, forget_s=2.0, stale_s=None)

    def visits() -> Iterator[Any]:
        for k in range(600):
            yield frame(k, faces=int(k % 30 < 15))

    events = feed(session, *visits())
    assert sum(event["event"] == "track_end" for event in events) >= 18
    assert len(session._tally.tracks) <= 1
    assert len(session._seen) <= 1
    assert all(len(track.scores) <= 10 for track in session._tally.tracks.values())
    assert session.frames.received == 600


def test_the_end_tells_the_account_once(session: LiveSession) -> None:
    feed(session, *(frame(k) for k in range(5)), Lost(1.0, Reason.INTERRUPTED, 4))
    events = session.finish(Reason.INTERRUPTED)
    check(session.begin() + events)
    assert kinds(events) == ["track_end", "end"]
    end = events[-1]
    assert end["frames"] == {"received": 9, "scored": 5, "dropped": {Reason.INTERRUPTED: 4}}
    assert (end["status"], end["reason"], end["error"]) == ("scored", "interrupted", None)
    assert session.finish() == []


def test_a_stream_that_failed_says_why(session: LiveSession) -> None:
    feed(session, StateChange(StreamState.FAILED, Reason.STREAM_AUTH_FAILED, "Check the password."))
    end = session.finish()[-1]
    check([end])
    assert (end["status"], end["error"]) == (
        "failed", {"code": Reason.STREAM_AUTH_FAILED, "message": "Check the password."},
    )  # fmt: skip


def test_pictures_whose_metadata_are_damaged_are_unreadable() -> None:
    image = Image.fromarray(picture(0))
    source = PushSource(StreamOptions(fps=None, queue_frames=100))
    for k, metadata in enumerate(BROKEN_EXIF):
        data = io.BytesIO()
        image.save(data, "JPEG", exif=metadata)
        source.push_jpeg(data.getvalue(), float(k))
    source.end()
    items = list(iter(source.queue.get, None))
    lost = [item for item in items if isinstance(item, Lost)]
    assert {item.reason for item in lost} == {Reason.MEDIA_UNREADABLE}
    assert sum(item.count for item in lost) + sum(isinstance(item, LiveFrame) for item in items) == len(BROKEN_EXIF)


def test_frames_that_are_pushed(session: LiveSession) -> None:
    import cv2

    source = PushSource(StreamOptions(fps=None, queue_frames=100))
    jpeg = cv2.imencode(".jpg", np.full((SIDE, SIDE, 3), 7, np.uint8))[1].tobytes()

    async def watched() -> list[Event]:
        events = []
        async for event in play(session, source):
            events.append(event)
            if event["event"] == "state" and event["state"] == "connecting":
                assert [source.push_rgb(picture(k), k * 0.04) for k in range(5)] == [True] * 5
                assert source.push_jpeg(jpeg, 0.2)
                assert not source.push_jpeg(jpeg[:60], 0.24)
                assert not source.push_jpeg(b"\xff\xd8 no picture", 0.28)
                assert not source.push_rgb(picture(9), 0.1)
                assert not source.push_rgb(picture(9), float("nan"))
                source.end()
                assert not source.push_rgb(picture(9), 9.0)
        return events

    end = asyncio.run(watched())[-1]
    assert end["frames"]["received"] == 10, end
    dropped = end["frames"]["dropped"]
    assert dropped[Reason.MEDIA_UNREADABLE] == 2
    assert dropped[Reason.OUT_OF_ORDER] == 2
    assert end["frames"]["scored"] == 5, end
