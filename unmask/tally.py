"""What is concluded from the faces of one video and their features: tracks, windows, scores, a verdict, an account.

It starts where the backbone ends. Who decodes, detects, crops and embeds, and in which process, is not known here: one
file, a cluster and a live stream all end in a `Tally`, so that they cannot come to different scores.

Axes: N faces, D features, S = 2 D statistics of a window.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.checkpoints import Description
from unmask.errors import MediaError, Reason
from unmask.faces import face_side_px
from unmask.models import ForgeryModel
from unmask.quality import quality_of
from unmask.records import ErrorInfo, FaceQuality, Faces, FrameCount, Status, Verdict, VideoInfo, VideoScore
from unmask.scoring import ScoringOptions, TrackScores, deciding_track, judge
from unmask.tracks import Sighting, TrackedFrame
from unmask.window import MaskedWindow, RollingWindow

__all__ = ["Awaited", "Subject", "Tally", "TrackTally", "usable_rows"]

# Frames that were asked for and could not be seen.
_UNSEEN = (Reason.CORRUPT_FRAME, Reason.DECODE_FAILED, Reason.MISSING_FRAME, Reason.DEPTH_FAILED)
# Frames that were seen, and held nothing to score.
_LOOKED_AT = (Reason.NO_FACE, Reason.FACE_TOO_SMALL, Reason.FRAME_TOO_SMALL)
_FACES_AT_ONCE = 256


def usable_rows(faces: Faces, options: ScoringOptions) -> list[int]:
    """The rows of the faces that are large enough to be scored: only their features are needed."""
    return [row for row, box_4 in enumerate(faces.boxes_N4) if face_side_px(box_4) >= options.min_face_px]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Which video a result is of."""

    input: str
    """As it may be printed and stored: without passwords."""
    id: str = ""
    """Names its content; the input where that is not known."""
    media: VideoInfo | None = None
    """What its container says."""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent, by stage."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A face that counts, and whose features are awaited.

    Args:
        row: Which of its frame's faces it is.
        track_id: Whose face it is.
        pts_s: When it was seen.
        frame: In the how-manieth frame of the video.
        after_gap: Nothing of this face was scored in the frame before: no window spans that.
        quality: How well it can be seen.
    """

    row: int
    track_id: int
    pts_s: float
    frame: int
    after_gap: bool
    quality: FaceQuality


class TrackTally:
    """What is known of one tracked face so far.

    Args:
        track_id: Whose.
        model: Says what its windows hold.

    Attributes:
        scores: Of its frames and windows.
        spreads: Standard deviation of the frames' scores in each window, in [0, 1].
    """

    def __init__(self, track_id: int, model: ForgeryModel) -> None:
        self.scores = TrackScores(track_id)
        self.spreads: list[float] = []
        self._recent = RollingWindow(model.config.window, 1)
        length, dim = model.config.window, model.frame_dim
        self._is_temporal, is_fusion = model.is_temporal, model.config.head == "fusion"
        self._features = RollingWindow(length, dim) if model.is_temporal and not is_fusion else None
        self._frames = MaskedWindow(length, dim) if is_fusion else None
        self._last_s = -math.inf
        self._interrupted = True

    def interrupt(self) -> None:
        """The face was seen and cannot be scored: for its windows that is a gap."""
        self._interrupted = True

    def expect(self, row: int, sighting: Sighting, frame: int, pts_s: float, quality: FaceQuality) -> Awaited:
        """The face was seen, and its features will come."""
        # Two frames at one time do not make a window longer.
        after_gap = sighting.after_gap or self._interrupted or self._last_s >= pts_s
        self._last_s, self._interrupted = pts_s, False
        return Awaited(row, sighting.track_id, pts_s, frame, after_gap, quality)

    def keep_last(self, count: int) -> None:
        """Forget all but the last scores, for streams that never end. The windows stay as they are."""
        self.scores.keep_last(count)
        del self.spreads[: max(0, len(self.spreads) - count)]

    def statistics(self, face: Awaited, feature_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Statistics (2 D,) of the features in the window that ends with this face (temporal models)."""
        assert self._features is not None
        if face.after_gap:
            self._features.mark_gap()
        return self._features.push(feature_D, face.pts_s).statistics_S

    def frames(self, face: Awaited, feature_E: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The frames of the window that ends with this face (models with a fusion head): features (t, E), valid (t,).

        A frame without the face is a hole that the model is told of, as in training; it does not end the window.
        """
        assert self._frames is not None
        return self._frames.push(feature_E, face.frame, face.pts_s)

    def book(self, face: Awaited, score: float) -> None:
        """Add the score, in [0, 1], of the frame, or of the window that ends with it (temporal models)."""
        if face.after_gap:
            self._recent.mark_gap()
        window = self._recent.push(np.array([score]), face.pts_s)
        mean, spread = np.clip(window.statistics_S, 0.0, 1.0).tolist()
        window_score = score if self._is_temporal else mean
        self.scores.add(face.pts_s, score, window_score, window.frames, after_gap=face.after_gap, quality=face.quality)
        self.spreads.append(spread)


class Tally:
    """Takes the frames of one video and the features of their faces, and gives the video's score.

    Every frame that was asked for goes through `add`, in the order of presentation. Each face that `add` gives back
    goes through `score` once, with its features, in the same order; how many at a time makes no difference.

    Args:
        model: Its heads judge; the backbone is not used and may be missing.
        description: The model's: calibration, whether it was trained.
        options: What counts as evidence.

    Attributes:
        tracks: By id, in the order in which they appeared.
        received: Frames so far.
    """

    def __init__(self, model: ForgeryModel, description: Description, options: ScoringOptions) -> None:
        self.model, self.description, self.options = model, description, options
        self.tracks: dict[int, TrackTally] = {}
        self.received = 0
        self._scored = 0
        self._dropped: dict[Reason, int] = {}
        self._awaited = 0
        self._device = next(model.head.parameters()).device

    def add(self, frame: TrackedFrame) -> list[Awaited]:
        """Count a frame.

        Args:
            frame: Its faces as `unmask.quality.measured` gives them; where nobody measured their sharpness, the result
                says so.

        Returns:
            Those of its faces whose features are needed, most probable first.
        """
        usable = set(usable_rows(frame.faces, self.options))
        awaited = []
        for row, sighting in enumerate(frame.sightings):
            if row in usable:
                quality = quality_of(frame.faces, row)
                awaited.append(
                    self._track(sighting.track_id).expect(row, sighting, self.received, frame.pts_s, quality)
                )
            elif sighting.track_id in self.tracks:
                self.tracks[sighting.track_id].interrupt()
        self.received += 1
        reason = frame.reason or (None if awaited else Reason.FACE_TOO_SMALL)
        if reason is None:
            self._scored += 1
        else:
            self._dropped[reason] = self._dropped.get(reason, 0) + 1
        self._awaited += len(awaited)
        return awaited

    def lose(self, reason: Reason, count: int = 1) -> None:
        """Count frames that were asked for and not seen; as so many times `add`, at once."""
        self.received += count
        self._dropped[reason] = self._dropped.get(reason, 0) + count

    def give_up(self, faces: Sequence[Awaited], reason: Reason) -> None:
        """Count a frame as dropped after all, whose faces cannot be scored: `score` refused them.

        Args:
            faces: All that `add` gave for the frame last added.
            reason: Why.
        """
        assert faces
        self._awaited -= len(faces)
        self._scored -= 1
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        for face in faces:
            track = self.tracks[face.track_id]
            track.interrupt()
            if not len(track.scores):
                self.forget(face.track_id)

    @property
    def frames(self) -> FrameCount:
        """The account of the frames so far."""
        return FrameCount(self.received, self._scored, dict(self._dropped))

    def forget(self, track_id: int) -> TrackTally:
        """Let a track go that will not come back, for streams that never end. Its frames stay in the account."""
        return self.tracks.pop(track_id)

    def _track(self, track_id: int) -> TrackTally:
        if track_id not in self.tracks:
            self.tracks[track_id] = TrackTally(track_id, self.model)
        return self.tracks[track_id]

    @torch.inference_mode()
    def score(self, faces: Sequence[Awaited], features_ND: torch.Tensor) -> NDArray[np.float64]:
        """Judge the next faces, of one frame or of many.

        Args:
            faces: In the order in which `add` gave them.
            features_ND: Their features, (N, D), on any device.

        Returns:
            Calibrated scores float64 (N,) in [0, 1]: of each frame, or of the window that ends with it.

        Raises:
            ValueError: Features that are not of the model's shape, or not finite.
        """
        if features_ND.shape != (len(faces), self.model.frame_dim):
            expected = (len(faces), self.model.frame_dim)
            raise ValueError(f"the features of these faces have shape {expected}; got {tuple(features_ND.shape)}")
        if not faces:
            return np.zeros(0)
        logits_N = self._logits(faces, features_ND).float().cpu().numpy()
        if not np.isfinite(logits_N).all():
            raise ValueError(f"the features of {len(faces)} faces, or what the model makes of them, are not finite")
        scores_N = self.description.calibration.probability(logits_N)
        for face, score in zip(faces, scores_N.tolist(), strict=True):
            self.tracks[face.track_id].book(face, score)
        self._awaited -= len(faces)
        return scores_N

    def _logits(self, faces: Sequence[Awaited], features_ND: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of the frames, or of the windows that end with each of the faces."""
        if not self.model.is_temporal:
            return self.model.frame_logits(features_ND.to(self._device))
        if self.model.config.head == "fusion":
            return self._fused(faces, features_ND.float().cpu().numpy())
        statistics = [
            self.tracks[face.track_id].statistics(face, feature_D)
            for face, feature_D in zip(faces, features_ND.float().cpu().numpy(), strict=True)
        ]
        return self.model.window_logits(torch.from_numpy(np.stack(statistics)).to(self._device))

    def _fused(self, faces: Sequence[Awaited], features_NE: NDArray[np.float32]) -> torch.Tensor:
        length, size = self.model.config.window, self.model.frame_dim
        clips_NTE = np.zeros((len(faces), length, size), np.float32)
        valid_NT = np.zeros((len(faces), length), np.bool_)
        for n, (face, feature_E) in enumerate(zip(faces, features_NE, strict=True)):
            frames_tE, valid_t = self.tracks[face.track_id].frames(face, feature_E)
            clips_NTE[n, : len(valid_t)], valid_NT[n, : len(valid_t)] = frames_tE, valid_t
        return self.model.clip_logits(*(torch.from_numpy(a).to(self._device) for a in (clips_NTE, valid_NT)))

    def follow(
        self, frames: Iterable[tuple[TrackedFrame, NDArray[np.float32]]]
    ) -> Iterator[tuple[list[Awaited], NDArray[np.float64]]]:
        """Take frames whose features are known already, in place of `add` and `score`.

        Args:
            frames: In the order of presentation; each with the features float32 (N, D) of all its faces. The rows of
                faces that `usable_rows` leaves out are not read. They are taken one by one and not kept.

        Yields:
            The faces that count, many at a time, with their scores as `score` gives them.

        Raises:
            ValueError: As `score`.
        """
        faces: list[Awaited] = []
        rows: list[NDArray[np.float32]] = []
        for frame, features_ND in frames:
            for face in self.add(frame):
                faces.append(face)
                rows.append(features_ND[face.row])
            if len(faces) >= _FACES_AT_ONCE:
                yield faces, self.score(faces, _stacked(rows))
                faces, rows = [], []
        if faces:
            yield faces, self.score(faces, _stacked(rows))

    def conclude(self, subject: Subject) -> VideoScore:
        """The result, when all frames have come and all faces are scored. The face that decides is its first.

        Raises:
            ValueError: There are faces whose features never came.
        """
        if self._awaited:
            raise ValueError(f"{self._awaited} faces of {subject.input} were never scored")
        if not self.tracks:
            return self._nothing_to_score(subject)
        description, options = self.description, self.options
        tracks = [track.scores for track in self.tracks.values()]
        deciding = deciding_track(tracks, options)
        unseen = sum(self._dropped.get(reason, 0) for reason in _UNSEEN)
        judgement = judge(
            deciding, description.calibration, options, trained=description.trained, damaged=unseen / self.received
        )
        media = subject.media
        frame_duration_s = 1.0 / media.rate_fps if media is not None and media.rate_fps > 0 else 0.0
        faces = [track.summary(options.aggregation, frame_duration_s) for track in tracks]
        return self._result(
            subject,
            status=Status.SCORED,
            verdict=judgement.verdict,
            score=deciding.score(options.aggregation),
            faces=tuple(sorted(faces, key=lambda face: (face.track_id != deciding.track_id, -face.score))),
            warnings=(*judgement.reasons, *self._warnings(unseen, deciding.quality())),
        )

    def failed(self, subject: Subject, error: MediaError) -> VideoScore:
        """The result for an input from which no score can come, with the account of the frames so far."""
        return self._without_score(subject, Status.FAILED, error.reason, error.message)

    def _nothing_to_score(self, subject: Subject) -> VideoScore:
        shown, dropped = subject.input, self._dropped
        if not self.received:
            why = f"{shown} shows no frame; check that it plays."
            return self._without_score(subject, Status.FAILED, Reason.NO_FRAMES, why)
        if Reason.DEPTH_FAILED in dropped:  # there were faces, whatever became of the other frames
            why = f"None of the faces in {shown} has a depth map that says anything; take a model of pictures alone."
            return self._without_score(subject, Status.UNSCORED, Reason.DEPTH_FAILED, why)
        reason = max(dropped, key=lambda r: dropped[r])
        if not set(_LOOKED_AT) & set(dropped):
            why = f"{shown} is damaged: none of {self.received} frames could be decoded whole; get another copy."
            return self._without_score(subject, Status.FAILED, reason, why)
        if Reason.FACE_TOO_SMALL in dropped:
            least = self.options.min_face_px
            why = f"All faces in {shown} are smaller than {least} px; get a copy of higher resolution."
            return self._without_score(subject, Status.UNSCORED, Reason.NO_USABLE_FACE, why)
        if reason is Reason.FRAME_TOO_SMALL:
            why = f"The pictures of {shown} are too small to hold a face; get a copy of higher resolution."
            return self._without_score(subject, Status.UNSCORED, reason, why)
        unseen = sum(dropped.get(each, 0) for each in _UNSEEN)
        rest = f"; the other {unseen} are damaged or missing" if unseen else ""
        why = f"No face was found in {self.received - unseen} frames of {shown}{rest}; sample more if there is one."
        return self._without_score(subject, Status.UNSCORED, Reason.NO_FACE, why)

    def _without_score(self, subject: Subject, status: Status, reason: Reason, message: str) -> VideoScore:
        error = ErrorInfo(reason, " ".join(message.split()))
        return self._result(subject, status=status, verdict=Verdict.INCONCLUSIVE, error=error)

    def _result(self, subject: Subject, **fields: Any) -> VideoScore:
        description = self.description
        calibrated = description.trained and description.calibration.fitted
        kind = "calibrated_probability" if calibrated else "uncalibrated_probability"
        return VideoScore(
            id=subject.id or subject.input,
            input=subject.input,
            score_kind=kind if description.trained else "untrained",
            calibrated=calibrated,
            threshold=description.calibration.threshold,
            model=description.info(),
            media=subject.media,
            frames=self.frames,
            timings_s=subject.timings_s,
            **fields,
        )

    def _warnings(self, unseen: int, quality: FaceQuality) -> Iterator[str]:
        if self.description.trained and not self.description.calibration.fitted:
            yield "The model is not calibrated: its scores rank videos, but are no probabilities."
        if unseen:
            yield f"{unseen} of {self.received} frames are damaged or missing and were left out."
        if quality.sharpness is None:
            yield "Nobody measured how sharp the face is: a blurred one is not told from others."


def _stacked(rows: list[NDArray[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32, copy=False))
