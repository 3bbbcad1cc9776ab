import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.album import Album

CROP = np.zeros((8, 8, 3), np.uint8)


def maps(crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.full((len(crops), 8, 8), 0.5, np.float32)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 1000])
def test_a_bounded_and_even_choice_with_the_most_suspicious(length: int) -> None:
    rng = np.random.default_rng(length)
    scores = rng.permutation(length) / length
    album = Album()
    for k, score in enumerate(scores):
        album.add(CROP, pts_s=k / 25, index=k, score=float(score), probability=1.0)
    frames = album.frames(maps)
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert len(frames) <= 64 + 6
    explained = {frame.index for frame in frames if frame.heatmap_HW is not None}
    assert explained == set(np.argsort(scores)[-6:].tolist())
    assert max(np.diff([0, *indices, length - 1])) <= length / 32 + 1  # no stretch is left out


def test_equal_scores_are_no_trouble() -> None:
    album = Album()
    for k in range(20):
        album.add(CROP, pts_s=k / 25, index=k, score=0.5, probability=1.0)
    assert len(album.frames(maps)) == 20
