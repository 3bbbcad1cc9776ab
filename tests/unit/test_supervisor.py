"""Decoding in a child that may crash, hang or be killed: the same pictures as in process, or the video's own reason."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import supervisor
from pipelines.supervisor import Batch, Cut, Decoder, cut_targets
from tests import clips
from unmask.errors import MediaError, Reason, UnmaskError, UsageError
from unmask.plan import Sampling
from unmask.planes import PlaneHeader, Planes, picture_bytes
from unmask.video import Missing, VideoReader

ROOT = Path(__file__).resolve().parents[2]
H264, BY_NAME = clips.ENCODINGS[0], {encoding.name: encoding for encoding in clips.ENCODINGS}
PICTURE = 64 * 48 * 3 // 2
ALL = Sampling()

Kept = Missing | tuple[PlaneHeader, bytes]


def kept(item: Planes | Missing) -> Kept:
    return item if isinstance(item, Missing) else (item.header(), item.data_B.tobytes())


def in_process(path: Path, sampling: Sampling) -> list[Kept]:
    with VideoReader(path) as reader:
        return [kept(item) for item in reader.planes(sampling)]


def through(decoder: Decoder, path: Path, sampling: Sampling, skip: Container[tuple[int, int]] = ()) -> dict[int, Kept]:
    """Answers by the numbers of their targets."""
    answers: dict[int, Kept] = {}
    for batch in decoder.batches(decoder.open(path, sampling), skip):
        answers |= answers_of(batch)
    return answers


def answers_of(batch: Batch) -> dict[int, Kept]:
    numbers = range(batch.cut.start, batch.cut.stop)
    return dict(zip(numbers, map(kept, batch.items), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return clips.clip(folder / "clip", H264, frames=60)


@pytest.fixture(scope="module")
def damaged(clip: Path) -> Path:
    return clips.flipped(clip, clip.with_name("damaged.mp4"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoder]:
    """One child for the tests that do not kill it. Its batches hold seven small pictures."""
    with Decoder(max_batch_bytes=7 * PICTURE) as decoder:
        yield decoder


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder(max_batch_bytes=7 * PICTURE) as decoder:
        yield decoder


class TestSameAnswers:
    SAMPLINGS = (ALL, Sampling(frames=9), Sampling(rate_fps=3.0), Sampling(times_s=(-1.0, 0.3, 0.31, 0.9, 99.0)))

    def check(self, decoder: Decoder, path: Path) -> None:
        for sampling in self.SAMPLINGS:
            expected = in_process(path, sampling)
            opened = decoder.open(path, sampling)
            with VideoReader(path) as reader:
                assert opened.info == reader.info
                positions_T, times_s_T = reader.targets(sampling)
            assert np.array_equal(opened.positions_T, positions_T)
            assert np.array_equal(opened.times_s_T, times_s_T)
            assert [a for _, a in sorted(through(decoder, path, sampling).items())] == expected
        assert decoder.attempts == 1

    @pytest.mark.parametrize(
        "name",
        "h264-mp4 h264-avi h264-ts h264-mov-444 h264-mkv-10-bit h264-mkv-interlaced hevc-mp4-open-gop vp9-webm "
        "png-mov-alpha".split(),
    )
    def test_of_every_kind(self, name: str, shared: Decoder, tmp_path: Path) -> None:
        self.check(shared, clips.clip(tmp_path / "clip", BY_NAME[name]))

    def test_of_a_damaged_video(self, shared: Decoder, damaged: Path) -> None:
        self.check(shared, damaged)

    def test_of_a_video_cut_short(self, shared: Decoder, clip: Path, tmp_path: Path) -> None:
        front = clips.remuxed(clip, tmp_path / "front.mp4", {"movflags": "faststart"})
        self.check(shared, clips.cut(front, tmp_path / "cut.mp4", 0.6))

    def test_of_a_turned_video(self, shared: Decoder, tmp_path: Path) -> None:
        self.check(shared, clips.turned(tmp_path / "turned", 90, mirrored=True))

    def test_of_a_variable_rate(self, shared: Decoder, tmp_path: Path) -> None:
        self.check(shared, clips.clip(tmp_path / "clip", H264, pts=lambda i: i * i // 3 + i))

    def test_of_larger_pictures_than_before(self, shared: Decoder, tmp_path: Path) -> None:
        before = shared.pid
        self.check(shared, clips.clip(tmp_path / "clip", H264, frames=8, width=640, height=360))
        assert shared.pid == before

    def test_one_picture_across_batches(self, shared: Decoder, clip: Path) -> None:
        sampling = Sampling(times_s=(0.1,) * 10 + (0.5,) * 30)
        assert list(through(shared, clip, sampling).values()) == in_process(clip, sampling)

    def test_where_memory_files_are_unknown(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        with Decoder() as decoder:
            assert list(through(decoder, clip, ALL).values()) == in_process(clip, ALL)


class TestCuts:
    @given(st.integers(0, 300), st.integers(0, 5000), st.integers(1, 40), st.integers(1, 20_000))
    def test_they_cover_everything_once_and_keep_the_limits(
        self, targets: int, size: int, unit: int, limit: int
    ) -> None:
        cuts = cut_targets(targets, size, unit_targets=unit, max_batch_bytes=limit)
        assert [n for cut in cuts for n in range(cut.start, cut.stop)] == list(range(targets))
        for cut in cuts:
            length = cut.stop - cut.start
            assert cut.start // unit == (cut.stop - 1) // unit == cut.unit
            assert length == 1 or length * size <= limit
            peers = [c.stop - c.start for c in cuts if c.unit == cut.unit]
            assert max(peers) - min(peers) <= 1
            assert cut.batches == len(peers)
            assert cut.units == -(-targets // unit)

    def test_an_example(self) -> None:
        assert cut_targets(35, 10, unit_targets=32, max_batch_bytes=170) == (
            Cut(0, 2, 0, 2, 0, 16),
            Cut(0, 2, 1, 2, 16, 32),
            Cut(1, 2, 0, 1, 32, 35),
        )

    def test_batches_are_the_cuts(self, shared: Decoder, clip: Path) -> None:
        opened = shared.open(clip, ALL)
        assert opened.cuts == cut_targets(60, PICTURE, unit_targets=32, max_batch_bytes=7 * PICTURE)
        assert len(opened.cuts) == 5 + 4
        assert picture_bytes(opened.info) == PICTURE
        for cut, batch in zip(opened.cuts, shared.batches(opened), strict=True):
            assert batch.cut == cut
            assert batch.buffer.nbytes == (cut.stop - cut.start) * PICTURE
            assert batch.buffer.readonly
            planes = [item for item in batch.items if isinstance(item, Planes)]
            again = Planes.unpack([p.header() for p in planes], bytes(batch.buffer))
            assert [kept(p) for p in planes] == [kept(p) for p in again]

    @pytest.mark.parametrize("name", ["clip", "damaged"])
    def test_what_is_there_already_is_left_out(
        self, name: str, shared: Decoder, request: pytest.FixtureRequest
    ) -> None:
        path: Path = request.getfixturevalue(name)
        expected = dict(enumerate(in_process(path, ALL)))
        cuts = shared.open(path, ALL).cuts
        for wanted in (cuts[4:], cuts[2:5] + cuts[7:8], cuts[-1:], cuts[:1], ()):
            skip = {(cut.unit, cut.batch) for cut in cuts if cut not in wanted}
            numbers = {n for cut in wanted for n in range(cut.start, cut.stop)}
            assert through(shared, path, ALL, skip) == {n: expected[n] for n in numbers}


class TestErrors:
    def test_are_those_of_the_reader_and_harm_nobody(self, shared: Decoder, clip: Path, tmp_path: Path) -> None:
        before = shared.open(clip, ALL) and shared.pid
        bad = [
            clips.text(tmp_path / "text.mp4"),
            clips.empty(tmp_path / "empty.mp4"),
            clips.cut(clip, tmp_path / "cut.mp4", 0.5),
            clips.audio_only(tmp_path / "audio.mp4"),
            tmp_path / "absent.mp4",
            tmp_path / "n\udcffame.mp4",
            tmp_path,
        ]
        for path in bad:
            with pytest.raises(MediaError) as here:
                VideoReader(path)
            with pytest.raises(MediaError) as there:
                shared.open(path, ALL)
            assert (there.value.reason, there.value.message) == (here.value.reason, here.value.message)
        assert shared.pid == before
        assert len(through(shared, clip, ALL)) == 60

    def test_a_file_that_vanishes(self, decoder: Decoder, clip: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(clip.read_bytes())
        opened = decoder.open(copy, ALL)
        decoder.close()
        copy.unlink()
        with pytest.raises(MediaError, match="does not exist") as caught:
            list(decoder.batches(opened))
        assert caught.value.reason == Reason.MISSING_FILE

    def test_a_file_that_changes(self, decoder: Decoder, clip: Path, tmp_path: Path) -> None:
        path = clips.clip(tmp_path / "clip", H264, frames=5)
        opened = decoder.open(path, ALL)
        decoder.close()
        path.write_bytes(clip.read_bytes())
        with pytest.raises(MediaError, match="was changed while it was being decoded"):
            list(decoder.batches(opened))

    def test_options_out_of_range(self) -> None:
        for options in ({"timeout_s": 0.0}, {"max_batch_bytes": 0}, {"unit_targets": -1}):
            with pytest.raises(UsageError, match="must be above 0"):
                Decoder(**options)
        with pytest.raises(UsageError, match=r"the fault of a\.mp4 must be"):
            Decoder(fault={"a.mp4": "abort@x"})

    def test_two_videos_at_once(self, shared: Decoder, clip: Path, damaged: Path) -> None:
        batches = shared.batches(shared.open(clip, ALL))
        next(batches)
        through(shared, damaged, Sampling(frames=2))
        with pytest.raises(UsageError, match="finish one video before the next"):
            next(batches)

    def test_a_reading_given_up_leaves_nothing_behind(self, shared: Decoder, clip: Path, damaged: Path) -> None:
        next(shared.batches(shared.open(damaged, ALL)))
        assert list(through(shared, clip, ALL).values()) == in_process(clip, ALL)

    def test_an_interrupted_request_is_not_answered_later(
        self, decoder: Decoder, clip: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = decoder.open(damaged, ALL)
        with monkeypatch.context() as patch:
            patch.setattr(supervisor._Child, "_reply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(decoder.batches(opened))
        assert decoder.pid is None
        assert list(through(decoder, clip, ALL).values()) == in_process(clip, ALL)

    def test_a_child_that_cannot_start(self, decoder: Decoder, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "false")
        with pytest.raises(UnmaskError, match="ends at once, with status 1") as caught:
            decoder.open(clip, ALL)
        assert caught.value.reason == Reason.INTERNAL
        monkeypatch.undo()
        assert len(through(decoder, clip, ALL)) == 60


class TestDeaths:
    def test_a_video_that_always_crashes(self, clip: Path, damaged: Path) -> None:
        with Decoder(fault={"damaged.mp4": "abort"}) as decoder:
            opened = decoder.open(damaged, ALL)
            with pytest.raises(MediaError, match=r"damaged\.mp4 killed its decoder twice \(SIGABRT\)") as caught:
                next(decoder.batches(opened))
            assert caught.value.reason == Reason.DECODER_CRASHED
            assert decoder.attempts == 2
            assert list(through(decoder, clip, ALL).values()) == in_process(clip, ALL)
            assert decoder.attempts == 1

    def test_what_came_before_the_crash_is_whole(self, clip: Path) -> None:
        expected = in_process(clip, ALL)
        with Decoder(max_batch_bytes=7 * PICTURE, fault={str(clip): "abort@20"}) as decoder:
            batches = decoder.batches(decoder.open(clip, ALL))
            answers = [kept(item) for _ in range(3) for item in next(batches).items]
            assert answers == expected[:19]
            with pytest.raises(MediaError, match=r"killed its decoder twice \(SIGABRT\)"):
                next(batches)

    def test_a_video_that_always_hangs(self, clip: Path) -> None:
        with Decoder(max_batch_bytes=7 * PICTURE, timeout_s=0.6, fault={"clip": "hang@20"}) as decoder:
            opened = decoder.open(clip, ALL)
            batches = decoder.batches(opened)
            assert [next(batches).cut for _ in range(3)] == list(opened.cuts[:3])
            with pytest.raises(MediaError, match=r"hung its decoder twice \(nothing within 0\.6 s\)") as caught:
                next(batches)
            assert caught.value.reason == Reason.DECODER_HUNG
            assert decoder.attempts == 2
            assert decoder.pid is None

    def test_a_video_whose_decoder_is_always_killed(self, clip: Path) -> None:
        with Decoder(fault={"clip": "kill@3"}) as decoder:
            with pytest.raises(MediaError, match=r"was killed 5 times \(SIGKILL\)") as caught:
                through(decoder, clip, ALL)
            assert caught.value.reason == Reason.DECODER_CRASHED
            assert decoder.attempts == 5

    @pytest.mark.parametrize(
        ("name", "number"),
        [("clip", signal.SIGABRT), ("clip", signal.SIGKILL), ("damaged", signal.SIGSEGV), ("damaged", signal.SIGKILL)],
    )
    def test_one_death_changes_nothing(
        self, name: str, number: signal.Signals, decoder: Decoder, request: pytest.FixtureRequest
    ) -> None:
        path: Path = request.getfixturevalue(name)
        answers: dict[int, Kept] = {}
        pids = set()
        for count, batch in enumerate(decoder.batches(decoder.open(path, ALL))):
            answers |= answers_of(batch)
            assert decoder.pid
            pids.add(decoder.pid)
            if count == 3:
                os.kill(decoder.pid, number)
        assert list(answers.values()) == in_process(path, ALL)
        assert len(pids) == decoder.attempts == 2

    def test_four_kills_change_nothing(self, decoder: Decoder, clip: Path) -> None:
        answers: dict[int, Kept] = {}
        for count, batch in enumerate(decoder.batches(decoder.open(clip, ALL))):
            answers |= answers_of(batch)
            if count in {0, 2, 3, 6}:
                assert decoder.pid
                os.kill(decoder.pid, signal.SIGKILL)
        assert list(answers.values()) == in_process(clip, ALL)
        assert decoder.attempts == 5

    def test_a_stopped_child_is_replaced(self, clip: Path) -> None:
        with Decoder(max_batch_bytes=7 * PICTURE, timeout_s=0.6) as decoder:
            batches = decoder.batches(decoder.open(clip, ALL))
            answers = answers_of(next(batches))
            assert decoder.pid
            os.kill(decoder.pid, signal.SIGSTOP)
            for batch in batches:
                answers |= answers_of(batch)
            assert list(answers.values()) == in_process(clip, ALL)
            assert decoder.attempts == 2

    def test_a_death_between_videos_is_nobodys(self, decoder: Decoder, clip: Path) -> None:
        through(decoder, clip, Sampling(frames=2))
        pid = decoder.pid
        assert pid
        os.kill(pid, signal.SIGABRT)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert list(through(decoder, clip, ALL).values()) == in_process(clip, ALL)
        assert decoder.attempts == 1


class TestNoOrphans:
    def test_closing_leaves_no_process_and_no_open_file(self, clip: Path) -> None:
        if not Path("/proc/self/fd").is_dir():
            pytest.skip("open files are counted in /proc, which this system lacks")
        before = len(list(Path("/proc/self/fd").iterdir()))
        with Decoder() as decoder:
            batches = decoder.batches(decoder.open(clip, ALL))
            next(batches)
            del batches
            pid = decoder.pid
        assert pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_the_thread_that_asked_first_may_end(self, decoder: Decoder, clip: Path) -> None:
        thread = threading.Thread(target=decoder.open, args=(clip, ALL))
        thread.start()
        thread.join()
        pid = decoder.pid
        assert len(through(decoder, clip, ALL)) == 60
        assert (decoder.pid, decoder.attempts) == (pid, 1)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent whatever it does")
    @pytest.mark.parametrize("is_stopped", [False, True])
    def test_a_killed_parent_takes_the_child_along(self, is_stopped: bool, clip: Path) -> None:
        script = (
            "import sys\n"
            "from pipelines.supervisor import Decoder\n"
            "from unmask.plan import Sampling\n"
            "decoder = Decoder()\n"
            "decoder.open(sys.argv[1], Sampling())\n"
            "print(decoder.pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, clip], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        ) as parent:
            assert parent.stdout
            child = int(parent.stdout.readline())
            handle = os.pidfd_open(child)
            if is_stopped:  # as good as hung: it cannot even see that its input has ended
                os.kill(child, signal.SIGSTOP)
            parent.kill()
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            ended = poll.poll(60_000)
            os.close(handle)
            assert ended


def test_the_child_needs_neither_torch_nor_ray() -> None:
    script = "import pipelines.decoder, sys; print({'torch', 'ray', 'cv2', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
