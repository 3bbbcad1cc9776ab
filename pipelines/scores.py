"""Bulk scores: from the features that the stages of a cluster computed to one row a video and a Kaggle submission.

Functions of plain values; the stages that feed them are elsewhere. What is concluded from faces and features is
`unmask.tally`'s, as for `unmask score`, so that both give the same scores.

Axes: N faces of a frame, D features.
"""

import copy
import csv
import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from unmask.atomic import replacing
from unmask.checkpoints import Description
from unmask.errors import MediaError, Reason, UsageError
from unmask.models import ForgeryModel
from unmask.records import Faces, Status, VideoScore
from unmask.scoring import ScoringOptions
from unmask.tally import Subject, Tally
from unmask.tracks import TrackedFrame, Tracker

__all__ = ["SCORES", "EmbeddedFrame", "head_of", "score_row", "score_video", "write_submission"]

SCORES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # without passwords
        pa.field("status", pa.string(), nullable=False),  # scored, unscored, failed
        pa.field("verdict", pa.string(), nullable=False),  # authentic, manipulated, inconclusive
        pa.field("score", pa.float64()),  # in [0, 1]; null unless scored
        pa.field("score_kind", pa.string(), nullable=False),
        pa.field("calibrated", pa.bool_(), nullable=False),
        pa.field("uncertainty", pa.float64()),  # of the track that decides
        pa.field("faces", pa.int32(), nullable=False),  # tracks that have a score
        pa.field("deciding_track", pa.int32()),
        pa.field("frames_received", pa.int32(), nullable=False),
        pa.field("frames_scored", pa.int32(), nullable=False),
        pa.field("dropped", pa.map_(pa.string(), pa.int32()), nullable=False),  # frames by reason
        pa.field("reason", pa.string()),  # why there is no score
        pa.field("message", pa.string()),
        pa.field("warnings", pa.list_(pa.string()), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("json", pa.string(), nullable=False),  # what `unmask score --json` prints, without the timings
    ]
)
"""The columns of `scores/`: one row a video."""

# What Kaggle's log loss takes for "nothing is known".
_UNKNOWN = 0.5


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EmbeddedFrame:
    """What the stages of a cluster found out about one frame that was asked for.

    Args:
        pts_s: Presentation time.
        index: Position in presentation order in the whole video.
        seen: Its faces, most probable first, as `unmask.quality.measured` gives them; or why it was not searched for
            any, see `reason_not_to_look`.
        features_ND: float32 (N, D), the backbone's answer for each of the faces. The rows of faces that
            `unmask.tally.usable_rows` leaves out are not read. May be left out where there is no face.
        is_corrupt: The decoder reported damage: its faces, if any, are not scored.
        cut: A scene cut lies before it.
    """

    pts_s: float
    index: int
    seen: Faces | Reason
    features_ND: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    is_corrupt: bool = False
    cut: bool = False

    def __post_init__(self) -> None:
        faces = 0 if isinstance(self.seen, Reason) else len(self.seen)
        if self.features_ND.ndim != 2 or len(self.features_ND) != faces:
            raise ValueError(f"features have one row a face, ({faces}, D); got shape {self.features_ND.shape}")

    def tracked(self, tracker: Tracker) -> TrackedFrame:
        """Join its faces to those of the frames before."""
        hidden = self.is_corrupt and not isinstance(self.seen, Reason)
        return tracker.track(self.pts_s, self.index, Reason.CORRUPT_FRAME if hidden else self.seen, cut=self.cut)


def head_of(model: ForgeryModel) -> ForgeryModel:
    """The same model without its backbone: all that `score_video` needs, and small enough to send along with a task."""
    # What the memo holds is taken for copied already.
    memo: dict[int, Any] = {id(model.backbone): torch.nn.Identity()}
    return copy.deepcopy(model, memo).eval()


def score_video(
    subject: Subject,
    frames: Iterable[EmbeddedFrame],
    *,
    model: ForgeryModel,
    description: Description,
    options: ScoringOptions,
    error: MediaError | None = None,
) -> VideoScore:
    """The score of one video, as `unmask score` gives it for the same frames, faces and features.

    Args:
        subject: Which video.
        frames: All frames that were asked for, in the order of presentation, whatever became of them. They are taken
            one by one and not kept.
        model: As it is, or its `head_of`.
        description: The model's.
        options: What counts as evidence.
        error: What ended the video before its end, or kept it from being opened: it fails, with the account of the
            frames so far.

    Returns:
        The result. Features that do not fit the model, or are not finite, are an error of this video (`INTERNAL`).
    """
    tally, tracker = Tally(model, description, options), Tracker()
    tracked = ((frame.tracked(tracker), frame.features_ND) for frame in frames)
    try:
        if error is not None:
            for frame, _ in tracked:
                tally.add(frame)
            return tally.failed(subject, error)
        for _ in tally.follow(tracked):
            pass
        return tally.conclude(subject)
    except ValueError as fault:
        ours = f"{subject.input} could not be scored: {type(fault).__name__}: {fault}"
        return tally.failed(subject, MediaError(Reason.INTERNAL, ours))


def score_row(video: str, score: VideoScore) -> dict[str, Any]:
    """A row of `SCORES`.

    Args:
        video: The manifest's id.
        score: With the model that gave it.
    """
    assert score.model is not None
    plain = score.to_json()
    del plain["timings_s"]  # they differ from run to run
    deciding = score.faces[0] if score.status is Status.SCORED else None
    return {
        "video": video,
        "uri": score.input,
        "status": str(score.status),
        "verdict": str(score.verdict),
        "score": score.score,
        "score_kind": score.score_kind,
        "calibrated": score.calibrated,
        "uncertainty": deciding.uncertainty if deciding else None,
        "faces": len(score.faces),
        "deciding_track": deciding.track_id if deciding else None,
        "frames_received": score.frames.received,
        "frames_scored": score.frames.scored,
        "dropped": [(str(reason), count) for reason, count in score.frames.dropped.items()],
        "reason": str(score.error.code) if score.error else None,
        "message": score.error.message if score.error else None,
        "warnings": list(score.warnings),
        "model": score.model.name,
        "model_sha256": score.model.sha256,
        "json": json.dumps(plain, allow_nan=False),
    }


def write_submission(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a Kaggle submission: `filename,label`, the label being the score, or 0.5 where there is none.

    Whole or not at all. Memory: 16 bytes a row.

    Args:
        rows: Of `SCORES`; `uri` and `score` are read. Taken one by one.
        path: The CSV file. One that is there is replaced.

    Raises:
        UsageError: Two videos have one file name, a uri has none, or the file cannot be written.
    """
    try:
        with replacing(path) as beside:
            digests = _write_labels(rows, beside)
            if repeated := _repeated(digests, beside):
                more = f" and {len(repeated) - 1} more names" if len(repeated) > 1 else ""
                raise UsageError(
                    f"Several videos are called {repeated[0]}{more}, and a submission knows videos by their file name: "
                    "rename them, or score each folder by itself"
                )
    except OSError as error:
        raise UsageError(f"The submission {path} cannot be written ({error.strerror}); choose another place") from error


def _write_labels(rows: Iterable[Mapping[str, Any]], path: Path) -> "array[int]":
    """Write the file, and give a digest of 64 bits for each name in it."""
    digests = array("Q")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("filename", "label"))
        for row in rows:
            name, score = _file_name(row["uri"]), row["score"]
            writer.writerow((name, _UNKNOWN if score is None else float(score)))
            digests.append(_digest(name))
    return digests


def _repeated(digests: "array[int]", path: Path) -> list[str]:
    """The names that stand in the file more than once, in its order."""
    sorted_N = np.sort(np.frombuffer(digests, np.uint64))
    suspects = set(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]].tolist())
    if not suspects:
        return []
    with path.open(encoding="utf-8", newline="") as file:
        names = (name for name, _ in csv.reader(file))
        next(names)
        # Counted by name, since two names may share a digest.
        counts = Counter(name for name in names if _digest(name) in suspects)
    return [name for name, count in counts.items() if count > 1]


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _file_name(uri: str) -> str:
    # Only these have escapes; elsewhere % and ? are letters of a name, unless options of the bucket follow.
    is_url = uri.lower().startswith(("http://", "https://", "file://"))
    path = re.sub(r"\?\w+=.*", "", uri) if "://" in uri else uri
    name = (unquote(urlsplit(uri).path) if is_url else path).rpartition("/")[2]
    if not name:
        raise UsageError(f"{uri!r} has no file name, by which a submission knows a video: name files in the manifest")
    return name
