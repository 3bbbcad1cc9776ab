"""Finished runs, made on the spot: what `unmask preprocess` leaves in its folder, from drifting portraits.

Each clip is looked at in a few frames and has the faces that are asked for; crops are cut as the run would cut them.
"""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.portraits import filmed
from unmask.faces import cut, enlarge
from unmask.products import FACES, RESULTS, Products, shard_name
from unmask.storage import Store

__all__ = ["BOX", "Clip", "faked", "finished_run", "portrait", "ten_people", "ten_real_people"]

BOX = (110.0, 60.0, 210.0, 190.0)
"""About where the face is in `portrait`'s pictures of 320 x 240."""

_MANIFEST = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("method", "compression", "source", "split", "part")),
        pa.field("label", pa.int8()),
        pa.field("mos", pa.float64()),
        pa.field("identity", pa.list_(pa.string())),
    ]
)


@cache
def _portraits() -> list[NDArray[np.uint8]]:
    return list(filmed(40))


def portrait(frame: int) -> NDArray[np.uint8]:
    """A real picture, RGB (240, 320, 3)."""
    return _portraits()[frame]


def faked(frame: int) -> NDArray[np.uint8]:
    """The same picture with the inside of the face (x 140-180, y 100-150) upside down."""
    image_HWC = portrait(frame).copy()
    image_HWC[100:150, 140:180] = image_HWC[100:150, 140:180][::-1]
    return image_HWC


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video of a run.

    Args:
        video: Its id.
        uri: Where it lies; by default a path made of the id.
        picture: From a frame's index to its picture.
        faces: The boxes of each frame that was looked at and has any.
        faceless: Frames that were looked at and have none.
        corrupt: Frames that are damaged.
        missing: Frames that could not be seen.
        status: What became of it.
        columns: More columns of the manifest: label, source, split, method, ...
    """

    video: str
    uri: str = ""
    picture: Callable[[int], NDArray[np.uint8]] = portrait
    faces: Mapping[int, Sequence[tuple[float, float, float, float]]] = field(
        default_factory=lambda: {0: [BOX], 10: [BOX]}
    )
    faceless: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    status: str = "done"
    columns: dict[str, Any] = field(default_factory=dict)


def finished_run(
    store: Store,
    clips: Sequence[Clip],
    *,
    per_shard: int = 2,
    packing: Literal["tar", "files", "none"] = "tar",
    image_format: str = "png",
    margin: float = 1.3,
    side_px: int | None = None,
) -> Products:
    """Write the products of a run.

    Args:
        store: Where.
        clips: The videos, in the order of the manifest.
        per_shard: Videos a shard.
        packing: How crops are kept.
        image_format: Their suffix.
        margin: Side of a crop over side of the box.
        side_px: Crops are resized to this square; None leaves them as they are.
    """
    for shard in range(-(-len(clips) // per_shard)):
        part = clips[shard * per_shard : (shard + 1) * per_shard]
        rows, images = [], []
        for clip in part:
            for row, image_HWC in _faces(clip, margin, side_px):
                ok, data = cv2.imencode(f".{image_format}", image_HWC[..., ::-1])
                assert ok
                row["crop"] = f"{clip.video}/{row['frame']:06d}_{row['face']}.{image_format}"
                rows.append(row)
                images.append(data.tobytes())
        _place(store, shard, rows, images, packing)
        store.write_table(shard_name("faces", shard), pa.Table.from_pylist(rows, schema=FACES))
        store.write_table(shard_name("videos", shard), _videos(part))
    return Products(store)


def _faces(clip: Clip, margin: float, side_px: int | None) -> list[tuple[dict[str, Any], NDArray[np.uint8]]]:
    found = []
    for frame, boxes in clip.faces.items():
        for rank, box in enumerate(boxes):
            around_4 = np.floor(enlarge(np.array(box, np.float32), margin, square=True) + 0.5)
            image_HWC = cut(clip.picture(frame), around_4)
            step = 1.0
            if side_px is not None:
                step = len(image_HWC) / side_px
                size = (side_px, side_px)
                image_HWC = np.asarray(cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA), np.uint8)
            # Centres of pixels have whole coordinates.
            x, y = around_4[:2] + (step - 1) / 2
            found.append((_row(clip, frame, rank, box, image_HWC.shape, [step, 0, x, 0, step, y]), image_HWC))
    return found


def _row(
    clip: Clip, frame: int, rank: int, box: Sequence[float], shape: Sequence[int], transform: list[float]
) -> dict[str, Any]:
    (x1, y1, x2, y2), is_corrupt = box, frame in clip.corrupt
    spots = [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)]
    landmarks = [v for x, y in spots for v in (x1 + x * (x2 - x1), y1 + y * (y2 - y1))]
    (step, _, left, _, _, top) = transform
    before = [f for f in clip.faces if f < frame]
    return {
        "video": clip.video,
        "frame": frame,
        "face": rank,
        "pts_s": frame / 25,
        "box": list(box),
        "landmarks": landmarks,
        "probability": 0.99,
        "track": None if is_corrupt else rank,
        "after_gap": bool(before) and before[-1] in clip.corrupt,
        "is_corrupt": is_corrupt,
        "crop_transform": transform,
        "crop_landmarks": [(v - (top if n % 2 else left)) / step for n, v in enumerate(landmarks)],
        "crop_width": shape[1],
        "crop_height": shape[0],
        "model": "0123456789abcdef",
    }


def _place(store: Store, shard: int, rows: list[dict[str, Any]], images: list[bytes], packing: str) -> None:
    """Write the crops, and note in each row where its own is."""
    if packing == "files":
        for row, data in zip(rows, images, strict=True):
            row |= {"crop_file": f"crops/{row['crop']}", "crop_offset": 0, "crop_bytes": len(data)}
            store.write(row["crop_file"], data)
    elif packing == "tar":
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for row, data in zip(rows, images, strict=True):
                member = tarfile.TarInfo(row["crop"])
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        with tarfile.open(fileobj=io.BytesIO(packed.getvalue())) as tar:
            places = {member.name: member.offset_data for member in tar}
        for row, data in zip(rows, images, strict=True):
            row |= {
                "crop_file": f"crops/{shard:05d}.tar",
                "crop_offset": places[row["crop"]],
                "crop_bytes": len(data),
            }
        store.write(f"crops/{shard:05d}.tar", packed.getvalue())
    else:
        for row in rows:
            row["crop"] = None


def _videos(clips: Sequence[Clip]) -> pa.Table:
    rows = []
    for clip in clips:
        faces = sum(len(boxes) for boxes in clip.faces.values())
        manifest = {"video": clip.video, "uri": clip.uri or f"/data/{clip.video}.mp4", **clip.columns}
        looked_at = _looked_at(clip)
        result = {"status": clip.status, "faces": faces, "tracks": int(faces > 0), "attempts": 1, "config": "c0ffee"}
        rows.append({**manifest, **looked_at, **result})
    return pa.Table.from_pylist(rows, schema=pa.schema([*_MANIFEST, *RESULTS]))


def _looked_at(clip: Clip) -> dict[str, Any]:
    frames = sorted({*clip.faces, *clip.faceless, *clip.corrupt, *clip.missing})
    reasons = dict.fromkeys(clip.corrupt, "corrupt_frame") | dict.fromkeys(clip.missing, "missing_frame")
    return {
        "planned": len(frames),
        "decoded": len(frames) - len(clip.missing),
        "corrupt": len(clip.corrupt),
        "missing": len(clip.missing),
        "frames": frames,
        "frame_pts_s": [frame / 25 for frame in frames],
        "frame_reasons": [reasons.get(frame) for frame in frames],
    }


def ten_people(folder: Path) -> Path:
    """A run over a real and a fake clip of each of ten people, to train with."""
    frames = {k: [BOX] for k in range(0, 24, 2)}
    clips = []
    for n in range(10):
        about = {"identity": [f"person-{n}"]}
        clips.append(Clip(video=f"real/{n}", faces=frames, columns={"label": 0, **about}))
        fake = {"label": 1, "source": f"real/{n}", "method": "flip", **about}
        clips.append(Clip(video=f"fake/{n}", picture=faked, faces=frames, columns=fake))
    finished_run(Store(folder), clips, margin=1.7)
    return folder


def ten_real_people(folder: Path) -> Path:
    """A run over two frames of a real clip of each of ten people, to make self-blends of."""
    clips = [
        Clip(video=f"v{n}", faces={n: [BOX], n + 20: [BOX]}, columns={"label": 0, "identity": [f"p{n}"]})
        for n in range(10)
    ]
    finished_run(Store(folder), clips, margin=1.5)
    return folder
