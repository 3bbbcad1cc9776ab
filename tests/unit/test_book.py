import random

import pytest

from pipelines.book import Book
from pipelines.parcels import Outcome, Parcel, Part
from pipelines.shards import Shards
from unmask.errors import Reason

SHARDS = Shards(videos=5, size=3, paired_from=5)


def outcome(video: int) -> Outcome:
    return Outcome(video=video, status="failed", reason=Reason.EMPTY_FILE, message="It is empty.")


def parts(video: int, *batches: int) -> list[Part]:
    """All parts of a video whose units have so many batches."""
    return [
        Part(video, unit, len(batches), batch, count) for unit, count in enumerate(batches) for batch in range(count)
    ]


def receipts() -> list[Parcel]:
    """All that shard 0 needs: a video in two units, one in one, one that failed."""
    return [Parcel(shard=0, part=part) for part in (*parts(0, 3, 2), *parts(2, 1))] + [
        Parcel(shard=0, outcomes=(outcome(1),))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_last_receipt_completes_a_shard_whichever_it_is(seed: int) -> None:
    book, taken = Book(SHARDS), receipts()
    random.Random(seed).shuffle(taken)
    assert [book.take(parcel) for parcel in taken] == [False] * (len(taken) - 1) + [True]


@pytest.mark.parametrize("seed", range(20))
def test_receipts_that_come_twice_count_once(seed: int) -> None:
    book, taken = Book(SHARDS), [*receipts()[1:], *receipts()[1:]]
    random.Random(seed).shuffle(taken)
    assert not any(book.take(parcel) for parcel in taken)
    assert book.take(receipts()[0])
    assert not any(book.take(parcel) for parcel in receipts())


def test_what_was_committed_before_counts() -> None:
    book = Book(SHARDS)
    one, two = parts(0, 3, 2), parts(2, 1)
    assert not book.take(Parcel(shard=0, known=(*one[:4], *two), known_outcomes=(outcome(1),)))
    assert book.take(Parcel(shard=0, part=one[4]))


def test_all_may_have_been_committed_before() -> None:
    book = Book(SHARDS)
    assert book.take(Parcel(shard=0, known=tuple(parts(0, 1) + parts(2, 1)), known_outcomes=(outcome(1),)))


def test_news_travel_with_parts_of_other_videos() -> None:
    book = Book(SHARDS)
    assert not book.take(Parcel(shard=1, part=parts(0, 2)[0], outcomes=(outcome(1),)))
    assert book.take(Parcel(shard=1, part=parts(0, 2)[1]))


def test_a_video_that_ends_after_some_batches_needs_no_more_of_them() -> None:
    book = Book(SHARDS)
    first, second, third = parts(0, 3)
    assert not book.take(Parcel(shard=1, part=first))
    assert not book.take(Parcel(shard=1, part=parts(1, 1)[0]))
    assert book.take(Parcel(shard=1, outcomes=(outcome(0),)))
    assert not book.take(Parcel(shard=1, part=second))
    assert not book.take(Parcel(shard=1, part=third))


def test_shards_are_accounts_of_their_own() -> None:
    book = Book(SHARDS)
    for parcel in receipts()[:-1]:
        assert not book.take(parcel)
    assert not book.take(Parcel(shard=1, outcomes=(outcome(0),)))
    assert book.take(Parcel(shard=1, outcomes=(outcome(1),)))
    assert book.take(receipts()[-1])
