"""H.264 by access units, against what `VideoReader` decodes of the same files."""

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import clips
from tests.annexb import access_units
from tests.clips import ENCODINGS
from unmask.access_units import AccessUnits, UnitPicture, is_annex_b
from unmask.errors import Reason
from unmask.frame_numbers import FrameNumbers
from unmask.frame_queue import Gap, LiveFrame, Lost, StreamItem
from unmask.plan import Sampling
from unmask.push import PushSource
from unmask.records import Frame
from unmask.streams import StreamOptions
from unmask.video import VideoReader

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}
Units = list[tuple[float, bytes]]


def decoded(path: Path) -> dict[float, NDArray[np.uint8]]:
    with VideoReader(path) as reader:
        frames = [frame for frame in reader.frames(Sampling(every=1)) if isinstance(frame, Frame)]
    return {round(frame.pts_s, 4): frame.image_HWC for frame in frames}


def pushed(units: Units) -> list[StreamItem]:
    """All that a source tells of units, of which each is accounted for once."""
    source = PushSource(StreamOptions(fps=None, queue_frames=1000))
    for pts_s, data in units:
        source.push(data, pts_s)
    source.end()
    items = list(iter(source.queue.get, None))
    lost = sum(item.count for item in items if isinstance(item, Lost))
    assert sum(isinstance(item, LiveFrame) for item in items) + lost == len(units)
    return items


def check_pictures(items: list[StreamItem], expected: dict[float, NDArray[np.uint8]]) -> int:
    """No picture passes that is not what was filmed; how many passed."""
    frames = [item.frame for item in items if isinstance(item, LiveFrame)]
    assert [f.pts_s for f in frames] == sorted({f.pts_s for f in frames})
    for frame in frames:
        assert np.array_equal(frame.image_HWC, expected[round(frame.pts_s, 4)]), frame.pts_s
    return len(frames)


def reasons(items: list[StreamItem]) -> set[Reason]:
    return {item.reason for item in items if isinstance(item, Lost)}


CODINGS = (
    "h264-mp4", "h264-mp4-long-gop", "h264-mp4-no-b", "h264-mp4-slices", "h264-mp4-in-band", "h264-mov-444",
    "h264-mkv-10-bit", "h264-ts",
)  # fmt: skip


@pytest.mark.parametrize("name", CODINGS)
def test_units_give_the_pictures_of_the_file(tmp_path: Path, name: str) -> None:
    path = clips.clip(tmp_path / "clip", BY_NAME[name], frames=40)
    units = access_units(path)
    assert all(is_annex_b(data) for _, data in units)
    assert check_pictures(pushed(units), decoded(path)) == len(units) == 40


def test_a_picture_comes_with_its_unit_where_none_is_reordered(tmp_path: Path) -> None:
    decoder = AccessUnits(10_000)
    for pts_s, data in access_units(clips.clip(tmp_path / "clip", BY_NAME["h264-mp4-no-b"], frames=25)):
        ((shown_s, _, frame, reason),) = decoder.decode(data, pts_s)
        assert (shown_s, reason) == (pts_s, None)
        assert frame is not None
    assert list(decoder.flush()) == []


@pytest.mark.parametrize("name", ["h264-mp4", "h264-mp4-no-b", "h264-mp4-slices"])
@pytest.mark.parametrize("fault", ["missing", "cut", "prose"])
def test_damage_is_seen_in_every_picture_that_it_reaches(tmp_path: Path, name: str, fault: str) -> None:
    """Nothing passes that was not filmed, whichever unit is missing or cut. (A tiny one may be cut unseen.)"""
    path = clips.clip(tmp_path / "clip", BY_NAME[name], frames=40, width=160, height=120)
    expected, whole = decoded(path), access_units(path)
    inner = [at for at in range(13, 35) if not whole[at][1].find(b"\0\0\1\x65") >= 0]
    for at in sorted(inner, key=lambda at: -len(whole[at][1]))[:6]:
        pts_s, data = whole[at]
        instead = {"cut": data[: len(data) // 2], "prose": b"\0\0\1no unit"}
        units = [*whole[:at], *([(pts_s, instead[fault])] if fault in instead else []), *whole[at + 1 :]]
        items = pushed(units)
        assert 20 <= check_pictures(items, expected) < 40
        assert reasons(items) & {Reason.CORRUPT_FRAME, Reason.MEDIA_UNREADABLE}


def test_whatever_is_sent_every_unit_is_answered_once(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", BY_NAME["h264-mp4"], frames=30)
    chance = random.Random(0)
    for _ in range(10):
        units = [(pts_s, _flipped(data, chance)) for pts_s, data in access_units(path)]
        middle = units[5:20]
        chance.shuffle(middle)
        pushed([*units[:5], *middle, *units[20:]])


def _flipped(data: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(chance.randrange(4)):
        flipped[chance.randrange(4, len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def test_nothing_passes_before_a_picture_that_stands_alone(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", BY_NAME["h264-mp4-in-band"], frames=40)
    items = pushed(access_units(path)[5:])
    passed = check_pictures(items, decoded(path))
    assert 15 < passed < 35
    assert reasons(items) <= {Reason.CORRUPT_FRAME, Reason.MEDIA_UNREADABLE, Reason.DECODE_FAILED}


def test_another_size_is_a_gap_and_no_end(tmp_path: Path) -> None:
    """Parameter sets change in the middle, with and without pictures that are held back."""
    paths = [
        clips.clip(tmp_path / str(width), BY_NAME["h264-mp4"], frames=20, width=width, height=48) for width in (64, 96)
    ]
    small, large = (access_units(path) for path in paths)
    items = pushed([*small, *((pts_s + 0.8, data) for pts_s, data in large)])
    gaps = [item for item in items if isinstance(item, Gap)]
    assert [gap.reason for gap in gaps] == [Reason.RESOLUTION_CHANGED]
    assert "64x48 to 96x48" in gaps[0].message
    later = {round(pts_s + 0.8, 4): image for pts_s, image in decoded(paths[1]).items()}
    assert check_pictures(items, decoded(paths[0]) | later) == 40


def test_pictures_and_units_take_turns(tmp_path: Path) -> None:
    import cv2

    path = clips.clip(tmp_path / "clip", BY_NAME["h264-mp4"], frames=12)
    png = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    units = access_units(path)
    items = pushed([*units, (1.0, png), *((pts_s + 2.0, data) for pts_s, data in units)])
    assert not reasons(items)
    assert sum(isinstance(item, LiveFrame) for item in items) == 25


@pytest.mark.parametrize("pts_s", [float("nan"), float("inf"), -1.0])
def test_times_that_cannot_be_meant(tmp_path: Path, pts_s: float) -> None:
    units = access_units(clips.clip(tmp_path / "clip", BY_NAME["h264-mp4-no-b"], frames=10))
    items = pushed([*units[:5], (pts_s, units[5][1]), *units[6:]])
    assert [(i.reason, i.count) for i in items if isinstance(i, Lost)] == [(Reason.OUT_OF_ORDER, 1)]


def test_parameter_sets_are_no_more_than_there_can_be() -> None:
    """What a caller sends must not fill the memory."""
    numbers = FrameNumbers()
    for number in range(2000):
        numbers.follows(b"\0\0\1\x68" + exp_golomb(number, 0))  # a picture's, of sequence 0
        numbers.follows(b"\0\0\1\x67\x42\0\x1e" + exp_golomb(number, 0, 2, 1, 0))
    assert set(numbers._sequence_of) == set(range(256))
    assert set(numbers._sequences) == set(range(32))


def exp_golomb(*numbers: int) -> bytes:
    """Unsigned numbers as ITU-T H.264, 9.1 writes them, and the bit that ends them."""
    bits = "".join("0" * ((n + 1).bit_length() - 1) + f"{n + 1:b}" for n in numbers) + "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_pictures_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    decoder = AccessUnits(64 * 40)
    units = access_units(clips.clip(tmp_path / "clip", BY_NAME["h264-mp4-no-b"], frames=5))
    told: list[UnitPicture] = [t for pts_s, data in units for t in decoder.decode(data, pts_s)] + list(decoder.flush())
    assert len(told) == 5
    assert all(t.frame is None for t in told)
