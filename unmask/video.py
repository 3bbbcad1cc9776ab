"""Video files: what they are, and their frames by presentation time.

`VideoReader` reads the packet index (`unmask.container`), plans which packets must be decoded for the wanted frames
(`unmask.plan`) and decodes those (`unmask.decoding`), one packet at a time, in one thread. A frame that it returns is
bit-identical to what a full decode shows at that time; where that cannot be had, the answer is a `Missing` with a
reason. Every frame that is asked for gets one answer or the other.

Three things guard that promise. Each packet that is read a second time must be the one the index says. A target whose
frame does not come out sends the rest of the plan through a plain decode from the first packet on. And where the index
cannot be trusted (AVI with B pictures, packets without time stamps, two with the same) the video is decoded once to
learn what it shows, before anything is chosen.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from unmask.container import OpenVideo, read_index
from unmask.decoding import Decoded, Survey, decode_first, decode_plan, decode_surveyed, survey
from unmask.errors import Reason, UsageError
from unmask.picture import Orientation, RgbConverter, orientation_of
from unmask.plan import DecodePlan, PacketIndex, Sampling, linear_plan, make_plan
from unmask.records import Frame, VideoInfo

__all__ = ["Missing", "VideoReader", "probe"]


@dataclass(frozen=True, slots=True)
class Missing:
    """A frame that was asked for and cannot be shown.

    Args:
        pts_s: When it would be shown, in seconds, or the time that was asked for.
        index: Its position in presentation order; -1 where nothing is shown at that time.
        reason: DECODE_FAILED (its packet is there) or MISSING_FRAME (it is not).
    """

    pts_s: float
    index: int
    reason: Reason


def probe(path: str | Path) -> VideoInfo:
    """What a video file is. Reads its packets and decodes one frame; all of them only where the index has no times.

    Raises:
        MediaError: It cannot be opened; the reason says why.
    """
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """A video file, open for reading frames. A context manager.

    Args:
        path: A local file.

    Raises:
        MediaError: The file is missing, empty, unreadable, not a video, cut off before its header, without a video
            stream, or in a codec that has no decoder here.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._is_open = True
        self._orientation: Orientation | None = None
        self._survey: Survey | None = None
        self._idle: OpenVideo | None = OpenVideo(self.path)
        try:
            self._indexed = read_index(self._idle)
            if not self._indexed.is_trusted:
                self._take_survey()
            self._stored = self._describe(self._idle)
            if self._indexed.packets is None:
                self._close_idle()  # read to its end, and of no more use
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"VideoReader({str(self.path)!r}, {self.index})"

    def close(self) -> None:
        """Close the file."""
        self._is_open = False
        self._close_idle()

    def _close_idle(self) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    @contextmanager
    def _opened(self) -> Iterator[OpenVideo]:
        """A video in which nothing has been decoded; at its first packet, unless the packets were kept."""
        if not self._is_open:
            raise UsageError(f"the reader of {self.path} is closed; read frames inside its `with` block")
        video, self._idle = self._idle or OpenVideo(self.path), None
        try:
            yield video
        finally:
            video.close()

    def _take_survey(self) -> None:
        with OpenVideo(self.path) as video:
            surveyed = survey(video, self._indexed)
        index = self.index
        # Where the decoder shows exactly what the index says, the index is good after all.
        if not np.array_equal(surveyed.pts_S, index.pts_P[index.packet_S]) or not index.frames:
            self._survey = surveyed

    @property
    def index(self) -> PacketIndex:
        """The packets of the video stream."""
        return self._indexed.index

    @property
    def info(self) -> VideoInfo:
        """What the file is. Decodes one frame the first time, unless frames have been read: it tells the rotation."""
        if self._orientation is None:
            frame = self._first_frame()
            self._orientation = orientation_of(frame) if frame else Orientation()
        info, turned = self._stored, self._orientation
        width, height = (info.height, info.width) if turned.transposed else (info.width, info.height)
        return replace(info, width=width, height=height, rotation=turned.rotation)

    def _first_frame(self) -> VideoFrame | None:
        if self._idle is not None:
            return decode_first(self._idle, self._indexed)
        with OpenVideo(self.path) as video:
            return decode_first(video, self._indexed)

    def _describe(self, video: OpenVideo) -> VideoInfo:
        """What the file is, its pictures not yet turned."""
        stream, context = video.stream, video.stream.codec_context
        pts_s_S, end_s = self._timeline()
        if self._survey is None and len(self.index.lost_pts_L):
            pts_s_S, end_s = pts_s_S[: self.index.frames], float(pts_s_S[self.index.frames])
        frames = len(pts_s_S)
        spread_s = float(pts_s_S[-1] - pts_s_S[0]) if frames else 0.0
        return VideoInfo(
            container=video.container.format.name,
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "unknown",
            width=context.width,
            height=context.height,
            rotation=0,
            duration_s=end_s - float(pts_s_S[0]) if frames else 0.0,
            frames=frames,
            rate_fps=(frames - 1) / spread_s if spread_s > 0 else float(stream.average_rate or 0),
            interlaced=context.field_order > 1,
        )

    def _timeline(self) -> tuple[NDArray[np.float64], float]:
        """When each frame is first shown, the lost ones too; and when the last has been."""
        if self._survey is not None:
            return self._survey.pts_s_S, self._survey.end_s
        return self.index.pts_s_S, self.index.end_s

    def times_s(self, sampling: Sampling) -> NDArray[np.float64]:
        """Presentation times of what `frames` will answer, (T,), ascending. Decodes nothing."""
        if self._survey is not None:
            return sampling.positions(*self._timeline())[1]
        return self.index.positions(sampling)[1]

    def frames(self, sampling: Sampling) -> Iterator[Frame | Missing]:
        """The wanted frames in presentation order, one answer each, one at a time in memory.

        Args:
            sampling: Which frames.

        Yields:
            The frame, upright RGB; or `Missing` with the reason.

        Raises:
            UsageError: The reader is closed.
            MediaError: The file cannot be opened any more.
        """
        if self._survey is not None:
            wanted = _Wanted(*sampling.positions(*self._timeline()))
            yield from self._answers(wanted, lambda video: self._by_order(video, wanted), is_last_try=True)
            return
        plan = make_plan(self.index, sampling)
        wanted = _Wanted(plan.positions_T, plan.times_s_T)
        answered = yield from self._answers(wanted, lambda video: self._by_plan(video, plan), is_last_try=False)
        if answered < len(plan):
            rest = linear_plan(self.index, plan.positions_T[answered:], plan.times_s_T[answered:])
            wanted = _Wanted(rest.positions_T, rest.times_s_T)
            yield from self._answers(wanted, lambda video: self._by_plan(video, rest), is_last_try=True)

    def _by_plan(self, video: OpenVideo, plan: DecodePlan) -> Iterator[Decoded]:
        return decode_plan(video, self._indexed, plan)

    def _by_order(self, video: OpenVideo, wanted: "_Wanted") -> Iterator[Decoded]:
        assert self._survey is not None
        return decode_surveyed(video, self._indexed, self._survey, set(wanted.positions_T.tolist()))

    def _answers(
        self, wanted: "_Wanted", decode: Callable[[OpenVideo], Iterator[Decoded]], *, is_last_try: bool
    ) -> Generator[Frame | Missing, None, int]:
        """One answer a target. Stops at the first frame that is lost, unless this is the last try.

        Returns:
            How many targets have been answered.
        """
        at, to_rgb = 0, RgbConverter()
        with self._opened() as video, closing(decode(video)) as decoded:  # type: ignore[type-var]
            for position, picture, is_damaged in decoded:
                while at < len(wanted) and wanted.positions_T[at] < position:
                    if not is_last_try and self._is_present(wanted.positions_T[at]):
                        return at
                    yield self._missing(wanted, at)
                    at += 1
                if at < len(wanted) and wanted.positions_T[at] == position:
                    frame = self._upright(picture, to_rgb, wanted, at, is_damaged)
                    del picture
                    while at < len(wanted) and wanted.positions_T[at] == position:
                        yield frame
                        at += 1
                    del frame
        while at < len(wanted) and (is_last_try or not self._is_present(wanted.positions_T[at])):
            yield self._missing(wanted, at)
            at += 1
        return at

    def _is_present(self, position: int) -> bool:
        frames = self._stored.frames
        return 0 <= position < frames

    def _missing(self, wanted: "_Wanted", at: int) -> Missing:
        position = int(wanted.positions_T[at])
        reason = Reason.DECODE_FAILED if self._is_present(position) else Reason.MISSING_FRAME
        return Missing(float(wanted.times_s_T[at]), position, reason)

    def _upright(
        self, picture: VideoFrame, to_rgb: RgbConverter, wanted: "_Wanted", at: int, is_damaged: bool
    ) -> Frame:
        orientation = orientation_of(picture)
        self._orientation = self._orientation or orientation
        image_HWC = orientation.apply(to_rgb(picture))
        return Frame(image_HWC, float(wanted.times_s_T[at]), int(wanted.positions_T[at]), is_damaged)


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Targets: their positions and times, both (T,)."""

    positions_T: NDArray[np.int64]
    times_s_T: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions_T)
