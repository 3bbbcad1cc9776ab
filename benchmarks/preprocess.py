"""`unmask preprocess` against what people do today, against Ray Data used plainly, and against its own core.

Detect and crop, 32 frames a video, on the clips of ../shared/videos repeated under new names; two processes for all.

stream       `unmask preprocess`, by default and with `--fused`. Steady: without the first and the last round of clips
             (of three or more), when pipelines fill and run dry. Whole: with the start and end of Python and Ray.
pool         peer: Unmask's core functions in a warm pool of processes, without Ray: decode, detect, crop, PNG, a file
             a video.
script       peer: OpenCV decodes all frames, facenet-pytorch looks at each at half size, crops of every tenth as PNG.
             Measured on the first frames of each clip and extrapolated by frame.
map_batches  peer: Ray Data; 32 frames a video as RGB rows, `map_batches` of a facenet-pytorch actor at full size.
2160p        the object store's peak on clips of that size, made here.
cached       the same command again.

Throughput is by the clock, since all use both cores; on a machine that others use, compare the CPU seconds beside it.

`python -m benchmarks.preprocess [--rounds 4] [--clips 11] [--turns 1] [--script-frames 20] [--only NAME ...]`
"""

import argparse
import bisect
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

__all__ = ["main"]

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
NAMES = ("stream", "fused", "pool", "script", "map_batches", "2160p", "cached")
_TICKS, _SAMPLE_S, _CORES = os.sysconf("SC_CLK_TCK"), 0.25, os.cpu_count() or 1
_LARGE, _LARGE_FRAMES, _LARGE_COPIES = (3840, 2160), 96, 6
# By what a process calls itself, the most telling first.
_KINDS = {
    "pipelines.decoder": "decoder",
    "ray::MapWorker": "actors",
    "ray::MapBatches": "decode task",
    "ray::FlatMap": "decode task",
    "ray::AssemblyActor": "assembly",
    "ray::Ledger": "Ray's helpers",
    "ray::_": "Ray's helpers",
    "ray::ActorLocation": "Ray's helpers",
    "ray::": "idle workers",
    "multiprocessing": "workers",
    "": "Ray itself",
}


@dataclass(slots=True)
class _Process:
    kind: str
    """Key of `_KINDS`."""
    start: int
    cpu_s: float = 0.0


class Watch(threading.Thread):
    """CPU seconds of a process and all below it, by kind, and of the whole machine, as time goes on."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = pid, threading.Event()
        self._processes: dict[int, _Process] = {}
        self._samples: list[tuple[float, dict[int, float], float]] = []

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def end(self) -> None:
        """Stop, and kill what is left."""
        self._ended.set()
        self.join()
        for pid, process in self._processes.items():
            with suppress(OSError, ValueError, IndexError):
                if int(_stat(pid)[19]) == process.start:
                    os.kill(pid, 9)

    def _sample(self) -> None:
        parents, found = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    pid, fields = int(entry.name), _stat(int(entry.name))
                    parents[pid], found[pid] = int(fields[1]), fields
        known = {self._root, *self._processes}
        while more := {pid for pid, parent in parents.items() if parent in known} - known:
            known |= more
        for pid in known & set(found):
            process = self._processes.setdefault(pid, _Process("", int(found[pid][19])))
            process.cpu_s = (int(found[pid][11]) + int(found[pid][12])) / _TICKS
            with suppress(OSError):
                process.kind = min(process.kind, _kind(pid), key=_rank) if pid != self._root else "driver"
        self._samples.append((time.time(), {pid: p.cpu_s for pid, p in self._processes.items()}, _busy_s()))

    def spent(self, start_s: float, stop_s: float) -> dict[str, float]:
        """CPU seconds by kind between two times; `all` of them, and those of `others` on this machine."""
        times = [at for at, *_ in self._samples]
        first, last = (min(bisect.bisect(times, at), len(times) - 1) for at in (start_s, stop_s))
        (_, before, busy_before), (_, after, busy_after) = self._samples[first], self._samples[last]
        kinds: dict[str, float] = {}
        for pid, cpu_s in after.items():
            kind = _KINDS.get(self._processes[pid].kind, self._processes[pid].kind)
            kinds[kind] = kinds.get(kind, 0.0) + cpu_s - before.get(pid, 0.0)
        total = sum(kinds.values())
        return {**kinds, "all": total, "others": max(busy_after - busy_before - total, 0.0)}


def _stat(pid: int) -> list[str]:
    """Fields from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _busy_s() -> float:
    user, nice, system, _, _, irq, soft, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, soft))) / _TICKS


def _kind(pid: int) -> str:
    line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return next(mark for mark in _KINDS if mark in line)


def _rank(mark: str) -> int:
    return list(_KINDS).index(mark)


@dataclass(frozen=True, slots=True)
class Run:
    """What a contender came to."""

    whole_s: float
    """From the start of its process to its end."""
    videos: float
    """Of the steady part; and the same for the rest."""
    steady_s: float
    steady_cpu: dict[str, float]
    cpu: dict[str, float]
    said: dict[str, Any]
    first_s: float = 0.0
    """From the start of its process to the first video."""
    all_videos: int = 0

    @property
    def rate(self) -> float:
        """Videos a minute, steady."""
        return 60 * self.videos / self.steady_s

    @property
    def cpu_a_video(self) -> float:
        """CPU seconds, steady."""
        return self.steady_cpu["all"] / self.videos

    @property
    def whole_rate(self) -> float:
        """Videos a minute, start and end included."""
        return 60 * self.all_videos / self.whole_s


def _run(name: str, arguments: dict[str, Any], *, videos: int, edge: int) -> Run:
    """Run a contender in a process of its own.

    Args:
        name: As `benchmarks.preprocess_peers` knows it.
        arguments: For it.
        videos: How many there are.
        edge: Share of them at the start, and at the end, that is not in the steady part; 0: from the first to the last.
    """
    began_s = time.time()
    output, watch = _watched(name, arguments)
    ended_s = time.time()
    said = json.loads(output.splitlines()[-1])
    times = sorted(said.pop("finished_s"))
    skip = len(times) * edge // videos
    first, last = (skip - 1, len(times) - skip - 1) if skip else (0, len(times) - 1)
    return Run(
        whole_s=ended_s - began_s,
        videos=(last - first) * videos / len(times),
        steady_s=times[last] - times[first],
        steady_cpu=watch.spent(times[first], times[last]),
        cpu=watch.spent(began_s, ended_s),
        said=said,
        first_s=times[0] - began_s,
        all_videos=videos,
    )


def _watched(name: str, arguments: dict[str, Any]) -> tuple[str, Watch]:
    """What the contender prints, and what was seen of it."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.preprocess_peers", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        watch = Watch(process.pid)
        watch.start()
        try:
            output, _ = process.communicate(json.dumps(arguments))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # which lets Ray clear its folder away
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            watch.end()
        if process.returncode:
            errors.seek(0)
            told = "\n".join(errors.read().decode(errors="replace").splitlines()[-20:])
            raise SystemExit(f"{name} ended with status {process.returncode}:\n{told}")
    return output, watch


@dataclass(slots=True)
class Bench:
    """What is measured on, and what came out.

    Args:
        clips: Files.
        rounds: How often the stream and the pool see each.
        folder: For everything that is written.
    """

    clips: Sequence[Path]
    rounds: int
    folder: Path
    script_frames: int
    runs: dict[str, list[Run]] = field(default_factory=dict)
    cached_s: list[float] = field(default_factory=list)
    _count: int = 0

    def dataset(self) -> Path:
        """The clips, each as often as there are rounds, round after round."""
        dataset = self.folder / "dataset"
        if not dataset.exists():
            (dataset / "real").mkdir(parents=True)
            for turn in range(self.rounds):
                for clip in self.clips:
                    (dataset / "real" / f"{turn:03d}_{clip.stem}{clip.suffix}").symlink_to(clip.resolve())
        return dataset

    def measure(self, name: str) -> None:
        """Run one contender, and say what it did."""
        if name == "cached":
            self._measure_cached()
            return
        measured: dict[str, Callable[[], Run]] = {
            "stream": lambda: self._stream(),
            "fused": lambda: self._stream("--fused"),
            "2160p": self._large,
            "pool": lambda: self._peer("pool", sorted((self.dataset() / "real").iterdir()), edge=self._edge),
            "script": lambda: self._peer("script", self.clips, frames=self.script_frames),
            "map_batches": lambda: self._peer("map_batches", self.clips),
        }
        run = measured[name]()
        self.runs.setdefault(name, []).append(run)
        _tell(name, run)

    @property
    def _edge(self) -> int:
        return len(self.clips) if self.rounds > 2 else 0

    def _out(self, *, make: bool = False) -> Path:
        self._count += 1
        out = self.folder / f"out{self._count}"
        if make:
            out.mkdir()
        return out

    def _stream(self, *more: str) -> Run:
        videos = self.rounds * len(self.clips)
        arguments = {"dataset": str(self.dataset()), "out": str(self._out()), "more": list(more)}
        return _run("stream", arguments, videos=videos, edge=self._edge)

    def _peer(self, name: str, paths: Sequence[Path], *, edge: int = 0, **more: Any) -> Run:
        arguments = {"paths": list(map(str, paths)), "out": str(self._out(make=True)), **more}
        return _run(name, arguments, videos=len(paths), edge=edge)

    def _large(self) -> Run:
        dataset = self.folder / "large"
        if not dataset.exists():
            (dataset / "real").mkdir(parents=True)
            _enlarge(self.clips[0], self.folder / "large.mp4")
            for copy in range(_LARGE_COPIES):
                (dataset / "real" / f"{copy}.mp4").symlink_to(self.folder / "large.mp4")
        arguments = {"dataset": str(dataset), "out": str(self._out()), "more": []}
        return _run("stream", arguments, videos=_LARGE_COPIES, edge=0)

    def _measure_cached(self) -> None:
        """The command of the last stream once more; what it finds done is the whole of it."""
        if "stream" not in self.runs:
            self.measure("stream")
        out = next(o for o in sorted(self.folder.glob("out*")) if (o / "summary.json").exists())
        command = [sys.executable, "-m", "pipelines.preprocess", str(self.dataset()), "--out", str(out)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.cached_s.append(time.perf_counter() - started)
        print(f"cached       {self.cached_s[-1]:.2f} s", flush=True)


def _enlarge(clip: Path, target: Path) -> None:
    """The first frames of a clip, at 2160p."""
    with av.open(str(clip)) as source, av.open(str(target), "w") as sink:
        out = sink.add_stream("libx264", rate=Fraction(30), options={"preset": "ultrafast", "crf": "23"})
        out.width, out.height = _LARGE
        out.pix_fmt = "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            if number == _LARGE_FRAMES:
                break
            large = frame.reformat(width=_LARGE[0], height=_LARGE[1], format="yuv420p")
            large.pts, large.time_base = number, Fraction(1, 30)
            sink.mux(out.encode(large))
        sink.mux(out.encode(None))


def _tell(name: str, run: Run) -> None:
    if name == "script":
        rate, cpu_s = _script_pace(run)
        read, total = (sum(clip[what] for clip in run.said["clips"]) for what in ("frames", "of"))
        print(
            f"{name:12} {rate:6.2f} videos/min, {cpu_s:.1f} CPU s a video, extrapolated from {read} of {total} frames"
        )
        return
    shares = sorted(((k, v) for k, v in run.steady_cpu.items() if k not in {"all", "others"}), key=lambda kv: -kv[1])
    print(
        f"{name:12} steady {run.rate:6.1f} videos/min over {run.videos:.0f} videos in {run.steady_s:.1f} s, "
        f"{run.cpu_a_video:.2f} CPU s a video; first after {run.first_s:.1f} s; whole {run.whole_rate:.1f} videos/min, "
        f"{run.whole_s:.1f} s, {run.cpu['all']:.1f} CPU s"
    )
    idle_s = max(_CORES * run.steady_s - run.steady_cpu["all"] - run.steady_cpu["others"], 0.0)
    print(f"{'':12} CPU s, steady: " + ", ".join(f"{kind} {cpu_s:.1f}" for kind, cpu_s in shares if cpu_s >= 0.05))
    print(
        f"{'':12} of {_CORES} cores, steady: ours {run.steady_cpu['all'] / run.steady_s:.2f}, "
        f"others' {run.steady_cpu['others'] / run.steady_s:.2f}, idle or taken {idle_s / run.steady_s:.2f}"
    )
    if store := run.said.get("store"):
        print(
            f"{'':12} object store: peak {store['peak'] / 2**20:.0f} MiB of {store['capacity'] / 2**20:.0f} "
            f"({store['peak'] / max(store['capacity'], 1):.1%}), spilled {store['spilled'] / 2**20:.0f}, "
            f"went through {store['created'] / 2**20:.0f} ({store['polls']} looks)"
        )
    sys.stdout.flush()


def _script_pace(run: Run) -> tuple[float, float]:
    """Videos a minute and CPU seconds a video of the script, extrapolated to all frames."""
    clips = run.said["clips"]
    wall_s, cpu_s = (sum(c[what] / c["frames"] * c["of"] for c in clips) for what in ("wall_s", "cpu_s"))
    return 60 * 2 * len(clips) / wall_s, cpu_s / len(clips)


class Table:
    """Goals, figures, and whether they are met."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []

    def add(self, what: str, goal: str, figure: str, met: bool | None) -> None:
        """One row."""
        self._rows.append((what, goal, figure, "" if met is None else "met" if met else "MISSED"))

    def show(self) -> None:
        """Print it."""
        widths = [max(len(row[k]) for row in self._rows) for k in range(4)] if self._rows else []
        for row in self._rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def _table(bench: Bench) -> Table:
    table, runs = Table(), bench.runs
    for ours in ("stream", "fused"):
        if ours in runs:
            _compare(table, ours, runs)
    if "stream" in runs and "map_batches" in runs:
        peaks = [max(r.said["store"]["peak"] for r in runs[name]) for name in ("stream", "map_batches")]
        table.add(
            "store's peak, stream / map_batches", "<= .10", f"{peaks[0] / peaks[1]:.2f}", peaks[0] <= peaks[1] / 10
        )
    for name, size in (("stream", "the clips, up to 1080p"), ("2160p", "2160p")):
        if name in runs:
            stores = [r.said["store"] for r in runs[name]]
            share = max(s["peak"] / max(s["capacity"], 1) for s in stores)
            spilled = max(s["spilled"] for s in stores)
            figure = f"{share:.1%}, {spilled / 2**20:.0f} MiB spilled"
            table.add(f"store's peak / capacity, {size}", "< 25%, none spilled", figure, share < 0.25 and not spilled)
    if bench.cached_s:
        ratio = _median(runs["stream"], lambda r: r.whole_s) / statistics.median(bench.cached_s)
        table.add("first run / the same again, by the clock", ">= 50x", f"{ratio:.0f}x", ratio >= 50)
    return table


def _compare(table: Table, ours: str, runs: dict[str, list[Run]]) -> None:
    """One way of ours against all peers."""
    rate, whole = _median(runs[ours], lambda r: r.rate), _median(runs[ours], lambda r: r.whole_rate)
    cpu_s = _median(runs[ours], lambda r: r.cpu_a_video)
    goals = {"script": 10.0, "map_batches": 4.0}
    for peer, goal in goals.items():
        if peer not in runs:
            continue
        if peer == "script":
            peer_rate, peer_cpu_s = (statistics.median(v) for v in zip(*map(_script_pace, runs[peer]), strict=True))
        else:
            peer_rate, peer_cpu_s = _median(runs[peer], lambda r: r.rate), _median(runs[peer], lambda r: r.cpu_a_video)
        ratio = rate / peer_rate
        figure = f"{ratio:.1f}x ({rate:.1f} / {peer_rate:.2f} videos/min); CPU {peer_cpu_s / cpu_s:.1f}x"
        table.add(f"{ours} / {peer}, steady", f">= {goal:.0f}x", figure, ratio >= goal)
        table.add(f"{ours} whole / {peer} steady", "", f"{whole / peer_rate:.1f}x", None)
    if "pool" in runs:
        more = _median(runs["pool"], lambda r: r.rate) / rate - 1
        more_cpu = cpu_s / _median(runs["pool"], lambda r: r.cpu_a_video) - 1
        figure = f"{more:+.0%} by the clock, {more_cpu:+.0%} CPU seconds"
        table.add(f"{ours} over the bare pool", "<= 10%", figure, more <= 0.10)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table of goals; 2 where there are no clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="how often the stream and the pool see each clip")
    parser.add_argument("--clips", type=int, default=99, help="take only so many of the clips, evenly chosen")
    parser.add_argument("--turns", type=int, default=1, help="measure everything so often, taking turns")
    parser.add_argument("--script-frames", type=int, default=20, help="frames of each clip for the usual script")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends, too
    clips = sorted(CLIPS.rglob("*.mp4"))
    if not clips:
        print(
            f"{CLIPS} holds no .mp4 file; this benchmark needs the clips that lie beside the project", file=sys.stderr
        )
        return 2
    some = min(options.clips, len(clips))
    chosen = [clips[k * len(clips) // some] for k in range(some)]
    with tempfile.TemporaryDirectory(prefix="unmask-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(chosen, options.rounds, Path(folder), options.script_frames)
        print(
            f"{len(chosen)} clips, {options.rounds} rounds; load {os.getloadavg()[0]:.1f} on {_CORES} cores", flush=True
        )
        for _ in range(options.turns):
            for name in options.only:
                bench.measure(name)
        table = _table(bench)
    table.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
