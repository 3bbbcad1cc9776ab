"""The faces of one video as files: crops, and boxes, landmarks and tracks as JSON."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unmask.atomic import replacing
from unmask.detection import FaceDetector
from unmask.errors import Reason
from unmask.faces import align, cut, enlarge
from unmask.hog import HogDetector
from unmask.plan import Sampling
from unmask.video import VideoReader
from unmask.watch import Seen, Stopwatch, watch
from unmask.workers import Workers

__all__ = ["write_faces"]


def write_faces(
    path: Path,
    out: Path,
    sampling: Sampling,
    detector: FaceDetector,
    *,
    name: str,
    margin: float = 1.3,
    aligned: bool = False,
) -> int:
    """Find the faces of a video and write them down.

    `faces.json` holds the media facts and, for every frame that was asked for, its time, its faces (box, landmarks,
    probability, track, file of the crop; from dlib also 68 landmarks and what tells people apart) or the reason why
    there is none. It is written last: where it stands, the crops are whole.

    Args:
        path: The video.
        out: A folder, made if missing. Crops go to `out/crops/<frame>_<track>.png`.
        sampling: Which frames.
        detector: Finds the faces.
        name: What to call the video.
        margin: Side of a crop over side of the face's box.
        aligned: Turn crops upright by the landmarks.

    Returns:
        The number of faces.

    Raises:
        MediaError: The video cannot be read.
        OSError: The folder cannot be written to.
    """
    with VideoReader(path) as reader:
        (out / "crops").mkdir(parents=True, exist_ok=True)
        seen_frames = watch(reader, sampling, detector, Workers(detector.device), Stopwatch())
        frames = [_frame(seen, out, detector, margin=margin, aligned=aligned) for seen in seen_frames]
        media = reader.info.to_json()
    with replacing(out / "faces.json") as beside:
        beside.write_text(json.dumps({"input": name, "media": media, "frames": frames}, indent=1) + "\n")
    crops = {face["crop"] for frame in frames for face in frame["faces"]}
    for crop in (out / "crops").glob("*.png"):
        if crop.relative_to(out).as_posix() not in crops:
            crop.unlink()  # of an earlier run
    return len(crops)


def _frame(seen: Seen, out: Path, detector: FaceDetector, *, margin: float, aligned: bool) -> dict[str, Any]:
    faces = []
    for n, sighting in enumerate(seen.sightings):
        assert seen.frame is not None
        box_4, landmarks_K2 = seen.faces.boxes_N4[n], seen.faces.landmarks_NK2[n]
        file = Path("crops") / f"{seen.index:06d}_{sighting.track_id}.png"
        image_HWC = seen.frame.image_HWC
        _write_png(
            out / file, align(image_HWC, landmarks_K2, margin) if aligned else cut(image_HWC, enlarge(box_4, margin))
        )
        faces.append(
            {
                "track_id": sighting.track_id,
                "after_gap": sighting.after_gap,
                "box": np.round(box_4, 2).tolist(),
                "landmarks": np.round(landmarks_K2, 2).tolist(),
                "probability": round(float(seen.faces.probabilities_N[n]), 4),
                "crop": file.as_posix(),
                **_more(detector, image_HWC, box_4),
            }
        )
    reason: Reason | None = seen.reason
    return {"index": seen.index, "pts_s": round(seen.pts_s, 6), "faces": faces, "reason": reason}


def _more(detector: FaceDetector, image_HWC: NDArray[np.uint8], box_4: NDArray[np.float32]) -> dict[str, Any]:
    """What only dlib says of a face."""
    if not isinstance(detector, HogDetector):
        return {}
    said: dict[str, Any] = {}
    if detector.has_landmarks:
        said["landmarks68"] = detector.landmarks68(image_HWC, box_4).tolist()
    if detector.has_encodings:
        said["encoding"] = np.round(detector.encoding(image_HWC, box_4), 5).tolist()
    return said


def _write_png(path: Path, image_HWC: NDArray[np.uint8]) -> None:
    ok, encoded = cv2.imencode(".png", image_HWC[..., ::-1])
    assert ok
    with replacing(path) as beside:
        beside.write_bytes(encoded.tobytes())
