"""Sampling, and the packet plan: what is fed, what is left out, where decoding starts."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import UsageError
from unmask.plan import PacketIndex, Sampling, linear_plan, make_plan


def index_of(
    pts: list[int],
    *,
    entries: list[int] | None = None,
    disposable: list[int] | None = None,
    hidden: list[int] | None = None,
    lost: list[int] | None = None,
) -> PacketIndex:
    def mask(numbers: list[int] | None) -> np.ndarray:
        marked = np.zeros(len(pts), np.bool_)
        marked[numbers or []] = True
        return marked

    return PacketIndex(
        pts_P=np.array(pts, np.int64),
        size_P=np.full(len(pts), 100, np.int64),
        entry_P=mask(entries),
        disposable_P=mask(disposable),
        shown_P=~mask(hidden),
        time_base=Fraction(1, 10),
        lost_pts_L=np.array(lost or [], np.int64),
        last_duration=1,
    )


# I0 P4 B2 b1 b3, twice, closed; then an open group of pictures whose leading pictures 8 and 9 come after I 10.
PYRAMID = index_of([0, 4, 2, 1, 3, 5, 7, 6, 10, 8, 9, 12, 11], entries=[0, 5, 8], disposable=[3, 4, 7, 9, 10, 12])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "--frames must be at least 1; got 0"),
        ({"frames": -3}, "--frames must be at least 1; got -3"),
        ({"every": 0}, "--every must be at least 1; got 0"),
        ({"rate_fps": 0.0}, "--fps must be above 0; got 0.0"),
        ({"rate_fps": float("nan")}, "--fps must be above 0; got nan"),
        ({"rate_fps": float("inf")}, "--fps must be above 0; got inf"),
        ({"times_s": (1.0, float("nan"))}, "presentation times must be finite"),
        ({"frames": 3, "every": 2}, "choose one way to sample frames; got frames and every"),
    ],
)
def test_sampling_refuses_bad_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**options)


def positions(sampling: Sampling, pts_s: list[float], end_s: float) -> list[int]:
    return sampling.positions(np.array(pts_s, np.float64), end_s)[0].tolist()


def test_sampling_chooses_by_position_and_by_time() -> None:
    pts_s = [0.0, 0.1, 0.2, 0.3, 0.4, 2.0, 2.1, 2.2]
    assert positions(Sampling(), pts_s, 2.3) == list(range(8))
    assert positions(Sampling(frames=2), pts_s, 2.3) == [2, 6]
    assert positions(Sampling(frames=1), pts_s, 2.3) == [4]
    assert positions(Sampling(frames=100), pts_s, 2.3) == list(range(8))
    assert positions(Sampling(every=3), pts_s, 2.3) == [0, 3, 6]
    # A frame stands until the next: at 0.5, 1.0 and 1.5 s the one of 0.4 s is still shown.
    assert positions(Sampling(rate_fps=2.0), pts_s, 2.3) == [0, 4, 5]
    assert positions(Sampling(rate_fps=1e12), pts_s, 2.3) == list(range(8))
    assert positions(Sampling(rate_fps=1e-9), pts_s, 2.3) == [0]
    assert positions(Sampling(times_s=(2.2, 0.15, 0.2999999, -1.0, 2.3)), pts_s, 2.3) == [-1, 1, 3, 7, -1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(frames=4), Sampling(every=2), Sampling(rate_fps=1.0)])
def test_nothing_is_sampled_from_nothing(sampling: Sampling) -> None:
    assert positions(sampling, [], 0.0) == []


def test_a_time_without_a_frame_is_answered_all_the_same() -> None:
    chosen, times_s = Sampling(times_s=(5.0, 0.0)).positions(np.zeros(0), 0.0)
    assert chosen.tolist() == [-1, -1]
    assert times_s.tolist() == [0.0, 5.0]


def test_a_plan_leaves_out_what_nothing_leans_on() -> None:
    plan = make_plan(PYRAMID, Sampling(times_s=(0.2,)))
    assert np.flatnonzero(plan.fed_P).tolist() == [0, 1, 2]
    plan = make_plan(PYRAMID, Sampling(times_s=(0.3,)))
    assert np.flatnonzero(plan.fed_P).tolist() == [0, 1, 2, 4]


def test_a_plan_starts_at_the_last_entry() -> None:
    plan = make_plan(PYRAMID, Sampling(times_s=(0.6,)))
    assert np.flatnonzero(plan.fed_P).tolist() == [5, 6, 7]
    assert plan.cost == pytest.approx(3 / 13)


def test_leading_pictures_lean_on_the_entry_before() -> None:
    leading = make_plan(PYRAMID, Sampling(times_s=(0.9,)))
    assert np.flatnonzero(leading.fed_P).tolist() == [5, 6, 8, 10]
    trailing = make_plan(PYRAMID, Sampling(times_s=(1.2,)))
    assert np.flatnonzero(trailing.fed_P).tolist() == [8, 11]


def test_lost_packets_are_planned_for_but_not_read() -> None:
    index = index_of([0, 1, 2], entries=[0], lost=[3, 4, 5])
    plan = make_plan(index, Sampling(frames=3))
    assert plan.positions_T.tolist() == [1, 3, 5]
    assert np.flatnonzero(plan.fed_P).tolist() == [0, 1]
    assert index.frames == 3


def test_hidden_packets_have_no_position() -> None:
    index = index_of([0, 1, 2, 3], entries=[0], hidden=[1])
    assert index.position_P.tolist() == [0, -1, 1, 2]
    assert np.flatnonzero(make_plan(index, Sampling(times_s=(0.2,))).fed_P).tolist() == [0, 1, 2]


def test_an_index_checks_its_lengths() -> None:
    with pytest.raises(ValueError, match="one length"):
        PacketIndex(
            pts_P=np.zeros(2, np.int64),
            size_P=np.zeros(3, np.int64),
            entry_P=np.zeros(2, np.bool_),
            disposable_P=np.zeros(2, np.bool_),
            shown_P=np.ones(2, np.bool_),
            time_base=Fraction(1, 25),
        )


@st.composite
def indices(draw: st.DrawFn) -> PacketIndex:
    """Groups of pictures with B pictures, each stored after its group's anchor; open or closed."""
    pts: list[int] = []
    entries: list[int] = []
    disposable: list[int] = []
    shown = 0
    for _ in range(draw(st.integers(1, 12))):
        lead = draw(st.integers(0, 3))
        if draw(st.booleans()):
            entries.append(len(pts))
        pts.append(shown + lead)
        for i in range(lead):
            if draw(st.booleans()):
                disposable.append(len(pts))
            pts.append(shown + i)
        shown += lead + 1
    return index_of(pts, entries=entries, disposable=disposable)


samplings = st.one_of(
    st.builds(lambda n: Sampling(frames=n), st.integers(1, 60)),
    st.builds(lambda n: Sampling(every=n), st.integers(1, 60)),
    st.builds(lambda r: Sampling(rate_fps=r), st.floats(1e-3, 1e6)),
    st.builds(lambda t: Sampling(times_s=tuple(t)), st.lists(st.floats(-1, 10), max_size=8)),
    st.just(Sampling()),
)


@given(indices(), samplings)
def test_every_target_is_fed_with_all_it_may_lean_on(index: PacketIndex, sampling: Sampling) -> None:
    plan = make_plan(index, sampling)
    present = plan.positions_T[plan.positions_T >= 0]
    assert np.all(np.diff(present) >= 0)
    for packet in index.packet_S[present].tolist():
        [entry] = index.entries_of(np.array([packet])).tolist()
        assert entry == 0 or (index.entry_P[entry] and index.pts_P[entry] <= index.pts_P[packet])
        assert plan.fed_P[packet]
        needed = np.arange(entry, packet)
        # Leading pictures of the entry lean on what lies before it, and nothing after the entry leans on them.
        needed = needed[~index.disposable_P[needed] & ((index.pts_P[needed] >= index.pts_P[entry]) | (entry == 0))]
        assert plan.fed_P[needed].all()
        assert any(span.start <= entry and packet < span.stop for span in plan.spans)


@given(indices(), samplings)
def test_spans_are_apart_in_order_and_start_at_entries(index: PacketIndex, sampling: Sampling) -> None:
    plan = make_plan(index, sampling)
    for span, after in zip(plan.spans, plan.spans[1:], strict=False):
        assert span.stop < after.start
    assert all(span.start == 0 or index.entry_P[span.start] for span in plan.spans)
    inside = np.zeros(len(index), np.bool_)
    for span in plan.spans:
        inside[span.start : span.stop] = True
    assert not (plan.fed_P & ~inside).any()
    assert 0.0 <= plan.cost <= 1.0


@given(indices(), st.integers(1, 60))
def test_evenly_spread_frames_are_distinct_and_even(index: PacketIndex, count: int) -> None:
    chosen = make_plan(index, Sampling(frames=count)).positions_T
    assert len(chosen) == min(count, index.frames)
    assert (np.diff(chosen) >= 1).all()
    middles = (2 * np.arange(len(chosen)) + 1) * index.frames // (2 * len(chosen))
    assert (np.abs(chosen - middles) <= index.frames / (4 * len(chosen))).all()


def test_evenly_spread_frames_prefer_pictures_that_are_decoded_anyway() -> None:
    # Every third picture is a reference; slices of eight have their middles at 4, 12 and 20 and reach two to each side.
    index = index_of(list(range(24)), entries=[0], disposable=[k for k in range(24) if k % 3])
    assert make_plan(index, Sampling(frames=3)).positions_T.tolist() == [3, 12, 21]
    # Slices of three reach nowhere.
    assert make_plan(index, Sampling(frames=8)).positions_T.tolist() == [1, 4, 7, 10, 13, 16, 19, 22]


def test_a_linear_plan_feeds_everything() -> None:
    plan = linear_plan(PYRAMID, np.array([3]), np.array([0.3]))
    assert plan.fed_P.all()
    assert plan.cost == 1.0
    assert len(plan) == 1
