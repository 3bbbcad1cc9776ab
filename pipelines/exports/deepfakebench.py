"""The frames and the description that DeepfakeBench's trainers read (github.com/SCLBD/DeepfakeBench).

    <dataset>/.../frames/<video>/<frame>.png      256 x 256, one face a frame: the largest
    <dataset>/.../landmarks/<video>/<frame>.npy   float32 (5, 2), in pixels of that picture
    dataset_json/<dataset>.json                   {dataset: {label: {split: {video: {"label", "frames"}}}}}

For FaceForensics++ there is a level more, of compressions, under each split; and beside its own description one for
each method (FF-DF, FF-F2F, FF-FS, FF-NT, FaceShifter, DeepFakeDetection), as the benchmark's own script gives them.

Facts of its loader that shape this: it reads every label's three splits and asks for the same compression in each; it
fails on a video without frames; it takes frames in the order of the list; a path that does not start with "." gets a
prefix that only works on Windows; landmarks lie where "frames" in the path is replaced by "landmarks", and belong to
pictures of 256 x 256; and video scores are grouped by the name of the frames' folder, so those names must be unique.
Recipes that need the 81 points of dlib (Face X-ray, FWA, SBI) cannot use five landmarks.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from pipelines.exports.source import (
    CropFiles,
    ExportCount,
    Row,
    as_png,
    encoded,
    is_damaged,
    labelled_videos,
    landmarks_in_crop,
    pixels,
    video_rows,
)
from unmask.errors import UsageError
from unmask.products import Products
from unmask.storage import Store

__all__ = ["export_deepfakebench"]

_SPLITS = ("train", "val", "test")
_SIDE_PX = 256
_FF = "FaceForensics++"
_FF_FAKES = {
    "Deepfakes": "FF-DF",
    "Face2Face": "FF-F2F",
    "FaceSwap": "FF-FS",
    "NeuralTextures": "FF-NT",
    "FaceShifter": "FF-FH",
    "DeepFakeDetection": "DFD_fake",
}
# The descriptions of the FaceForensics++ family: which labels each holds.
_FF_DATASETS = {
    _FF: ("FF-real", "FF-DF", "FF-F2F", "FF-FS", "FF-NT"),
    **{name: ("FF-real", name) for name in ("FF-DF", "FF-F2F", "FF-FS", "FF-NT")},
    "FaceShifter": ("FF-real", "FF-FH"),
    "DeepFakeDetection": ("DFD_real", "DFD_fake"),
}
# Labels of real and fake videos, where they do not follow from the dataset's name.
_LABELS = {
    "Celeb-DF-v1": ("CelebDFv1_real", "CelebDFv1_fake"),
    "Celeb-DF-v2": ("CelebDFv2_real", "CelebDFv2_fake"),
    "DeeperForensics-1.0": ("DF_real", "DF_fake"),
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a video goes: its label, the folder of its frames' folders, its name there, and its compression."""

    label: str
    folder: str
    name: str
    compression: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One video of the description. The paths are made when they are written: there may be millions."""

    place: _Place
    root: str
    frames: "array[int]"

    def to_json(self) -> dict[str, Any]:
        paths = [f"{self.root}/{_frame_path(self.place, frame)}" for frame in self.frames]
        return {"label": self.place.label, "frames": paths}


def export_deepfakebench(
    products: Products,
    out: Store,
    dataset_name: str,
    *,
    splits: Mapping[str, str] | None = None,
    root: str = "./datasets/rgb",
) -> ExportCount:
    """Write a run in DeepfakeBench's layout, a video at a time. Files that are there are written anew.

    Args:
        products: A finished run with crops.
        out: Where to: what the benchmark will know as `root`.
        dataset_name: Its name there: FaceForensics++ (with its family), Celeb-DF-v1, Celeb-DF-v2, DFDC, UADFV,
            DeeperForensics-1.0. Any other name gets the labels `<name>_Real` and `<name>_Fake`, which must be added to
            the benchmark's `label_dict`.
        splits: train, val or test for each video, by the ids of the run; without it, the dataset's own.
        root: How the benchmark's paths to `out` start, relative to where it is run.

    Raises:
        UsageError: A video has no split, method or compression that the layout needs, or an option is wrong.
        StorageError: A crop cannot be read, or `out` not be written.
    """
    _check(dataset_name, root)
    names = {} if dataset_name == _FF else _unique_names(products)
    left_out: Counter[str] = Counter()
    entries: list[tuple[str, _Entry]] = []
    with CropFiles(products.store) as files:
        for video, faces in labelled_videos(products, left_out):
            chosen = _one_a_frame(faces, left_out)
            if not chosen:
                continue
            split = _split(video, splits)
            place = _ff_place(video) if dataset_name == _FF else _place(video, dataset_name, names)
            for face in chosen:
                _write_face(out, _frame_path(place, face["frame"]), face, files.read(face))
            entries.append((split, _Entry(place, root, array("i", [face["frame"] for face in chosen]))))
    if not entries:
        raise UsageError(
            f"{products.store.shown} holds no labelled face to export; give videos labels in the manifest."
        )
    _describe(out, dataset_name, entries)
    crops = sum(len(entry.frames) for _, entry in entries)
    return ExportCount(videos=len(entries), crops=crops, left_out=dict(left_out))


def _check(dataset_name: str, root: str) -> None:
    if not dataset_name or "/" in dataset_name or dataset_name.startswith("."):
        raise UsageError(f"the dataset's name is {dataset_name!r}; give one such as Celeb-DF-v2.")
    if dataset_name != _FF and dataset_name in _FF_DATASETS:
        raise UsageError(
            f"{dataset_name} is part of {_FF}; export under that name, and its description is written too."
        )
    if not root.startswith(".") or "frames" in root or ".png" in root:
        raise UsageError(
            f"root is {root!r}; DeepfakeBench needs one that starts with '.' and holds neither 'frames' nor '.png'."
        )


def _unique_names(products: Products) -> dict[str, str]:
    """The name of each video's folder: the last part of its id, or all of it where others have the same last part."""
    videos = [row["video"] for row in video_rows(products, ["video"])]
    often = Counter(PurePosixPath(video).name for video in videos)
    names = {v: n if often[n := PurePosixPath(v).name] == 1 else v.replace("/", "_") for v in videos}
    if len(set(names.values())) < len(names):
        twice = next(name for name, count in Counter(names.values()).items() if count > 1)
        raise UsageError(f"two videos would share the folder {twice!r}; rename one of them.")
    return names


def _one_a_frame(faces: list[Row], left_out: Counter[str]) -> list[Row]:
    """The largest face of each frame, in order."""
    largest: dict[int, Row] = {}
    for face in faces:
        if is_damaged(face, left_out):
            continue
        rival = largest.setdefault(face["frame"], face)
        if rival is not face:
            left_out["other_face"] += 1
            largest[face["frame"]] = max(rival, face, key=_area)
    return list(largest.values())


def _area(face: Row) -> float:
    x1, y1, x2, y2 = face["box"]
    return float((x2 - x1) * (y2 - y1))


def _split(video: Row, splits: Mapping[str, str] | None) -> str:
    split = video["split"] if splits is None else splits.get(video["video"])
    if split not in _SPLITS:
        raise UsageError(
            f"the split of {video['video']} is {split!r}; give `splits` with train, val or test for each video."
        )
    return str(split)


def _ff_place(video: Row) -> _Place:
    compression, name = video["compression"], PurePosixPath(video["video"]).name
    if compression is None:
        raise UsageError(f"{video['video']} has no compression; give the manifest's column raw, c23 or c40.")
    if video["label"] == 0:
        group = "actors" if video["video"].startswith("actors/") else "youtube"
        label, folder = "DFD_real" if group == "actors" else "FF-real", f"original_sequences/{group}"
    elif video["method"] in _FF_FAKES:
        label, folder = _FF_FAKES[video["method"]], f"manipulated_sequences/{video['method']}"
    else:
        raise UsageError(f"{video['video']} is made by {video['method']!r}; {_FF} has {', '.join(_FF_FAKES)}.")
    return _Place(label, f"{_FF}/{folder}/{compression}", name, compression)


def _place(video: Row, dataset_name: str, names: Mapping[str, str]) -> _Place:
    kinds = _LABELS.get(dataset_name, (f"{dataset_name}_Real", f"{dataset_name}_Fake"))
    parent = str(PurePosixPath(video["video"]).parent)
    group = parent if parent != "." else video["part"] or ("real", "fake")[video["label"]]
    return _Place(kinds[video["label"]], f"{dataset_name}/{group}", names[video["video"]], None)


def _frame_path(place: _Place, frame: int) -> str:
    return f"{place.folder}/frames/{place.name}/{frame:03d}.png"


def _write_face(out: Store, path: str, face: Row, data: bytes) -> None:
    width, height = face["crop_width"], face["crop_height"]
    if (width, height) == (_SIDE_PX, _SIDE_PX):
        out.write(path, as_png(data, face))
    else:
        how = cv2.INTER_AREA if min(width, height) >= _SIDE_PX else cv2.INTER_CUBIC
        image = cv2.resize(pixels(data, face), (_SIDE_PX, _SIDE_PX), interpolation=how)
        out.write(path, encoded(np.asarray(image, np.uint8)))
    scale_2 = np.array([_SIDE_PX / width, _SIDE_PX / height])
    file = BytesIO()
    np.save(file, ((landmarks_in_crop(face) + 0.5) * scale_2 - 0.5).astype(np.float32))
    # As the loader derives it.
    out.write(path.replace("frames", "landmarks").replace(".png", ".npy"), file.getvalue())


def _describe(out: Store, dataset_name: str, entries: list[tuple[str, _Entry]]) -> None:
    labels = {entry.place.label for _, entry in entries}
    if dataset_name == _FF:
        # The whole, and each method that there are fakes of.
        wanted = {n: of for n, of in _FF_DATASETS.items() if n == _FF or of[-1] in labels}
    else:
        wanted = {dataset_name: _LABELS.get(dataset_name, (f"{dataset_name}_Real", f"{dataset_name}_Fake"))}
    for name, of in wanted.items():
        described = _tree(entries, [label for label in of if label in labels])
        with (
            TemporaryDirectory(prefix="unmask-") as scratch,
            out.writing(f"dataset_json/{name}.json", Path(scratch)) as path,
            path.open("w") as file,
        ):
            file.writelines(_text({name: described}))


def _tree(entries: list[tuple[str, _Entry]], labels: list[str]) -> dict[str, Any]:
    """Entries by label, split, compression (if any) and video; every label has every split and compression."""
    compressions = sorted({e.place.compression for _, e in entries if e.place.compression is not None})
    tree: dict[str, Any] = {label: {s: {c: {} for c in compressions} for s in _SPLITS} for label in labels}
    for split, entry in entries:
        if entry.place.label in tree:
            of_split = tree[entry.place.label][split]
            compression = entry.place.compression
            (of_split if compression is None else of_split[compression])[entry.place.name] = entry
    return tree


def _text(node: "dict[str, Any] | _Entry") -> Iterator[str]:
    """JSON, a video at a time."""
    if isinstance(node, _Entry):
        yield json.dumps(node.to_json())
        return
    yield "{"
    for n, (key, value) in enumerate(node.items()):
        yield f"{', ' if n else ''}{json.dumps(key)}: "
        yield from _text(value)
    yield "}\n"
