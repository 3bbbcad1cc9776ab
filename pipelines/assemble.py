"""From the committed frame batches of a shard to its products: faces joined into tracks, crops packed, videos judged.

Assembling depends on what was committed alone, so doing it twice, or after a crash in its midst, gives the same files.

Axes: N faces, D features.
"""

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import Job
from pipelines.parcels import FrameNote, Outcome, Part
from pipelines.units import Unit, committed, is_whole, read_unit, state_folder
from unmask.errors import MediaError, Reason, StorageError
from unmask.inputs import without_password
from unmask.manifest import MANIFEST, Video
from unmask.products import FACES, RESULTS, features_schema, shard_name
from unmask.records import Faces, VideoInfo
from unmask.storage import Store
from unmask.tracks import Tracker

if TYPE_CHECKING:
    from pipelines.judge import Judge

__all__ = ["Assembler"]

_UNSEEN = {Reason.DECODE_FAILED, Reason.MISSING_FRAME}


class _Packer(Protocol):
    """Puts the crops of a shard where they belong."""

    def add(self, name: str, data: bytes, about: Mapping[str, Any]) -> tuple[str, int]:
        """Store one crop; give its file, and where in that it begins."""


class _Tar:
    """Crops as samples of a tar: an image, and what is known of it as JSON."""

    def __init__(self, path: Path, name: str) -> None:
        # The same crops make the same bytes: no times, no owners.
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  closed by `close`
        self._name = name

    def close(self) -> None:
        self._tar.close()

    def add(self, name: str, data: bytes, about: Mapping[str, Any]) -> tuple[str, int]:
        self._add(name, data)
        offset = self._tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self._add(f"{name.rpartition('.')[0]}.json", json.dumps(about).encode())
        return self._name, offset

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


class _Loose:
    """Crops as files of their own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, name: str, data: bytes, about: Mapping[str, Any]) -> tuple[str, int]:  # noqa: ARG002
        file = f"crops/{name}"
        self._store.write(file, data)
        return file, 0


@dataclass(slots=True)
class _Tables:
    """What becomes of a shard."""

    videos: list[dict[str, Any]]
    faces: list[pa.Table]
    features: list[list[pa.Table]]
    scores: list[dict[str, Any]]


class Assembler:
    """Makes the products of whole shards.

    Args:
        store: The output.
        job: What is wanted.
        dims: Sizes of the features that come with the faces; where videos are scored, those of the scoring model last.
        keys: Names of the features that are kept.
        config: Digest of the run's configuration.
        detector: Digest of the detector.
        judge: Scores the videos, where that is wanted.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        *,
        dims: Sequence[int],
        keys: Sequence[str],
        config: str,
        detector: str,
        judge: "Judge | None" = None,
    ) -> None:
        self._store, self._job, self._dims, self._keys = store, job, dims, keys
        self._config, self._detector, self._judge = config, detector, judge

    def assemble(self, shard: int, videos: Sequence[Video]) -> list[tuple[str, str | None]]:
        """Write the products of a shard, the table of its videos last.

        Args:
            shard: Which.
            videos: Its rows of the manifest.

        Returns:
            Status and reason of each video.

        Raises:
            StorageError: Something cannot be read or written, or a frame batch is missing.
        """
        found = committed(self._store, shard)
        outcomes = {position: outcome for position, (_, outcome) in found.outcomes.items()}
        parts: dict[int, list[Part]] = {}
        for part in sorted(found.parts):
            parts.setdefault(part.video, []).append(part)
        tables = _Tables([], [], [[] for _ in self._keys], [])
        with ExitStack() as stack:
            packer = self._packer(shard, stack)
            for position, video in enumerate(videos):
                if position in outcomes:
                    self._add_outcome(tables, video, outcomes[position])
                    continue
                mine = parts.get(position, [])
                if not mine or not is_whole(mine):
                    raise StorageError(f"{self._store.shown}/{state_folder(shard)} misses batches of {video.video}.")
                self._add_video(tables, video, [found.parts[part][1] for part in mine], packer)
        self._write(shard, tables)
        with suppress(StorageError):
            # A task that Ray runs again may write there just now; the run's end sweeps up.
            self._store.delete_folder(state_folder(shard))
        return [(row["status"], row["reason"]) for row in tables.videos]

    def _packer(self, shard: int, stack: ExitStack) -> _Packer | None:
        crops = self._job.crops
        if crops is None:
            return None
        if crops.layout == "files":
            return _Loose(self._store)
        scratch = Path(tempfile.mkdtemp(prefix="unmask-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        name = f"crops/{shard:05d}.tar"
        tar = _Tar(stack.enter_context(self._store.writing(name, scratch)), name)
        stack.callback(tar.close)
        return tar

    def _add_outcome(self, tables: _Tables, video: Video, outcome: Outcome) -> None:
        counts = dict.fromkeys(("planned", "decoded", "corrupt", "missing", "faces", "tracks"), 0)
        tables.videos.append(
            {
                **_manifest_row(video),
                **counts,
                **_asked([]),
                "status": outcome.status,
                "reason": str(outcome.reason),
                "message": outcome.message,
                "attempts": outcome.attempts,
                "config": self._config,
            }
        )
        if self._judge is not None:
            tables.scores.append(self._judge.failed(video, MediaError(outcome.reason, outcome.message)))

    def _add_video(self, tables: _Tables, video: Video, names: list[str], packer: _Packer | None) -> None:
        # The crops of a long video do not fit into memory: they are read again when they are packed, batch by batch.
        units = [self._slim(read_unit(self._store, name)) for name in names]
        frames = [(note, table) for unit in units for note, table in _by_frame(unit)]
        faces = pa.concat_tables([unit.faces for unit in units]).replace_schema_metadata(None)
        tracks, gaps = _tracked(frames)
        packed = list(self._packed(video, names, packer)) if packer else [(None, None, None, None)] * len(faces)
        tables.faces.append(self._faces(video, faces, tracks, gaps, packed))
        for n, into in enumerate(tables.features):
            into.append(_features(video, faces, n, self._dims[n]))
        notes = [note for note, _ in frames]
        info = units[0].info
        unseen = sum(note.reason in _UNSEEN for note in notes)
        corrupt = sum(note.reason is Reason.CORRUPT_FRAME for note in notes)
        status, reason, message = _status(video, notes, len(faces))
        tables.videos.append(
            {
                **_manifest_row(video),
                "status": status,
                "reason": reason,
                "message": message,
                "planned": len(notes),
                "decoded": len(notes) - unseen,
                "corrupt": corrupt,
                "missing": unseen,
                "faces": len(faces),
                "tracks": len({track for track in tracks if track is not None}),
                "attempts": max(unit.attempts for unit in units),
                **_media(info),
                **_asked(notes),
                "config": self._config,
            }
        )
        if self._judge is not None:
            seen = ((note, _seen(note, table), _embedded(table, len(self._dims) - 1)) for note, table in frames)
            tables.scores.append(self._judge.scored(video, units[0].content_id, info, seen))

    def _slim(self, unit: Unit) -> Unit:
        """A batch without its crops; one without a face gets the features' columns, so that all batches are alike."""
        faces = unit.faces.drop_columns(["crop"])
        if not len(faces):
            for n, dim in enumerate(self._dims):
                faces = faces.append_column(f"f{n}", pa.array([], pa.list_(pa.float32(), dim)))
        return replace(unit, faces=faces)

    def _faces(
        self,
        video: Video,
        faces: pa.Table,
        tracks: list[int | None],
        gaps: list[bool],
        packed: Sequence[tuple[str | None, str | None, int | None, int | None]],
    ) -> pa.Table:
        count = len(faces)
        columns = {name: faces[name] for name in faces.column_names if name in FACES.names}
        columns["video"] = pa.array([video.video] * count, pa.string())
        columns["track"] = pa.array(tracks, pa.int32())
        columns["after_gap"] = pa.array(gaps, pa.bool_())
        columns["model"] = pa.array([self._detector] * count, pa.string())
        for n, name in enumerate(("crop", "crop_file", "crop_offset", "crop_bytes")):
            columns[name] = pa.array([where[n] for where in packed], FACES.field(name).type)
        return pa.table([columns[name] for name in FACES.names], schema=FACES)

    def _packed(self, video: Video, names: Sequence[str], packer: _Packer) -> Iterator[tuple[str, str, int, int]]:
        """Put the crops of a video where they belong: name, file, offset, bytes of each."""
        for name in names:
            for row in read_unit(self._store, name).faces.to_pylist():
                yield self._pack(video, row, packer)

    def _pack(self, video: Video, row: Mapping[str, Any], packer: _Packer) -> tuple[str, str, int, int]:
        assert self._job.crops is not None
        name = f"{video.video}/{row['frame']:06d}_{row['face']}.{self._job.crops.format}"
        about = {
            "video": video.video,
            "label": video.label,
            "frame": row["frame"],
            "face": row["face"],
            "pts_s": row["pts_s"],
            "probability": round(row["probability"], 6),
            "landmarks": [round(v, 3) for v in row["crop_landmarks"]],
        }
        file, offset = packer.add(name, row["crop"], about)
        return name, file, offset, len(row["crop"])

    def _write(self, shard: int, tables: _Tables) -> None:
        write = self._store.write_table
        write(shard_name("faces", shard), _joined(tables.faces, FACES))
        for key, dim, parts in zip(self._keys, self._dims, tables.features, strict=False):
            write(shard_name(f"features/{key}", shard), _joined(parts, features_schema(dim)))
        if self._judge is not None:
            write(shard_name("scores", shard), self._judge.table(tables.scores))
        schema = pa.schema([*MANIFEST, *RESULTS])
        write(shard_name("videos", shard), pa.Table.from_pylist(tables.videos, schema))


def _joined(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _manifest_row(video: Video) -> dict[str, Any]:
    return {name: list(video.identity) if name == "identity" else getattr(video, name) for name in MANIFEST.names} | {
        "uri": without_password(video.uri)
    }


def _media(info: VideoInfo | None) -> dict[str, Any]:
    names = ("width", "height", "duration_s", "rate_fps", "codec")
    return {name: getattr(info, name) if info else None for name in names}


def _asked(notes: Sequence[FrameNote]) -> dict[str, Any]:
    """The frames that were asked for, whatever became of them: a track has a place for each, and a hole is none."""
    return {
        "frames": [note.index for note in notes],
        "frame_pts_s": [note.pts_s for note in notes],
        "frame_reasons": [None if note.reason is None else str(note.reason) for note in notes],
    }


def _by_frame(unit: Unit) -> Iterator[tuple[FrameNote, pa.Table]]:
    """The frames of a batch, each with its rows of faces."""
    start = 0
    frames = unit.faces["frame"].to_numpy()
    for note in unit.frames:
        stop = start
        while stop < len(frames) and frames[stop] == note.index:
            stop += 1
        yield note, unit.faces.slice(start, stop - start)
        start = stop


def _array(table: pa.Table, name: str, *shape: int) -> np.ndarray[Any, Any]:
    """A column of fixed-size lists as an array (N, ...)."""
    column = table[name].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), *shape)


def _seen(note: FrameNote, faces: pa.Table) -> Faces | Reason:
    if note.reason is not None:
        return note.reason
    return Faces(
        _array(faces, "box", 4),
        np.asarray(faces["probability"], np.float32),
        _array(faces, "landmarks", 5, 2),
        np.asarray(faces["sharpness"], np.float32),
    )


def _tracked(frames: list[tuple[FrameNote, pa.Table]]) -> tuple[list[int | None], list[bool]]:
    """Whose each face is, and whether it comes after a gap. Faces of damaged frames are nobody's."""
    tracker = Tracker()
    tracks: list[int | None] = []
    gaps: list[bool] = []
    for note, faces in frames:
        tracked = tracker.track(note.pts_s, note.index, _seen(note, faces), cut=note.cut)
        if note.reason is None:
            tracks += [sighting.track_id for sighting in tracked.sightings]
            gaps += [sighting.after_gap for sighting in tracked.sightings]
        else:
            tracks += [None] * len(faces)
            gaps += [True] * len(faces)
    return tracks, gaps


def _embedded(faces: pa.Table, n: int) -> NDArray[np.float32]:
    """What a backbone said of the faces of a frame, float32 (N, D)."""
    return _array(faces, f"f{n}", -1) if len(faces) else np.zeros((0, 0), np.float32)


def _features(video: Video, faces: pa.Table, n: int, dim: int) -> pa.Table:
    schema = features_schema(dim)
    if not len(faces):
        return schema.empty_table()
    values = pa.array(_array(faces, f"f{n}", -1).astype(np.float16).ravel())
    columns = [pa.array([video.video] * len(faces)), faces["frame"], faces["face"]]
    return pa.table([*columns, pa.FixedSizeListArray.from_arrays(values, dim)], schema=schema)


def _status(video: Video, notes: list[FrameNote], faces: int) -> tuple[str, str | None, str | None]:
    """What became of a video that could be opened: status, reason, message."""
    name = without_password(video.uri)
    if not notes:
        return "failed", str(Reason.NO_FRAMES), f"{name} shows no frame; check that it plays."
    if faces:
        return "done", None, None
    reasons = [note.reason for note in notes if note.reason is not None]
    if len(reasons) == len(notes) and Reason.FRAME_TOO_SMALL not in reasons:
        most = max(set(reasons), key=lambda reason: (reasons.count(reason), str(reason)))
        why = f"{name} is damaged: none of {len(notes)} frames could be decoded whole; get another copy."
        return "failed", str(most), why
    if Reason.FRAME_TOO_SMALL in reasons:
        why = f"The pictures of {name} are too small to hold a face; get a copy of higher resolution."
        return "empty", str(Reason.FRAME_TOO_SMALL), why
    return "empty", str(Reason.NO_FACE), f"No face was found in {len(notes)} frames of {name}."
