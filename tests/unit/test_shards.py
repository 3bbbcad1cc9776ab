import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import Shards, default_size
from unmask.errors import UsageError


@st.composite
def divisions(draw: st.DrawFn) -> Shards:
    videos = draw(st.integers(0, 300))
    return Shards(videos=videos, size=draw(st.integers(1, 50)), paired_from=draw(st.integers(0, videos)))


@given(divisions())
def test_shards_cover_every_row_once_and_in_order(shards: Shards) -> None:
    rows = [row for shard in range(len(shards)) for row in range(*shards.span(shard))]
    assert rows == list(range(shards.videos))
    for shard in range(len(shards)):
        start, stop = shards.span(shard)
        assert 0 < shards.count(shard) == stop - start <= shards.size
        assert start >= shards.paired_from or stop <= shards.paired_from
        assert {shards.shard_of(row) for row in range(start, stop)} == {shard}


@given(divisions())
def test_passes_hold_every_shard_once_and_originals_first(shards: Shards) -> None:
    passes = list(shards.passes())
    assert [shard for part in passes for shard in part] == list(range(len(shards)))
    assert all(passes)
    sides = [{shards.span(shard)[0] >= shards.paired_from for shard in part} for part in passes]
    assert sides in ([], [{False}], [{True}], [{False}, {True}])


def test_a_division_by_hand() -> None:
    shards = Shards(videos=10, size=4, paired_from=6)
    assert [shards.span(shard) for shard in range(len(shards))] == [(0, 4), (4, 6), (6, 10)]
    assert list(shards.passes()) == [range(2), range(2, 3)]


@pytest.mark.parametrize(
    ("videos", "size"), [(0, 1), (1, 1), (512, 1), (513, 2), (100_000, 196), (524_288, 1024), (10_000_000, 1024)]
)
def test_there_are_some_512_shards(videos: int, size: int) -> None:
    assert default_size(videos) == size


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--shard-videos must be at least 1; got 0"):
        Shards(videos=3, size=0, paired_from=3)
