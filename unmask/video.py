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

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias, TypeVar

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from unmask.container import OpenVideo, read_index
from unmask.decoding import Decoded, Survey, decode_first, decode_plan, decode_surveyed, survey
from unmask.errors import Reason, UsageError
from unmask.picture import Orientation, RgbConverter, orientation_of
from unmask.plan import DecodePlan, PacketIndex, Sampling, linear_plan, make_plan
from unmask.planes import Allocate, Planes, own_memory
from unmask.records import Frame, VideoInfo

__all__ = ["Missing", "VideoReader", "probe"]

T = TypeVar("T")


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

    def targets(self, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions and presentation times in seconds of what `frames` will answer, both (T,), ascending.

        A position is -1 where nothing is shown at a time that was asked for. Decodes nothing.
        """
        if self._survey is not None:
            return sampling.positions(*self._timeline())
        return self.index.positions(sampling)

    def times_s(self, sampling: Sampling) -> NDArray[np.float64]:
        """Presentation times of what `frames` will answer, (T,), ascending. Decodes nothing."""
        return self.targets(sampling)[1]

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
        to_rgb = RgbConverter()

        def convert(shown: _Shown) -> Frame:
            image_HWC = orientation_of(shown.picture).apply(to_rgb(shown.picture))
            return Frame(image_HWC, shown.pts_s, shown.position, shown.is_damaged)

        return _converted(self._all_answers(sampling), convert)

    def planes(
        self, sampling: Sampling, *, only: Sequence[int] | None = None, allocate: Allocate = own_memory
    ) -> Iterator[Planes | Missing]:
        """The pictures of `frames` as they come from the decoder, in the same order.

        Args:
            sampling: Which pictures.
            only: Numbers of the targets of `sampling` that are to be answered, ascending; by default all. What the
                others need is not decoded, unless damage shows: then the answers are those of a reading of all targets.
                (Damage that no decoder notices, as HEVC's may not, can look different after another start.)
            allocate: Gives each picture the memory that its bytes go to.

        Yields:
            The planes, one object several times where a picture answers several targets; or `Missing` with the reason.

        Raises:
            UsageError: The reader is closed.
            MediaError: The file cannot be opened any more.
        """
        to_rgb = RgbConverter()

        def convert(shown: _Shown) -> Planes:
            picture, pts_s, position, is_damaged, _ = shown
            return Planes.of(picture, to_rgb, pts_s=pts_s, index=position, is_corrupt=is_damaged, allocate=allocate)

        answers = self._all_answers(sampling) if only is None else self._some_answers(sampling, only)
        return _converted(answers, convert)

    def _all_answers(self, sampling: Sampling) -> "_Answers[None]":
        if self._survey is not None:
            yield from self._surveyed(_Wanted(*self.targets(sampling)))
        else:
            yield from self._planned(make_plan(self.index, sampling))

    def _some_answers(self, sampling: Sampling, only: Sequence[int]) -> "_Answers[None]":
        """The answers to some of the targets, as if all had been asked for."""
        wanted, answered = _Wanted(*self.targets(sampling)), 0
        with closing(self._answers_alone(wanted.some(only))) as answers:
            for answer in answers:
                # How damage looks depends on what was decoded before it: only the whole plan shows it alike.
                if answer.is_damaged if isinstance(answer, _Shown) else self._is_present(answer.index):
                    break
                yield answer
                answered += answer.targets if isinstance(answer, _Shown) else 1
        if answered < len(only):
            yield from _picked(self._all_answers(sampling), frozenset(only[answered:]))

    def _answers_alone(self, wanted: "_Wanted") -> "_Answers[None]":
        """The answers to these targets, decoding for no others."""
        if self._survey is not None:
            yield from self._surveyed(wanted)
            return
        plan = make_plan(self.index, Sampling(times_s=tuple(wanted.times_s_T.tolist())))
        if not np.array_equal(plan.positions_T, wanted.positions_T):  # frames closer than the tolerance of times
            plan = linear_plan(self.index, wanted.positions_T, wanted.times_s_T)
        yield from self._planned(plan)

    def _surveyed(self, wanted: "_Wanted") -> "_Answers[None]":
        surveyed, positions = self._survey, set(wanted.positions_T.tolist())
        assert surveyed is not None
        yield from self._attempt(
            wanted, lambda video: decode_surveyed(video, self._indexed, surveyed, positions), is_last_try=True
        )

    def _planned(self, plan: DecodePlan) -> "_Answers[None]":
        answered = yield from self._attempt(_Wanted.of(plan), lambda video: self._carry_out(video, plan))
        if answered < len(plan):
            rest = linear_plan(self.index, plan.positions_T[answered:], plan.times_s_T[answered:])
            yield from self._attempt(_Wanted.of(rest), lambda video: self._carry_out(video, rest), is_last_try=True)

    def _carry_out(self, video: OpenVideo, plan: DecodePlan) -> Iterator[Decoded]:
        return decode_plan(video, self._indexed, plan)

    def _attempt(
        self, wanted: "_Wanted", decode: Callable[[OpenVideo], Iterator[Decoded]], *, is_last_try: bool = False
    ) -> "_Answers[int]":
        """One answer a target. Stops at the first frame that is lost, unless this is the last try.

        Returns:
            How many targets have been answered.
        """
        at = 0
        with self._opened() as video, closing(decode(video)) as decoded:  # type: ignore[type-var]
            for position, picture, is_damaged in decoded:
                while at < len(wanted) and wanted.positions_T[at] < position:
                    if not is_last_try and self._is_present(wanted.positions_T[at]):
                        return at
                    yield self._missing(wanted, at)
                    at += 1
                first = at
                while at < len(wanted) and wanted.positions_T[at] == position:
                    at += 1
                if at > first:
                    self._orientation = self._orientation or orientation_of(picture)
                    yield _Shown(picture, float(wanted.times_s_T[first]), position, is_damaged, at - first)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Targets: their positions and times, both (T,)."""

    positions_T: NDArray[np.int64]
    times_s_T: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions_T)

    @classmethod
    def of(cls, plan: DecodePlan) -> Self:
        return cls(plan.positions_T, plan.times_s_T)

    def some(self, numbers: Sequence[int]) -> "_Wanted":
        numbers_N = np.asarray(numbers, np.int64)
        return _Wanted(self.positions_T[numbers_N], self.times_s_T[numbers_N])


class _Shown(NamedTuple):
    """A wanted picture, and how many targets it answers."""

    picture: VideoFrame
    pts_s: float
    position: int
    is_damaged: bool
    targets: int


R = TypeVar("R")
_Answers: TypeAlias = Generator[_Shown | Missing, None, R]


def _picked(answers: _Answers[None], numbers: frozenset[int]) -> _Answers[None]:
    """The answers to some targets only, out of those to all."""
    at = 0
    with closing(answers):
        for answer in answers:
            targets = answer.targets if isinstance(answer, _Shown) else 1
            picked = sum(number in numbers for number in range(at, at + targets))
            at += targets
            if picked:
                yield answer._replace(targets=picked) if isinstance(answer, _Shown) else answer


def _converted(answers: _Answers[None], convert: Callable[[_Shown], T]) -> Iterator[T | Missing]:
    """One item a target."""
    with closing(answers):
        for answer in answers:
            if isinstance(answer, Missing):
                yield answer
                continue
            targets, item = answer.targets, convert(answer)
            del answer
            for _ in range(targets):
                yield item
            del item
