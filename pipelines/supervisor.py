"""Decoding in a child process that may crash or hang without harm: the parent's side of `pipelines.decoder`.

What kills a decoder is then known exactly: the video that it was working on. The first death on a video may be chance,
so a new child takes the video up again at the first batch that has not been handed out; the second is the video's own
fault. A child that is killed from outside (SIGKILL: an operator, or the kernel, short of memory) gets more chances.
"""

import json
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

import pipelines
from unmask.errors import MediaError, Reason, UnmaskError, UsageError
from unmask.plan import Sampling
from unmask.planes import Planes, picture_bytes
from unmask.records import VideoInfo
from unmask.video import Missing

__all__ = ["Batch", "Cut", "Decoder", "Opened", "cut_targets"]

Message: TypeAlias = dict[str, Any]

_MOST_DEATHS = 2
_MOST_KILLS = 5
_START_S = 120.0
_END_S = 10.0
_OPENING_BYTES_PER_S = 4 * 2**20
"""Indexing, or decoding a file whose index cannot be trusted, is silent; it gets this much longer for its size."""

_FAULT = re.compile(r"(abort|hang|kill)(@\d+)?")


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch's place: batch `batch` of `batches` in unit `unit` of `units`, the targets [start, stop) of the video."""

    unit: int
    units: int
    batch: int
    batches: int
    start: int
    stop: int


def cut_targets(targets: int, picture_size: int, *, unit_targets: int, max_batch_bytes: int) -> tuple[Cut, ...]:
    """Divide the targets of a video into units, and units into batches. The same for the same arguments, always.

    A unit is `unit_targets` consecutive targets, the last one fewer; its batches are as few consecutive parts of one
    size (to within one target) as keep within `max_batch_bytes`, or of one target where not even that does.

    Args:
        targets: How many.
        picture_size: Bytes of a picture.
        unit_targets: Targets of a unit.
        max_batch_bytes: The most that the pictures of a batch may take.
    """
    fit = max(1, max_batch_bytes // max(picture_size, 1))
    units = -(-targets // unit_targets)
    cuts = []
    for unit in range(units):
        first, count = unit * unit_targets, min(unit_targets, targets - unit * unit_targets)
        batches = -(-count // fit)
        bounds = [first + count * k // batches for k in range(batches + 1)]
        cuts += [Cut(unit, units, k, batches, bounds[k], bounds[k + 1]) for k in range(batches)]
    return tuple(cuts)


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What a video is and which of its pictures are wanted.

    Args:
        path: The file.
        sampling: Which pictures.
        info: What the file is.
        positions_T: int64, positions in presentation order; -1 where nothing is shown at a time that was asked for.
        times_s_T: float64, their presentation times in seconds.
        cuts: The batches in which they come.
    """

    path: Path
    sampling: Sampling
    info: VideoInfo
    positions_T: NDArray[np.int64]
    times_s_T: NDArray[np.float64]
    cuts: tuple[Cut, ...]

    def __repr__(self) -> str:
        return f"Opened({str(self.path)!r}, targets={len(self.positions_T)}, batches={len(self.cuts)})"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The answers to the targets of one cut. Valid until the next batch is asked for: copy what is kept.

    Args:
        cut: Its place.
        items: One answer a target: planes that lie in `buffer`, or why there are none.
        buffer: The bytes of all planes, one after the other, as `Planes.unpack` reads them. Read-only.
    """

    cut: Cut
    items: tuple[Planes | Missing, ...]
    buffer: memoryview

    def __repr__(self) -> str:
        return f"Batch({self.cut}, bytes={self.buffer.nbytes})"


class _DeathError(Exception):
    """The child is dead. `code` is its exit status, as `subprocess` gives it; None where it hung and was ended."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class _Spawner:
    """A thread that starts processes and lives as long as this one.

    On Linux a child that asks to die with its parent dies with the *thread* that started it.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        if self._pool is None or self._pid != os.getpid():  # a fork has no threads
            self._pool, self._pid = ThreadPoolExecutor(1, thread_name_prefix="unmask-spawner"), os.getpid()
        return self._pool.submit(lambda: subprocess.Popen(command, **options)).result()


_spawner = _Spawner()


class _Child:
    """One decoder process."""

    def __init__(self, memory: int) -> None:
        self._process = _spawner.start(
            [sys.executable, "-m", "pipelines.decoder", str(memory), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(memory,),
            env=_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        self._received = b""
        self._greet()

    def _greet(self) -> None:
        """Wait until it is there."""
        try:
            self._reply(_START_S)
        except _DeathError as death:
            self.end()
            if death.code == -signal.SIGKILL:
                raise
            why = "is not ready in time" if death.code is None else f"ends at once, with status {death.code}"
            message = f"the process that decodes {why}; what it printed says why, check the installation"
            raise UnmaskError(Reason.INTERNAL, message) from None
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Message, wait_s: float) -> tuple[list[Message], Message]:
        """Make a request: the items and the end of the reply.

        Args:
            request: What is asked.
            wait_s: How long to wait for each item.

        Raises:
            MediaError: As raised over there.
            _DeathError: The child died, or gave no answer in time and was ended.
        """
        self._send(json.dumps(request).encode() + b"\n", wait_s)
        items: list[Message] = []
        while True:
            reply = self._reply(wait_s)
            if "error" in reply:
                raise MediaError(Reason(reply["error"]["reason"]), reply["error"]["message"])
            if "done" in reply:
                return items, reply["done"]
            items.append(reply)

    def _send(self, data: bytes, wait_s: float) -> None:
        deadline, rest = time.monotonic() + wait_s, memoryview(data)
        while rest:
            self._await(self._requests.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests.fileno(), rest) :]
            except BrokenPipeError:
                raise self._death() from None

    def _reply(self, wait_s: float) -> Message:
        deadline = time.monotonic() + wait_s
        while b"\n" not in self._received:
            self._await(self._replies.fileno(), select.POLLIN, deadline)
            data = os.read(self._replies.fileno(), 2**20)
            if not data:
                raise self._death()
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        reply: Message = json.loads(line)
        return reply

    def _await(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.end()
            raise _DeathError(None)

    def _death(self) -> _DeathError:
        """The pipes are closed: find out how it ended."""
        try:
            return _DeathError(self._process.wait(_END_S))
        except subprocess.TimeoutExpired:
            return _DeathError(None)

    def end(self) -> None:
        """Kill it, and leave no zombie."""
        self._process.kill()
        self._requests.close()
        self._replies.close()
        with suppress(subprocess.TimeoutExpired):  # a read from a dead disk or network outlasts SIGKILL
            self._process.wait(_END_S)


def _environment() -> dict[str, str]:
    """Ours, and where this package lies: it may have been found by a changed `sys.path`."""
    root = str(Path(pipelines.__file__).parent.parent)
    if root == sysconfig.get_path("purelib"):  # found anyway, and must not come before the standard library
        return dict(os.environ)
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": search}


@dataclass(slots=True)
class _Deaths:
    """How often a video's decoder died, and how."""

    path: Path | None = None
    codes: list[int | None] = field(default_factory=list)
    attempts: int = 1

    def add(self, code: int | None, timeout_s: float) -> None:
        """Count one more.

        Raises:
            MediaError: It is one too many.
        """
        self.codes.append(code)
        self._give_up(code, timeout_s)
        self.attempts += 1

    def _give_up(self, code: int | None, timeout_s: float) -> None:
        own = [code for code in self.codes if code != -signal.SIGKILL]
        if len(own) >= _MOST_DEATHS and code is None:
            message = (
                f"{self.path} hung its decoder twice (nothing within {timeout_s:g} s); allow more time or leave it out"
            )
            raise MediaError(Reason.DECODER_HUNG, message)
        if len(own) >= _MOST_DEATHS:
            message = f"{self.path} killed its decoder twice ({_name(code)}); re-encode it elsewhere or leave it out"
            raise MediaError(Reason.DECODER_CRASHED, message)
        if len(self.codes) - len(own) >= _MOST_KILLS:
            message = f"the decoder of {self.path} was killed {_MOST_KILLS} times (SIGKILL), perhaps for want of memory"
            raise MediaError(Reason.DECODER_CRASHED, f"{message}; decode fewer videos at once or leave it out")


def _name(code: int | None) -> str:
    assert code is not None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"


class Decoder:
    """Decodes videos in a child process, one at a time. A context manager; not for several threads at once.

    The child starts at the first use, serves many videos, and is replaced when it dies.

    Args:
        timeout_s: A child that gives no picture for so long is taken for hung (large files get longer, see
            `_OPENING_BYTES_PER_S`).
        max_batch_bytes: The most that the planes of a batch take, by the size that the container gives.
        unit_targets: Targets of a unit.
        fault: A debugging aid: from a file's path, name or stem to "abort", "hang" or "kill", which the child then does
            when it starts to decode that video, or at target 7 with "@7" after it.

    Raises:
        UsageError: A value is out of its range.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 60.0,
        max_batch_bytes: int = 64 * 2**20,
        unit_targets: int = 32,
        fault: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (("time", timeout_s), ("batch size", max_batch_bytes), ("unit size", unit_targets)):
            if not value > 0:
                raise UsageError(f"the decoder's {name} must be above 0; got {value}")
        for name, kind in (fault or {}).items():
            if not _FAULT.fullmatch(kind):
                raise UsageError(f"the fault of {name} must be abort, hang or kill, and @N for a target; got {kind}")
        self._timeout_s, self._max_batch_bytes, self._unit_targets = timeout_s, max_batch_bytes, unit_targets
        self._fault = dict(fault or {})
        self._child: _Child | None = None
        self._memory: int | None = None
        self._mapped = memoryview(b"")
        self._deaths = _Deaths()
        self._reading = object()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and give its memory back. The decoder can be used again."""
        self._drop()
        self._mapped = memoryview(b"")
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    @property
    def faults(self) -> int:
        """How many children died of the last video by themselves; those killed from outside do not count."""
        return sum(code != -signal.SIGKILL for code in self._deaths.codes)

    @property
    def attempts(self) -> int:
        """How many children have worked on the last video."""
        return self._deaths.attempts

    @property
    def pid(self) -> int | None:
        """The process that decodes; None before the first use and after a death."""
        return self._child.pid if self._child else None

    def open(self, path: str | Path, sampling: Sampling) -> Opened:
        """Look at a video: what it is, and what `batches` will give. Decodes one picture, or what the index lacks.

        Raises:
            MediaError: It cannot be opened, or killed or hung its decoder twice.
            UnmaskError: The child does not start.
        """
        path = Path(path)
        self._deaths, self._reading = _Deaths(path), object()
        if self._child is not None and not self._child.is_alive:
            self._drop()  # it died while nobody needed it: no fault of this video
        request = {"do": "open", "path": str(path), "sampling": asdict(sampling)}
        while True:
            try:
                _, done = self._ask(request, path)
                break
            except _DeathError as death:
                self._deaths.add(death.code, self._timeout_s)
        info = VideoInfo(**done["info"])
        targets = len(done["positions"])
        return Opened(
            path=path,
            sampling=sampling,
            info=info,
            positions_T=np.array(done["positions"], np.int64),
            times_s_T=np.array(done["times_s"], np.float64),
            cuts=cut_targets(
                targets,
                picture_bytes(info),
                unit_targets=self._unit_targets,
                max_batch_bytes=self._max_batch_bytes,
            ),
        )

    def batches(self, opened: Opened, skip: Container[tuple[int, int]] = ()) -> Iterator[Batch]:
        """Decode a video in one pass, a batch at a time.

        Args:
            opened: From `open`; the last one costs no second opening.
            skip: Units and batches (`Cut.unit`, `Cut.batch`) that are not wanted. What only they need is not decoded.

        Yields:
            The batches that are wanted, in order. Each is overwritten when the next one is asked for.

        Raises:
            MediaError: The file cannot be opened any more, has changed, or killed or hung its decoder twice.
            UsageError: Another video was opened in between.
            UnmaskError: The child does not start.
        """
        todo = deque(cut for cut in opened.cuts if (cut.unit, cut.batch) not in skip)
        mine = self._reading = object()
        if self._deaths.path != opened.path:
            self._deaths = _Deaths(opened.path)
        while todo:
            try:
                self._start(opened, todo)
                while todo:
                    batch = self._next(opened, todo[0])
                    todo.popleft()
                    yield batch
                    if self._reading is not mine:
                        raise UsageError(f"{opened.path} is still being decoded; finish one video before the next")
            except _DeathError as death:
                self._deaths.add(death.code, self._timeout_s)

    def _start(self, opened: Opened, todo: Sequence[Cut]) -> None:
        runs = _runs(todo)
        targets = len(opened.positions_T)
        request = {
            "do": "decode",
            "path": str(opened.path),
            "sampling": asdict(opened.sampling),
            "runs": None if runs == [(0, targets)] else runs,
            "fault": self._fault_of(opened.path),
        }
        _, done = self._ask(request, opened.path)
        if done["targets"] != targets:
            message = f"{opened.path} was changed while it was being decoded; decode it again"
            raise MediaError(Reason.UNREADABLE_FILE, message)

    def _next(self, opened: Opened, cut: Cut) -> Batch:
        count = cut.stop - cut.start
        request = {"do": "next", "count": count, "expected": count * picture_bytes(opened.info)}
        items, done = self._ask(request, opened.path)
        if len(self._mapped) < done["size"]:
            assert self._memory is not None
            self._mapped = memoryview(mmap.mmap(self._memory, done["size"], access=mmap.ACCESS_READ))
        buffer = self._mapped[: done["used"]]
        planes = Planes.unpack((item["planes"] for item in items if "planes" in item), buffer)
        return Batch(cut, tuple(next(planes) if "planes" in item else _missing(item) for item in items), buffer)

    def _fault_of(self, path: Path) -> str | None:
        return next((self._fault[name] for name in (str(path), path.name, path.stem) if name in self._fault), None)

    def _ask(self, request: Message, path: Path) -> tuple[list[Message], Message]:
        """Ask the child, a new one where there is none."""
        try:
            if self._memory is None:
                self._memory = _shared_file()
            if self._child is None:
                self._child = _Child(self._memory)
            return self._child.ask(request, self._timeout_s + _size(path) / _OPENING_BYTES_PER_S)
        except MediaError:
            raise
        except BaseException:
            self._drop()  # half a reply may be on its way: the next request would take it for its own
            raise

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _runs(cuts: Sequence[Cut]) -> list[tuple[int, int]]:
    """The targets of some cuts as ranges, joined where they meet."""
    runs: list[tuple[int, int]] = []
    for cut in cuts:
        if runs and runs[-1][1] == cut.start:
            runs[-1] = runs[-1][0], cut.stop
        else:
            runs.append((cut.start, cut.stop))
    return runs


def _missing(item: Message) -> Missing:
    fields = item["missing"]
    return Missing(fields["pts_s"], fields["index"], Reason(fields["reason"]))


def _shared_file() -> int:
    """A file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("unmask-planes")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
