"""What a run shall do (`Job`), which shapes its output and is recorded there; and by what means (`Pools`)."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from unmask import __version__
from unmask.detection import DETECTORS, NETS, SCORING_THRESHOLDS, weights_file
from unmask.differences import differences
from unmask.errors import StorageError, UsageError
from unmask.plan import Sampling
from unmask.scoring import ScoringOptions
from unmask.storage import Store

__all__ = [
    "DEFAULT_BATCH_MB",
    "FACENET",
    "CropOptions",
    "DetectorOptions",
    "EmbedOptions",
    "Job",
    "Pools",
    "ScoreOptions",
    "check_same",
    "detector_digest",
    "digest",
    "parse_scale",
    "recorded",
]

ImageFormat = Literal["png", "jpg", "webp"]
Layout = Literal["tar", "files"]
Scale = float | Literal["auto"]

FACENET = "facenet"
"""The name of the face encodings (InceptionResnetV1, Schroff et al. 2015; weights: VGGFace2 or CASIA-WebFace)."""

DEFAULT_BATCH_MB = 64
"""Frames that travel together: large enough to give each block seconds of work, small enough for any object store."""

# Of the format of the output. Outputs of another are not continued.
_FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOptions:
    """How faces are searched for."""

    name: str = "mtcnn"
    """One of `unmask.detection.DETECTORS`."""
    thresholds: tuple[float, float, float] = SCORING_THRESHOLDS
    """Lowest probability that passes each of MTCNN's three networks."""
    scale: Scale = "auto"
    """Size of the copy that is searched: "auto" by the frame's wider side (see `unmask.mtcnn.detection_scale`), or a
    factor."""
    smallest_face_px: float | None = None
    """Search at the scale at which a face of so many pixels is just found; in place of `scale`."""

    def __post_init__(self) -> None:
        if self.name not in DETECTORS:
            raise UsageError(f"--detector is {' or '.join(DETECTORS)}; got {self.name!r}")
        if len(self.thresholds) != 3 or not all(0 <= v < 1 for v in self.thresholds):
            raise UsageError(f"--thresholds are three numbers from 0 to 1, like 0.7,0.8,0.8; got {self.thresholds}")
        if self.scale != "auto" and not 0 < self.scale <= 4:
            raise UsageError(f"--scale is auto, full, face:PX or a factor up to 4; got {self.scale}")
        if self.smallest_face_px is not None and not 4 <= self.smallest_face_px <= 4096:
            raise UsageError(f"--scale face:PX takes 4 to 4096 pixels; got {self.smallest_face_px:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CropOptions:
    """What is cut out of a frame for each face."""

    margin: float = 1.3
    """Side of the crop over side of the face's box."""
    square: bool = True
    """Cut squares about the longer side; otherwise the box's own proportions."""
    align: bool = False
    """Turn the face upright by its landmarks (and cut it square)."""
    size_px: int | None = None
    """Bring all crops to squares of this side; None keeps the frame's resolution."""
    format: ImageFormat = "png"
    """How crops are stored. JPEG and WebP at quality 95."""
    layout: Layout = "tar"
    """One tar a shard, as WebDataset reads it; or a file a crop."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and 0.5 <= self.margin <= 4):
            raise UsageError(f"--margin must be from 0.5 to 4; got {self.margin:g}")
        if self.size_px is not None and not 8 <= self.size_px <= 4096:
            raise UsageError(f"--size must be from 8 to 4096 pixels; got {self.size_px}")
        for name, value, known in (("--format", self.format, ImageFormat), ("--crops-as", self.layout, Layout)):
            if value not in get_args(known):
                raise UsageError(f"{name} is one of {', '.join(get_args(known))}; got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """A backbone whose features are kept."""

    model: str
    """A checkpoint's path, a preset, a timm backbone, or `facenet` for face encodings."""
    weights: str | None = None
    """Weights from a file."""
    pretrained: bool | None = None
    """Whether a backbone by name gets its published weights; left open, the preset decides."""
    sha256: str = ""
    """Digest of the weights; filled in when they were loaded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """A model that scores the videos."""

    model: EmbedOptions
    options: ScoringOptions = field(default_factory=ScoringOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that shapes the output. Two runs with equal jobs and manifests write equal rows."""

    sampling: Sampling = field(default_factory=lambda: Sampling(frames=32))
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    crops: CropOptions | None = field(default_factory=CropOptions)
    embed: tuple[EmbedOptions, ...] = ()
    score: ScoreOptions | None = None
    boxes_from_source: bool = False
    """A fake whose original is in the manifest gets the original's frames and boxes (S2)."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with the version of the output's format."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": _FORMAT, **plain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The means of a run. Counts left open follow the cluster's CPUs and GPUs."""

    decode_tasks: int | None = None
    """Videos decoded at once."""
    decode_cpus: float = 0.3
    """CPUs that one such task holds."""
    detect_actors: int | None = None
    detect_cpus: float = 0.4
    """CPUs that an actor holds."""
    detect_gpus: float | None = None
    """GPUs, or the fraction of one, that an actor holds; left open, none where the cluster has none."""
    embed_actors: int | None = None
    embed_cpus: float = 0.2
    embed_gpus: float | None = None
    fused: bool = False
    """Decode, detect and embed in one actor: frames do not cross between processes."""
    max_batch_mb: int | None = None
    """The most that the frames which travel together may weigh, in MiB; None for 64, or what the output began with."""
    decode_timeout_s: float = 60.0
    """A decoder that answers nothing for so long is stopped."""

    def __post_init__(self) -> None:
        for name in ("decode_tasks", "detect_actors", "embed_actors"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1; got {count}")
        for name in ("decode_cpus", "detect_cpus", "detect_gpus", "embed_cpus", "embed_gpus"):
            share = getattr(self, name)
            if share is not None and not (math.isfinite(share) and share >= 0):
                raise UsageError(f"--{name.replace('_', '-')} must be 0 or more; got {share}")
        if len({self.decode_cpus, self.detect_cpus}) == 1:
            # Ray Data joins stages of equal demands into one.
            raise UsageError("--decode-cpus and --detect-cpus must differ; to have both in one process, give --fused")
        if (self.max_batch_mb is not None and self.max_batch_mb < 1) or not self.decode_timeout_s > 0:
            raise UsageError("--max-batch-mb and --decode-timeout must be above 0")


def detector_digest(options: DetectorOptions) -> str:
    """Names a detector by its weights and settings.

    Raises:
        UsageError: dlib is not installed.
        ModelError: The weights are not installed.
    """
    if options.name == "hog":
        from unmask.hog import installed_weights

        return f"hog-{digest([installed_weights(), options.scale, options.smallest_face_px])}"
    weights = [hashlib.sha256(weights_file(net).read_bytes()).hexdigest() for net in NETS]
    return f"mtcnn-{digest([weights, options.thresholds, options.scale, options.smallest_face_px])}"


def parse_scale(text: str) -> tuple[Scale, float | None]:
    """Read `auto`, `full`, a factor, or `face:PX`, as `DetectorOptions.scale` and `.smallest_face_px`.

    Raises:
        UsageError: It is none of these.
    """
    try:
        if text.startswith("face:"):
            return "auto", float(text.removeprefix("face:"))
        return ("auto", None) if text == "auto" else (1.0 if text == "full" else float(text), None)
    except ValueError:
        raise UsageError(f"--scale is auto, full, a factor, or face:PX; got {text!r}") from None


def digest(plain: Any) -> str:
    """16 hexadecimal digits that stand for anything that JSON can say."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def check_same(store: Store, job: Job, **more: Any) -> str:
    """See that this output was begun with this job; write the job down if the output is new.

    Args:
        store: The output.
        job: What is wanted.
        **more: What else must be the same, as JSON can say it: the videos.

    Returns:
        A digest of it all.

    Raises:
        UsageError: The output was made with another job or of other videos; the message names the differences.
        StorageError: The record is damaged.
    """
    # As JSON gives it back.
    wanted = json.loads(json.dumps({**job.to_json(), **more}))
    if not store.exists("job.json"):
        record = {"config": digest(wanted), "unmask": __version__, "job": wanted}
        store.write("job.json", (json.dumps(record, indent=1) + "\n").encode())
        return digest(wanted)
    there = recorded(store)
    if there.get("format") != _FORMAT:
        raise UsageError(
            f"{store.shown} was made by another version of Unmask, whose tables differ; choose another --out"
        )
    differing = list(differences(there, wanted))
    if differing:
        raise UsageError(
            f"{store.shown} was made with another configuration ({'; '.join(differing[:4])}); choose another --out, or "
            "the same options as before"
        )
    return digest(wanted)


def recorded(store: Store) -> dict[str, Any]:
    """The job that an output was begun with.

    Raises:
        StorageError: The record is missing or damaged.
    """
    try:
        plain: dict[str, Any] = json.loads(store.read("job.json"))["job"]
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{store.shown}/job.json is damaged; choose another --out or remove that one.") from None
    return plain
