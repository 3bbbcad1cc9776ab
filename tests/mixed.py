"""A small dataset with faces and with everything that can be wrong with a file."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.clips import ENCODINGS, audio_only, clip, cut, empty, flipped, text, turned
from tests.portraits import filmed, scenery

__all__ = ["BAD", "GOOD", "mixed_dataset", "paired_dataset"]

_BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}

GOOD = ("real/long-gop", "real/hevc", "real/turned", "real/ten-bit", "fake/vp9", "fake/short", "fake/wide")
"""Videos in which there is a face."""

BAD = {
    "fake/audio.mp4": ("failed", "no_video_stream"),
    "fake/empty.mp4": ("failed", "empty_file"),
    "fake/text.mp4": ("failed", "not_a_video"),
    "fake/headless.mp4": ("failed", "truncated_header"),
    "fake/scenery.mp4": ("empty", "no_face"),
    "fake/tiny.mp4": ("empty", "frame_too_small"),
}
"""Videos that give nothing: status and reason. One that is cut off and one that is damaged give some faces."""


_PAIRS = (("000", "003"), ("101", "102"), ("201", "202"), ("301", "302"), ("401", "402"))


def _wide(frames: int) -> list[NDArray[np.uint8]]:
    return [np.concatenate([p, cv2.flip(p, 1)], 1) for p in filmed(frames, 320, 240)]


def mixed_dataset(folder: Path) -> Path:
    """Make it: folders `real` and `fake` of small clips."""
    for name in ("real", "fake"):
        (folder / name).mkdir(parents=True)
    real, fake = folder / "real", folder / "fake"
    size = {"width": 320, "height": 240}
    clip(real / "long-gop", _BY_NAME["h264-mp4-long-gop"], frames=70, images=filmed(70), **size)
    clip(real / "hevc", _BY_NAME["hevc-mkv-closed-gop"], frames=40, images=filmed(40), **size).rename(real / "hevc.mp4")
    turned(real / "turned", 90, frames=30, images=filmed(30, turned=1), width=240, height=320)
    clip(real / "ten-bit", _BY_NAME["h264-mkv-10-bit"], frames=36, images=filmed(36), **size).rename(
        real / "ten-bit.mp4"
    )
    clip(fake / "vp9", _BY_NAME["vp9-webm"], frames=40, images=filmed(40), **size).rename(fake / "vp9.mp4")
    clip(fake / "short", frames=5, images=filmed(5), **size)
    clip(fake / "wide", frames=36, images=_wide(36), width=640, height=240)
    flipped(real / "long-gop.mp4", fake / "damaged.mp4", count=60)
    source = clip(folder / "source", _BY_NAME["h264-ts"], frames=40, images=filmed(40), **size)
    cut(source, fake / "cut.mp4", 0.6)
    source.unlink()
    audio_only(fake / "audio.mp4")
    empty(fake / "empty.mp4")
    text(fake / "text.mp4")
    cut(real / "long-gop.mp4", fake / "headless.mp4", 0.5)
    clip(fake / "scenery", frames=30, images=scenery(30), **size)
    clip(fake / "tiny", frames=10, width=16, height=16)
    return folder


def paired_dataset(folder: Path, pairs: int = 2) -> Path:
    """Originals and their fakes, laid out as FaceForensics++ is: the mouths of the fakes upside down.

    Args:
        folder: Where.
        pairs: Originals, each with one fake; at most 5.
    """
    real = folder / "original_sequences" / "youtube" / "c23" / "videos"
    fake = folder / "manipulated_sequences" / "Deepfakes" / "c23" / "videos"
    for place in (real, fake):
        place.mkdir(parents=True)
    # Trees of macroblocks are not the same each time that x264 grows them; a pair is to differ where it was changed.
    steady = replace(ENCODINGS[0], options={**ENCODINGS[0].options, "x264-params": "mbtree=0"})
    images = list(filmed(60))
    for n, (name, other) in enumerate(_PAIRS[:pairs]):
        start = 20 * (n % 2)
        pictures = images[start : start + 40]
        clip(real / name, steady, frames=40, images=pictures, width=320, height=240)
        clip(fake / f"{name}_{other}", steady, frames=40, images=map(_faked, pictures), width=320, height=240)
    return folder


def _faked(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same picture with the middle of it, where the face is, upside down."""
    image_HWC = image_HWC.copy()
    image_HWC[100:140, 140:180] = image_HWC[100:140, 140:180][::-1]
    return image_HWC
