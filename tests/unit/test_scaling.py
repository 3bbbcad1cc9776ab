"""The model behind what a cluster costs: by hand in cases that can be reckoned, and where the driver is the limit."""

import pytest

from benchmarks.scaling import Driver, Measured, Prices, Study, _middle, driver_of, extrapolate


def test_hours_and_dollars_are_those_reckoned_by_hand() -> None:
    # A GPU takes 0.4 s a video and 0.1 s besides: 2 a second. Decoding them takes 2 * (5.9 + 0.1) = 12 CPUs, of which
    # the GPU's machine has 8.
    rows = extrapolate(
        Study(decode_s=5.9, detect_s=0.4), 100.0, Driver(base=0.5, unit_ms=1.0), Prices(gpu=3.0, cpu=0.05)
    )
    assert [(row["gpus"], row["videos"]) for row in rows] == [
        (gpus, videos) for gpus in (1, 8, 64) for videos in (100_000, 10_000_000)
    ]
    for row in rows:
        assert row["hours"] == pytest.approx(row["videos"] / (2 * row["gpus"]) / 3600)
        assert row["decoding_cpus"] == pytest.approx(12 * row["gpus"])
        # 3.2 dollars an hour for 7200 videos.
        assert row["dollars_per_1000"] == pytest.approx(3.2 / 7.2)
        assert not row["limited_by_driver"]


def test_a_busy_driver_is_the_limit_and_idle_gpus_are_paid_for() -> None:
    # Half of it is taken whatever comes; the other half is enough for ten units a second.
    driver = Driver(base=0.5, unit_ms=50.0)
    rows = extrapolate(Study(decode_s=1.0, detect_s=0.5), 0.0, driver, Prices(gpu=3.6, cpu=0.0))
    assert [bool(row["limited_by_driver"]) for row in rows] == [False, False, True, True, True, True]
    for row in rows[2:]:
        assert row["hours"] == pytest.approx(row["videos"] / 10 / 3600)
        assert row["dollars_per_1000"] == pytest.approx(row["gpus"] * 3.6 / 36)


def test_the_driver_is_a_straight_line() -> None:
    nothing = {"ideal_units_s": 0.0, "overhead_ms": 0.0, "driver_mb": 0.0, "store_mb": 0.0}
    found = [
        Measured(nodes=n, units_s=float(n), driver_cpu=0.04 + 0.007 * n + error, **nothing)
        for n, error in ((1, 0.001), (2, -0.001), (3, -0.001), (4, 0.001))
    ]
    assert driver_of(found).base == pytest.approx(0.04)
    assert driver_of(found).unit_ms == pytest.approx(7.0)
    assert driver_of(found[:1]).base == 0.0
    assert driver_of(found[:1]).unit_ms == pytest.approx(48.0)


def test_the_pace_is_that_of_the_middle() -> None:
    workers = [0] * 10 + [0, 1] * 20
    # The second detector has worked first at place 11; two units of each pass, and two of each are left at the end.
    assert _middle(2, workers) == (15, 45)
    with pytest.raises(AssertionError, match="1 of 2 detectors"):
        _middle(2, [0] * 50)
    with pytest.raises(AssertionError, match="too few units"):
        _middle(2, [0, 1] * 8)
