"""Which pictures of a stream are due."""

import itertools

import numpy as np
import pytest

from unmask.plan import Sampling
from unmask.sampler import Sampler


def taken(rate_fps: float | None, times_s: list[float]) -> list[float]:
    sampler = Sampler(rate_fps)
    return [t for t in times_s if sampler.take(t) is not None]


def test_all_are_due_without_a_rate() -> None:
    times_s = [0.0, 0.04, 0.08, 0.5]
    assert taken(None, times_s) == times_s


@pytest.mark.parametrize("rate_fps", [1.0, 4.0, 5.0, 12.5, 25.0, 60.0])
@pytest.mark.parametrize("source_fps", [24.0, 25.0, 29.97, 50.0])
def test_the_first_picture_of_each_interval_is_due(rate_fps: float, source_fps: float) -> None:
    times_s = [7.0 + k / source_fps for k in range(500)]
    chosen = taken(rate_fps, times_s)
    assert len(chosen) == pytest.approx(min(rate_fps, source_fps) * 500 / source_fps, abs=1.5)
    if rate_fps < source_fps:
        due_s = 7.0 + np.arange(len(chosen)) / rate_fps
        late_s = np.array(chosen) - due_s
        assert late_s.min() > -0.003
        assert late_s.max() <= 1 / source_fps


def test_whole_intervals_agree_with_the_sampling_of_files() -> None:
    times_s = np.arange(250) / 25
    positions, _ = Sampling(rate_fps=5.0).positions(times_s, 10.0)
    assert taken(5.0, times_s.tolist()) == times_s[positions].tolist()


def test_intervals_without_a_picture_are_told() -> None:
    sampler = Sampler(5.0)
    assert [sampler.take(t) for t in (0.0, 0.2, 0.9, 0.95, 1.0)] == [0, 0, 2, None, 0]


def test_time_that_stands_or_goes_back_gives_nothing() -> None:
    assert taken(None, [0.0, 0.2, 0.2, 0.1, 0.3]) == [0.0, 0.2, 0.3]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    sampler = Sampler(5.0)
    assert [sampler.take(t) for t in (1000.0, 1000.2)] == [0, 0]
    sampler = sampler.anew()
    assert [sampler.take(t) for t in (960.0, 960.1, 960.6)] == [0, None, 2]


def test_packets_that_cannot_be_due_are_known_before_they_are_decoded() -> None:
    sampler, shown = Sampler(5.0), [k / 25 for k in range(200)]
    # Decoding order of I B B P B B P.
    packets = [
        0.0,
        *itertools.chain.from_iterable((shown[k + 3], shown[k + 1], shown[k + 2]) for k in range(0, 195, 3)),
    ]
    needed = set()
    for n, pts_s in enumerate(packets):
        if sampler.see(pts_s):
            needed.add(pts_s)
        if n >= 3:
            sampler.take(shown[n - 3])
    due = set(taken(5.0, shown[:-5]))
    assert due <= needed
    assert len(needed) < len(packets) / 3


def test_streams_of_other_phases_take_pictures_at_other_times() -> None:
    shown_s = [7.0 + k / 25 for k in range(100)]
    found = {}
    for phase in (0.0, 0.25, 0.6):
        sampler = Sampler(5.0, phase)
        found[phase] = [t for t in shown_s if sampler.take(t) is not None]
        assert found[phase][0] == 7.0
        steps = [b - a for a, b in itertools.pairwise(found[phase][1:])]
        assert sum(steps) / len(steps) == pytest.approx(0.2, abs=0.005)
    assert found[0.0][1] == pytest.approx(7.2)
    assert found[0.25][1] == pytest.approx(7.08)  # the first picture at or after 7.05
    assert found[0.6][1] == pytest.approx(7.12)
    assert not set(found[0.0][1:]) & set(found[0.6][1:])
