"""One video, from its bytes to its score: watch, crop, backbone, windows, judgement. No video can harm another.

Axes: N faces of a batch, D features, S = 2 D statistics of a window.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.album import Album
from unmask.checkpoints import Description
from unmask.devices import select_device
from unmask.errors import MediaError, ModelError, Reason
from unmask.evidence import ReportEntry, TrackEvidence
from unmask.explain import heatmaps
from unmask.faces import crop, face_side_px
from unmask.inputs import FetchLimits, Source, content_id, fetched
from unmask.models import ForgeryModel
from unmask.mtcnn import MTCNN, SCORING_THRESHOLDS
from unmask.plan import Sampling
from unmask.presets import DEFAULT_MODEL, resolve
from unmask.records import ErrorInfo, FrameCount, Status, Verdict, VideoInfo, VideoScore
from unmask.scoring import ScoringOptions, TrackScores, deciding_track, judge
from unmask.transforms import resize, to_tensor
from unmask.video import VideoReader
from unmask.watch import Seen, Stopwatch, watch
from unmask.window import RollingWindow
from unmask.workers import Workers

__all__ = ["Analysis", "Analyzer"]

_LOG = logging.getLogger(__name__)

# Faces that go through the backbone together.
_BATCH_FACES = 16


@dataclass(slots=True, eq=False)
class _TrackState:
    """What is kept of one tracked face while a video is read."""

    scores: TrackScores
    recent: RollingWindow
    features: RollingWindow | None
    album: Album | None
    last_s: float = -math.inf
    spreads: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Crop:
    """A face on its way through the backbone."""

    state: _TrackState
    pixels_HWC: NDArray[np.uint8]
    pts_s: float
    index: int
    probability: float
    after_gap: bool


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """The result for one input, and what the report shows as evidence for it."""

    score: VideoScore
    description: Description
    tracks: tuple[TrackEvidence, ...] = ()
    deciding_track_id: int | None = None

    def report_entry(self) -> ReportEntry:
        """What the report shows of this input."""
        said = asdict(self.description.info())  # in `score.model`; not said twice
        return ReportEntry(
            score=self.score,
            tracks=self.tracks,
            model_card={k: v for k, v in self.description.to_json().items() if k not in said},
            abstain=self.description.calibration.band,
            decides=self.deciding_track_id,
        )


class Analyzer:
    """A model and a face detector, ready to score one video after the other.

    Args:
        model: Scores crops of faces.
        description: The model's: preprocessing, calibration, whether it was trained.
        detector: Finds faces; on the model's device.
        options: What counts as evidence.
        limits: What a download may cost.
    """

    def __init__(
        self,
        model: ForgeryModel,
        description: Description,
        detector: MTCNN,
        *,
        options: ScoringOptions | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        self.model = model.eval()
        self.description = description
        self.detector = detector
        self.options = options or ScoringOptions()
        self.limits = limits or FetchLimits()
        self.device = next(model.parameters()).device
        self.workers = Workers(self.device)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        pretrained: bool | None = None,
        options: ScoringOptions | None = None,
        limits: FetchLimits | None = None,
    ) -> Self:
        """Load everything by name.

        Args:
            model: A checkpoint's path, a preset or a timm backbone; the default model where None.
            device: See `select_device`.
            weights: Weights of the backbone, from a file.
            pretrained: Whether a backbone gets timm's weights; left open, the preset decides.
            options: What counts as evidence.
            limits: What a download may cost.

        Raises:
            ModelError: The model cannot be had or trusted.
            UsageError: The device is not there, or options contradict each other.
        """
        where = select_device(device)
        built, description = resolve(
            DEFAULT_MODEL if model is None else model, device=where, weights=weights, pretrained=pretrained
        )
        return cls(
            built, description, MTCNN(device=where, thresholds=SCORING_THRESHOLDS), options=options, limits=limits
        )

    def analyze(
        self,
        source: Source,
        sampling: Sampling,
        *,
        evidence: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Analysis:
        """Score one video.

        Args:
            source: What to score.
            sampling: Which of its frames.
            evidence: Keep crops and heat maps for the report.
            progress: Called with the share of the work that is done, in (0, 1).

        Returns:
            The result. Whatever is wrong with the video lies in it as an error; nothing is raised for it.
        """
        started = time.perf_counter()
        run = _Run(self, sampling, evidence=evidence, progress=progress or (lambda _: None))
        try:
            if source.error is not None:
                raise source.error
            with fetched(source, self.limits) as path:
                analysis = run.analyze(source, path)
        except MediaError as error:
            analysis = run.failed(source, error)
        except OSError as error:
            unreadable = f"{source.shown} cannot be read ({error.strerror}); check the file and its permissions."
            analysis = run.failed(source, MediaError(Reason.UNREADABLE_FILE, unreadable))
        except Exception as error:
            _LOG.debug("while analysing %s", source.shown, exc_info=True)
            ours = f"{source.shown} could not be analysed: {type(error).__name__}: {_one_line(str(error))}"
            analysis = run.failed(source, MediaError(Reason.INTERNAL, ours))
        run.stopwatch.add("total", started)
        return analysis


class _Run:
    """The state of one analysis."""

    def __init__(
        self, analyzer: Analyzer, sampling: Sampling, *, evidence: bool, progress: Callable[[float], None]
    ) -> None:
        self.analyzer, self.sampling, self.evidence, self.progress = analyzer, sampling, evidence, progress
        self.stopwatch = Stopwatch()
        self.media: VideoInfo | None = None
        self.id = ""
        self.received = self.scored = 0
        self.dropped: dict[Reason, int] = {}
        self.tracks: dict[int, _TrackState] = {}
        self._waiting: list[_Crop] = []
        self._interrupted: set[int] = set()

    def failed(self, source: Source, error: MediaError) -> Analysis:
        """The result for an input from which no score can come."""
        return self._without_score(source, Status.FAILED, error.reason, error.message)

    def analyze(self, source: Source, path: Path) -> Analysis:
        with VideoReader(path) as reader:
            self.id = content_id(path)
            wanted = max(len(reader.times_s(self.sampling)), 1)
            for seen in watch(reader, self.sampling, self.analyzer.detector, self.analyzer.workers, self.stopwatch):
                self._take(seen)
                self.progress(min(self.received / (wanted + 1), 0.99))
            self._flush()
            self.media = reader.info
        if self.tracks:
            return self._with_score(source)
        return self._nothing_to_score(source)

    def _take(self, seen: Seen) -> None:
        """Count a frame, and send its faces on their way."""
        crops = list(self._crops(seen))
        # Not before: a frame whose crops cannot be cut must not unbalance the account of the failure.
        self.received += 1
        reason = seen.reason or (None if crops else Reason.FACE_TOO_SMALL)
        if reason is not None:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
            return
        self.scored += 1
        self._waiting += crops
        if len(self._waiting) >= _BATCH_FACES:
            self._flush()

    def _crops(self, seen: Seen) -> Iterator[_Crop]:
        preprocessing = self.analyzer.description.preprocessing
        for n, sighting in enumerate(seen.sightings):
            if seen.frame is None or face_side_px(seen.faces.boxes_N4[n]) < self.analyzer.options.min_face_px:
                # Seen, but not scored: for the windows of this track that is a gap.
                self._interrupted.add(sighting.track_id)
                continue
            cut = crop(seen.frame.image_HWC, seen.faces.boxes_N4[n], seen.faces.landmarks_NK2[n], preprocessing)
            state = self._state(sighting.track_id)
            yield _Crop(
                state=state,
                pixels_HWC=resize(cut, preprocessing),
                pts_s=seen.pts_s,
                index=seen.index,
                probability=float(seen.faces.probabilities_N[n]),
                # Two frames at one time do not make a window longer.
                after_gap=sighting.after_gap or sighting.track_id in self._interrupted or state.last_s >= seen.pts_s,
            )
            state.last_s = seen.pts_s
            self._interrupted.discard(sighting.track_id)

    def _state(self, track_id: int) -> _TrackState:
        if track_id not in self.tracks:
            model = self.analyzer.model
            length = model.config.window
            self.tracks[track_id] = _TrackState(
                scores=TrackScores(track_id),
                recent=RollingWindow(length, 1),
                features=RollingWindow(length, model.dim) if model.is_temporal else None,
                album=Album() if self.evidence else None,
            )
        return self.tracks[track_id]

    def _flush(self) -> None:
        """Send the waiting crops through the backbone, and their scores to their tracks."""
        crops, self._waiting = self._waiting, []
        if not crops:
            return
        started = time.perf_counter()
        model, description = self.analyzer.model, self.analyzer.description
        features_ND = torch.stack(self.analyzer.workers.map(self._features, crops))
        with torch.inference_mode():
            logits_N = self._window_logits(crops, features_ND) if model.is_temporal else model.frame_logits(features_ND)
        for face, score in zip(crops, description.calibration.probability(logits_N.float().cpu().numpy()), strict=True):
            self._book(face, float(score))
        self.stopwatch.add("score", started)

    @torch.inference_mode()
    def _features(self, crops: Sequence[_Crop]) -> Iterator[torch.Tensor]:
        preprocessing = self.analyzer.description.preprocessing
        inputs_N3HW = to_tensor([c.pixels_HWC for c in crops], preprocessing, self.analyzer.device)
        return iter(self.analyzer.model.features(inputs_N3HW))

    def _window_logits(self, crops: list[_Crop], features_ND: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of the windows that end with each of the crops."""
        statistics = []
        for face, feature_D in zip(crops, features_ND.float().cpu().numpy(), strict=True):
            assert face.state.features is not None
            if face.after_gap:
                face.state.features.mark_gap()
            statistics.append(face.state.features.push(feature_D, face.pts_s).statistics_S)
        return self.analyzer.model.window_logits(torch.from_numpy(np.stack(statistics)).to(self.analyzer.device))

    def _book(self, face: _Crop, score: float) -> None:
        state = face.state
        if face.after_gap:
            state.recent.mark_gap()
        window = state.recent.push(np.array([score]), face.pts_s)
        mean, spread = np.clip(window.statistics_S, 0.0, 1.0).tolist()
        window_score = score if self.analyzer.model.is_temporal else mean
        state.scores.add(face.pts_s, score, window_score, window.frames, after_gap=face.after_gap)
        state.spreads.append(spread)
        if state.album is not None:
            state.album.add(
                face.pixels_HWC, pts_s=face.pts_s, index=face.index, score=score, probability=face.probability
            )

    def _with_score(self, source: Source) -> Analysis:
        description, options = self.analyzer.description, self.analyzer.options
        tracks = [state.scores for state in self.tracks.values()]
        deciding = deciding_track(tracks, options)
        unseen = sum(self.dropped.get(r, 0) for r in (Reason.CORRUPT_FRAME, Reason.DECODE_FAILED, Reason.MISSING_FRAME))
        judgement = judge(
            deciding, description.calibration, options, trained=description.trained, damaged=unseen / self.received
        )
        assert self.media is not None
        frame_duration_s = 1.0 / self.media.rate_fps if self.media.rate_fps > 0 else 0.0
        faces = [track.summary(options.aggregation, frame_duration_s) for track in tracks]
        evidence, remarks = self._evidence()
        score = self._score(
            source,
            status=Status.SCORED,
            verdict=judgement.verdict,
            score=deciding.score(options.aggregation),
            faces=tuple(sorted(faces, key=lambda face: (face.track_id != deciding.track_id, -face.score))),
            warnings=(*judgement.reasons, *self._warnings(unseen), *remarks),
        )
        return Analysis(score, description, evidence, deciding.track_id)

    def _evidence(self) -> tuple[tuple[TrackEvidence, ...], tuple[str, ...]]:
        """What the report shows of each track, and what has to be said about it."""
        if not self.evidence:
            return (), ()
        started = time.perf_counter()
        try:
            return tuple(self._track_evidence(self._heatmaps)), ()
        except ModelError as error:
            return tuple(self._track_evidence(None)), (f"Heat maps are left out: {error.message}",)
        finally:
            self.stopwatch.add("explain", started)

    def _track_evidence(
        self, maps: Callable[[list[NDArray[np.uint8]]], NDArray[np.float32]] | None
    ) -> Iterator[TrackEvidence]:
        for state in self.tracks.values():
            assert state.album is not None
            yield TrackEvidence(
                track_id=state.scores.track_id,
                frames=state.album.frames(maps),
                times_s_W=np.asarray(state.scores.pts_s),
                scores_W=np.asarray(state.scores.window_scores),
                spread_W=np.asarray(state.spreads),
            )

    def _heatmaps(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        inputs_N3HW = to_tensor(crops, self.analyzer.description.preprocessing, self.analyzer.device)
        return np.asarray(heatmaps(self.analyzer.model, inputs_N3HW).cpu().numpy(), np.float32)

    def _nothing_to_score(self, source: Source) -> Analysis:
        if not self.received:
            return self._without_score(
                source, Status.FAILED, Reason.NO_FRAMES, f"{source.shown} shows no frame; check that it plays."
            )
        reason = max(self.dropped, key=lambda r: self.dropped[r])
        looked_at = {Reason.NO_FACE, Reason.FACE_TOO_SMALL, Reason.FRAME_TOO_SMALL}
        if not looked_at & set(self.dropped):
            why = f"{source.shown} is damaged: none of {self.received} frames could be decoded whole; get another copy."
            return self._without_score(source, Status.FAILED, reason, why)
        if Reason.FACE_TOO_SMALL in self.dropped:
            least = self.analyzer.options.min_face_px
            why = f"All faces in {source.shown} are smaller than {least} px; get a copy of higher resolution."
            return self._without_score(source, Status.UNSCORED, Reason.NO_USABLE_FACE, why)
        if reason is Reason.FRAME_TOO_SMALL:
            why = f"The pictures of {source.shown} are too small to hold a face; get a copy of higher resolution."
            return self._without_score(source, Status.UNSCORED, reason, why)
        why = f"No face was found in {self.received} frames of {source.shown}; sample more of them if there is one."
        return self._without_score(source, Status.UNSCORED, Reason.NO_FACE, why)

    def _without_score(self, source: Source, status: Status, reason: Reason, message: str) -> Analysis:
        error = ErrorInfo(reason, _one_line(message))
        score = self._score(source, status=status, verdict=Verdict.INCONCLUSIVE, error=error)
        return Analysis(score, self.analyzer.description)

    def _score(self, source: Source, **fields: Any) -> VideoScore:
        description = self.analyzer.description
        calibrated = description.trained and description.calibration.fitted
        kind = "calibrated_probability" if calibrated else "uncalibrated_probability"
        return VideoScore(
            id=self.id or source.shown,
            input=source.shown,
            score_kind=kind if description.trained else "untrained",
            calibrated=calibrated,
            threshold=description.calibration.threshold,
            model=description.info(),
            media=self.media,
            frames=FrameCount(self.received, self.scored, dict(self.dropped)),
            timings_s=self.stopwatch.seconds,
            **fields,
        )

    def _warnings(self, unseen: int) -> Iterator[str]:
        description = self.analyzer.description
        if description.trained and not description.calibration.fitted:
            yield "The model is not calibrated: its scores rank videos, but are no probabilities."
        if unseen:
            yield f"{unseen} of {self.received} frames are damaged or missing and were left out."


def _one_line(text: str) -> str:
    return " ".join(text.split())
