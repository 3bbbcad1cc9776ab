"""Whether a picture is missing from a stream of H.264: decoders take another in its place and say nothing.

Each picture carries `frame_num`, which counts those that others may refer to. It is read from the bitstream, since
libav tells of a gap at a level of its log that nobody can listen to all the time.

Source: ITU-T H.264, 7.3.2.1.1 (sequence parameter sets), 7.3.2.2 (picture parameter sets), 7.3.3 (slice headers) and
7.4.3 (frame_num).
"""

from collections.abc import Iterator

__all__ = ["FrameNumbers"]

# Profiles whose parameter sets tell of the chroma format.
_HIGH = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244})
# All that is read of a part lies in its first bytes; scaling lists make parameter sets long.
_HEAD = 512
_MOST_SEQUENCE_SETS, _MOST_PICTURE_SETS = 32, 256


class _Bits:
    """Reads a part of the bitstream, bit by bit, past its emulation prevention bytes.

    Raises:
        ValueError: It ends too soon, or says what cannot be.
    """

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(plain, "big"), len(plain) * 8

    def take(self, bits: int) -> int:
        if bits > self._left:
            raise ValueError("the end")
        self._left -= bits
        return self._value >> self._left & ((1 << bits) - 1)

    def unsigned(self) -> int:
        """Exp-Golomb, 9.1."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def id(self, most: int) -> int:
        """Of a parameter set: one of so many."""
        number = self.unsigned()
        if number >= most:
            raise ValueError(f"{number} is none of {most}")
        return number

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class FrameNumbers:
    """Reads the numbers of the pictures of one stream, in the order of decoding."""

    def __init__(self) -> None:
        self._sequences: dict[int, tuple[int, bool, bool]] = {}
        self._sequence_of: dict[int, int] = {}
        self._last = 0

    def follows(self, unit: bytes) -> bool:
        """Whether nothing that this picture may refer to is missing before it.

        Args:
            unit: An access unit, Annex B. What cannot be read counts as following: decoding will tell.
        """
        follows = True
        for part in _parts(unit):
            kind = part[0] & 31
            try:
                if kind == 7:
                    self._read_sequence(part)
                elif kind == 8:
                    bits = _Bits(part[1:])
                    picture = bits.id(_MOST_PICTURE_SETS)
                    self._sequence_of[picture] = bits.id(_MOST_SEQUENCE_SETS)
                elif kind in (1, 5):
                    follows = self._read_slice(part, is_first=kind == 5) and follows
            except (ValueError, KeyError):
                continue
        return follows

    def _read_sequence(self, part: bytes) -> None:
        bits = _Bits(part[1:])
        profile, _, number = bits.take(8), bits.take(16), bits.id(_MOST_SEQUENCE_SETS)
        has_planes = False
        if profile in _HIGH:
            chroma = bits.unsigned()
            has_planes = chroma == 3 and bool(bits.take(1))
            bits.unsigned(), bits.unsigned(), bits.take(1)
            if bits.take(1):
                _skip_scaling(bits, 12 if chroma == 3 else 8)
        length = bits.unsigned() + 4
        order = bits.unsigned()
        if order == 0:
            bits.unsigned()
        elif order == 1:
            bits.take(1), bits.signed(), bits.signed()
            for _ in range(bits.unsigned()):
                bits.signed()
        bits.unsigned()
        self._sequences[number] = length, has_planes, bool(bits.take(1))

    def _read_slice(self, part: bytes, *, is_first: bool) -> bool:
        bits = _Bits(part[1:])
        bits.unsigned(), bits.unsigned()
        length, has_planes, may_skip = self._sequences[self._sequence_of[bits.unsigned()]]
        if has_planes:
            bits.take(2)
        number, last = bits.take(length), self._last
        if part[0] & 0x60:  # others may refer to it
            self._last = number
        return is_first or may_skip or (number - last) % (1 << length) in (0, 1)


def _skip_scaling(bits: _Bits, lists: int) -> None:
    for n in range(lists):
        last = following = 8
        for _ in range((16 if n < 6 else 64) if bits.take(1) else 0):
            if following:
                following = (last + bits.signed()) % 256
            last = following or last


def _parts(unit: bytes) -> Iterator[bytes]:
    """The heads of a unit's parts (NAL units), without start codes."""
    at = unit.find(b"\0\0\1")
    while at >= 0:
        begin = at + 3
        at = unit.find(b"\0\0\1", begin)
        head = unit[begin : min(begin + _HEAD, at if at >= 0 else len(unit))]
        if head:
            yield head
