"""From numbers to a verdict: frame -> window -> track -> video.

Axes: T scores in the order of time. Scores are probabilities of manipulation in [0, 1].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from unmask.calibration import Calibration
from unmask.errors import UsageError
from unmask.quality import typical
from unmask.records import FaceQuality, FaceScore, Segment, Verdict

__all__ = ["AGGREGATIONS", "Judgement", "ScoringOptions", "TrackScores", "confident", "deciding_track", "judge"]

# What one window of a single score tells of its spread: nothing; the widest that scores in [0, 1] can have.
_UNKNOWN_SPREAD = 0.5


def confident(scores_T: NDArray[np.float64]) -> float:
    """The confident strategy of the DFDC challenge's winner (Seferbekov 2020).

    If many frames are surely manipulated, their mean; if nearly all are surely authentic, their mean; else the mean of
    all.

    Args:
        scores_T: float64 (T,) in [0, 1], at least one.
    """
    n = len(scores_T)
    fake, real = scores_T[scores_T > 0.8], scores_T[scores_T < 0.2]
    if len(fake) > n / 2.5 and len(fake) > 11:
        return float(fake.mean())
    if len(real) > 0.9 * n:
        return float(real.mean())
    return float(scores_T.mean())


AGGREGATIONS: Mapping[str, Callable[[NDArray[np.float64]], float]] = MappingProxyType(
    {
        "confident": confident,
        "mean": lambda scores_T: float(scores_T.mean()),
        "max": lambda scores_T: float(scores_T.max()),
    }
)
"""How the scores of many frames become one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """What counts as evidence, and when to abstain."""

    aggregation: str = "confident"
    """How the scores of a track become one: confident, mean or max."""
    min_face_px: int = 32
    """Faces with a shorter side are not scored."""
    min_track_frames: int = 4
    """A track with fewer scored frames does not decide a video."""
    max_uncertainty: float = 0.25
    """A larger standard deviation over the windows of the deciding track makes the verdict inconclusive."""
    max_damaged: float = 0.5
    """A larger share of damaged or missing frames makes the verdict inconclusive."""
    min_median_face_px: int = 48
    """A smaller face, in the median over the deciding track, makes the verdict inconclusive. Networks
    see it enlarged three to four times; faces of ordinary video measure 70 px and more."""
    min_sharpness: float = 0.25
    """Less sharpness (`unmask.quality.sharpness_of`) makes it inconclusive. Of 60 sharp portraits (0.57 and more), none
    falls below if blurred by a Gaussian of 1.5% of the face's side, nearly all by one of 2.5%: the detail of a face of
    20 px. Faces of ordinary compressed video: 0.38 and more."""
    max_yaw_deg: float = 50.0
    """A face turned further to the side makes it inconclusive. What measures 50 degrees is turned by 60 or more: in a
    profile, landmarks are guesses. Ordinary video: medians up to 44."""
    max_pitch_deg: float = 40.0
    """A face that looks further up or down makes it inconclusive. A broad smile alone measures up to 33."""
    max_roll_deg: float = 45.0
    """A face that is tilted further makes it inconclusive: beyond it, MTCNN misses faces and misplaces landmarks."""

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            known = ", ".join(AGGREGATIONS)
            raise UsageError(f"--aggregation {self.aggregation!r} is unknown; choose one of {known}.")
        if self.min_face_px < 1 or self.min_track_frames < 1:
            raise UsageError("The smallest face and the shortest track must be at least 1.")
        if self.min_median_face_px < 0 or not 0.0 <= self.min_sharpness <= 1.0:
            raise UsageError("The least median face must be 0 px or more, and the least sharpness from 0 to 1.")
        if not all(0.0 < angle <= 180.0 for angle in (self.max_yaw_deg, self.max_pitch_deg, self.max_roll_deg)):
            raise UsageError("The largest yaw, pitch and roll must be above 0 and at most 180 degrees.")


@dataclass(slots=True)
class TrackScores:
    """The scores of one tracked face, as they come.

    A frame's score is what it adds to the evidence: the frame head's, or the temporal head's for the window that ends
    with it. A window's score is the temporal head's, or the mean of the frame head's over the window.
    """

    track_id: int
    pts_s: list[float] = field(default_factory=list)
    frame_scores: list[float] = field(default_factory=list)
    window_scores: list[float] = field(default_factory=list)
    window_lengths: list[int] = field(default_factory=list)
    segment_starts: list[int] = field(default_factory=list)
    qualities: list[FaceQuality] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pts_s)

    def add(
        self,
        pts_s: float,
        frame_score: float,
        window_score: float,
        window_length: int,
        *,
        after_gap: bool,
        quality: FaceQuality,
    ) -> None:
        """Add the next frame.

        Args:
            pts_s: Its presentation time.
            frame_score: In [0, 1].
            window_score: In [0, 1], of the window that ends with this frame.
            window_length: Frames in that window.
            after_gap: Frames without this face lie before; a segment starts.
            quality: How well the face can be seen in it.
        """
        if after_gap or not self.pts_s:
            self.segment_starts.append(len(self.pts_s))
        self.pts_s.append(pts_s)
        self.frame_scores.append(frame_score)
        self.window_scores.append(window_score)
        self.window_lengths.append(window_length)
        self.qualities.append(quality)

    def quality(self) -> FaceQuality:
        """How well the face can be seen: the median over its frames."""
        return typical(self.qualities)

    def keep_last(self, count: int) -> None:
        """Forget all but the last scores, for streams that never end."""
        excess = len(self) - count
        if excess > 0:
            for column in (self.pts_s, self.frame_scores, self.window_scores, self.window_lengths):
                del column[:excess]
            del self.qualities[:excess]
            self.segment_starts = sorted({max(start - excess, 0) for start in self.segment_starts})

    def uncertainty(self) -> float:
        """Standard deviation of the window scores, over windows at least half as long as the longest; in [0, 0.5]."""
        lengths_T = np.asarray(self.window_lengths)
        scores_T = np.asarray(self.window_scores)[2 * lengths_T >= lengths_T.max()]
        return float(scores_T.std()) if len(scores_T) > 1 else _UNKNOWN_SPREAD

    def score(self, aggregation: str) -> float:
        """The track's score in [0, 1]."""
        return AGGREGATIONS[aggregation](np.asarray(self.frame_scores))

    def summary(self, aggregation: str, frame_duration_s: float) -> FaceScore:
        """The track's score, uncertainty and segments; the last frame of a segment is shown for `frame_duration_s`."""
        ends = [*self.segment_starts[1:], len(self)]
        segments = tuple(
            Segment(
                start_s=self.pts_s[start],
                end_s=self.pts_s[end - 1] + frame_duration_s,
                score=AGGREGATIONS[aggregation](np.asarray(self.frame_scores[start:end])),
            )
            for start, end in zip(self.segment_starts, ends, strict=True)
        )
        return FaceScore(self.track_id, self.score(aggregation), self.uncertainty(), segments, self.quality())


def deciding_track(tracks: Sequence[TrackScores], options: ScoringOptions) -> TrackScores:
    """The most suspicious track of those that are long enough; the longest where none is.

    Args:
        tracks: At least one, each with at least one score.
        options: The least length and the aggregation.
    """
    long_enough = [t for t in tracks if len(t) >= options.min_track_frames]
    if not long_enough:
        return max(tracks, key=len)
    return max(long_enough, key=lambda t: t.score(options.aggregation))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the sentences that say why it is inconclusive, if it is."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judge(
    track: TrackScores, calibration: Calibration, options: ScoringOptions, *, trained: bool, damaged: float
) -> Judgement:
    """Decide, or abstain and say why.

    Args:
        track: The track that decides.
        calibration: The model's threshold and the band around it in which it is not sure.
        options: The limits of what counts as evidence.
        trained: Whether the model ever learnt anything.
        damaged: Share of the wanted frames that were damaged or missing, in [0, 1].
    """
    score, uncertainty = track.score(options.aggregation), track.uncertainty()
    low, high = calibration.band
    reasons = []
    if not trained:
        reasons.append("The model was never trained: its weights are random, and the score says nothing.")
    if len(track) < options.min_track_frames:
        reasons.append(f"Scored frames of one face: {len(track)}, where {options.min_track_frames} are needed.")
    elif uncertainty > options.max_uncertainty:
        reasons.append(f"The windows disagree: their scores spread by {uncertainty:.2f}.")
    if damaged > options.max_damaged:
        reasons.append(f"{damaged:.0%} of the frames are damaged or missing.")
    reasons += _hard_to_see(track.quality(), options)
    if low <= score < high:
        reasons.append(
            f"The score {score:.2f} lies in the band from {low:.2f} to {high:.2f} where the model is unsure."
        )
    if reasons:
        return Judgement(Verdict.INCONCLUSIVE, tuple(reasons))
    return Judgement(Verdict.MANIPULATED if score >= high else Verdict.AUTHENTIC, ())


def _hard_to_see(face: FaceQuality, options: ScoringOptions) -> Iterator[str]:
    """Why a face cannot be seen well enough to be judged, a sentence each."""
    if face.side_px < options.min_median_face_px:
        yield f"The face is small: {face.side_px:.0f} px across, where {options.min_median_face_px} px are needed."
    if face.sharpness is not None and face.sharpness < options.min_sharpness:
        least = options.min_sharpness
        yield f"The face is blurred: its sharpness is {face.sharpness:.2f}, where {least:.2f} is needed."
    if face.yaw_deg > options.max_yaw_deg:
        most = options.max_yaw_deg
        yield f"The face is turned {face.yaw_deg:.0f} degrees to the side, where {most:.0f} are the most."
    if face.pitch_deg > options.max_pitch_deg:
        most = options.max_pitch_deg
        yield f"The face looks {face.pitch_deg:.0f} degrees up or down, where {most:.0f} are the most."
    if face.roll_deg > options.max_roll_deg:
        yield f"The face is tilted by {face.roll_deg:.0f} degrees, where {options.max_roll_deg:.0f} are the most."
