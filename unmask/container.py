"""Opening a video file and reading the index of its packets, with every failure named.

The index is read from the packets, never from the header: headers lie about how many frames there are, and containers
about which of them stand alone.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

from unmask.errors import MediaError, Reason
from unmask.packets import PacketFlag, PacketParser, packet_parser, temporal_layer
from unmask.plan import PacketIndex

__all__ = ["IndexedStream", "OpenVideo", "VideoPacket", "read_index"]

VideoPacket: TypeAlias = "Packet[VideoStream]"

MAX_PACKETS = 50_000_000
"""Nine days at 60 frames a second; a file with more is refused before its index fills the memory."""

KEPT_BYTES = 64 * 2**20
"""Streams up to this size are read once: their packets are kept."""

_NO_PTS = np.iinfo(np.int64).min
_MOST_LOST = 20
"""A header that claims more than this many times the packets in the file is not believed at all."""

_MOST_REORDERED = 64
"""No codec stores a picture this many packets from its turn."""

# Containers only: a playlist (HLS, concat, DASH) would make libav open other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,gif,h264,hevc,m4v,mjpeg,"
    "ivf,nut,obu,av1,apng,rm,dv,wtv,yuv4mpegpipe,mp3,wav,flac,aac,aiff,amr,ac3,eac3,caf,w64,wv,"
    "jpeg_pipe,png_pipe,webp_pipe"
)
_STILLS = {b"\xff\xd8\xff": "jpeg_pipe", b"\x89PNG\r\n\x1a\n": "png_pipe"}
# Containers that store when each picture is shown; the others count packets, and are wrong where there are B pictures.
_TIMED = frozenset({"mov", "matroska", "webm", "mpegts", "flv", "live_flv"})
_INTRA = frozenset({"dnxhd", "ffvhuff", "huffyuv", "mjpeg", "png", "prores", "rawvideo", "utvideo", "v210"})
_RETRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedStream:
    """The packet index of a stream, and how far it can be trusted.

    Args:
        index: The packets.
        packets: The packets themselves, where they are few enough to keep.
        is_trusted: A packet stands for one frame, and its time stamp for when that is shown.
    """

    index: PacketIndex
    packets: list[VideoPacket] | None
    is_trusted: bool


class OpenVideo:
    """A container and its first video stream (cover pictures do not count). Close it, or use it in a `with`.

    Raises:
        MediaError: The file is missing, empty, unreadable, not a video, cut off before its header, without a video
            stream, or in a codec that has no decoder here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = _open(path)
        try:
            self.stream = _video_stream(self.container, path)
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def packets(self) -> Iterator[VideoPacket]:
        """The stream's packets from here on, in the order of the file. Damage is passed over where the demuxer can."""
        failures = 0
        while failures < _RETRIES:
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size > 0:
                        failures = 0
                        yield packet
                return
            except (FFmpegError, OSError):
                failures += 1


def _open(path: Path) -> InputContainer:
    try:
        if not path.is_file() and path.exists():
            # A pipe would be waited for, for ever.
            raise MediaError(Reason.UNREADABLE_FILE, f"{path} is not a regular file; give a video file")
        if path.stat().st_size == 0:
            raise MediaError(Reason.EMPTY_FILE, f"{path} is empty (0 bytes); fetch or copy it again")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise MediaError(Reason.MISSING_FILE, f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MediaError(Reason.UNREADABLE_FILE, f"{path} cannot be read ({why.lower()}); check it") from None
    try:
        # torchvision switches libav's messages on when it is imported; what they say is in our answers.
        av.logging.set_level(None)
        # The prefix keeps libav from taking a name such as "pipe:0" or "http:x" for an address.
        return av.open(
            f"file:{path}",
            mode="r",
            format=_still(head),
            container_options={"format_whitelist": _FORMATS},
            metadata_errors="replace",
        )
    except (FFmpegError, OSError, ValueError, UnicodeError) as error:
        if _is_container(head):
            message = (
                f"{path} is cut off or damaged before its header ends, so nothing in it can be found; fetch it again"
            )
            raise MediaError(Reason.TRUNCATED_HEADER, message) from error
        raise MediaError(Reason.NOT_A_VIDEO, f"{path} is not a video file; check what it holds") from error


def _still(head: bytes) -> str | None:
    """The demuxer of a photograph, by its first bytes: a clip of one frame. None for everything else.

    By its name libav would take it for one of a numbered series.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp_pipe"
    return next((demuxer for mark, demuxer in _STILLS.items() if head.startswith(mark)), None)


def _is_container(head: bytes) -> bool:
    """Whether the first bytes are those of MP4/MOV, Matroska/WebM or AVI."""
    boxes = (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip")
    return (
        head[4:8] in boxes or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] in (b"", b"AVI "))
    )


def _ends_early(path: Path) -> bool:
    """Whether a box of an MP4 reaches past the end of the file."""
    with path.open("rb") as file:
        at, end = 0, path.stat().st_size
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8:
                return False
            at += size
    return at > end


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    streams = [s for s in container.streams if s.type == "video" and not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(Reason.NO_VIDEO_STREAM, f"{path} holds no video stream; give a file with pictures")
    # A small picture may come first without being marked as a cover.
    stream = max(streams, key=_worth)
    assert isinstance(stream, VideoStream)
    try:
        context: object | None = stream.codec_context  # None without a decoder, which PyAV's stubs do not say
        if context is None and _ends_early(path):
            raise MediaError(Reason.TRUNCATED_HEADER, f"{path} is cut off before its header ends; fetch it again")
        if context is None:
            raise MediaError(
                Reason.UNSUPPORTED_CODEC, f"{path} is in a codec without a decoder here; convert it to H.264"
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.open(strict=False)
    except FFmpegError as error:
        message = f"{path}: the decoder for {stream.codec_context.name} does not open ({error}); convert it to H.264"
        raise MediaError(Reason.UNSUPPORTED_CODEC, message) from error
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def _worth(stream: Stream) -> tuple[bool, int]:
    """How likely a video stream is the one that players show: marked as the default, and large."""
    context = stream.codec_context
    pixels = context.width * context.height if isinstance(context, VideoCodecContext) else 0
    return bool(stream.disposition & Disposition.default), pixels


def read_index(video: OpenVideo) -> IndexedStream:
    """Read all packets once, from a video just opened.

    Raises:
        MediaError: The file holds more packets than any video.
    """
    context = video.stream.codec_context
    columns = _Columns(packet_parser(context.codec.canonical_name, context.extradata or b""))
    kept: list[VideoPacket] | None = []
    total = 0
    for packet in video.packets():
        columns.add(packet)
        total += packet.size
        kept = None if kept is None or total > KEPT_BYTES else kept
        if kept is not None:
            kept.append(packet)
        if len(columns.pts) > MAX_PACKETS:
            raise MediaError(Reason.TOO_LARGE, f"{video.path} holds over {MAX_PACKETS} packets; cut it into parts")
    index = columns.index(video.stream.time_base or Fraction(1, 1), _lost(video, columns))
    return IndexedStream(index=index, packets=kept, is_trusted=_is_trusted(video, index, columns))


class _Columns:
    """The index as it grows: machine integers, since ten hours are two million packets."""

    def __init__(self, parser: PacketParser | None) -> None:
        self.parser = parser
        self.pts, self.dts, self.size, self.flags = array("q"), array("q"), array("q"), array("i")
        self.last_duration = 0
        self.last_pts = _NO_PTS
        self.has_new_header = False

    def add(self, packet: VideoPacket) -> None:
        pts = _NO_PTS if packet.pts is None else packet.pts
        flags = int(self.parser(bytes(packet))) if self.parser else 0
        if packet.is_discard:
            flags |= PacketFlag.HIDDEN
        elif pts >= self.last_pts:
            self.last_pts, self.last_duration = pts, packet.duration or 0
        if not packet.is_keyframe:
            flags &= ~PacketFlag.ENTRY
        self.has_new_header = self.has_new_header or packet.has_sidedata("new_extradata")
        self.pts.append(pts)
        self.dts.append(_NO_PTS if packet.dts is None else packet.dts)
        self.size.append(packet.size)
        self.flags.append(flags)

    def has(self, flag: PacketFlag) -> NDArray[np.bool_]:
        has_P: NDArray[np.bool_] = (np.array(self.flags, np.int64) & int(flag)) != 0
        return has_P

    def index(self, time_base: Fraction, lost_pts_L: NDArray[np.int64]) -> PacketIndex:
        flags_P = np.array(self.flags, np.int64)
        pts_P = np.array(self.pts, np.int64)
        entry_P, disposable_P = self.has(PacketFlag.ENTRY), self.has(PacketFlag.DISPOSABLE)
        parameters_P = self.has(PacketFlag.PARAMETERS)
        layers_P = temporal_layer(flags_P)
        # A picture of a lower layer that its own layer does without may still be needed by the layers above.
        disposable_P &= layers_P == (layers_P.max() if len(layers_P) else 0)
        if parameters_P.any() and bool((parameters_P & ~entry_P).any()):
            entry_P[:] = False  # headers change on the way: only the whole way gives the right ones
        elif parameters_P.any():
            entry_P &= parameters_P
        if not parameters_P.all():
            disposable_P &= ~parameters_P
        if self.has_new_header:
            entry_P[:], disposable_P[:] = False, False
        return PacketIndex(
            pts_P=pts_P,
            size_P=np.array(self.size, np.int64),
            entry_P=entry_P & (pts_P != _NO_PTS),
            disposable_P=disposable_P,
            shown_P=~self.has(PacketFlag.HIDDEN) & (pts_P != _NO_PTS),
            time_base=time_base,
            lost_pts_L=lost_pts_L,
            last_duration=self.last_duration,
        )


def _lost(video: OpenVideo, columns: _Columns) -> NDArray[np.int64]:
    """When the packets would be shown that an MP4's header names past the end of the file, to within the reordering."""
    read, stream = len(columns.pts), video.stream
    if "mov" not in video.container.format.name or not 0 < read < len(stream.index_entries) <= _MOST_LOST * read:
        return np.zeros(0, np.int64)
    if stream.index_entries[read - 1].timestamp != columns.dts[-1]:
        return np.zeros(0, np.int64)
    offset = columns.pts[0] - columns.dts[0]
    lost = np.array([e.timestamp + offset for e in stream.index_entries[read:] if not e.is_discard], np.int64)
    return np.unique(lost[lost > columns.last_pts])


def _is_trusted(video: OpenVideo, index: PacketIndex, columns: _Columns) -> bool:
    pts_P = index.pts_P
    unsure = columns.has(PacketFlag.UNSURE).any() or (pts_P == _NO_PTS).any() or not index.has_unique_times
    # A clock that starts again on the way sorts frames far from where they are decoded.
    unsure = unsure or bool((np.abs(index.packet_S - np.sort(index.packet_S)) > _MOST_REORDERED).any())
    context = video.stream.codec_context
    codec = context.codec.canonical_name
    if unsure or codec in _INTRA:
        return not unsure
    formats = set(video.container.format.name.split(","))
    if not formats & _TIMED or (codec == "h264" and context.field_order > 1 and not formats & {"mov", "matroska"}):
        return False  # fields in packets of their own
    # Time stamps that never step back, of a codec that says its pictures are reordered: decoding times in disguise.
    reordered = context.reorder_depth > 0
    return not (reordered and len(pts_P) > 2 and bool(np.all(np.diff(pts_P) > 0)))
