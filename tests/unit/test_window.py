import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import UsageError
from unmask.window import MaskedWindow, RollingWindow, mean_std, rolling_mean_std


def features(length: int, dim: int, *, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(length, dim)) + offset).astype(np.float32)


def of_clip(clip_TD: np.ndarray) -> np.ndarray:
    """The clip computation in double precision, by NumPy."""
    clip_TD = clip_TD.astype(np.float64)
    std_D = clip_TD.std(0, ddof=1) if len(clip_TD) > 1 else np.zeros(clip_TD.shape[1])
    return np.concatenate([clip_TD.mean(0), std_D])


def test_mean_std_is_that_of_the_valid_frames() -> None:
    features_BTD = torch.from_numpy(features(12, 5)).view(3, 4, 5).clone()
    valid_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    features_BTD[~valid_BT] = float("nan")
    got_BS = mean_std(features_BTD, valid_BT)
    for clip_TD, valid_T, got_S in zip(features_BTD, valid_BT, got_BS, strict=True):
        np.testing.assert_allclose(got_S, of_clip(clip_TD[valid_T].numpy()), atol=1e-6)


def test_mean_std_of_nothing_is_zero() -> None:
    got_BS = mean_std(torch.full((2, 3, 4), torch.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert got_BS.shape == (2, 8)
    assert (got_BS == 0).all()


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_mean_std_has_finite_gradients_even_where_frames_are_equal(frames: int) -> None:
    features_BTD = torch.ones(1, 3, 4, requires_grad=True)
    mean_std(features_BTD, torch.arange(3)[None] < frames).sum().backward()
    assert features_BTD.grad is not None
    assert torch.isfinite(features_BTD.grad).all()
    assert (features_BTD.grad[:, frames:] == 0).all()


def test_mean_std_gradient_is_right() -> None:
    features_BTD = torch.from_numpy(features(8, 3)).view(2, 4, 3).double().requires_grad_()
    valid_BT = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(mean_std, (features_BTD, valid_BT), eps=1e-2, atol=1e-2)


def test_mean_std_of_half_precision_is_computed_in_single() -> None:
    features_BTD = torch.full((1, 8, 2), 60000.0, dtype=torch.float16)
    assert mean_std(features_BTD, torch.ones(1, 8, dtype=torch.bool)).tolist() == [[60000.0, 60000.0, 0.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9),
    gaps=st.lists(st.booleans(), max_size=40),
    offset=st.sampled_from([0.0, -3.0, 1000.0]),
)
def test_pushed_windows_equal_clips_and_the_whole_track_at_once(length: int, gaps: list[bool], offset: float) -> None:
    track_LD, window, begin = features(len(gaps), 3, offset=offset), RollingWindow(length, 3), 0
    statistics_LS, count_L = rolling_mean_std(torch.from_numpy(track_LD), length, torch.tensor(gaps, dtype=torch.bool))
    assert statistics_LS.shape == (len(gaps), 6)
    for i, gap in enumerate(gaps):
        if gap:
            window.mark_gap()
            begin = i
        pushed = window.push(track_LD[i], i / 25)
        first = max(begin, i - length + 1)
        assert pushed.frames == count_L[i] == len(window) == i - first + 1
        assert (pushed.start_s, pushed.end_s) == (first / 25, i / 25)
        expected_S = of_clip(track_LD[first : i + 1])
        tolerance = 1e-5 * max(1.0, abs(offset))
        np.testing.assert_allclose(pushed.statistics_S, expected_S, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(statistics_LS[i], expected_S, rtol=1e-6, atol=tolerance)


def test_a_track_without_gaps_needs_no_flags() -> None:
    track_LD = torch.from_numpy(features(600, 2))  # more than one chunk
    plain, flagged = rolling_mean_std(track_LD, 7), rolling_mean_std(track_LD, 7, torch.zeros(600, dtype=torch.bool))
    assert torch.equal(plain[0], flagged[0])
    assert torch.equal(plain[1], flagged[1])
    assert plain[1].tolist() == [*range(1, 8), *([7] * 593)]


def test_nothing_drifts_in_100_000_frames_of_wild_offsets() -> None:
    length, frames = 16, 100_000
    rng = np.random.default_rng(0)
    # The offset jumps between 0 and a million, so that sums kept by subtraction would be ruined.
    offset_L1 = np.where(np.arange(frames)[:, None] // 1000 % 2, 1e6, 0.0)
    track_LD = (rng.normal(size=(frames, 4)) + offset_L1).astype(np.float32)
    window = RollingWindow(length, 4)
    for i, feature_D in enumerate(track_LD):
        pushed = window.push(feature_D, i / 25)
        if i % 997 == 0 or i > frames - 20:
            expected_S = of_clip(track_LD[max(0, i - length + 1) : i + 1])
            np.testing.assert_allclose(pushed.statistics_S, expected_S, rtol=1e-6, atol=1e-5)


def test_equal_frames_after_an_outlier_have_no_deviation() -> None:
    window = RollingWindow(8, 1)
    window.push(np.array([1e7], np.float32), 0.0)
    for i in range(1, 9):
        pushed = window.push(np.array([0.125], np.float32), i / 25)
    assert pushed.statistics_S.tolist() == [0.125, 0.0]


@pytest.mark.parametrize("pushes", [0, 1, 5, 6, 12, 13, 17])
def test_a_window_moves_without_a_trace(pushes: int) -> None:
    track_LD = features(40, 3, offset=100.0)
    stays = RollingWindow(6, 3)
    for i in range(pushes):
        stays.push(track_LD[i], i / 25)
    state = stays.to_arrays()
    moved = RollingWindow.from_arrays(state)
    assert len(state["features_TD"]) == min(pushes, 6) == len(moved)
    for i in range(pushes, 40):
        one, other = stays.push(track_LD[i], i / 25), moved.push(track_LD[i], i / 25)
        assert (one.frames, one.start_s, one.end_s) == (other.frames, other.start_s, other.end_s)
        np.testing.assert_allclose(one.statistics_S, other.statistics_S, atol=1e-6)


def test_moved_state_holds_no_frame_before_a_gap() -> None:
    window = RollingWindow(4, 1)
    for i in range(6):
        window.push(np.array([i], np.float32), i)
    window.mark_gap()
    assert window.to_arrays()["features_TD"].shape == (0, 1)
    window.push(np.array([9.0], np.float32), 20.0)
    assert window.to_arrays()["features_TD"].tolist() == [[9.0]]


def test_state_that_does_not_fit_together_is_refused() -> None:
    state = RollingWindow(4, 2).to_arrays()
    with pytest.raises(ValueError, match="a window has features"):
        RollingWindow.from_arrays(state | {"pts_s_T": np.zeros(3)})


def test_a_bad_push_is_refused_and_changes_nothing() -> None:
    window = RollingWindow(4, 2)
    window.push(np.ones(2, np.float32), 1.0)
    for feature, pts_s, match in [
        (np.ones(3), 2.0, r"of shape \(2,\)"),
        (np.array([1.0, np.nan]), 2.0, "is finite"),
        (np.ones(2), 1.0, "time goes back"),
    ]:
        with pytest.raises(ValueError, match=match):
            window.push(feature, pts_s)
    assert window.push(np.ones(2, np.float32), 2.0).frames == 2
    window.mark_gap()
    assert window.push(np.ones(2, np.float32), 0.5).frames == 1


def test_a_masked_window_keeps_its_holes() -> None:
    window = MaskedWindow(4, 1)
    said = []
    for frame in (3, 4, 6, 9, 20):
        features_tD, valid_t = window.push(np.array([float(frame)]), frame, frame / 25)
        assert features_tD[~valid_t].tolist() == [[0.0]] * int((~valid_t).sum())
        said.append([n if ok else None for n, ok in zip(features_tD[:, 0].tolist(), valid_t, strict=True)])
    assert said == [[3], [3, 4], [3, 4, None, 6], [6, None, None, 9], [None, None, None, 20]]
    with pytest.raises(ValueError, match=r"finite, of shape \(1,\)"):
        window.push(np.array([np.nan]), 21, 1.0)
    for frame, pts_s in ((21, 0.8), (21, 0.9)):  # time, then the number, does not rise
        assert window.push(np.array([1.0]), frame, pts_s)[1].tolist() == [True]


@pytest.mark.parametrize("length", [0, -1])
def test_a_window_holds_a_frame(length: int) -> None:
    with pytest.raises(UsageError, match="at least 1 frame"):
        RollingWindow(length, 3)
    with pytest.raises(UsageError, match="at least 1 frame"):
        rolling_mean_std(torch.zeros(2, 3), length)
