"""All faces of preprocessed datasets as arrays: what a training run draws from and an evaluation goes through.

Axes: N faces, V videos, A frames of a video that were asked for, K = 5 landmarks; boxes are x1, y1, x2, y2 in pixels.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unmask.errors import StorageError, UsageError
from unmask.manifest import Video
from unmask.products import ASKED, Products
from unmask.storage import Store
from unmask.transforms import Preprocessing

__all__ = ["AskedFrames", "Catalogue", "CataloguedVideo", "Faceless", "Place"]

# What a crop may lack of the region that a model wants, in pixels of the frame or of the crop, whichever are larger:
# boxes are rounded.
_SLACK_PX = 1.5
_MOST_UNCOVERED = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class AskedFrames:
    """The frames of a video that were asked for, in order of time, whatever became of them.

    Args:
        frame_A: int32, the frame's position in the video; one that the video does not have may have -1.
        pts_s_A: float64, presentation time in seconds.
        reasons: By place among the frames, why one was not looked at; the others were, and have faces or none.
    """

    frame_A: NDArray[np.int32]
    pts_s_A: NDArray[np.float64]
    reasons: Mapping[int, str]

    def __len__(self) -> int:
        """A, the number of frames."""
        return len(self.frame_A)

    def places_of(self, frame_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """Which of the frames asked for some frames are, int64 (N,); the first where one was asked for twice."""
        place = {int(frame): n for n, frame in reversed(list(enumerate(self.frame_A.tolist())))}
        return np.array([place[frame] for frame in frame_N.tolist()], np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faceless:
    """A video of one of the datasets that gave no face, and why."""

    key: str
    dataset: str
    about: Video
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CataloguedVideo:
    """One video that gave faces, of one of the datasets."""

    key: str
    """Unique over all datasets: `<dataset>/<id>`."""
    dataset: str
    """Name of the folder that it was preprocessed into."""
    about: Video
    """What the manifest says. Ids of videos and people carry the dataset's name too."""
    rows: slice
    """Its faces."""
    asked: AskedFrames
    """Its frames."""
    shard: int
    """Where its row is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a crop is stored: bytes [offset, offset + size) of a file of `Catalogue.files`."""

    file: int
    offset: int
    size: int
    shown: str


class Catalogue:
    """The faces of one or more outputs of `unmask preprocess`, by video, frame and face.

    Attributes:
        videos: V videos with at least one face, in the order of their datasets' manifests.
        faceless: The videos without one.
        stores: Where each dataset lies, by name.
        files: Files that hold crops: the store, and the name in it.
        video_N: int32, which video a face is of.
        frame_N: int32, the frame's position in the video.
        face_N: int16, rank of the face in its frame, most probable first.
        pts_s_N: float64, presentation time in seconds.
        track_N: int32, whose face it is within the video; -1 where that is not known (damaged frames).
        after_gap_N: bool, this face was not seen in the frame before.
        corrupt_N: bool, the frame is damaged.
        probability_N: float32 in [0, 1], of the detector.
        sharpness_N: float32 in [0, 1], see `unmask.quality`; NaN where it is not known.
        box_N4: float32, pixels of the frame.
        landmarks_frame_N52: float32 (N, 5, 2), pixels of the frame.
        landmarks_N52: float32 (N, 5, 2), pixels of the crop.
        transform_N6: float32, 2 x 3 from a pixel of the crop to the frame.
        size_N2: int16, width and height of the crop.
    """

    def __init__(self, tables: Sequence[tuple[str, Store, int, pa.Table, pa.Table]]) -> None:
        """See `read`.

        Args:
            tables: Of each shard: dataset, store, number, videos, faces.
        """
        self.stores: dict[str, Store] = {}
        self.videos: list[CataloguedVideo] = []
        self.faceless: list[Faceless] = []
        self.files: list[tuple[Store, str]] = []
        self._file_of: dict[tuple[str, str], int] = {}
        pieces: list[dict[str, NDArray[Any]]] = []
        start = 0
        for dataset, store, shard, videos, faces in tables:
            self.stores[dataset] = store
            piece, found = self._shard(dataset, store, shard, videos, faces, start)
            pieces.append(piece)
            self.videos.extend(found)
            start += len(faces)
        joined = {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]} if pieces else {}
        self.video_N: NDArray[np.int32] = joined.get("video", np.zeros(0, np.int32))
        for number, video in enumerate(self.videos):
            self.video_N[video.rows] = number
        self.frame_N: NDArray[np.int32] = joined["frame"]
        self.face_N: NDArray[np.int16] = joined["face"]
        self.pts_s_N: NDArray[np.float64] = joined["pts_s"]
        self.track_N: NDArray[np.int32] = joined["track"]
        self.after_gap_N: NDArray[np.bool_] = joined["after_gap"]
        self.corrupt_N: NDArray[np.bool_] = joined["is_corrupt"]
        self.probability_N: NDArray[np.float32] = joined["probability"]
        self.sharpness_N: NDArray[np.float32] = joined["sharpness"]
        self.box_N4: NDArray[np.float32] = joined["box"].reshape(-1, 4)
        self.landmarks_frame_N52: NDArray[np.float32] = joined["landmarks"].reshape(-1, 5, 2)
        self.landmarks_N52: NDArray[np.float32] = joined["crop_landmarks"].reshape(-1, 5, 2)
        self.transform_N6: NDArray[np.float32] = joined["crop_transform"].reshape(-1, 6)
        self.size_N2: NDArray[np.int16] = np.stack([joined["crop_width"], joined["crop_height"]], 1)
        self._crops_N3: NDArray[np.int64] = joined["crops"]

    def __len__(self) -> int:
        """N, the number of faces."""
        return len(self.frame_N)

    def __repr__(self) -> str:
        return f"Catalogue({len(self.videos)} videos, {len(self)} faces of {', '.join(self.stores)})"

    @classmethod
    def read(cls, uris: Sequence[str]) -> "Catalogue":
        """Read the tables of outputs of `unmask preprocess`.

        Args:
            uris: Folders or URLs of buckets.

        Raises:
            UsageError: One of them is no such output or one of an earlier version, holds no crops or no face, or two
                have the same name.
            StorageError: A table cannot be read.
        """
        tables = []
        for dataset, store in _named(uris):
            products = Products(store)
            shards = products.shards()
            if not shards:
                raise UsageError(f"{store.shown} holds nothing that was preprocessed; run unmask preprocess first")
            tables += [(dataset, store, s, products.videos(s), products.faces(s)) for s in shards]
            if not any(len(faces) for name, *_, faces in tables if name == dataset):
                raise UsageError(f"no face was found in the videos of {store.shown}; see its index.html")
        return cls(tables)

    def _shard(
        self, dataset: str, store: Store, shard: int, videos: pa.Table, faces: pa.Table, start: int
    ) -> tuple[dict[str, NDArray[Any]], list[CataloguedVideo]]:
        ids = faces["video"].to_pylist()
        if len(faces) and faces["crop_file"].null_count:
            raise UsageError(f"{store.shown} holds no crops; preprocess with `crops` among the products")
        first: dict[str, int] = {}
        count: dict[str, int] = {}
        for n, name in enumerate(ids):
            first.setdefault(name, n)
            count[name] = count.get(name, 0) + 1
        found = []
        every = list(_asked(store, videos))
        for row, asked in zip(videos.drop_columns(list(ASKED)).to_pylist(), every, strict=True):
            name, about = row["video"], _about(dataset, row)
            if name not in first:
                reason, message = row["reason"] or "no_face", row["message"] or "No face was found."
                self.faceless.append(
                    Faceless(key=about.video, dataset=dataset, about=about, reason=reason, message=message)
                )
                continue
            own = slice(first[name], first[name] + count[name])
            if not np.isin(faces["frame"][own.start : own.stop].to_numpy(), asked.frame_A).all():
                raise StorageError(f"{store.shown} does not list all frames of {name}; preprocess again")
            rows = slice(start + own.start, start + own.stop)
            found.append(
                CataloguedVideo(key=about.video, dataset=dataset, about=about, rows=rows, asked=asked, shard=shard)
            )
        return self._arrays(dataset, store, faces), found

    def _arrays(self, dataset: str, store: Store, faces: pa.Table) -> dict[str, NDArray[Any]]:
        names = faces["crop_file"].to_pylist()
        file_N = np.fromiter((self._file(dataset, store, name) for name in names), np.int64, len(names))
        plain = {k: faces[k].to_numpy() for k in ("frame", "face", "pts_s", "probability", "crop_width", "crop_height")}
        lists = {k: faces[k].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                 for k in ("box", "landmarks", "crop_landmarks", "crop_transform")}  # fmt: skip
        flags = {k: faces[k].to_numpy().astype(np.bool_) for k in ("after_gap", "is_corrupt")}
        return {
            **plain,
            **lists,
            **flags,
            "sharpness": np.asarray(faces["sharpness"].to_numpy(), np.float32),
            "video": np.full(len(faces), -1, np.int32),
            "track": faces["track"].fill_null(-1).to_numpy(),
            "crops": np.stack([file_N, faces["crop_offset"].to_numpy(), faces["crop_bytes"].to_numpy()], 1).astype(
                np.int64
            ),
        }

    def _file(self, dataset: str, store: Store, name: str) -> int:
        if (dataset, name) not in self._file_of:
            self._file_of[dataset, name] = len(self.files)
            self.files.append((store, name))
        return self._file_of[dataset, name]

    def faces_of(self, video: int) -> NDArray[np.int64]:
        """The faces of a video, by number, int64, in order of frame and rank."""
        rows = self.videos[video].rows
        return np.arange(rows.start, rows.stop, dtype=np.int64)

    def digest_of(self, rows_L: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Says of some faces, by number, when, where and how they were cut, uint8 (16,): of other crops it is another.

        Where among other crops a file holds them does not count.
        """
        columns = (self.frame_N, self.box_N4, self.landmarks_N52, self.transform_N6, self.size_N2, self._crops_N3[:, 2])
        found = hashlib.blake2b(digest_size=16)
        for column in columns:
            found.update(np.ascontiguousarray(column[rows_L]).tobytes())
        return np.frombuffer(found.digest(), np.uint8)

    def place_of(self, face: int) -> Place:
        """Where the crop of a face is stored."""
        file, offset, size = self._crops_N3[face].tolist()
        store, name = self.files[file]
        return Place(file, offset, size, f"{store.shown}/{name}")

    def name_of(self, face: int) -> str:
        """What to call a face in a sentence: its video's key, frame and rank."""
        return f"{self.videos[self.video_N[face]].key} frame {self.frame_N[face]} face {self.face_N[face]}"

    def box_in_crop(self, face: int) -> NDArray[np.float64]:
        """The face's box in pixels of its crop, float64 (4,), where that was not turned."""
        return np.asarray(self._boxes_in_crops(np.array([face]))[0])

    def _boxes_in_crops(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        transform_N6 = self.transform_N6[rows].astype(np.float64)
        # Boxes have edges of pixels, transforms take centres.
        shifted_N4 = self.box_N4[rows].astype(np.float64) - 0.5 - transform_N6[:, [2, 5, 2, 5]]
        return np.asarray(shifted_N4 / transform_N6[:, [0, 4, 0, 4]] + 0.5)

    def side_px_N(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
        """The shorter side of each face's box, or of some faces', float32 (N,)."""
        sides_N2 = self.box_N4[rows, 2:] - self.box_N4[rows, :2]
        return np.asarray(sides_N2.min(1))

    def check_covers(self, preprocessing: Preprocessing) -> None:
        """See that crops show what a model wants to see.

        Raises:
            UsageError: They were cut more closely, or turned.
        """
        turned_N = np.abs(self.transform_N6[:, 1]) > 1e-3 * np.abs(self.transform_N6[:, 0])
        if turned_N.any() and not preprocessing.align:
            raise UsageError(
                "the crops were turned upright (--align), and this model takes faces as they are: preprocess without"
            )
        if preprocessing.align:
            return self._check_aligned(preprocessing)
        box_N4 = self._boxes_in_crops(slice(None))
        centre_N2, side_N2 = (box_N4[:, :2] + box_N4[:, 2:]) / 2, (box_N4[:, 2:] - box_N4[:, :2])
        wanted_N2 = side_N2 * preprocessing.margin
        if preprocessing.fit == "square":
            wanted_N2 = np.repeat(wanted_N2.max(1, keepdims=True), 2, 1)
        low_N2, high_N2 = centre_N2 - wanted_N2 / 2, centre_N2 + wanted_N2 / 2
        slack_N2 = _SLACK_PX / np.minimum(self.transform_N6[:, [0, 4]], 1.0)
        short_N = np.asarray(((low_N2 < -slack_N2) | (high_N2 > self.size_N2 + slack_N2)).any(1))
        names = list(self.stores)
        dataset_N = np.array([names.index(video.dataset) for video in self.videos])[self.video_N]
        for number, store in enumerate(self.stores.values()):
            own_N = np.asarray(dataset_N == number)
            if own_N.any() and short_N[own_N].mean() > _MOST_UNCOVERED:
                held = float(np.median(self.size_N2[own_N].min(1) / side_N2[own_N].max(1)))
                shape = " in squares" if preprocessing.fit == "square" else ""
                raise UsageError(
                    f"the crops of {store.shown} show about {held:.2f} times the face's box, and this model wants "
                    f"{preprocessing.margin:.2f} times{shape}: preprocess with --margin {preprocessing.margin:.2f} or "
                    "more"
                )
        return None

    def _check_aligned(self, preprocessing: Preprocessing) -> None:
        from unmask.faces import alignment

        short = 0
        sample = range(0, len(self), max(len(self) // 200, 1))
        for n in sample:
            matrix_23, side = alignment(self.landmarks_N52[n], preprocessing.margin)
            corners_42 = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
            there_42 = corners_42 @ matrix_23[:, :2].T + matrix_23[:, 2]
            width, height = self.size_N2[n].tolist()
            slack = _SLACK_PX + 0.1 * side
            short += bool((there_42 < -slack).any() or (there_42 > [width + slack, height + slack]).any())
        if short > 0.5 * len(sample):
            raise UsageError(
                f"the crops are cut too closely to turn faces upright with a margin of {preprocessing.margin:.2f}: "
                f"preprocess with --align --margin {preprocessing.margin:.2f}, or with a larger --margin"
            )


def _named(uris: Sequence[str]) -> Iterator[tuple[str, Store]]:
    """The stores, each with the name of its folder."""
    seen: dict[str, str] = {}
    for uri in uris:
        store = Store(uri)
        name = PurePosixPath(store.shown.rstrip("/")).name or "data"
        if name in seen:
            raise UsageError(f"{seen[name]} and {store.shown} are both called {name}; rename one of the folders")
        seen[name] = store.shown
        yield name, store


def _asked(store: Store, videos: pa.Table) -> Iterator[AskedFrames]:
    """The frames of each video of a shard.

    Raises:
        UsageError: An earlier version of Unmask wrote the table: it did not keep them.
        StorageError: Those of a video are missing.
    """
    if not {*ASKED} <= {*videos.column_names}:
        raise UsageError(
            f"{store.shown} was preprocessed by an earlier version of Unmask, which did not keep the frames that it "
            "looked at; preprocess again, into another folder"
        )
    if any(videos[name].null_count for name in ASKED):
        raise StorageError(f"{store.shown} does not list the frames of all videos; preprocess again")
    frames, times_s, reasons = (videos[name].combine_chunks() for name in ASKED)
    for frame_A, pts_s_A, why in zip(frames, times_s, reasons, strict=True):
        yield AskedFrames(
            frame_A.values.to_numpy(),
            pts_s_A.values.to_numpy(),
            {} if why.values.null_count == len(why.values) else _named_reasons(why.as_py()),
        )


def _named_reasons(why: Sequence[str | None]) -> dict[int, str]:
    return {n: reason for n, reason in enumerate(why) if reason is not None}


def _about(dataset: str, row: dict[str, Any]) -> Video:
    """The manifest's part of a row, with ids that are unique over all datasets."""
    names = Video.__dataclass_fields__
    video = Video(**{k: v for k, v in row.items() if k in names} | {"identity": tuple(row["identity"] or ())})
    return replace(
        video,
        video=f"{dataset}/{video.video}",
        source=f"{dataset}/{video.source}" if video.source else None,
        identity=tuple(f"{dataset}/{name}" for name in video.identity),
    )
