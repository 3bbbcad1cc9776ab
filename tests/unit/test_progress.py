"""What the driver of a run counts, estimates and says at its end."""

import json
import random
import tracemalloc

import pytest

from pipelines.progress import Progress, Receipt, Stage, summary
from unmask.errors import Reason


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def batch(**seconds: float) -> Receipt:
    return Receipt(frames=10, dropped={"corrupt_frame": 2}, faces=16, seconds=seconds or {"decode": 1.0})


def stage(progress: Progress, name: str) -> Stage:
    return next(stage for stage in progress.stages() if stage.name == name)


def test_counts_add_up(clock: Clock) -> None:
    progress = Progress(videos=10, done_before=3, shards=4, shards_before=1, clock=clock)
    progress.add(batch(decode=0.5, detect=2.0, embed=1.0))
    progress.add(batch(decode=1.5, crop=0.25))
    progress.video_done("done")
    progress.video_done("empty", Reason.NO_FACE)
    progress.video_done("failed", "not_a_video")
    progress.video_done("failed", "not_a_video")
    progress.shard_done()
    assert (progress.finished, progress.to_do) == (4, 3)
    assert progress.results == {("done", None): 1, ("empty", "no_face"): 1, ("failed", "not_a_video"): 2}
    assert progress.by_status() == {"done": 1, "empty": 1, "failed": 2}
    assert progress.by_reason() == {"no_face": 1, "not_a_video": 2}
    assert progress.outcomes == {"decoded": 16, "corrupt_frame": 4}
    assert progress.dropped() == {"corrupt_frame": 4}
    assert progress.faces == 32
    # Decoding and detection go through frames, the stages after them through faces.
    assert [(s.name, s.items, s.unit, s.busy_s) for s in progress.stages()] == [
        ("decode", 20, "frames", 2.0),
        ("detect", 10, "frames", 2.0),
        ("embed", 16, "faces", 1.0),
        ("crop", 16, "faces", 0.25),
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"frames": -1}, {"faces": -1}, {"frames": 1, "dropped": {"decode_failed": 2}}, {"seconds": {"decode": -0.1}}],
)
def test_receipts_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="receipt"):
        Receipt(**wrong)  # type: ignore[arg-type]


def test_rates_are_of_the_last_minute(clock: Clock) -> None:
    progress = Progress(videos=100, clock=clock)
    progress.add(batch(decode=1.0))
    assert stage(progress, "decode").items_per_s is None
    for _ in range(200):  # ten frames a second, by two workers
        clock.now_s += 1.0
        progress.add(batch(decode=2.0))
    now = stage(progress, "decode")
    assert now.items_per_s == pytest.approx(10.0, rel=0.02)
    assert now.workers == pytest.approx(2.0, rel=0.02)
    for _ in range(14):  # then half as fast
        clock.now_s += 5.0
        progress.add(Receipt(frames=25, seconds={"decode": 5.0}))
    now = stage(progress, "decode")
    assert now.items_per_s == pytest.approx(5.0, rel=0.1)
    assert now.workers == pytest.approx(1.0, rel=0.1)
    clock.now_s += 66.0  # then nothing
    assert stage(progress, "decode").items_per_s == 0.0
    assert stage(progress, "decode").items == 201 * 10 + 14 * 25


def test_a_rate_right_after_the_start_is_not_inflated_by_the_first_batch(clock: Clock) -> None:
    progress = Progress(videos=100, clock=clock)
    progress.add(Receipt(frames=1000, seconds={"decode": 60.0}))
    clock.now_s += 2.0
    progress.add(Receipt(frames=20, seconds={"decode": 2.0}))
    assert stage(progress, "decode").items_per_s == pytest.approx(10.0)


def test_time_left_is_unknown_until_there_is_a_base(clock: Clock) -> None:
    progress = Progress(videos=1000, clock=clock)
    assert progress.eta_s is None
    clock.now_s += 100.0  # models load: that says nothing about the pace
    progress.add(batch())
    for _ in range(3):
        clock.now_s += 2.0
        progress.video_done("done")
        assert progress.eta_s is None
    clock.now_s += 2.0
    progress.video_done("done")
    assert progress.eta_s == pytest.approx(996 * 2.0, rel=0.05)


def test_four_broken_files_at_once_give_no_estimate(clock: Clock) -> None:
    progress = Progress(videos=1000, clock=clock)
    for _ in range(4):
        clock.now_s += 0.01
        progress.video_done("failed", "missing_file")
    assert progress.eta_s is None


def test_estimate_is_steady_under_noise_and_bursts(clock: Clock) -> None:
    rng = random.Random(1)
    progress = Progress(videos=100_000, done_before=50_000, clock=clock)
    progress.add(batch())
    errors = []
    for n in range(2000):  # on average a video in two seconds; they come in groups of up to 16, after uneven times
        if n % 16 == 0:
            clock.now_s += 32.0 * rng.choice((0.4, 0.7, 1.0, 1.9))
        progress.video_done("done")
        if n > 400 and n % 16 == 8:
            assert progress.eta_s is not None
            errors.append(progress.eta_s / (progress.to_do * 2.0))
    assert 0.75 < min(errors) < max(errors) < 1.35


def test_estimate_follows_a_change_of_pace(clock: Clock) -> None:
    progress = Progress(videos=100_000, clock=clock)
    for interval_s, videos in ((1.0, 3600), (4.0, 1800)):
        for _ in range(videos):
            clock.now_s += interval_s
            progress.video_done("done")
    assert progress.videos_per_s == pytest.approx(0.25, rel=0.1)


def test_estimate_grows_while_nothing_comes(clock: Clock) -> None:
    progress = Progress(videos=1000, clock=clock)
    for _ in range(50):
        clock.now_s += 1.0
        progress.video_done("done")
    before_s = progress.eta_s
    clock.now_s += 600.0
    assert before_s is not None
    assert progress.eta_s is not None
    assert progress.eta_s > 3 * before_s


def test_nothing_left_takes_no_time(clock: Clock) -> None:
    assert Progress(videos=7, done_before=7, clock=clock).eta_s == 0.0
    assert Progress(videos=0, clock=clock).eta_s == 0.0


def test_memory_is_flat(clock: Clock) -> None:
    progress = Progress(videos=1_000_000, clock=clock)

    def work(videos: int) -> None:
        for n in range(videos):
            clock.now_s += 0.1
            progress.add(batch(decode=0.1, detect=0.3, crop=0.1, embed=0.2, commit=0.1))
            progress.video_done("failed" if n % 20 == 0 else "done", "not_a_video" if n % 20 == 0 else None)

    work(2_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work(20_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
    assert progress.finished == 22_000


def test_summary_says_all_of_it_in_json(clock: Clock) -> None:
    progress = Progress(videos=10, done_before=3, shards=2, shards_before=1, clock=clock)
    clock.now_s += 30.0
    progress.add(batch(decode=2.0, embed=4.0))
    for _ in range(5):
        progress.video_done("done")
    progress.video_done("failed", Reason.NOT_A_VIDEO)
    progress.video_done("quarantined", "decoder_hung")
    progress.shard_done()
    clock.now_s += 30.0
    assert json.loads(json.dumps(summary(progress))) == {
        "videos": {
            "total": 10,
            "done_before": 3,
            "finished": 7,
            "by_status": {"done": 5, "failed": 1, "quarantined": 1},
            "by_reason": {"failed": {"not_a_video": 1}, "quarantined": {"decoder_hung": 1}},
        },
        "shards": {"total": 2, "done_before": 1, "finished": 1},
        "frames": {"answered": 10, "decoded": 8, "dropped": {"corrupt_frame": 2}},
        "faces": 16,
        "stages": {
            "decode": {"items": 10, "unit": "frames", "busy_s": 2.0},
            "embed": {"items": 16, "unit": "faces", "busy_s": 4.0},
        },
        "wall_s": 60.0,
        "videos_per_min": 7.0,
    }
