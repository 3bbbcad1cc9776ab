"""Difference masks: where a fake face differs from the same face of its original, by structural similarity.

What the DFDC winner's `diffs/` hold: 255 (1 - SSIM) of the two crops, as grey. Theirs wraps around where SSIM is
negative, so that what differs most can look unchanged; ours stays at 255 there. Theirs also takes it for granted that
both crops were cut alike. Ours puts the original's crop into the geometry of the fake's first, by the transforms that
both rows carry, which is exact where they differ by whole pixels.

Axes: H rows, W columns, C = 3 channels in RGB order; N, M faces; boxes are x1, y1, x2, y2 in pixels of the frame.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Self

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.config import digest
from unmask.errors import UsageError
from unmask.products import Products, mask_name, shard_name
from unmask.storage import Store

__all__ = ["MaskCount", "Originals", "Unpaired", "difference_mask", "followed", "remove_masks", "write_masks"]

# The window and constants of SSIM as scikit-image has them: Wang et al. (2004) with a uniform window.
_WINDOW, _K1, _K2, _WHITE = 7, 0.01, 0.03, 255
_POINTS = _WINDOW * _WINDOW
# Pixels of a crop that are worked on at once: their sums stay in the cache.
_STRIP_PIXELS = 2**16

_SAME_FACE_IOU = 0.5
_LEAST_COVERED = 0.75
"""Share of the fake's crop that the original's must show. What it does not show counts as unchanged."""
_SAME_PLACE_PX = 1e-3


class Unpaired(StrEnum):
    """Why a fake face has no mask. The first three hold for all faces of a video."""

    NO_SOURCE = "no_source"  # the dataset does not say what the fake was made from
    SOURCE_ABSENT = "source_absent"  # the original is not among the videos that were preprocessed
    SOURCE_WITHOUT_FACES = "source_without_faces"  # it is, and gave no face
    NO_FACE_IN_FRAME = "no_face_in_frame"  # the original has no face in that frame
    NO_SAME_FACE = "no_same_face"  # it has, elsewhere in the picture
    OTHER_CROP = "other_crop"  # the crops show too different parts of the picture
    CORRUPT_FRAME = "corrupt_frame"  # one of the two frames is damaged: the damage would be the difference
    FACE_TOO_SMALL = "face_too_small"  # the crop is smaller than SSIM's window


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCount:
    """What became of the fake faces of some shards. The numbers add up to all of them.

    Args:
        written: Masks written.
        kept: Masks that were there already.
        unpaired: Faces without one, by reason.
    """

    written: int = 0
    kept: int = 0
    unpaired: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "MaskCount") -> "MaskCount":
        return MaskCount(
            written=self.written + other.written,
            kept=self.kept + other.kept,
            unpaired=dict(Counter(self.unpaired) + Counter(other.unpaired)),
        )


@dataclass(frozen=True, slots=True)
class Originals:
    """Where the videos are that fakes were made from. Built once a run; small enough to send to every worker.

    Args:
        shard_of: From the id of an original to its shard; None where it gave no face.
        faces: What stands for the table of faces of each shard.
    """

    shard_of: Mapping[str, int | None]
    faces: Mapping[int, str]

    @classmethod
    def of(cls, products: Products) -> Self:
        """Read the `videos` tables of all shards that are whole: three columns, one time; and digest their faces."""
        shard_of: dict[str, int | None] = {}
        shards = products.shards()
        for shard in shards:
            videos = products.store.read_table(shard_name("videos", shard), ["video", "status", "label"])
            real = videos.filter(pc.fill_null(pc.not_equal(videos["label"], 1), True))
            for video, status in zip(real["video"].to_pylist(), real["status"].to_pylist(), strict=True):
                shard_of[video] = shard if status == "done" else None
        return cls(shard_of, {shard: products.faces_digest(shard) for shard in shards})


def difference_mask(real_HWC: NDArray[np.uint8], fake_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """255 (1 - SSIM) of two crops of the same place, channel by channel, as grey (Rec. 601), clipped to [0, 255].

    SSIM is scikit-image's `structural_similarity` with its defaults: a uniform window of 7 x 7, sample covariance,
    reflected borders. The sums over windows are whole numbers here, so nothing is lost in the differences between
    them; masks are equal to scikit-image's to within one grey level.

    Args:
        real_HWC: uint8 (H, W, 3), at least 7 x 7.
        fake_HWC: The same shape.

    Returns:
        uint8 (H, W): 0 where the two agree.

    Raises:
        UsageError: The shapes differ, or are too small.
    """
    shape = fake_HWC.shape
    if real_HWC.shape != shape or min(shape[:2]) < _WINDOW:
        raise UsageError(f"crops of {real_HWC.shape} and {shape} cannot be compared; both must be alike, and >= 7 x 7.")
    height, width, _ = shape
    mask_HW, rows, reach = np.empty((height, width), np.uint8), max(_STRIP_PIXELS // width, _WINDOW), _WINDOW // 2
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # At least a window's height, so that the reflection at the border is the whole picture's.
        first, last = max(min(top, height - _WINDOW) - reach, 0), min(bottom + reach, height)
        strip_HW = _strip(real_HWC[first:last], fake_HWC[first:last])
        mask_HW[top:bottom] = strip_HW[top - first : bottom - first]
    return mask_HW


def _sums(image_HWC: NDArray[Any]) -> NDArray[np.int32]:
    sums_HWC: NDArray[np.int32] = cv2.boxFilter(  # type: ignore[assignment]
        image_HWC, cv2.CV_32S, (_WINDOW, _WINDOW), normalize=False, borderType=cv2.BORDER_REFLECT
    )
    return sums_HWC


def _products(a_HWC: NDArray[np.uint8], b_HWC: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return cv2.multiply(a_HWC, b_HWC, dtype=cv2.CV_16U)  # type: ignore[return-value]


def _strip(real_HWC: NDArray[np.uint8], fake_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """SSIM with numerator and denominator times the number of points and that less one: whole numbers below 2**31."""
    x_HWC, y_HWC = _sums(real_HWC), _sums(fake_HWC)
    covariance_HWC = _sums(_products(real_HWC, fake_HWC))
    variances_HWC = _sums(_products(real_HWC, real_HWC))
    variances_HWC += _sums(_products(fake_HWC, fake_HWC))
    means_HWC = x_HWC * y_HWC
    x_HWC *= x_HWC
    y_HWC *= y_HWC
    x_HWC += y_HWC
    covariance_HWC *= _POINTS
    covariance_HWC -= means_HWC
    variances_HWC *= _POINTS
    variances_HWC -= x_HWC
    c1 = np.float32((_K1 * _WHITE) ** 2 * _POINTS**2)
    c2 = np.float32((_K2 * _WHITE) ** 2 * _POINTS * (_POINTS - 1))
    similar_HWC = _shifted(means_HWC, 2, c1)
    similar_HWC *= _shifted(covariance_HWC, 2, c2)
    whole_HWC = _shifted(x_HWC, 1, c1)
    whole_HWC *= _shifted(variances_HWC, 1, c2)
    similar_HWC /= whole_HWC
    similar_HWC *= -_WHITE
    similar_HWC += _WHITE
    np.clip(similar_HWC, 0, _WHITE, out=similar_HWC)
    return cv2.cvtColor(similar_HWC.astype(np.uint8), cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _shifted(sums_HWC: NDArray[np.int32], times: int, constant: np.float32) -> NDArray[np.float32]:
    """Sums times a whole number, plus a constant: in float32 from here on."""
    sums_HWC *= np.int32(times)
    shifted_HWC = sums_HWC.astype(np.float32)
    shifted_HWC += constant
    return shifted_HWC


def followed(store: Store, shard: int, originals: Originals) -> str:
    """Stands for all that the masks of a shard follow: its faces, and where the originals of its fakes are, and theirs.

    Masks that followed something else are out of date: one of the two videos was preprocessed again.

    Raises:
        StorageError: The table of the shard's videos cannot be read.
    """
    fakes = _fakes(store, shard)
    shards = {row["source"]: originals.shard_of.get(row["source"]) for row in fakes if row["source"] is not None}
    theirs = [[source, of, None if of is None else originals.faces[of]] for source, of in sorted(shards.items())]
    return digest([originals.faces[shard], theirs])


def remove_masks(store: Store, shard: int) -> None:
    """Remove the masks of a shard's fakes.

    Raises:
        StorageError: One cannot be removed.
    """
    for row in _fakes(store, shard):
        for name in store.names(f"masks/{row['video']}"):  # not those of videos whose names begin alike
            store.delete(name)


def _fakes(store: Store, shard: int) -> list[dict[str, Any]]:
    videos = store.read_table(shard_name("videos", shard), ["video", "label", "source", "status"])
    return [row for row in videos.to_pylist() if row["label"] == 1]


def write_masks(store: Store, shard: int, originals: Originals) -> MaskCount:
    """Write the masks of a shard's fakes, a pair of crops at a time. Masks that are there already are left alone.

    Args:
        store: A finished run with crops.
        shard: Whose fakes.
        originals: Where the originals are.

    Returns:
        Every face of every fake, as written, kept or unpaired.

    Raises:
        StorageError: A crop is missing or damaged, or nothing can be written.
    """
    products = Products(store)
    fakes = [row for row in _fakes(store, shard) if row["status"] == "done"]
    # Those with originals in the same shard together: each table of faces is read once.
    fakes.sort(key=lambda row: (originals.shard_of.get(row["source"]) or 0, row["source"] or ""))
    faces, real_faces, count = products.faces(shard), _Recent(products), MaskCount()
    for row in fakes:
        fake = faces.filter(pc.equal(faces["video"], row["video"]))
        reason = _no_original(row["source"], originals)
        if reason is not None:
            count += MaskCount(unpaired={reason: len(fake)})
            continue
        real = real_faces.of(originals.shard_of[row["source"]])
        count += _write_video(products, fake, real.filter(pc.equal(real["video"], row["source"])))
    return count


def _no_original(source: str | None, originals: Originals) -> Unpaired | None:
    if source is None:
        return Unpaired.NO_SOURCE
    if source not in originals.shard_of:
        return Unpaired.SOURCE_ABSENT
    return Unpaired.SOURCE_WITHOUT_FACES if originals.shard_of[source] is None else None


class _Recent:
    """The table of faces that was read last."""

    def __init__(self, products: Products) -> None:
        self._products = products
        self._held: tuple[int, pa.Table] | None = None

    def of(self, shard: int | None) -> pa.Table:
        assert shard is not None
        if self._held is None or self._held[0] != shard:
            self._held = (shard, self._products.faces(shard))
        return self._held[1]


def _write_video(products: Products, fake: pa.Table, real: pa.Table) -> MaskCount:
    partner_N = list(_partners(fake, real))
    unpaired = Counter(str(partner) for partner in partner_N if isinstance(partner, Unpaired))
    pairs = [(n, partner) for n, partner in enumerate(partner_N) if not isinstance(partner, Unpaired)]
    there = set(products.store.names(str(PurePosixPath("masks", fake["video"][0].as_py()))))
    names = fake["crop"].to_pylist()
    wanted = [(n, m) for n, m in pairs if names[n] is None or mask_name(names[n]) not in there]
    written = 0
    # Together, and one pair at a time in memory.
    fakes = products.crops(fake.take(pa.array([n for n, _ in wanted], pa.int64())))
    reals = products.crops(real.take(pa.array([m for _, m in wanted], pa.int64())))
    for (fake_row, fake_HWC), (real_row, real_HWC) in zip(fakes, reals, strict=True):
        mask_HW = _masked(real_row, real_HWC, fake_row, fake_HWC)
        if isinstance(mask_HW, Unpaired):
            unpaired[mask_HW] += 1
            continue
        ok, data = cv2.imencode(".png", mask_HW)
        assert ok
        products.store.write(mask_name(fake_row["crop"]), data.tobytes())
        written += 1
    return MaskCount(written=written, kept=len(pairs) - len(wanted), unpaired=dict(unpaired))


def _partners(fake: pa.Table, real: pa.Table) -> Iterator[int | Unpaired]:
    """For each fake face the row of the same face in the original: the largest IoU first, each taken once."""
    fake_frame_N, real_frame_M = fake["frame"].to_numpy(), real["frame"].to_numpy()
    fake_boxes_N4, real_boxes_M4 = _boxes(fake), _boxes(real)
    damaged = {*fake_frame_N[fake["is_corrupt"].to_numpy()], *real_frame_M[real["is_corrupt"].to_numpy()]}
    partners: dict[int, int | Unpaired] = {}
    for frame in dict.fromkeys(fake_frame_N.tolist()):
        n_N, m_M = np.flatnonzero(fake_frame_N == frame), np.flatnonzero(real_frame_M == frame)
        fallback = Unpaired.NO_SAME_FACE if len(m_M) else Unpaired.NO_FACE_IN_FRAME
        partners |= dict.fromkeys(n_N.tolist(), Unpaired.CORRUPT_FRAME if frame in damaged else fallback)
        if frame not in damaged and len(m_M):
            matched = _greedy(_iou(fake_boxes_N4[n_N], real_boxes_M4[m_M]))
            partners |= {int(n_N[i]): int(m_M[j]) for i, j in matched}
    return (partners[n] for n in range(len(fake)))


def _boxes(faces: pa.Table) -> NDArray[np.float32]:
    return np.asarray(faces["box"].combine_chunks().flatten(), np.float32).reshape(-1, 4)


def _iou(a_N4: NDArray[np.float32], b_M4: NDArray[np.float32]) -> NDArray[np.float32]:
    corner = np.maximum(a_N4[:, None, :2], b_M4[:, :2])
    inner_NM = np.clip(np.minimum(a_N4[:, None, 2:], b_M4[:, 2:]) - corner, 0, None).prod(2)
    area_N, area_M = (np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (a_N4, b_M4))
    iou_NM: NDArray[np.float32] = inner_NM / np.maximum(area_N[:, None] + area_M - inner_NM, 1e-9)
    return iou_NM


def _greedy(iou_NM: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    iou_NM = iou_NM.copy()
    while iou_NM.max() >= _SAME_FACE_IOU:
        n, m = divmod(int(iou_NM.argmax()), iou_NM.shape[1])
        yield n, m
        iou_NM[n], iou_NM[:, m] = -1, -1


def _masked(
    real_row: Mapping[str, Any], real_HWC: NDArray[np.uint8], fake_row: Mapping[str, Any], fake_HWC: NDArray[np.uint8]
) -> NDArray[np.uint8] | Unpaired:
    height, width, _ = fake_HWC.shape
    if min(height, width) < _WINDOW:
        return Unpaired.FACE_TOO_SMALL
    to_real_23 = _between(fake_row["crop_transform"], real_row["crop_transform"])
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], np.float64)
    moved_px = np.abs(corners @ to_real_23.T - corners[:, :2]).max()
    if real_HWC.shape == fake_HWC.shape and moved_px < _SAME_PLACE_PX:
        return difference_mask(real_HWC, fake_HWC)
    seen_HW = _warped(np.full(real_HWC.shape[:2], 255, np.uint8), to_real_23, (width, height), cv2.INTER_NEAREST)
    if np.count_nonzero(seen_HW) < _LEAST_COVERED * seen_HW.size:
        return Unpaired.OTHER_CROP
    mask_HW = difference_mask(_warped(real_HWC, to_real_23, (width, height), cv2.INTER_LINEAR), fake_HWC)
    # A window that reaches what the original does not show compares with nothing.
    mask_HW[cv2.erode(seen_HW, np.ones((_WINDOW, _WINDOW), np.uint8)) == 0] = 0
    return mask_HW


def _between(fake_6: list[float], real_6: list[float]) -> NDArray[np.float64]:
    """From a pixel of the fake's crop to the same place of the picture in the real's crop, (2, 3)."""
    fake_33, real_33 = (np.vstack([np.reshape(t, (2, 3)), [0, 0, 1]]).astype(np.float64) for t in (fake_6, real_6))
    return np.asarray(np.linalg.solve(real_33, fake_33)[:2], np.float64)


def _warped(
    image: NDArray[np.uint8], to_image_23: NDArray[np.float64], size: tuple[int, int], how: int
) -> NDArray[np.uint8]:
    return cv2.warpAffine(image, to_image_23, size, flags=how | cv2.WARP_INVERSE_MAP)  # type: ignore[return-value]
