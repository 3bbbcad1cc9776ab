"""The folders that the DFDC winner's trainer reads (github.com/selimsef/dfdc_deepfake_challenge).

    boxes/<id>.json                     frame -> list of x1, y1, x2, y2 at half the resolution, null in damaged frames
    crops/<id>/<frame>_<face>.png
    landmarks/<id>/<frame>_<face>.npy   int16 (5, 2), in pixels of the crop
    diffs/<id>/<frame>_<face>_diff.png  where the run has difference masks
    folds.csv                           video, file, label, original, frame, fold; a row a crop

An id is the bare name of the video's file. Frames without a face are absent from `boxes`, which the winner's scripts
read like null. Their trainer looks up a fake's landmarks under its original's id: preprocess with the originals' boxes
if it is to erase landmarks, or the crops will not be those of the landmarks.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.exports.source import (
    CropFiles,
    ExportCount,
    Row,
    as_png,
    is_damaged,
    labelled_videos,
    landmarks_in_crop,
    video_rows,
)
from unmask.errors import UsageError
from unmask.products import Products, mask_name
from unmask.storage import Store

__all__ = ["export_dfdc"]

_COLUMNS = ("video", "file", "label", "original", "frame", "fold")


def export_dfdc(products: Products, out: Store, folds: Mapping[str, int] | None = None) -> ExportCount:
    """Write a run in the DFDC winner's layout, a video at a time. Files that are there are written anew.

    Args:
        products: A finished run with crops.
        out: Where to.
        folds: The fold of each video, by the ids of the run; without it there is no `folds.csv`.

    Raises:
        UsageError: Two videos have the same file name, a video has no fold, or a fake's fold is not its original's.
        StorageError: A crop cannot be read, or `out` not be written.
    """
    names = _names(products)
    if folds is not None:
        _check(products, folds)
    left_out: Counter[str] = Counter()
    videos = crops = diffs = 0
    with ExitStack() as stack:
        files = stack.enter_context(CropFiles(products.store))
        table = _Table(out, stack) if folds is not None else None
        for video, faces in labelled_videos(products, left_out):
            name = names[video["video"]]
            kept = [face for face in faces if not is_damaged(face, left_out)]
            out.write(f"boxes/{name}.json", json.dumps(_boxes(faces)).encode())
            masks = set(products.store.names(f"masks/{video['video']}"))
            for face in kept:
                place = f"{name}/{face['frame']}_{face['face']}"
                out.write(f"crops/{place}.png", as_png(files.read(face), face))
                out.write(f"landmarks/{place}.npy", _landmarks(face))
                if (mask := mask_name(face["crop"])) in masks:
                    out.write(f"diffs/{place}_diff.png", products.store.read(mask))
                    diffs += 1
            if table is not None and folds is not None:
                table.add(video, name, _original(video, names), kept, folds[video["video"]])
            videos += bool(kept)
            crops += len(kept)
    return ExportCount(videos=videos, crops=crops, diffs=diffs, left_out=dict(left_out))


def _names(products: Products) -> dict[str, str]:
    """The bare file name of every video that the layout has room for, by its id."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for row in video_rows(products, ["video", "uri", "status", "label"]):
        if row["label"] is None or row["status"] not in ("done", "empty"):
            continue
        path = row["uri"].partition("?")[0] if "://" in row["uri"] else row["uri"]
        name = names[row["video"]] = PurePosixPath(path).stem
        if taken.setdefault(name, row["video"]) != row["video"]:
            raise UsageError(
                f"{taken[name]} and {row['video']} are both {name!r} in the layout of the DFDC winner, which knows "
                "videos by file name; export one method and compression at a time, or rename one."
            )
    return names


def _original(video: Row, names: Mapping[str, str]) -> str:
    """What stands in the column `original`: a real video is its own."""
    source = video["source"] or video["video"]
    return names[source] if source in names else PurePosixPath(source).name


def _check(products: Products, folds: Mapping[str, int]) -> None:
    for row in video_rows(products, ["video", "source", "status", "label"]):
        if row["label"] is None or row["status"] not in ("done", "empty"):
            continue
        if row["video"] not in folds:
            raise UsageError(f"{row['video']} has no fold; make the folds from the manifest of this run.")
        if row["source"] in folds and folds[row["source"]] != folds[row["video"]]:
            raise UsageError(
                f"{row['video']} is in fold {folds[row['video']]} and its original {row['source']} in fold "
                f"{folds[row['source']]}; keep both together, or validation sees what was trained on."
            )


def _boxes(faces: list[Row]) -> dict[str, list[list[float]] | None]:
    boxes: dict[str, list[list[float]] | None] = {}
    for face in faces:
        if face["is_corrupt"]:
            boxes[str(face["frame"])] = None
            continue
        of_frame = boxes.setdefault(str(face["frame"]), [])
        assert of_frame is not None, "a frame is damaged or it is not"
        of_frame.append([round(v / 2, 3) for v in face["box"]])
    return boxes


def _landmarks(face: Row) -> bytes:
    file = BytesIO()
    np.save(file, np.rint(landmarks_in_crop(face)).astype(np.int16))
    return file.getvalue()


class _Table:
    """`folds.csv`, written as the videos come; it appears when the stack that is given unwinds without an error."""

    def __init__(self, out: Store, stack: ExitStack) -> None:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="unmask-")))
        path = stack.enter_context(out.writing("folds.csv", scratch))
        self._writer = csv.writer(stack.enter_context(path.open("w", newline="")), lineterminator="\n")
        self._writer.writerow(_COLUMNS)

    def add(self, video: Row, name: str, original: str, faces: list[Row], fold: int) -> None:
        """The rows of one video."""
        for face in faces:
            file = f"{face['frame']}_{face['face']}.png"
            row: list[Any] = [name, file, video["label"], original, face["frame"], fold]
            self._writer.writerow(row)
