"""What is committed while a shard is worked on: one file a frame batch, in `state/<shard>/`, whole or absent.

A file's name says what it covers and which run wrote it, so that listing a folder tells what is done. The name and the
content depend on nothing but the video and the job: a batch that is done twice is written twice alike.

Axes: D features.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.parcels import FaceRecord, FrameNote, Outcome, Parcel, Part
from unmask.errors import Reason, StorageError
from unmask.products import FACES
from unmask.records import VideoInfo
from unmask.storage import Store

__all__ = ["Committed", "Unit", "commit", "committed", "is_whole", "read_unit", "state_folder"]

_UNIT = re.compile(r"r(\d+)-(\d+)\.(\d+)-(\d+)\.(\d+)-(\d+)\.arrow")
_NEWS = re.compile(r"r(\d+)-news-(\d+)-(\d+)\.json")
# Columns of FACES that are known before tracks are joined and crops are packed.
_KNOWN = (
    "frame face pts_s box landmarks probability sharpness is_corrupt crop_transform crop_landmarks crop_width "
    "crop_height"
).split()


@dataclass(frozen=True, slots=True)
class Unit:
    """One committed frame batch, read back: `faces` has a column `crop`, and `f0`, `f1`, ... of features."""

    part: Part
    info: VideoInfo | None
    content_id: str
    attempts: int
    frames: list[FrameNote]
    faces: pa.Table


@dataclass(slots=True)
class Committed:
    """What lies in a shard's folder: files by the part they cover, with the run that wrote them; and outcomes."""

    parts: dict[Part, tuple[int, str]] = field(default_factory=dict)
    outcomes: dict[int, tuple[int, Outcome]] = field(default_factory=dict)

    def before(self, run: int) -> tuple[tuple[Part, ...], tuple[Outcome, ...]]:
        """What earlier runs committed."""
        parts = tuple(sorted(part for part, (by, _) in self.parts.items() if by < run))
        return parts, tuple(outcome for _, (by, outcome) in sorted(self.outcomes.items()) if by < run)

    def ended(self, run: int) -> set[int]:
        """Positions of the videos of which earlier runs left nothing to do."""
        parts, outcomes = self.before(run)
        ended = {outcome.video for outcome in outcomes}
        by_video: dict[int, list[Part]] = {}
        for part in parts:
            by_video.setdefault(part.video, []).append(part)
        return ended | {video for video, found in by_video.items() if is_whole(found)}


def is_whole(parts: Sequence[Part]) -> bool:
    """Whether these are all the parts of their video, and of one division of it."""
    batches = {part.unit: part.batches for part in parts}
    alike = all(part.units == parts[0].units and part.batches == batches[part.unit] for part in parts)
    return alike and len(batches) == parts[0].units and len(set(parts)) == sum(batches.values())


def state_folder(shard: int) -> str:
    """Where the units of a shard lie until it is whole."""
    return f"state/{shard:05d}"


def commit(store: Store, run: int, parcel: Parcel) -> None:
    """Write a parcel down: its faces, and the outcomes that it brings.

    Raises:
        StorageError: The place is full, read-only or cannot be reached.
    """
    folder = state_folder(parcel.shard)
    if parcel.outcomes:
        plain = [asdict(outcome) for outcome in parcel.outcomes]
        first, last = parcel.outcomes[0].video, parcel.outcomes[-1].video
        name = f"{folder}/r{run}-news-{first}-{last}.json"
        store.write(name, json.dumps(plain).encode())
    if parcel.part is not None:
        sink = pa.BufferOutputStream()
        table = _table(parcel)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        video, unit, units, batch, batches = parcel.part
        store.write(f"{folder}/r{run}-{video}.{unit}-{units}.{batch}-{batches}.arrow", sink.getvalue())


def committed(store: Store, shard: int) -> Committed:
    """What is there of a shard that is not whole yet."""
    found = Committed()
    for name in store.names(state_folder(shard)):
        last = PurePosixPath(name).name
        if match := _UNIT.fullmatch(last):
            run, *numbers = map(int, match.groups())
            found.parts.setdefault(Part(*numbers), (run, name))
        elif match := _NEWS.fullmatch(last):
            for plain in json.loads(store.read(name)):
                outcome = Outcome(**{**plain, "reason": Reason(plain["reason"])})
                found.outcomes.setdefault(outcome.video, (int(match[1]), outcome))
    return found


def read_unit(store: Store, name: str) -> Unit:
    """A committed frame batch.

    Raises:
        StorageError: The file is damaged.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(store.read(name))).read_all()
        said = json.loads(table.schema.metadata[b"unmask"])
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise StorageError(f"{store.shown}/{name} is damaged; remove it and run again.") from None
    return Unit(
        part=Part(*said["part"]),
        info=VideoInfo(**said["info"]) if said["info"] else None,
        content_id=said["content_id"],
        attempts=said["attempts"],
        frames=[
            FrameNote(index=index, pts_s=pts_s, reason=Reason(reason) if reason else None, cut=cut)
            for index, pts_s, reason, cut in said["frames"]
        ],
        faces=table,
    )


def _table(parcel: Parcel) -> pa.Table:
    faces = parcel.faces
    columns: dict[str, pa.Array] = {
        name: pa.array(values, FACES.field(name).type) for name, values in zip(_KNOWN, _columns(faces), strict=True)
    }
    columns["crop"] = pa.array([face.crop for face in faces], pa.large_binary())
    for n in range(len(faces[0].features) if faces else 0):
        features_ND = np.stack([face.features[n] for face in faces])
        columns[f"f{n}"] = pa.FixedSizeListArray.from_arrays(pa.array(features_ND.ravel()), features_ND.shape[1])
    said = {
        "part": parcel.part,
        "info": parcel.info.to_json() if parcel.info else None,
        "content_id": parcel.content_id,
        "attempts": parcel.attempts,
        "frames": [[frame.index, frame.pts_s, frame.reason, frame.cut] for frame in parcel.frames],
    }
    return pa.table(columns).replace_schema_metadata({"unmask": json.dumps(said)})


def _columns(faces: Sequence[FaceRecord]) -> list[list[Any]]:
    rows = [
        (
            face.index,
            face.rank,
            face.pts_s,
            face.box_4.ravel(),
            face.landmarks_K2.ravel(),
            face.probability,
            face.sharpness,
            face.is_corrupt,
            face.transform_23.ravel(),
            _in_crop(face),
            face.width,
            face.height,
        )
        for face in faces
    ]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in _KNOWN]


def _in_crop(face: FaceRecord) -> np.ndarray[Any, Any]:
    """The landmarks in pixels of the crop."""
    linear_22, shift_2 = face.transform_23[:, :2].astype(np.float64), face.transform_23[:, 2]
    return np.linalg.solve(linear_22, (face.landmarks_K2 - shift_2).T).T.astype(np.float32).ravel()
