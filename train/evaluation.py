"""Scores of preprocessed videos: what `unmask score` would say of the same frames and faces.

The tables say which frames were asked for, whose each face is, and after which a gap lies; a `Tally` does the rest, as
it does for files and clusters. A crop that is damaged counts as a frame that could not be seen.

Axes: N faces, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from train.catalogue import Catalogue
from train.crops import CropReader
from train.embedding import Change, Embedded, embedded
from train.ensemble import Ensemble, Member
from train.fused import fused
from train.selection import Selection
from unmask.errors import ModelError, Reason
from unmask.records import Faces, Status, Verdict
from unmask.scoring import ScoringOptions
from unmask.tally import Subject, Tally
from unmask.tracks import Sighting, TrackedFrame

__all__ = ["Outcome", "blended", "outcomes", "scorable_rows", "score_all"]

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of one video.

    Args:
        video: Its number in the catalogue.
        status: Scored or not.
        score: In [0, 1]; None where there is none.
        verdict: None where several models were averaged.
        reason: Why there is no score.
        rows_N: The faces that were scored, by number in the catalogue, in order of time.
        scores_N: Of each: of its frame, or of the window that ends with it (temporal models).
        tracks: Score and number of faces of each track.
        deciding: The track whose score is the video's; None where several models were averaged.
        damaged: Crops that could not be read.
    """

    video: int
    status: Status
    score: float | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    rows_N: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores_N: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    tracks: dict[int, tuple[float, int]] = field(default_factory=dict)
    deciding: int | None = None
    damaged: int = 0


def scorable_rows(catalogue: Catalogue, video: int, options: ScoringOptions) -> NDArray[np.int64]:
    """A video's faces that count: large enough, of a track, and of a frame that is whole."""
    rows_N = catalogue.faces_of(video)
    sides_N2 = catalogue.box_N4[rows_N, 2:] - catalogue.box_N4[rows_N, :2]
    known_N = (catalogue.track_N[rows_N] >= 0) & ~catalogue.corrupt_N[rows_N]
    return np.asarray(rows_N[known_N & (sides_N2.min(1) >= options.min_face_px)], np.int64)


def outcomes(
    member: Member,
    selection: Selection,
    reader: CropReader,
    options: ScoringOptions,
    *,
    batch: int,
    videos: Sequence[int] | None = None,
    change: Change | None = None,
    depth: str | None = None,
    progress: Progress = lambda _: None,
) -> list[Outcome]:
    """Score videos with one model.

    Args:
        member: The model.
        selection: What is evaluated.
        reader: Of the crops.
        options: What counts as evidence.
        batch: Crops a pass.
        videos: Some of the selection's, by number in the catalogue; all of them by default.
        change: Done to the crops first.
        depth: Weights of the depth maps, for a model that takes them; see `train.fused.fused`.
        progress: Told of each video.

    Raises:
        ModelError: The model gives numbers that are not finite.
    """
    catalogue, numbers = selection.catalogue, list(selection.videos if videos is None else videos)
    rows = [scorable_rows(catalogue, n, options) for n in numbers]
    preprocessing = member.description.preprocessing
    found = []
    if member.model.config.head == "fusion":
        stream = fused(member, catalogue, reader, rows, depth=depth, changed=change is not None)
    else:
        stream = embedded(member.model, preprocessing, reader, rows, batch=batch, change=change)
    for number, features in zip(numbers, stream, strict=True):
        found.append(_outcome(member, catalogue, number, features, options))
        progress(1)
    return found


def _outcome(
    member: Member,
    catalogue: Catalogue,
    number: int,
    features: Embedded,
    options: ScoringOptions,
) -> Outcome:
    tally = Tally(member.model, member.description, options)
    key = catalogue.videos[number].key
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    try:
        scores += [scores_N for _, scores_N in tally.follow(_frames(catalogue, number, features))]
        score = tally.conclude(Subject(input=key, id=key))
    except ValueError as error:
        raise ModelError(
            Reason.INTERNAL, f"{member.given} cannot score {key} ({error}): it diverged in training; choose another"
        ) from error
    status, reason = score.status, None if score.error is None else score.error.code
    damaged = int((~features.whole_N).sum()) - len(features.depth_failed)
    if damaged and reason in (Reason.NO_FACE, Reason.NO_USABLE_FACE):
        # There were faces that count, and their crops cannot be read: that is not the same as none.
        status, reason = Status.FAILED, Reason.CORRUPT_FRAME
    return Outcome(
        video=number,
        status=status,
        score=score.score,
        verdict=score.verdict,
        reason=None if reason is None else str(reason),
        rows_N=features.rows_N[features.whole_N],
        scores_N=np.concatenate(scores),
        tracks={
            track_id: (track.scores.score(options.aggregation), len(track.scores))
            for track_id, track in tally.tracks.items()
        },
        deciding=score.faces[0].track_id if score.faces else None,
        damaged=damaged,
    )


def _frames(
    catalogue: Catalogue, number: int, features: Embedded
) -> Iterator[tuple[TrackedFrame, NDArray[np.float32]]]:
    """All frames that were asked for, in order of time, each with its faces' features; rows that nobody reads are NaN.

    Those without a face count in the account of the video, and for windows that keep their holes.
    """
    dim = features.features_ND.shape[1]
    place = {row: n for n, row in enumerate(features.rows_N.tolist())}
    broken = set(features.rows_N[~features.whole_N].tolist())
    interrupted: set[int] = set()
    for index, pts_s, reason, rows in _asked(catalogue, number):
        kept = [row for row in rows if row not in broken and catalogue.track_N[row] >= 0]
        interrupted |= {int(catalogue.track_N[row]) for row in rows if row in broken}
        if reason is None and not kept:
            mapless = features.depth_failed.issuperset(rows)
            reason = Reason.NO_FACE if not rows else Reason.DEPTH_FAILED if mapless else Reason.CORRUPT_FRAME
        if reason is not None:
            yield TrackedFrame(pts_s, index, Faces.none(), (), reason), np.zeros((0, dim), np.float32)
            continue
        sightings = []
        for row in kept:
            track = int(catalogue.track_N[row])
            sightings.append(Sighting(track, bool(catalogue.after_gap_N[row]) or track in interrupted))
            interrupted.discard(track)
        faces = Faces(
            catalogue.box_N4[kept],
            catalogue.probability_N[kept],
            catalogue.landmarks_frame_N52[kept],
            catalogue.sharpness_N[kept],
        )
        features_ND = np.full((len(kept), dim), np.nan, np.float32)
        for n, row in enumerate(kept):
            if row in place:
                features_ND[n] = features.features_ND[place[row]]
        yield TrackedFrame(pts_s, index, faces, sightings, None), features_ND


def _asked(catalogue: Catalogue, number: int) -> Iterator[tuple[int, float, Reason | None, list[int]]]:
    """Of each frame that was asked for: position, time, why it was not looked at, and the numbers of its faces."""
    asked = catalogue.videos[number].asked
    rows_of: dict[int, list[int]] = {}
    for row in catalogue.faces_of(number).tolist():
        rows_of.setdefault(int(catalogue.frame_N[row]), []).append(row)
    for place, (index, pts_s) in enumerate(zip(asked.frame_A.tolist(), asked.pts_s_A.tolist(), strict=True)):
        reason = asked.reasons.get(place)
        yield index, pts_s, None if reason is None else Reason(reason), rows_of.pop(index, [])


def blended(parts: Sequence[Sequence[Outcome]], weights: Sequence[float]) -> list[Outcome]:
    """The outcomes of an ensemble: weighted means of the members' scores of each face, track and video.

    Args:
        parts: Of each member, of the same videos and faces.
        weights: Shares that sum to 1.
    """
    if len(parts) == 1:
        return list(parts[0])
    return [_mean(same, weights) for same in zip(*parts, strict=True)]


def _mean(same: Sequence[Outcome], weights: Sequence[float]) -> Outcome:
    first = same[0]
    assert all(o.video == first.video and np.array_equal(o.rows_N, first.rows_N) for o in same)
    if first.score is None:
        return first
    pairs = list(zip(same, weights, strict=True))
    return Outcome(
        video=first.video,
        status=first.status,
        score=float(np.clip(sum(w * (o.score or 0.0) for o, w in pairs), 0.0, 1.0)),
        rows_N=first.rows_N,
        scores_N=np.clip(sum((w * o.scores_N for o, w in pairs), np.zeros(len(first.rows_N))), 0.0, 1.0),
        tracks={
            track: (float(np.clip(sum(w * o.tracks[track][0] for o, w in pairs), 0.0, 1.0)), length)
            for track, (_, length) in first.tracks.items()
        },
        damaged=first.damaged,
    )


def score_all(
    ensemble: Ensemble,
    selection: Selection,
    reader: CropReader,
    options: ScoringOptions,
    *,
    batch: int,
    videos: Sequence[int] | None = None,
    change: Change | None = None,
    depth: str | None = None,
    progress: Progress = lambda _: None,
) -> tuple[list[Outcome], list[list[Outcome]]]:
    """Score videos with an ensemble: what it says, and what each member says. Arguments as in `outcomes`."""
    parts = [
        outcomes(
            m, selection, reader, options, batch=batch, videos=videos, change=change, depth=depth, progress=progress
        )
        for m in ensemble.members
    ]
    return blended(parts, [member.weight for member in ensemble.members]), parts
