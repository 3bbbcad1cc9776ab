"""Difference masks against scikit-image's SSIM: `python -m benchmarks.masks`.

The peer does what the DFDC winner's `generate_diffs` does with today's scikit-image: `structural_similarity` of two
colour crops with the full map, 255 (1 - SSIM), grey; first alone, then with reading two PNG files and writing one.
Ours is `difference_mask`, then `write_masks` over a run with crops in a tar. The crops are the portrait that
scikit-image ships, half of it changed. One thread, CPU time, medians of interleaved rounds;
peak memory in processes of their own.
"""

import argparse
import io
import multiprocessing
import resource
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import skimage.data
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pipelines.masks import MaskCount, Originals, difference_mask, write_masks
from unmask.products import FACES, RESULTS, Products, shard_name
from unmask.storage import Store

__all__ = ["main"]

_SIDES_PX, _ROUNDS, _STORED_PX = (128, 224, 400, 800), 9, 400


def _pair(side_px: int, shift_px: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A real crop and a fake one: its middle blurred, and noise as of another encoding all over."""
    portrait = np.roll(skimage.data.astronaut(), shift_px, 1)[:300, 70:370]
    real_HWC = np.asarray(cv2.resize(portrait, (side_px, side_px), interpolation=cv2.INTER_CUBIC), np.uint8)
    fake_HWC = real_HWC.astype(np.float32)
    middle = slice(side_px // 4, 3 * side_px // 4)
    fake_HWC[middle, middle] = cv2.GaussianBlur(fake_HWC[middle, middle], (0, 0), side_px / 80)
    fake_HWC += np.random.default_rng(shift_px).normal(0, 2, fake_HWC.shape)
    return real_HWC, np.clip(fake_HWC, 0, 255).astype(np.uint8)


def _peer(real_HWC: NDArray[np.uint8], fake_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, similar_HWC = structural_similarity(real_HWC, fake_HWC, channel_axis=2, full=True)
    # Clipped, which the peer leaves out: it would wrap around.
    unlike_HWC = np.clip(255 * (1 - similar_HWC), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(unlike_HWC, cv2.COLOR_RGB2GRAY), np.uint8)


def _interleaved_s(jobs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each job; they take turns, so that a busy machine harms all alike."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, its_times in zip(jobs, times, strict=True):
            start = time.process_time()
            job()
            its_times.append(time.process_time() - start)
    return [statistics.median(t) for t in times]


def _compare_alone() -> None:
    print("A mask of two crops in memory, CPU ms:")
    for side_px in _SIDES_PX:
        real_HWC, fake_HWC = _pair(side_px)
        apart = np.abs(difference_mask(real_HWC, fake_HWC).astype(int) - _peer(real_HWC, fake_HWC))
        if apart.max() > 1:
            raise SystemExit(f"the masks differ by {apart.max()} grey levels")
        jobs = (lambda r=real_HWC, f=fake_HWC: _peer(r, f), lambda r=real_HWC, f=fake_HWC: difference_mask(r, f))
        peer_s, ours_s = _interleaved_s(jobs, _ROUNDS)
        print(
            f"  {side_px:3} px: scikit-image {peer_s * 1e3:6.2f}, ours {ours_s * 1e3:6.2f}"
            f"   ratio {peer_s / ours_s:4.1f}   pixels one level apart: {np.count_nonzero(apart)}"
        )


def _encoded(image_HWC: NDArray[np.uint8]) -> bytes:
    ok, data = cv2.imencode(".png", image_HWC[..., ::-1])
    assert ok
    return data.tobytes()


def _make_run(folder: Path, pairs: int) -> Store:
    """One original and one fake in a shard, a face in each of `pairs` frames; and the same crops as loose files."""
    store, rows = Store(folder), []
    images = [tuple(map(_encoded, _pair(_STORED_PX, k))) for k in range(min(pairs, 16))]
    (folder / "crops").mkdir()
    # On disk at once: what the parent of a process has held counts as that process's peak.
    with (folder / "crops/00000.tar").open("wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for which, video in enumerate(("real", "fake")):
            for frame in range(pairs):
                data, name = images[frame % len(images)][which], f"{video}/{frame:06d}_0.png"
                member = tarfile.TarInfo(name)
                member.size = len(data)
                rows.append(_face(video, frame, name, packed.tell() + 512, len(data)))
                tar.addfile(member, io.BytesIO(data))
                store.write(f"loose/{name}", data)
    store.write_table(shard_name("faces", 0), pa.Table.from_pylist(rows, schema=FACES))
    fields = [pa.field("video", pa.string()), pa.field("label", pa.int8()), pa.field("source", pa.string()), *RESULTS]
    counts = dict.fromkeys("planned decoded faces tracks attempts".split(), pairs) | {"corrupt": 0, "missing": 0}
    asked = {"frames": range(pairs), "frame_pts_s": [n / 25 for n in range(pairs)], "frame_reasons": [None] * pairs}
    videos = [
        {"video": "real", "label": 0, "status": "done", "config": "", **counts, **asked},
        {"video": "fake", "label": 1, "source": "real", "status": "done", "config": "", **counts, **asked},
    ]
    store.write_table(shard_name("videos", 0), pa.Table.from_pylist(videos, schema=pa.schema(fields)))
    return store


def _face(video: str, frame: int, crop: str, offset: int, size: int) -> dict[str, Any]:
    place = {"crop": crop, "crop_file": "crops/00000.tar", "crop_offset": offset, "crop_bytes": size}
    sure = {"probability": 1.0, "track": 0, "after_gap": False, "is_corrupt": False, "model": ""}
    shape = {"crop_width": _STORED_PX, "crop_height": _STORED_PX, "crop_transform": [1, 0, 0, 0, 1, 0]}
    seen = {"pts_s": frame / 25, "box": [50, 50, 350, 350], "landmarks": [100.0] * 10}
    return {"video": video, "frame": frame, "face": 0, **seen, **sure, **shape, **place}


def _write_as_peer(store: Store, pairs: int) -> None:
    for frame in range(pairs):
        name = f"{frame:06d}_0.png"
        real_HWC, fake_HWC = (cv2.imread(str(store.local_path(f"loose/{v}/{name}"))) for v in ("real", "fake"))
        assert real_HWC is not None
        assert fake_HWC is not None
        _, similar_HWC = structural_similarity(real_HWC, fake_HWC, channel_axis=2, full=True)
        mask_HW = cv2.cvtColor(((1 - similar_HWC) * 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(store.local_path("loose") / f"{frame:06d}_0_diff.png"), mask_HW)


def _write_ours(store: Store, pairs: int) -> None:
    store.delete_folder("masks")
    assert write_masks(store, 0, Originals.of(Products(store))) == MaskCount(written=pairs)


def _peak_mb(folder: Path, pairs: int, answer: "multiprocessing.Queue[float]") -> None:
    _write_ours(Store(folder), pairs)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _compare_stored(pairs: int, rounds: int) -> None:
    with TemporaryDirectory() as scratch:
        store = _make_run(Path(scratch), pairs)
        jobs = (lambda: _write_as_peer(store, pairs), lambda: _write_ours(store, pairs))
        peer_s, ours_s = _interleaved_s(jobs, rounds)
        start = time.monotonic()
        _write_ours(store, pairs)
        wall_s = time.monotonic() - start
    print(f"From stored PNG crops of {_STORED_PX} px to stored masks, {pairs} pairs, CPU ms a mask:")
    print(
        f"  the winner's way {peer_s / pairs * 1e3:.2f}, ours {ours_s / pairs * 1e3:.2f}   ratio {peer_s / ours_s:.1f}"
    )
    print(f"  ours: {pairs / ours_s:.0f} masks a CPU second, {pairs / wall_s:.0f} a second by the clock")


def _compare_memory(pairs: int) -> None:
    context = multiprocessing.get_context("spawn")
    for count in (pairs, pairs * 10):
        with TemporaryDirectory() as scratch:
            _make_run(Path(scratch), count)
            answer: multiprocessing.Queue[float] = context.Queue()
            process = context.Process(target=_peak_mb, args=(Path(scratch), count, answer))
            process.start()
            print(f"  peak memory, process and all, over {count:5} pairs: {answer.get():.0f} MB")
            process.join()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="pairs of stored crops")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    _compare_alone()
    _compare_stored(options.pairs, options.rounds)
    _compare_memory(options.pairs)


if __name__ == "__main__":
    main()
