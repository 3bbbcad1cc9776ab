"""A process that decodes for another: `python -m pipelines.decoder MEMORY PARENT`.

libav can crash (a bug that a damaged file brings out) and hang, and takes its process along. So a worker lets this
process decode; `pipelines.supervisor` starts it, watches it and starts it again. It imports neither PyTorch nor Ray,
and starts in half a second.

Requests come in on standard input, replies leave on what was standard output when it started, a JSON object a line.
Pictures go into the file MEMORY, a descriptor that both processes map, one after the other as `unmask.planes` packs
them; a batch overwrites the one before, when it is asked for. The replies to a request are any number of items, each
sent as soon as it is there, and `done` or `error` at the end:

    {"do": "open", "path", "sampling"}                      {"done": {"info", "positions", "times_s"}}
    {"do": "decode", "path", "sampling", "runs", "fault"}   {"done": {"targets"}}
    {"do": "next", "count", "expected"}                     {"planes": ...} or {"missing": ...} a target,
                                                            {"done": {"used", "size"}}

`runs` are ranges [start, stop) of the numbers of the targets that are wanted, ascending; null stands for all.
"""

import ctypes
import json
import mmap
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unmask.errors import Reason, UnmaskError
from unmask.plan import Sampling
from unmask.planes import Planes
from unmask.video import Missing, VideoReader

__all__ = ["DecodeServer", "SharedRoom", "main"]

Message: TypeAlias = dict[str, Any]

_PR_SET_PDEATHSIG = 1


class SharedRoom:
    """Memory that the parent reads: handed out from the start for each batch, grown where it is too small.

    Args:
        descriptor: An open file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapped_B = np.zeros(0, np.uint8)
        self.used = 0

    def begin(self, expected: int) -> None:
        """Start again at the front, with room for so many bytes."""
        self.used = 0
        self._grow(expected)

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """The next `size` bytes."""
        self._grow(self.used + size)
        self.used += size
        return self._mapped_B[self.used - size : self.used]

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return len(self._mapped_B)

    def _grow(self, size: int) -> None:
        if size <= len(self._mapped_B):
            return
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if os.fstat(self._descriptor).st_size < size:
            if hasattr(os, "posix_fallocate"):  # which fails where there is no room; a write to a hole would kill us
                os.posix_fallocate(self._descriptor, 0, size)
            else:
                os.ftruncate(self._descriptor, size)
        # What lies in the old mapping lies in the new one; arrays keep the old one open as long as they need it.
        self._mapped_B = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)


class _Fault:
    """A debugging aid: a death on purpose at the start of a video, or at a target ("abort", "hang@7", "kill")."""

    def __init__(self, fault: str | None) -> None:
        self._kind, _, at = (fault or "").partition("@")
        self._at = int(at) if at else None

    def reach(self, target: int | None) -> None:
        if self._kind and target == self._at:
            if self._kind == "abort":
                os.abort()
            if self._kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()


class _Reading:
    """A video that is being decoded: the answers that are still to come, with the numbers of their targets."""

    def __init__(self, numbers: Sequence[int], answers: Iterator[Planes | Missing]) -> None:
        self._numbers, self._answers = iter(numbers), answers
        self._last: Planes | None = None
        self._last_data_B = np.zeros(0, np.uint8)

    def next(self, fault: "_Fault", room: SharedRoom) -> Planes | Missing:
        """The next answer, its bytes in the room."""
        fault.reach(next(self._numbers))
        answer = next(self._answers)
        if isinstance(answer, Missing):
            return answer
        if answer is self._last:  # a picture that answers several targets; where it lies may be overwritten
            data_B = self._last_data_B.copy()
            self._last_data_B = room.allocate(len(data_B))
            self._last_data_B[...] = data_B
        else:
            self._last, self._last_data_B = answer, answer.data_B
        return answer


class DecodeServer:
    """Carries out requests, one video at a time.

    Args:
        replies: Where replies go, a line each.
        room: Where pictures go.
    """

    def __init__(self, replies: BinaryIO, room: SharedRoom) -> None:
        self._replies, self._room = replies, room
        self._path = ""
        self._reader: VideoReader | None = None
        self._reading: _Reading | None = None
        self._fault = _Fault(None)

    def handle(self, request: Message) -> None:
        """Carry out one request and reply to it."""
        known: dict[str, Callable[..., Message]] = {"open": self._open, "decode": self._decode, "next": self._next}
        work = known[request.pop("do")]
        try:
            self.reply(done=work(**request))
        except UnmaskError as error:
            self._fail(error.reason, error.message)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            self._fail(Reason.UNREADABLE_FILE, f"{self._path} cannot be decoded ({why}); check it and try again")
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            self._fail(Reason.INTERNAL, f"{self._path} failed inside the decoder ({what}); please report it")

    def reply(self, **message: object) -> None:
        """Send a line to the parent."""
        self._replies.write(json.dumps(message).encode() + b"\n")
        self._replies.flush()

    def _fail(self, reason: Reason, message: str) -> None:
        self._close()
        self.reply(error={"reason": reason, "message": message})

    def _close(self) -> None:
        self._reading = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, path: str) -> VideoReader:
        self._close()
        self._path = path
        self._reader = VideoReader(path)
        return self._reader

    def _open(self, path: str, sampling: Message) -> Message:
        reader = self._read(path)
        positions_T, times_s_T = reader.targets(_sampling(sampling))
        info = reader.info.to_json()
        return {"info": info, "positions": positions_T.tolist(), "times_s": times_s_T.tolist()}

    def _decode(self, path: str, sampling: Message, runs: list[tuple[int, int]] | None, fault: str | None) -> Message:
        reader = self._reader if self._reader is not None and self._path == path else self._read(path)
        wanted = _sampling(sampling)
        targets = len(reader.targets(wanted)[0])
        only = None if runs is None else [number for start, stop in runs for number in range(start, stop)]
        answers = reader.planes(wanted, only=only, allocate=self._room.allocate)
        self._reading = _Reading(range(targets) if only is None else only, answers)
        self._fault = _Fault(fault)
        self._fault.reach(None)
        return {"targets": targets}

    def _next(self, count: int, expected: int) -> Message:
        assert self._reading is not None
        self._room.begin(expected)
        for _ in range(count):
            answer = self._reading.next(self._fault, self._room)
            if isinstance(answer, Missing):
                self.reply(missing=asdict(answer))
            else:
                self.reply(planes=answer.header())
        return {"used": self._room.used, "size": self._room.size}


def _sampling(fields: Message) -> Sampling:
    times_s = fields["times_s"]
    return Sampling(**{**fields, "times_s": None if times_s is None else tuple(times_s)})


def _die_with(parent: int) -> None:
    """See to it that this process ends when its parent does, whatever libav is doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _receive(requests: "queue.SimpleQueue[bytes]") -> None:
    """Pass requests on, and end the process where no more can come: the parent has closed the pipe, or is gone."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def main() -> None:
    """Serve requests until standard input ends."""
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here: no core file
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies, Path(os.devnull).open("wb") as nowhere:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(nowhere.fileno(), descriptor)  # what libraries print is no reply
        server = DecodeServer(replies, SharedRoom(memory))
        requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(requests,), daemon=True).start()
        server.reply(done={"pid": os.getpid()})
        while True:
            server.handle(json.loads(requests.get()))


if __name__ == "__main__":
    main()
