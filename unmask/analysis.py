"""One video, from its bytes to its score: watch, crop, backbone, tally. No video can harm another.

Axes: N faces of a batch, D features.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.album import Album
from unmask.card import card_json
from unmask.checkpoints import Description
from unmask.detection import FaceDetector
from unmask.detectors import load_detector
from unmask.devices import select_device
from unmask.errors import MediaError, ModelError, Reason
from unmask.evidence import ReportEntry, TrackEvidence
from unmask.explain import heatmaps
from unmask.faces import crop
from unmask.inputs import FetchLimits, Source, content_id, fetched
from unmask.models import ForgeryModel
from unmask.plan import Sampling
from unmask.presets import DEFAULT_MODEL, resolve
from unmask.records import Status, VideoInfo, VideoScore
from unmask.scoring import ScoringOptions
from unmask.tally import Awaited, Subject, Tally, usable_rows
from unmask.transforms import resize, to_tensor
from unmask.video import VideoReader
from unmask.watch import Seen, Stopwatch, watch
from unmask.workers import Workers

__all__ = ["Analysis", "Analyzer"]

_LOG = logging.getLogger(__name__)

# Faces that go through the backbone together.
_BATCH_FACES = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Crop:
    """A face on its way through the backbone."""

    face: Awaited
    pixels_HWC: NDArray[np.uint8]
    index: int
    probability: float


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
            model_card={k: v for k, v in card_json(self.description).items() if k not in said},
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
        detector: FaceDetector,
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
        detector: str = "mtcnn",
        options: ScoringOptions | None = None,
        limits: FetchLimits | None = None,
    ) -> Self:
        """Load everything by name.

        Args:
            model: A checkpoint's path, a preset or a timm backbone; the default model where None.
            device: See `select_device`.
            weights: Weights of the backbone, from a file.
            pretrained: Whether a backbone gets timm's weights; left open, the preset decides.
            detector: What finds faces; one of `unmask.detection.DETECTORS`.
            options: What counts as evidence.
            limits: What a download may cost.

        Raises:
            ModelError: The model cannot be had or trusted, or is no detector.
            UsageError: The device is not there, or options contradict each other.
        """
        where = select_device(device)
        built, description = resolve(
            DEFAULT_MODEL if model is None else model, device=where, weights=weights, pretrained=pretrained
        )
        description.check_detects()
        return cls(built, description, load_detector(detector, device=where), options=options, limits=limits)

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
            said = " ".join(str(error).split())
            ours = f"{source.shown} could not be analysed: {type(error).__name__}: {said}"
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
        self.tally = Tally(analyzer.model, analyzer.description, analyzer.options)
        self._albums: dict[int, Album] = {}
        self._waiting: list[_Crop] = []

    def failed(self, source: Source, error: MediaError) -> Analysis:
        """The result for an input from which no score can come."""
        return Analysis(self.tally.failed(self._subject(source), error), self.analyzer.description)

    def analyze(self, source: Source, path: Path) -> Analysis:
        with VideoReader(path) as reader:
            self.id = content_id(path)
            wanted = max(len(reader.times_s(self.sampling)), 1)
            for seen in watch(reader, self.sampling, self.analyzer.detector, self.analyzer.workers, self.stopwatch):
                self._take(seen)
                self.progress(min(self.tally.received / (wanted + 1), 0.99))
            self._flush()
            self.media = reader.info
        score = self.tally.conclude(self._subject(source))
        if score.status is not Status.SCORED:
            return Analysis(score, self.analyzer.description)
        evidence, remarks = self._evidence()
        score = replace(score, warnings=(*score.warnings, *remarks))
        return Analysis(score, self.analyzer.description, evidence, score.faces[0].track_id)

    def _subject(self, source: Source) -> Subject:
        return Subject(input=source.shown, id=self.id, media=self.media, timings_s=self.stopwatch.seconds)

    def _take(self, seen: Seen) -> None:
        """Count a frame, and send its faces on their way."""
        # Cut before it is counted: a frame whose crops cannot be cut is not in the account of the failure.
        pixels = {row: self._pixels(seen, row) for row in usable_rows(seen.faces, self.analyzer.options)}
        probabilities_N = seen.faces.probabilities_N
        self._waiting += [
            _Crop(face, pixels[face.row], seen.index, float(probabilities_N[face.row])) for face in self.tally.add(seen)
        ]
        if len(self._waiting) >= _BATCH_FACES:
            self._flush()

    def _pixels(self, seen: Seen, row: int) -> NDArray[np.uint8]:
        assert seen.frame is not None
        preprocessing, faces = self.analyzer.description.preprocessing, seen.faces
        cut = crop(seen.frame.image_HWC, faces.boxes_N4[row], faces.landmarks_NK2[row], preprocessing)
        return resize(cut, preprocessing)

    def _flush(self) -> None:
        """Send the waiting crops through the backbone, and their features to the tally."""
        crops, self._waiting = self._waiting, []
        if not crops:
            return
        started = time.perf_counter()
        features_ND = torch.stack(self.analyzer.workers.map(self._features, crops))
        scores_N = self.tally.score([c.face for c in crops], features_ND)
        if self.evidence:
            self._keep(crops, scores_N)
        self.stopwatch.add("score", started)

    @torch.inference_mode()
    def _features(self, crops: Sequence[_Crop]) -> Iterator[torch.Tensor]:
        preprocessing = self.analyzer.description.preprocessing
        inputs_N3HW = to_tensor([c.pixels_HWC for c in crops], preprocessing, self.analyzer.device)
        return iter(self.analyzer.model.features(inputs_N3HW))

    def _keep(self, crops: list[_Crop], scores_N: NDArray[np.float64]) -> None:
        for c, score in zip(crops, scores_N.tolist(), strict=True):
            album = self._albums.setdefault(c.face.track_id, Album())
            album.add(c.pixels_HWC, pts_s=c.face.pts_s, index=c.index, score=score, probability=c.probability)

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
        for track_id, track in self.tally.tracks.items():
            yield TrackEvidence(
                track_id=track_id,
                frames=self._albums[track_id].frames(maps),
                times_s_W=np.asarray(track.scores.pts_s),
                scores_W=np.asarray(track.scores.window_scores),
                spread_W=np.asarray(track.spreads),
            )

    def _heatmaps(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        inputs_N3HW = to_tensor(crops, self.analyzer.description.preprocessing, self.analyzer.device)
        return np.asarray(heatmaps(self.analyzer.model, inputs_N3HW).cpu().numpy(), np.float32)
