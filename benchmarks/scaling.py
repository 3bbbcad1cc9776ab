"""How Ray scales our kind of stream: one to eight simulated nodes, compute stubbed by sleeps of measured durations.

    python -m benchmarks.scaling [--nodes 1,2,4,8] [--decode-s 1.1] [--detect-s 1.0] [--stretch 4] [--out scaling.json]
    python -m benchmarks.scaling --extrapolate-only [--detect-s 0.1]

Each node is a raylet of its own with decoders' CPUs and a detector's (counted) GPU. The stream is shaped as that of
`preprocess`: a block a unit, decoding in tasks, detection in a fixed pool of actors, receipts to the driver. A sleep
takes no CPU, so several nodes fit on one machine, as far as their own processes leave it any: what is measured is what
scheduling, transport and the driver cost. Linearity is the rate of N nodes over N times the rate of one. Where
Ray's own processes for eight nodes keep all cores of the machine busy, `--stretch` makes units longer (as if one held
several videos); what a unit costs beside its sleeps stays what it is.

The model behind the extrapolation: a unit costs its bottleneck's seconds on one worker, plus the measured overhead; N
workers do N at once, until the driver is busy all the time. It spends CPU on its own whatever comes, and some on each
unit: a line through the measured clusters says how much.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

__all__ = ["Driver", "Measured", "Prices", "Study", "driver_of", "extrapolate", "main", "measure"]

_BLOCK_BYTES = 4 * 2**20
_STORE_BYTES = 128 * 2**20
# Actors are waited for before anything begins: on a small machine their imports take minutes.
_START_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is simulated."""

    decode_s: float = 1.1
    """Of a unit of 32 frames, on one CPU: `benchmarks.decode` took 12.2 s for eleven clips."""
    detect_s: float = 1.0
    """Of a unit, in one detector: what a CPU took for these clips (`benchmarks.preprocess`); no GPU was there."""
    stretch: float = 1.0
    """Units sleep so many times as long as that."""
    units: int = 40
    """Units of each node."""
    decoders: int = 2
    """CPUs of each node that decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One cluster's figures."""

    nodes: int
    units_s: float
    """Units a second."""
    ideal_units_s: float
    """The same if scheduling and transport took no time."""
    overhead_ms: float
    """Of a unit, on its bottleneck's worker."""
    driver_cpu: float
    """Share of a CPU that the driver's process was busy."""
    driver_mb: float
    """Its resident memory at the end."""
    store_mb: float
    """The greatest sum over all nodes' object stores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars an hour; list prices of on-demand machines, to be replaced by one's own."""

    gpu: float = 3.06
    """A machine with one V100, and eight CPUs."""
    cpu: float = 0.0425
    """A CPU of a machine without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What the driver's process costs."""

    base: float
    """Share of a CPU, whatever comes."""
    unit_ms: float
    """CPU of a unit."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """One that is done."""

    at_s: float
    worker: int
    driver_cpu_s: float
    """What the driver had spent by then."""


_STUDY, _PRICES = Study(), Prices()


def decode(table: pa.Table, seconds: float) -> Iterator[pa.Table]:
    """In place of decoding: as long, and as much that travels on."""
    for unit in table["unit"].to_pylist():
        time.sleep(seconds)
        pixels = pa.py_buffer(np.zeros(_BLOCK_BYTES, np.uint8))
        column = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, _BLOCK_BYTES])), pixels])
        yield pa.table({"unit": [unit], "pixels": column})


class Detect:
    """In place of detection: as long, and as little that travels on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, table: pa.Table) -> pa.Table:
        """Take a block."""
        time.sleep(self._seconds)
        assert table["pixels"].nbytes >= _BLOCK_BYTES
        return table.select(["unit"]).append_column("worker", pa.array([os.getpid()]))


def measure(nodes: int, study: Study) -> Measured:
    """Run the stream on so many simulated nodes.

    Args:
        nodes: How many.
        study: What they do.
    """
    with _cluster(nodes, study):
        with _store_peak() as peak:
            done = _stream(nodes, study)
        driver_mb = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    first, last = _middle(nodes, [unit.worker for unit in done])
    units_s = (last - first) / (done[last].at_s - done[first].at_s)
    ideal = nodes * min(study.decoders / study.decode_s, 1 / study.detect_s) / study.stretch
    return Measured(
        nodes=nodes,
        units_s=units_s,
        ideal_units_s=ideal,
        overhead_ms=1000 * (nodes / units_s - nodes / ideal),
        driver_cpu=(done[last].driver_cpu_s - done[first].driver_cpu_s) / (done[last].at_s - done[first].at_s),
        driver_mb=driver_mb,
        store_mb=peak[0] / 2**20,
    )


def _middle(nodes: int, workers: list[int]) -> tuple[int, int]:
    """The stretch whose pace counts: all detectors have worked and go on, and decoders are ahead of them."""
    first_done = {worker: n for n, worker in reversed(list(enumerate(workers)))}
    assert len(first_done) == nodes, f"{len(first_done)} of {nodes} detectors have worked"
    first, last = max(first_done.values()) + 2 * nodes, len(workers) - 1 - 2 * nodes
    assert last - first >= 5 * nodes, "too few units for a steady pace: give --units"
    return first, last


@contextlib.contextmanager
def _cluster(nodes: int, study: Study) -> Iterator[None]:
    # Else others on this machine would find this cluster, and join it.
    scratch = tempfile.mkdtemp(prefix="us-", dir="/tmp")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": scratch}
    import logging

    import ray
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": study.decoders, "num_gpus": 1, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(wait=False, **resources)
        cluster.wait_for_nodes(timeout=180)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(scratch, ignore_errors=True)


def _stream(nodes: int, study: Study) -> list[_Unit]:
    """The units in the order in which they reach the driver."""
    import ray

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = context.target_min_block_size = 1
    context.override_object_store_memory_limit_fraction = 0.2
    context._max_num_blocks_in_streaming_gen_buffer = 2
    context.wait_for_min_actors_s = _START_S
    context.enable_progress_bars = context.print_on_execution_start = context.enable_auto_log_stats = False
    count = nodes * study.units
    source = ray.data.from_arrow([pa.table({"unit": [unit]}) for unit in range(count)])
    stream = source.map_batches(
        cast("Any", decode), fn_kwargs={"seconds": study.decode_s * study.stretch},
        batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
        compute=ray.data.TaskPoolStrategy(nodes * study.decoders), num_cpus=1,
    ).map_batches(
        Detect, fn_constructor_kwargs={"seconds": study.detect_s * study.stretch},
        batch_size=1, batch_format="pyarrow", zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=nodes, max_tasks_in_flight_per_actor=2),
        num_cpus=0, num_gpus=1,
    )  # fmt: skip
    done: list[_Unit] = []
    seen: set[int] = set()
    for table in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        (row,) = cast("pa.Table", table).to_pylist()
        seen.add(row["unit"])
        done.append(_Unit(time.monotonic(), row["worker"], time.process_time()))
    assert seen == set(range(count)), "units were lost"
    return done


@contextlib.contextmanager
def _store_peak() -> Iterator[list[float]]:
    """The greatest use of all object stores together, in bytes, looked at a few times a second."""
    import ray

    peak, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.3):
            total = ray.cluster_resources().get("object_store_memory", 0.0)  # type: ignore[no-untyped-call]
            free = ray.available_resources().get("object_store_memory", 0.0)  # type: ignore[no-untyped-call]
            peak[0] = max(peak[0], total - free)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def driver_of(found: Sequence[Measured]) -> Driver:
    """What the driver costs, by a straight line (least squares) through clusters of several sizes."""
    rates, shares = np.array([m.units_s for m in found]), np.array([m.driver_cpu for m in found])
    slope = float(np.polyfit(rates, shares, 1)[0]) if len(found) > 1 else float(shares[0] / rates[0])
    slope = max(slope, 0.0)
    return Driver(base=max(float(np.mean(shares - slope * rates)), 0.0), unit_ms=1000 * slope)


def extrapolate(study: Study, overhead_ms: float, driver: Driver, prices: Prices) -> list[dict[str, float]]:
    """Hours and dollars of whole datasets, by the model in this module's head.

    Args:
        study: Seconds of a unit; a video is one unit of 32 frames.
        overhead_ms: Of a unit on a GPU's worker.
        driver: What the driver costs.
        prices: Of machines.
    """
    rows = []
    most = 1000 * (1 - driver.base) / driver.unit_ms if driver.unit_ms > 0 else float("inf")
    for gpus in (1, 8, 64):
        each_s = study.detect_s + overhead_ms / 1000
        rate = min(gpus / each_s, most)
        cpus = rate * (study.decode_s + overhead_ms / 1000)
        dollars_h = gpus * prices.gpu + max(cpus - 8 * gpus, 0) * prices.cpu
        for videos in (100_000, 10_000_000):
            hours = videos / rate / 3600
            rows.append(
                {
                    "gpus": gpus,
                    "videos": videos,
                    "hours": hours,
                    "decoding_cpus": cpus,
                    "limited_by_driver": float(rate < gpus / each_s - 1e-9),
                    "dollars_per_1000": 1000 * dollars_h / rate / 3600,
                }
            )
    return rows


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure, print, and extrapolate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument("--units", type=int, default=_STUDY.units, help="of each node")
    parser.add_argument("--decode-s", type=float, default=_STUDY.decode_s, help="seconds of a unit of 32 frames")
    parser.add_argument("--detect-s", type=float, default=_STUDY.detect_s)
    parser.add_argument("--stretch", type=float, default=_STUDY.stretch, help="units sleep so many times as long")
    parser.add_argument("--gpu-price", type=float, default=_PRICES.gpu, help="dollars an hour")
    parser.add_argument("--cpu-price", type=float, default=_PRICES.cpu)
    parser.add_argument("--overhead-ms", type=float, default=120.0, help="of a unit, with --extrapolate-only")
    parser.add_argument("--driver-ms", type=float, default=19.0, help="CPU a unit, with --extrapolate-only")
    parser.add_argument("--driver-base", type=float, default=0.033, help="share of a CPU, with --extrapolate-only")
    parser.add_argument("--extrapolate-only", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    study = Study(decode_s=given.decode_s, detect_s=given.detect_s, stretch=given.stretch, units=given.units)
    found = [] if given.extrapolate_only else [_shown(measure(n, study)) for n in given.nodes]
    overhead, driver = given.overhead_ms, Driver(base=given.driver_base, unit_ms=given.driver_ms)
    if found:
        overhead, driver = max(0.0, *(m.overhead_ms for m in found)), driver_of(found)
        for row in found[1:]:
            linear = row.units_s / row.nodes / (found[0].units_s / found[0].nodes)
            verdict = "met" if linear >= 0.95 else "missed"
            print(f"linearity, {row.nodes} nodes against {found[0].nodes}: {linear:.3f} (goal >= .95: {verdict})")
    rows = extrapolate(study, overhead, driver, Prices(gpu=given.gpu_price, cpu=given.cpu_price))
    _show_costs(rows, study, overhead, driver)
    if given.out is not None:
        plain: dict[str, Any] = {"study": asdict(study), "measured": [asdict(m) for m in found], "extrapolated": rows}
        given.out.write_text(json.dumps(plain, indent=1) + "\n")


def _shown(row: Measured) -> Measured:
    print(
        f"{row.nodes} nodes: {row.units_s:.2f} units/s of {row.ideal_units_s:.2f}; overhead {row.overhead_ms:.0f} ms a "
        f"unit; driver {100 * row.driver_cpu:.1f}% of a CPU, {row.driver_mb:.0f} MiB; stores {row.store_mb:.0f} MiB",
        flush=True,
    )
    return row


def _show_costs(rows: list[dict[str, float]], study: Study, overhead_ms: float, driver: Driver) -> None:
    print(
        f"\nAssumed: {study.decode_s:g} s to decode and {study.detect_s:g} s to detect a video of one unit, "
        f"{overhead_ms:.0f} ms overhead a unit, a driver that is busy for {100 * driver.base:.1f}% of a CPU and "
        f"{driver.unit_ms:.1f} ms a unit; storage is never the limit."
    )
    print(f"{'GPUs':>5} {'videos':>11} {'hours':>9} {'decoding CPUs':>14} {'$ per 1,000':>12}")
    for row in rows:
        mark = "  the driver is the limit" if row["limited_by_driver"] else ""
        print(
            f"{row['gpus']:>5.0f} {row['videos']:>11,.0f} {row['hours']:>9.1f} {row['decoding_cpus']:>14.0f} "
            f"{row['dollars_per_1000']:>12.3f}{mark}"
        )


if __name__ == "__main__":
    main()
