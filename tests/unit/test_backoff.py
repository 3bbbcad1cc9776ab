"""How long to wait before the next try."""

import pytest

from unmask.backoff import Backoff
from unmask.errors import Reason

LOST = Reason.STREAM_UNREACHABLE


def test_bounds_double_to_the_greatest_for_a_source_that_is_long_gone() -> None:
    tries = [Backoff(seed=seed) for seed in range(400)]
    for bound_s in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        waits = [t.wait_s(LOST, away_s=1000.0) for t in tries]
        assert 0.0 <= min(waits) < 0.05 * bound_s
        assert 0.95 * bound_s < max(waits) <= bound_s
        # Full jitter: evenly over the whole range.
        assert sum(waits) / len(waits) == pytest.approx(bound_s / 2, rel=0.15)


def test_in_the_first_minute_a_source_is_asked_often() -> None:
    backoff = Backoff(seed=1)
    assert max(backoff.wait_s(LOST, away_s=59.0) for _ in range(100)) <= 2.0
    assert max(backoff.wait_s(LOST, away_s=61.0) for _ in range(100)) > 10.0


def test_health_starts_the_count_again() -> None:
    backoff = Backoff(seed=1)
    for _ in range(10):
        backoff.wait_s(LOST, away_s=1000.0)
    assert backoff.wait_s(LOST, lived_s=10.0, away_s=1000.0) <= 0.5
    assert all(backoff.wait_s(LOST, lived_s=9.9, away_s=0.0) <= 2.0 for _ in range(50))


@pytest.mark.parametrize("reason", [Reason.STREAM_AUTH_FAILED, Reason.STREAM_NOT_FOUND, Reason.STREAM_TLS_CERTIFICATE])
def test_what_a_person_must_mend_is_not_asked_for_soon(reason: Reason) -> None:
    assert Backoff().wait_s(reason) == 30.0
