"""Live sources against a real RTSP camera and a real web server, with everything that goes wrong on real networks."""

import io
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from tests.clips import ENCODINGS
from tests.rtsp_server import Camera, certificate, filming
from tests.watcher import SLACK_S, Watcher, watching
from tests.webserver import serving
from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason, UsageError
from unmask.flow import Picture
from unmask.frame_queue import Gap, LiveFrame, Lost, StateChange, StreamState
from unmask.plan import Sampling
from unmask.streams import StreamOptions, StreamSource
from unmask.video import VideoReader

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.clip(tmp_path_factory.mktemp("camera") / "clip", BY_NAME["h264-mp4"], frames=50, width=320, height=240)


@pytest.fixture
def camera(clip: Path) -> Iterator[Camera]:
    with filming(clip) as camera:
        yield camera


def check_time(watcher: Watcher) -> None:
    """Time only rises, and every gap ends where a frame begins."""
    times_s = [frame.frame.pts_s for frame in watcher.frames]
    assert all(a < b for a, b in itertools.pairwise(times_s))
    indices = [frame.frame.index for frame in watcher.frames]
    assert all(a < b for a, b in itertools.pairwise(indices))
    assert all(0 <= gap.start_s <= gap.end_s for gap in watcher.gaps)
    # Each index that is missing was lost for a reason.
    assert len(watcher.frames) + watcher.lost.total() == max(indices) + 1


def test_frames_come_at_the_rate_that_was_asked_for(camera: Camera) -> None:
    with watching(camera.url()) as watcher:
        watcher.until(lambda i: isinstance(i, LiveFrame) and i.frame.pts_s > 2.9)
    steps_s = np.diff([frame.frame.pts_s for frame in watcher.frames])
    assert steps_s == pytest.approx(0.2, abs=0.041)
    assert not watcher.gaps
    check_time(watcher)
    media = next(i.media for _, i in watcher.items if isinstance(i, StateChange) and i.state is StreamState.LIVE)
    assert media is not None
    assert (media["width"], media["height"], media["codec"]) == (320, 240, "h264")


@pytest.mark.parametrize("name", ["h264-mp4", "h264-mp4-no-b"])
def test_a_camera_gives_the_pictures_of_its_clip_from_the_first_on(tmp_path: Path, name: str) -> None:
    path = clips.clip(tmp_path / "clip", BY_NAME[name], frames=25, width=320, height=240)
    with VideoReader(path) as reader:
        sent = list(reader.frames(Sampling(every=1)))
    with filming(path) as camera, watching(camera.url(), fps=None, queue_frames=1000) as watcher:
        watcher.until(lambda i: isinstance(i, LiveFrame) and i.frame.pts_s > 0.9)
    shown = [frame.frame for frame in watcher.frames]
    for live, frame in zip(shown, sent[: len(shown)], strict=False):
        assert live.pts_s == pytest.approx(frame.pts_s, abs=1e-3)
        assert np.array_equal(live.image_HWC, frame.image_HWC)  # type: ignore[union-attr]
    assert len(shown) >= 23


def test_a_stall_is_noticed_and_mended(camera: Camera) -> None:
    with watching(camera.url()) as watcher:
        watcher.frame()
        camera.stalled, began_s, after = True, time.monotonic(), len(watcher.items)
        stalled_s = watcher.state(StreamState.STALLED, Reason.STREAM_STALLED, after=after)
        assert 1.8 < stalled_s - began_s < 2.5 + SLACK_S
        camera.stalled, back_s, after = False, time.monotonic(), len(watcher.items)
        assert watcher.frame(after=after) - back_s < 3.0 + SLACK_S
    (gap,) = watcher.gaps
    assert gap.reason is Reason.STREAM_STALLED
    assert gap.end_s - gap.start_s > 1.8
    check_time(watcher)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ends_is_made_again(camera: Camera, reset: bool) -> None:
    with watching(camera.url()) as watcher:
        watcher.frame()
        after, began_s = len(watcher.items), time.monotonic()
        camera.drop(reset=reset)
        watcher.state(StreamState.RECONNECTING, Reason.STREAM_DISCONNECTED, after=after)
        watcher.state(StreamState.LIVE, after=after)
        watcher.frame(after=len(watcher.items))
        assert time.monotonic() - began_s < 3.0 + SLACK_S
    (gap,) = watcher.gaps
    assert gap.reason is Reason.STREAM_DISCONNECTED
    assert watcher.source.reconnects == {Reason.STREAM_DISCONNECTED: 1}  # type: ignore[attr-defined]
    check_time(watcher)


def test_a_camera_that_is_unplugged_and_plugged_in_again(camera: Camera) -> None:
    with watching(camera.url()) as watcher:
        watcher.frame()
        camera.unplug()
        watcher.state(StreamState.RECONNECTING, Reason.STREAM_UNREACHABLE)
        camera.plug_in()
        back_s, after = time.monotonic(), len(watcher.items)
        assert watcher.frame(after=after) - back_s < 3.0 + SLACK_S
    (gap,) = watcher.gaps
    assert gap.reason is Reason.STREAM_DISCONNECTED  # what it began with
    check_time(watcher)


def test_another_resolution_is_a_gap_and_no_end(camera: Camera, tmp_path: Path) -> None:
    large = clips.clip(tmp_path / "large", BY_NAME["h264-mp4"], frames=50, width=640, height=360)
    with watching(camera.url()) as watcher:
        watcher.frame()
        camera.show(large)
        watcher.until(lambda i: isinstance(i, LiveFrame) and i.frame.image_HWC.shape == (360, 640, 3))
    assert [gap.reason for gap in watcher.gaps] == [Reason.RESOLUTION_CHANGED]
    assert "320x240 to 640x360" in watcher.gaps[0].message
    assert camera.connections == 1
    check_time(watcher)


def test_lost_packets_damage_pictures_and_damage_is_seen(camera: Camera, clip: Path) -> None:
    """No picture passes for whole that is not what was sent."""
    camera.loss = 0.02
    with VideoReader(clip) as reader:
        sent = {frame.image_HWC.tobytes() for frame in reader.frames(Sampling(every=1))}  # type: ignore[union-attr]
    with watching(camera.url(), transport="udp", fps=None, queue_frames=1000) as watcher:
        watcher.until(lambda i: isinstance(i, LiveFrame) and i.frame.pts_s > 6)
    assert camera.lost > 0
    assert watcher.lost[Reason.CORRUPT_FRAME] > 0
    assert len(watcher.frames) > 30
    wrong = [frame.frame.pts_s for frame in watcher.frames if frame.frame.image_HWC.tobytes() not in sent]
    assert not wrong
    assert camera.connections == 1


REFUSALS = [
    (Reason.STREAM_AUTH_FAILED, {"password": "me:guess"}),
    (Reason.STREAM_NOT_FOUND, {"path": "/elsewhere", "password": "me:secret"}),
]


@pytest.mark.parametrize(("reason", "where"), REFUSALS, ids=[str(reason) for reason, _ in REFUSALS])
def test_refusals_are_named_and_not_repeated_soon(clip: Path, reason: Reason, where: dict[str, str]) -> None:
    with filming(clip, password="me:secret") as camera:
        with watching(camera.url(**where)) as watcher:
            watcher.state(StreamState.RECONNECTING, reason)
        change = next(i for _, i in watcher.items if isinstance(i, StateChange) and i.reason)
        assert change.retry_in_s == 30.0
        with watching(camera.url(**where), retry="established") as watcher:
            watcher.state(StreamState.FAILED, reason)
            watcher.finish()
        told = repr(watcher.items) + repr(watcher.source)
        assert "guess" not in told
        assert "secret" not in told


def test_a_wrong_certificate_is_refused_and_a_trusted_one_taken(clip: Path, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with filming(clip, tls=pair) as camera:
        with watching(camera.url()) as watcher:
            watcher.state(StreamState.RECONNECTING, Reason.STREAM_TLS_CERTIFICATE)
        with watching(camera.url().replace("127.0.0.1", "localhost"), ca_file=pair[0]) as watcher:
            watcher.state(StreamState.RECONNECTING, Reason.STREAM_TLS_CERTIFICATE)
        with watching(camera.url(), ca_file=pair[0]) as watcher:
            watcher.frame()


def test_a_source_that_never_answers_times_out(camera: Camera) -> None:
    camera.silent = True
    with watching(camera.url(), open_timeout_s=1.0) as watcher:
        watcher.state(StreamState.RECONNECTING, Reason.STREAM_TIMEOUT)
        camera.silent = False
        camera.drop()


def test_it_is_closed_at_once_while_it_connects(camera: Camera) -> None:
    camera.silent = True
    source = StreamSource(camera.url(), StreamOptions(open_timeout_s=2.0))
    source.start()
    deadline_s = time.monotonic() + 10
    while not camera.connections and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    began_s = time.monotonic()
    source.close()
    assert time.monotonic() - began_s < 0.3
    items = list(iter(source.queue.get, None))
    assert not any(isinstance(item, LiveFrame) for item in items)
    assert source.close(2.0 + 5 * SLACK_S)


def test_private_addresses_are_refused_where_the_policy_says_so(camera: Camera) -> None:
    with watching(camera.url(), policy=AddressPolicy(allow_private=False)) as watcher:
        watcher.state(StreamState.RECONNECTING, Reason.ADDRESS_REFUSED)
    assert camera.connections == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Here(AddressPolicy):
    """Allows this machine, as another policy would a public address, and no other."""

    allow_private: bool = False

    def check(self, url: str) -> str | None:
        return "127.0.0.1" if "127.0.0.1" in url else AddressPolicy(allow_private=False).check(url)


@pytest.mark.parametrize("status", ["302 Moved", "301 Moved", "305 Use Proxy", "0302 Moved"])
def test_a_camera_that_redirects_leads_nowhere(camera: Camera, status: str) -> None:
    with socket.create_server(("127.0.0.2", 0)) as inner:
        camera.status = f"{status}\r\nLocation: rtsp://127.0.0.2:{inner.getsockname()[1]}/cam"
        with watching(camera.url(), policy=Here()) as watcher:
            watcher.state(StreamState.RECONNECTING, Reason.ADDRESS_REFUSED)
        inner.setblocking(False)
        with pytest.raises(BlockingIOError):
            inner.accept()


def test_refusals_and_stalls_are_told_by_way_of_the_relay_too(clip: Path) -> None:
    with filming(clip, password="me:secret") as camera:
        for reason, where in REFUSALS:
            with watching(camera.url(**where), policy=Here()) as watcher:
                watcher.state(StreamState.RECONNECTING, reason)
        with watching(camera.url(password="me:secret"), policy=Here(), transport="udp") as watcher:
            watcher.frame()
            camera.stalled, after = True, len(watcher.items)
            watcher.state(StreamState.STALLED, Reason.STREAM_STALLED, after=after)
            camera.stalled, after = False, len(watcher.items)
            watcher.frame(after=after)
        check_time(watcher)
    assert not any(thread.name == "unmask-relay" for thread in threading.enumerate())


def test_certificates_are_verified_by_the_relay_too(clip: Path, tmp_path: Path) -> None:
    pair, other = certificate(tmp_path), certificate(tmp_path, "10.1.2.3")
    with filming(clip, tls=pair) as camera:
        for trusted in (None, other[0]):
            with watching(camera.url(), policy=Here(), ca_file=trusted) as watcher:
                watcher.state(StreamState.RECONNECTING, Reason.STREAM_TLS_CERTIFICATE)
        with watching(camera.url(), policy=Here(), ca_file=pair[0]) as watcher:
            watcher.frame()
    with filming(clip, tls=other) as camera, watching(camera.url(), policy=Here(), ca_file=other[0]) as watcher:
        watcher.state(StreamState.RECONNECTING, Reason.STREAM_TLS_CERTIFICATE)


@pytest.mark.parametrize("url", ["{}127.0.0.1:99999/x", "{}[::1/x", "{}:0/x", "{}/x", "{}ss/w@cam:5/x"])
@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http"])
def test_urls_that_cannot_be_read_are_refused_without_their_password(scheme: str, url: str) -> None:
    with pytest.raises(UsageError, match="host and port") as caught:
        StreamSource(url.format(f"{scheme}://ann:hunter2@" if "@" not in url else f"{scheme}://ann:hunter2"))
    assert "hunter2" not in str(caught.value)


def test_a_fault_of_ours_is_told_without_what_it_quotes(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    password = "hunter2"

    def broken(_: av.VideoFrame) -> None:
        raise ValueError(f"rtsp://ann:{password}@cam/1 is no picture")

    source = StreamSource(str(clip))
    source._to_rgb = broken  # type: ignore[assignment]
    with Watcher(source) as watcher:
        watcher.state(StreamState.FAILED, Reason.INTERNAL)
    assert "ValueError" in caplog.text
    assert "in broken" in caplog.text  # where it was
    assert password not in caplog.text + repr(watcher.items)


def test_no_more_frames_are_lost_than_there_was_time_for() -> None:
    """A clock that jumps ahead by months has lost no months of frames."""
    source, picture = StreamSource("rtsp://127.0.0.1/cam"), av.VideoFrame(32, 32, "rgb24")
    source._take(Picture(picture, 0.0, False, 0))
    source._take(Picture(picture, 1.0, False, 3))
    source._take(Picture(picture, 1e7, False, 50_000_000))
    items = list(itertools.islice(iter(source.queue.get, None), 6))
    assert [item.count for item in items if isinstance(item, Lost)] == [3, 1]
    source.close()


def transport_stream(*starts_s: float) -> bytes:
    """A second of pictures from each time on, one after the other."""
    parts = []
    for start_s in starts_s:
        data = io.BytesIO()
        with av.open(data, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25, options={"g": "5", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for k in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), k, np.uint8))
                frame.pts, frame.time_base = round(start_s * 25) + k, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(data.getvalue())
    return b"".join(parts)


@pytest.mark.parametrize("over", ["http", "file"])
def test_a_clock_that_goes_back_is_a_gap_and_no_end(tmp_path: Path, over: str) -> None:
    path = tmp_path / "back.ts"
    path.write_bytes(transport_stream(1000, 960))
    with serving({"/back.ts": path.read_bytes()}) as url:
        address = f"{url}/back.ts" if over == "http" else str(path)
        with watching(address) as watcher:
            watcher.until(lambda i: isinstance(i, Gap))
            watcher.frame(after=len(watcher.items))
    assert watcher.gaps[0].reason is Reason.OUT_OF_ORDER
    check_time(watcher)


def test_a_file_is_played_at_its_own_pace(clip: Path) -> None:
    began_s = time.monotonic()
    with watching(str(clip)) as watcher:
        watcher.finish()
    assert 1.7 < time.monotonic() - began_s < 6.0
    assert [frame.frame.pts_s for frame in watcher.frames] == pytest.approx(np.arange(10) * 0.2)
    assert isinstance(watcher.items[-1][1], StateChange)
    assert watcher.source.state is StreamState.ENDED  # type: ignore[attr-defined]


def test_a_file_played_without_losses_shows_what_is_in_it(clip: Path) -> None:
    with watching(str(clip), fps=None, speed=1000.0, lossless=True, queue_frames=2) as watcher:
        watcher.finish()
    with VideoReader(clip) as reader:
        expected = list(reader.frames(Sampling(every=1)))
    assert len(watcher.frames) == len(expected) == 50
    for live, frame in zip(watcher.frames, expected, strict=True):
        assert live.frame.pts_s == pytest.approx(frame.pts_s)
        assert np.array_equal(live.frame.image_HWC, frame.image_HWC)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["h264-mp4-long-gop", "hevc-mkv-closed-gop", "h264-ts", "vp9-webm"])
def test_what_is_not_decoded_changes_no_picture(tmp_path: Path, name: str) -> None:
    path = clips.clip(tmp_path / "clip", BY_NAME[name], frames=60)
    with VideoReader(path) as reader:
        every = {round(f.pts_s, 3): f.image_HWC for f in reader.frames(Sampling(every=1))}  # type: ignore[union-attr]
    with watching(str(path), speed=1000.0, lossless=True) as watcher:
        watcher.finish()
    assert len(watcher.frames) == pytest.approx(12, abs=1)
    for live in watcher.frames:
        assert np.array_equal(live.frame.image_HWC, every[round(live.frame.pts_s, 3)])


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(MediaError, match="does not exist"):
        StreamSource("/nowhere.mp4")


# --- for weeks ------------------------------------------------------------------------------------------------------


def resources() -> tuple[int, int, int]:
    """Threads, open files, and resident KiB of this process."""
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    return threading.active_count(), len(os.listdir("/proc/self/fd")), resident  # noqa: PTH208


@pytest.mark.slow
def test_five_hundred_reconnections_leave_nothing_behind(camera: Camera) -> None:
    options = StreamOptions(first_retry_s=0.001, last_retry_s=0.002)
    with Watcher(StreamSource(camera.url(), options)) as watcher:
        before = (0, 0, 0)
        for n in range(500):
            after = len(watcher.items)
            watcher.frame(after=after)
            camera.drop(reset=n % 2 == 1)
            watcher.state(StreamState.RECONNECTING, after=after)
            if n == 100:
                before = resources()
            del watcher.items[:-50]  # pictures, which would be taken for a leak
        now = resources()
    assert watcher.source.reconnects.total() >= 500  # type: ignore[attr-defined]
    assert abs(now[0] - before[0]) <= 2
    assert abs(now[1] - before[1]) <= 4
    print("threads, files, KiB:", before, now)
    assert now[2] - before[2] < 16 * 1024


def test_sources_that_were_closed_leave_nothing_behind(camera: Camera) -> None:
    def once() -> None:
        with watching(camera.url()) as watcher:
            watcher.frame()

    once()
    deadline_s = time.monotonic() + 10
    before = resources()
    for _ in range(5):
        once()
    while resources()[:2] > before[:2] and time.monotonic() < deadline_s:
        threading.Event().wait(0.05)
    assert resources()[0] <= before[0]
    assert resources()[1] <= before[1]


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with watching(f"rtsp://me:secret@127.0.0.1:{port}/cam") as watcher:
        watcher.state(StreamState.RECONNECTING, Reason.STREAM_UNREACHABLE)
    assert "secret" not in repr(watcher.items)
