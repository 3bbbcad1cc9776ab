"""Identity-disjoint folds of a manifest like DFDC's: `unmask.folds` against scikit-learn's StratifiedGroupKFold.

The manifest: a fifth of the videos real, four fakes of each on average, a tenth of the people in two videos. The peer
needs groups: it is given ours, and the time to find them is not counted for it. Each runs in a process of its own, in
turns; CPU time is the median, counted after the imports and without making the manifest, memory is what the process
grew by. Then a million rows are written and read, to see that memory stays flat.

`python -m benchmarks.folds [--videos 100000] [--folds 16] [--runs 3] [--rows 1000000]`
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from unmask.folds import assign_folds, check_leaks
from unmask.manifest import ROW_GROUP, Manifest, Video, write_manifest

SEED = 0


def manifest(count: int) -> list[Video]:
    """Reals and their fakes, shuffled."""
    draw = random.Random(SEED)
    originals = count // 5
    videos = []
    for i in range(originals):
        person = f"p{draw.randrange(originals)}" if draw.random() < 0.1 else f"q{i}"
        videos.append(Video(video=f"r{i:06d}", uri=f"/data/r{i:06d}.mp4", label=0, identity=(person,)))
    for i in range(count - originals):
        source = videos[int(originals * draw.random() ** 1.5)]  # some originals have many fakes, as in DFDC
        videos.append(
            Video(video=f"f{i:06d}", uri=f"/data/f{i:06d}.mp4", label=1, identity=source.identity, source=source.video)
        )
    draw.shuffle(videos)
    return videos


def groups(videos: list[Video]) -> list[int]:
    """A number for each set of videos that hang together, by the people in them."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(v.identity[0], len(numbers)) for v in videos]


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(videos: list[Video], folds: int) -> tuple[float, dict[str, int]]:
    """CPU seconds and folds, by Unmask."""
    started = time.process_time()
    assigned = assign_folds(videos, folds, seed=SEED)
    return time.process_time() - started, assigned


def sklearn(videos: list[Video], folds: int) -> tuple[float, dict[str, int]]:
    """CPU seconds and folds, by scikit-learn."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    labels, numbers = np.asarray([v.label for v in videos]), np.asarray(groups(videos))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED)
    started = time.process_time()
    tests = [test for _, test in splitter.split(labels, labels, numbers)]
    seconds = time.process_time() - started
    return seconds, {videos[i].video: fold for fold, test in enumerate(tests) for i in test.tolist()}


def balance(videos: list[Video], assigned: Mapping[str, int], folds: int) -> dict[str, float]:
    """How far the worst fold is from its share of reals, and of fakes, in percent."""
    found = {}
    for label, name in enumerate(("reals", "fakes")):
        sizes = Counter(assigned[v.video] for v in videos if v.label == label)
        share = sizes.total() / folds
        found[name] = 100 * max(abs(sizes[fold] - share) / share for fold in range(folds))
    return found


def rows(count: int) -> dict[str, float]:
    """Write and read a manifest of so many rows."""

    def videos() -> Iterator[Video]:
        for i in range(count):
            yield Video(video=f"part/{i:08d}", uri=f"s3://bucket/part/{i:08d}.mp4", label=i % 2, identity=(f"p{i}",))

    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "manifest.parquet")
        started = time.perf_counter()
        write_manifest(videos(), uri)
        written = time.perf_counter()
        with Manifest(uri) as stored:
            read = sum(len(stored.read(start, start + ROW_GROUP)) for start in range(0, count, ROW_GROUP))
        assert read == count
        return {
            "write_s": written - started,
            "read_s": time.perf_counter() - written,
            "grew_mb": peak_mb() - before,
            "file_mb": Path(uri).stat().st_size / 1e6,
        }


def measured(arguments: list[str]) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.folds", *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    plain: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return plain


def only(who: str, count: int, folds: int) -> dict[str, float]:
    """What one process measures."""
    if who == "rows":
        return rows(count)
    videos = manifest(count)
    {"ours": ours, "sklearn": sklearn}[who](videos[:1000], folds)  # so that imports are not counted
    before = peak_mb()
    started = time.perf_counter()
    seconds, assigned = {"ours": ours, "sklearn": sklearn}[who](videos, folds)
    wall_s = time.perf_counter() - started
    grew_mb = peak_mb() - before
    assert len(assigned) == count
    check_leaks(videos, assigned)
    return {"cpu_s": seconds, "wall_s": wall_s, "grew_mb": grew_mb} | balance(videos, assigned, folds)


def main() -> None:
    """Print medians, memory, balance and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--folds", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["ours", "sklearn", "rows"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        count = arguments.rows if arguments.only == "rows" else arguments.videos
        print(json.dumps(only(arguments.only, count, arguments.folds)))
        return
    shape = ["--videos", str(arguments.videos), "--folds", str(arguments.folds)]
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "sklearn": []}
    for _ in range(arguments.runs):
        for who, results in runs.items():
            results.append(measured([*shape, "--only", who]))
    cpu_s = {who: statistics.median(r["cpu_s"] for r in results) for who, results in runs.items()}
    for who, results in runs.items():
        last = results[-1]
        print(
            f"{who:8} {cpu_s[who]:6.2f} s CPU, {statistics.median(r['wall_s'] for r in results):6.2f} s wall, "
            f"+{max(r['grew_mb'] for r in results):.0f} MB; worst fold off by {last['reals']:.2f}% of reals, "
            f"{last['fakes']:.2f}% of fakes; no leak"
        )
    print(f"sklearn / ours = {cpu_s['sklearn'] / cpu_s['ours']:.2f}x")
    for count in (arguments.rows // 100, arguments.rows):
        told = measured(["--rows", str(count), "--only", "rows"])
        print(
            f"manifest {count:>9,} rows: written in {told['write_s']:.1f} s, read in {told['read_s']:.1f} s, "
            f"+{told['grew_mb']:.0f} MB, file {told['file_mb']:.1f} MB"
        )


if __name__ == "__main__":
    main()
