"""The detecting stage: planes in; boxes, landmarks, crops and the backbones' inputs out.

Axes: N faces, K = 5 landmarks, H rows, W columns, C = 3 channels.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config import CropOptions, Job
from pipelines.parcels import FaceRecord, FrameNote, Parcel
from unmask.detection import scale_for_smallest_face
from unmask.detectors import load_detector
from unmask.errors import Reason
from unmask.faces import align, alignment, crop, cut, cut_corners, enlarge
from unmask.follow import Follower
from unmask.picture import RgbConverter
from unmask.planes import Planes
from unmask.quality import sharpness_of
from unmask.records import Faces, Frame
from unmask.tracks import reason_not_to_look
from unmask.transforms import Preprocessing, resize
from unmask.video import Missing

if TYPE_CHECKING:
    from pipelines.embedders import EmbedPlan

__all__ = ["Detector", "cut_out"]

_ENCODINGS: dict[str, list[int]] = {
    # Level 1: a third of the time for a tenth more bytes.
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    "jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
}


class Detector:
    """Finds the faces of frame batches, and cuts them out.

    Args:
        job: What is wanted.
        plans: The backbones that will see the faces.
        device: Where the networks run.
    """

    def __init__(self, job: Job, plans: Sequence["EmbedPlan"], device: torch.device) -> None:
        self._options, self._crops = job.detector, job.crops
        self._inputs = [plan.preprocessing for plan in plans]
        self._finder = load_detector(job.detector.name, device=device, thresholds=job.detector.thresholds)
        self._to_rgb = RgbConverter()
        # A CPU gains nothing from several frames, and one at a time takes less memory.
        self._at_once = 1 if device.type == "cpu" else 1024

    def detect(self, parcel: Parcel, pixels: memoryview) -> None:
        """Replace the pictures of a parcel by its faces.

        Args:
            parcel: Its `frames` and `faces` are filled, its `items` emptied.
            pixels: The planes of its frames.
        """
        follower = Follower(self._finder, scale=self._scale_or_auto()) if parcel.follow and not parcel.boxes else None
        planes = Planes.unpack((item for item in parcel.items if not isinstance(item, Missing)), pixels)
        chunk: list[Frame] = []
        for item in parcel.items:
            if isinstance(item, Missing):
                self._book(parcel, chunk, follower)
                chunk = []
                parcel.frames.append(FrameNote(index=item.index, pts_s=item.pts_s, reason=item.reason))
                continue
            chunk.append(next(planes).to_frame(self._to_rgb))
            if len(chunk) >= self._at_once:
                self._book(parcel, chunk, follower)
                chunk = []
        self._book(parcel, chunk, follower)
        parcel.items = []

    def _book(self, parcel: Parcel, frames: list[Frame], follower: Follower | None) -> None:
        started = time.perf_counter()
        found = self._find(parcel, frames, follower) if frames else []
        found_at = time.perf_counter()
        for frame, (faces, is_cut) in zip(frames, found, strict=True):
            reason = _reason(frame)
            parcel.frames.append(FrameNote(index=frame.index, pts_s=frame.pts_s, reason=reason, cut=is_cut))
            parcel.faces += self._records(frame, faces)
        now = time.perf_counter()
        parcel.seconds["detect"] = parcel.seconds.get("detect", 0.0) + found_at - started
        parcel.seconds["crop"] = parcel.seconds.get("crop", 0.0) + now - found_at

    def _find(self, parcel: Parcel, frames: list[Frame], follower: Follower | None) -> list[tuple[Faces, bool]]:
        """The faces of each frame, and whether a scene cut lies before it.

        Damaged frames are looked at, too: whoever reads the tables sees that they are, and decides.
        """
        if parcel.boxes is not None:
            return [(self._given(frame, parcel.boxes), False) for frame in frames]
        looked_at = [frame for frame in frames if _reason(frame) is not Reason.FRAME_TOO_SMALL]
        if follower is not None:
            found = iter([(follower(f.image_HWC, f.pts_s), follower.cut) for f in looked_at])
        else:
            found = iter([(faces, False) for faces in self._search(looked_at)])
        return [next(found) if _reason(f) is not Reason.FRAME_TOO_SMALL else (Faces.none(), False) for f in frames]

    def _search(self, frames: list[Frame]) -> Iterator[Faces]:
        if not frames:
            return
        scale = self._scale_or_auto()
        yield from self._finder.search([frame.image_HWC for frame in frames], scale=scale)

    def _scale_or_auto(self) -> float | Literal["auto"]:
        smallest = self._options.smallest_face_px
        return self._options.scale if smallest is None else scale_for_smallest_face(smallest, self._finder.min_face_px)

    def _given(self, frame: Frame, boxes: dict[int, NDArray[np.float32]]) -> Faces:
        """The boxes that came with the parcel, with landmarks and probabilities of their own."""
        boxes_N4 = boxes[frame.index]
        if not len(boxes_N4):
            return Faces.none()
        refined = self._finder.refine([frame.image_HWC], [boxes_N4])[0]
        return Faces(boxes_N4, refined.probabilities_N, refined.landmarks_NK2)

    def _records(self, frame: Frame, faces: Faces) -> Iterator[FaceRecord]:
        for rank in range(len(faces)):
            box_4, landmarks_K2 = faces.boxes_N4[rank], faces.landmarks_NK2[rank]
            data, transform_23, (height, width) = None, np.eye(2, 3, dtype=np.float32), (0, 0)
            if self._crops is not None:
                pixels_HWC, transform_23 = cut_out(frame.image_HWC, box_4, landmarks_K2, self._crops)
                data, (height, width) = _encoded(pixels_HWC, self._crops.format), pixels_HWC.shape[:2]
            yield FaceRecord(
                index=frame.index,
                rank=rank,
                pts_s=frame.pts_s,
                is_corrupt=frame.is_corrupt,
                box_4=box_4,
                landmarks_K2=landmarks_K2,
                probability=float(faces.probabilities_N[rank]),
                sharpness=sharpness_of(frame.image_HWC, box_4),
                transform_23=transform_23,
                width=width,
                height=height,
                crop=data,
                inputs=[resize(crop(frame.image_HWC, box_4, landmarks_K2, p), p) for p in self._inputs],
            )


def _reason(frame: Frame) -> Reason | None:
    height, width, _ = frame.image_HWC.shape
    return reason_not_to_look(height, width, is_corrupt=frame.is_corrupt)


def cut_out(
    image_HWC: NDArray[np.uint8],
    box_4: NDArray[np.float32],
    landmarks_K2: NDArray[np.float32],
    options: CropOptions,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cut a face out as the options say.

    Returns:
        The crop, uint8 (h, w, 3); and float32 (2, 3), from a pixel's place (x, y) in the crop to its place in the
        frame, whole numbers being the centres of pixels.
    """
    if options.align:
        pixels_HWC = align(image_HWC, landmarks_K2, options.margin)
        transform_23, _ = alignment(landmarks_K2, options.margin)
    else:
        region_4 = enlarge(box_4, options.margin, square=options.square)
        pixels_HWC = cut(image_HWC, region_4)
        x1, y1, _, _ = cut_corners(region_4)
        transform_23 = np.array([[1, 0, x1], [0, 1, y1]], np.float64)
    if options.size_px is not None:
        height, width, _ = pixels_HWC.shape
        shape = Preprocessing(size_px=options.size_px, fit="stretch")
        pixels_HWC = resize(pixels_HWC, shape)
        step_2 = np.array([width, height]) / options.size_px
        transform_23 = np.column_stack(
            [transform_23[:, :2] * step_2, transform_23[:, :2] @ (step_2 - 1) / 2 + transform_23[:, 2]]
        )
    return pixels_HWC, transform_23.astype(np.float32)


def _encoded(pixels_HWC: NDArray[np.uint8], image_format: str) -> bytes:
    ok, data = cv2.imencode(f".{image_format}", pixels_HWC[..., ::-1], _ENCODINGS[image_format])
    assert ok
    return data.tobytes()
