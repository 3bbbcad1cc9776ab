"""What the bytes of a compressed packet say about its place in the stream, without decoding it.

Three questions decide which packets a plan may leave out, and each is answered from the bitstream, because the
container's flags are hints that muxers set carelessly:

- is it an *entry*: can decoding start here, and is everything that follows it in both orders exact?
- is it *disposable*: does no other picture depend on it?
- is it *hidden*: is nothing shown for it?

Where a codec keeps state that a left-out packet would change (VP9's probabilities, FFV1's contexts), nothing is called
disposable; a codec that is not known here has no entries but its first packet. Both cost time, never pixels.

Sources: ITU-T H.264 7.4.1 (nal_ref_idc), H.265 7.4.2.2 (sub-layer non-reference pictures, CRA and RASL), the VP8, VP9
and AV1 bitstream specifications (frame headers), ISO 14496-2 6.2.5 (VOP header), ITU-T T.81 (JPEG tables).
"""

from collections.abc import Callable, Iterator
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

__all__ = ["PacketFlag", "PacketParser", "packet_parser", "temporal_layer"]

_TEMPORAL_SHIFT = 8


class PacketFlag(IntFlag):
    """What one packet says. The temporal layer (H.265) lies in the bits from 8 up."""

    NONE = 0
    ENTRY = 1
    DISPOSABLE = 2
    HIDDEN = 4
    PARAMETERS = 8
    """It carries the parameter sets or tables that other packets are read with."""
    UNSURE = 16
    """The packet does not stand for exactly one picture: only decoding tells what is shown."""


PacketParser = Callable[[bytes], int]


def temporal_layer(flags_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """The temporal layers that H.265 packets' flags carry, (P,); 0 for other codecs."""
    return flags_P >> _TEMPORAL_SHIFT


def packet_parser(codec: str, extradata: bytes) -> PacketParser | None:
    """The function that reads packets of `codec`, or None where nothing is known of the codec.

    Args:
        codec: FFmpeg's name of the codec (not of a decoder): "h264", "hevc", "vp9", ...
        extradata: The stream's out-of-band header (avcC, hvcC, ...); it tells how H.264 and H.265 mark their units.
    """
    if codec == "h264":
        length = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        return lambda data: _h264(data, length)
    if codec == "hevc":
        length = (extradata[21] & 3) + 1 if len(extradata) > 22 and extradata[0] == 1 else 0
        return lambda data: _hevc(data, length)
    return _PARSERS.get(codec)


def _units(data: bytes, length_size: int) -> Iterator[int]:
    """Offsets of the headers of the NAL units; -1 where the packet's framing is damaged."""
    at, end = 0, len(data)
    if length_size:
        while at + length_size < end:
            size = int.from_bytes(data[at : at + length_size], "big")
            yield at + length_size
            at += length_size + size
        if at != end:
            yield -1
        return
    at = data.find(b"\0\0\1")
    while at >= 0 and at + 3 < end:
        yield at + 3
        at = data.find(b"\0\0\1", at + 3)


def _h264(data: bytes, length_size: int) -> int:
    flags, slices, disposable = 0, 0, True
    for at in _units(data, length_size):
        if at < 0:
            return flags & ~PacketFlag.ENTRY
        kind = data[at] & 31
        if 1 <= kind <= 5:
            slices += 1
            disposable = disposable and not data[at] & 0x60
            if kind == 5:
                flags |= PacketFlag.ENTRY
        elif kind in (7, 8, 13, 15):
            flags |= PacketFlag.PARAMETERS
    if slices and disposable and not flags & PacketFlag.PARAMETERS:
        flags |= PacketFlag.DISPOSABLE
    return flags


def _hevc(data: bytes, length_size: int) -> int:
    flags, slices, disposable, layer = 0, 0, True, 0
    for at in _units(data, length_size):
        if at < 0 or at + 1 >= len(data):
            return flags & ~PacketFlag.ENTRY
        kind = data[at] >> 1 & 63
        if kind < 32 and not (data[at] & 1 or data[at + 1] >> 3):
            slices += 1
            layer = max(layer, (data[at + 1] & 7) - 1)
            disposable = disposable and kind in (0, 2, 4, 6, 8)
            if 16 <= kind <= 21:
                flags |= PacketFlag.ENTRY
        elif 32 <= kind <= 34:
            flags |= PacketFlag.PARAMETERS
    if slices and disposable and not flags & PacketFlag.PARAMETERS:
        flags |= PacketFlag.DISPOSABLE
    return flags | layer << _TEMPORAL_SHIFT


def _mpeg4(data: bytes) -> int:
    at = data.find(b"\0\0\1\xb6")
    # Packed pictures, and the placeholders that follow them, are DivX's way of putting B-VOPs into AVI.
    if at < 0 or at + 4 >= len(data) or len(data) < 20 or data.find(b"\0\0\1\xb6", at + 4) >= 0:
        return PacketFlag.UNSURE
    kind = data[at + 4] >> 6
    flags = int(PacketFlag.ENTRY) if kind == 0 else int(PacketFlag.DISPOSABLE) if kind == 2 else 0
    if any(data.startswith(b"\0\0\1", i) and 0x20 <= data[i + 3] <= 0x2F for i in _start_codes(data, at)):
        flags = flags & ~PacketFlag.DISPOSABLE | PacketFlag.PARAMETERS
    return flags


def _start_codes(data: bytes, end: int) -> Iterator[int]:
    at = data.find(b"\0\0\1", 0, end)
    while at >= 0:
        yield at
        at = data.find(b"\0\0\1", at + 3, end)


def _vp8(data: bytes) -> int:
    flags = 0 if data[0] & 1 else int(PacketFlag.ENTRY)
    return flags if data[0] & 16 else flags | PacketFlag.HIDDEN


def _vp9(data: bytes) -> int:
    head = data[0]
    if head >> 6 != 2:
        return PacketFlag.NONE
    bit = 2 if head & 0x30 == 0x30 else 3  # profile 3 has a reserved bit
    exists, inter, shown = (head >> bit & 1, head >> bit - 1 & 1, head >> bit - 2 & 1)
    if exists:
        return PacketFlag.NONE
    superframe = data[-1] & 0xE0 == 0xC0
    flags = 0 if inter else int(PacketFlag.ENTRY)
    return flags if shown or superframe else flags | PacketFlag.HIDDEN


def _av1(data: bytes) -> int:
    """ENTRY where the temporal unit holds a sequence header and begins with a shown key frame."""
    at, sequence = 0, False
    while at < len(data):
        kind, extension, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extension
        size, used = _leb128(data, at) if sized else (len(data) - at, 0)
        at += used
        if kind == 1:
            sequence = True
            if at < len(data) and data[at] & 0x08:  # reduced_still_picture_header: every picture is a key frame
                return PacketFlag.ENTRY
        elif kind in (3, 6):
            # show_existing_frame, frame_type (0 is a key frame), show_frame
            key = at < len(data) and data[at] & 0xF0 == 0x10
            return PacketFlag.ENTRY if key and sequence else PacketFlag.NONE
        at += size
    return PacketFlag.NONE


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for used in range(8):
        if at + used >= len(data):
            break
        value |= (data[at + used] & 0x7F) << 7 * used
        if not data[at + used] & 0x80:
            return value, used + 1
    return len(data), 0


def _mjpeg(data: bytes) -> int:
    """Every picture stands alone, unless it borrows the tables of an earlier one."""
    scan = data.find(b"\xff\xda")
    head = data[: scan if scan >= 0 else len(data)]
    flags = PacketFlag.ENTRY | PacketFlag.DISPOSABLE if b"\xff\xdb" in head else PacketFlag.UNSURE
    return int(flags | PacketFlag.PARAMETERS if b"\xff\xc4" in head else flags)


def _intra(_data: bytes) -> int:
    return int(PacketFlag.ENTRY | PacketFlag.DISPOSABLE)


_INTRA_ONLY = ("dnxhd", "ffvhuff", "huffyuv", "png", "prores", "rawvideo", "utvideo", "v210")
_PARSERS: dict[str, PacketParser] = {
    "mpeg4": _mpeg4,
    "vp8": _vp8,
    "vp9": _vp9,
    "av1": _av1,
    "mjpeg": _mjpeg,
    **dict.fromkeys(_INTRA_ONLY, _intra),
}
