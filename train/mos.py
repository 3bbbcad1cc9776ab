"""Opinion scores of preprocessed videos, as S0 predicts them: the mean over random clips of the video's main face.

Beside them stands what a table could do: the mean opinion of each video's method in the training data, looked up by its
name. Whoever does not beat that has learnt to tell methods apart, not to see quality.

Axes: N faces, B clips, T frames of a clip, D features, V videos.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.catalogue import Catalogue
from train.crops import CropReader
from train.embedding import Change, Embedded, embedded
from train.ensemble import Ensemble, Member
from train.evaluation import scorable_rows
from train.samplers import main_track
from train.selection import Selection
from unmask.errors import ModelError, Reason
from unmask.manifest import Video
from unmask.scoring import ScoringOptions

__all__ = ["CLIPS", "METHOD_MOS", "Opinion", "looked_up", "main_rows", "method_means", "predict_all", "random_clips"]

CLIPS = 10
"""Random clips whose mean is a video's opinion score."""
METHOD_MOS = "mos_by_method"
"""The key in a checkpoint's provenance under which training keeps the means of its training data."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What came of one video.

    Args:
        video: Its number in the catalogue.
        score: The predicted opinion; None where no face could be used.
        clips: What each clip gave.
        damaged: Crops that could not be read.
    """

    video: int
    score: float | None
    clips: tuple[float, ...] = ()
    damaged: int = 0


def main_rows(catalogue: Catalogue, video: int, options: ScoringOptions) -> NDArray[np.int64]:
    """A video's main face: those that count of the track with the most of them, in order of time."""
    return main_track(catalogue, scorable_rows(catalogue, video, options))


def predict_all(
    ensemble: Ensemble,
    selection: Selection,
    reader: CropReader,
    options: ScoringOptions,
    *,
    batch: int,
    seed: int = 0,
    videos: Sequence[int] | None = None,
    change: Change | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[Opinion], list[list[Opinion]]]:
    """Predict with an ensemble: the weighted mean of what its members say, and what each says.

    Args:
        ensemble: Models of opinion scores.
        selection: What is evaluated.
        reader: Of the crops.
        options: Which faces are large enough.
        batch: Crops a pass.
        seed: Of the clips, with the video's name: the same for all members of one window length.
        videos: Some of the selection's; all of them by default.
        change: Done to the crops first.
        progress: Told of each video.

    Raises:
        ModelError: A model gives numbers that are not finite.
    """
    numbers = list(selection.videos if videos is None else videos)
    parts = []
    for member in ensemble.members:
        rows = [main_rows(selection.catalogue, n, options) for n in numbers]
        stream = embedded(member.model, member.description.preprocessing, reader, rows, batch=batch, change=change)
        part = []
        for number, features in zip(numbers, stream, strict=True):
            part.append(_opinion(member, selection.catalogue, number, features, seed))
            progress(1)
        parts.append(part)
    weights = [member.weight for member in ensemble.members]
    return [_mean(same, weights) for same in zip(*parts, strict=True)], parts


def _opinion(member: Member, catalogue: Catalogue, number: int, features: Embedded, seed: int) -> Opinion:
    key, damaged = catalogue.videos[number].key, int((~features.whole_N).sum())
    rows_N, features_ND = features.rows_N[features.whole_N], features.features_ND[features.whole_N]
    if not len(rows_N):
        return Opinion(number, None, damaged=damaged)
    device = next(member.model.head.parameters()).device
    with torch.inference_mode():
        if member.model.is_temporal:
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
            gap_N = catalogue.after_gap_N[rows_N]
            clips = random_clips(gap_N, member.model.config.window, CLIPS, rng)
            features_BTD, valid_BT = _padded(features_ND, clips, member.model.config.window)
            scores = member.model.clip_logits(features_BTD.to(device), valid_BT.to(device))
        else:
            scores = member.model.frame_logits(torch.from_numpy(features_ND).to(device))
    given = scores.float().cpu().tolist()
    if not all(math.isfinite(score) for score in given):
        raise ModelError(
            Reason.INTERNAL, f"{member.given} gives {key} a score that is not finite; choose another model"
        )
    return Opinion(number, math.fsum(given) / len(given), tuple(given), damaged)


def random_clips(
    gap_N: NDArray[np.bool_], length: int, count: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Stretches of at most `length` frames in a row from random starts, each ending at the first gap.

    Args:
        gap_N: A gap lies before this frame.
        length: T.
        count: How many; with one possible start, one.
        rng: Draws the starts.

    Returns:
        Positions of the frames of each clip.
    """
    starts = max(len(gap_N) - length, 0) + 1
    drawn = rng.integers(starts, size=count) if starts > 1 else np.zeros(1, np.int64)
    clips = []
    for start in drawn.tolist():
        stop = min(start + length, len(gap_N))
        gaps = np.flatnonzero(gap_N[start + 1 : stop])
        clips.append(np.arange(start, start + 1 + int(gaps[0]) if len(gaps) else stop))
    return clips


def _padded(
    features_ND: NDArray[np.float32], clips: Sequence[NDArray[np.int64]], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    features_BTD = np.zeros((len(clips), length, features_ND.shape[1]), np.float32)
    valid_BT = np.zeros((len(clips), length), np.bool_)
    for n, clip in enumerate(clips):
        features_BTD[n, : len(clip)], valid_BT[n, : len(clip)] = features_ND[clip], True
    return torch.from_numpy(features_BTD), torch.from_numpy(valid_BT)


def _mean(same: Sequence[Opinion], weights: Sequence[float]) -> Opinion:
    first = same[0]
    if first.score is None or len(same) == 1:
        return first
    score = math.fsum(w * (o.score or 0.0) for o, w in zip(same, weights, strict=True))
    return Opinion(first.video, score, damaged=first.damaged)


def method_means(videos: Iterable[Video]) -> dict[str, float]:
    """The mean opinion of each method in training data; videos without a method have the empty name."""
    scores: dict[str, list[float]] = {}
    for video in videos:
        if video.mos is not None:
            scores.setdefault(video.method or "", []).append(video.mos)
    return {name: math.fsum(values) / len(values) for name, values in sorted(scores.items())}


def looked_up(means: Mapping[str, float], videos: Sequence[Video]) -> tuple[NDArray[np.float64], int]:
    """What the table says of videos: float64 (V,), and of how many it does not know the method.

    Those get the mean over all methods.
    """
    unknown = sum((video.method or "") not in means for video in videos)
    middle = math.fsum(means.values()) / len(means)
    return np.array([means.get(video.method or "", middle) for video in videos]), unknown
