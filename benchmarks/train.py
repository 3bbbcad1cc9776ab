"""The training loop against a bare one, on two workers, against its own loading, and on kept features.

loop      images a second of `train.loop` on batches in memory; peer: a bare PyTorch loop on the same tensors, with the
          same model, loss and optimiser, in turns in one process. By CPU seconds, since the machine may be shared.
workers   two processes with DDP (gloo) against one; peer: ideal, twice as fast. The share of all-reduce is what a step
          takes longer with it than without (`no_sync`).
loading   images a second that one thread reads, cuts, augments and resizes; against what the step consumes.
cached    an epoch of a temporal head on kept features; peer: the same with crops through the frozen backbone.

`python -m benchmarks.train DATA [--batch 16] [--steps 20] [--rounds 3] [--only NAME ...]`

DATA is an output of `unmask preprocess CLIPS --frames 32 --margin 1.3 --embed mobilenetv3_small_100 --no-pretrained`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import train.loop
from train.catalogue import Catalogue
from train.clips import Batch, Samples
from train.config import TrainConfig, overridden, runs
from train.context import Context
from train.history import HISTORY
from train.loop import Training
from train.material import Material
from train.network import Network, optimiser
from train.recipes import recipe
from train.samplers import Batches, Key
from unmask.models import build
from unmask.storage import Store
from unmask.transforms import normalised

__all__ = ["main"]

NAMES = ("loop", "workers", "loading", "cached")
_SIZE = 224


def _config(batch: int, *more: str) -> TrainConfig:
    settings = ("pretrained=false", f"size_px={_SIZE}", "margin=1.3", "fit=square", f"batch={batch}", "epochs=1",
                "compare=false", "freeze=none", "unfreeze_after=none", "pos_weight=none", "loader_workers=0",
                "fractions=[0.5,0.25,0.25]", "max_videos_per_class=none")  # fmt: skip
    return overridden(recipe("celebdf-mobilenet"), [*settings, *more])


class _InMemory:
    """Takes the place of the loader: one batch, again and again."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __call__(self, _: Samples, keys: Batches | list[list[Key]], **__: Any) -> Iterator[Batch]:
        for some in keys:
            size = len(some)
            yield self._batch if size == len(self._batch) else _cut(self._batch, size)


def _cut(batch: Batch, size: int) -> Batch:
    return replace(batch, pixels=batch.pixels[:size], valid_BT=batch.valid_BT[:size], label_B=batch.label_B[:size],
                   unit_B=batch.unit_B[:size], faces=batch.faces[:size])  # fmt: skip


def _training(config: TrainConfig, data: str, out: str, context: Context) -> Training:
    (run,) = runs(config)
    return Training(run, Material.of(Catalogue.read([data]), config, seed=0), Store(out), context)


def _batch(data: str, size: int) -> tuple[Material, Batch]:
    config = _config(size, "strategy=none")
    material = Material.of(Catalogue.read([data]), config, seed=0)
    units = len(material.train.pool)
    return material, material.train.batch([Key(0, n, n % units) for n in range(size)])


class _Clock:
    """Seconds of CPU and of the wall."""

    def __enter__(self) -> "_Clock":
        self._began = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self._began[0], time.perf_counter() - self._began[1]


def _loop_seconds(data: str, size: int, steps: int, batch: Batch) -> _Clock:
    """The loop alone: without start-up and without validation."""
    config = _config(size, "strategy=none", f"steps_per_epoch={steps}")
    with tempfile.TemporaryDirectory() as out, mock.patch.object(train.loop, "batches", _InMemory(batch)):
        training = _training(config, data, out, Context(device=torch.device("cpu")))
        training.network.train()
        todo = training._batches()
        with _Clock() as clock:
            training._train(todo, train.loop._Meter())
    return clock


def _bare_seconds(material: Material, size: int, steps: int, batch: Batch) -> _Clock:
    config = _config(size)
    model = build(config.model, seed=0).train()
    adam = optimiser(model, config.optim)
    with _Clock() as clock:
        for _ in range(steps):
            images = normalised(batch.pixels[:, 0], material.preprocessing)
            loss = F.binary_cross_entropy_with_logits(model.frame_logits(model.features(images)), batch.label_B)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)
            if not bool(torch.isfinite(loss)):
                raise SystemExit("diverged")
    return clock


def loop(data: str, size: int, steps: int, rounds: int) -> float:
    """Images a second of CPU time, of the loop."""
    material, batch = _batch(data, size)
    _loop_seconds(data, size, 2, batch)
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(_bare_seconds(material, size, steps, batch).cpu_s)
        ours.append(_loop_seconds(data, size, steps, batch).cpu_s)
    images = size * steps
    rate, peer = images / min(ours), images / min(bare)
    print(f"loop       {rate:.1f} images a CPU second, bare PyTorch {peer:.1f}: {rate / peer:.3f}x (goal 0.97x)")
    return rate


def _ddp(rank: int, workers: int, address: str, data: str, size: int, steps: int, put: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=workers)
    material, batch = _batch(data, size)
    model = build(_config(size).model, seed=0).train()
    network: Any = DistributedDataParallel(Network(model, material.preprocessing))
    adam = optimiser(model, _config(size).optim)
    seconds = {}
    for name in ("warm", "together", "alone"):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(2 if name == "warm" else steps):
            with network.no_sync() if name == "alone" else nullcontext():
                logits, *_ = network(batch.pixels, batch.valid_BT)
                F.binary_cross_entropy_with_logits(logits, batch.label_B).backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)
        seconds[name] = time.perf_counter() - began
    if rank == 0:
        put.put(seconds)
    dist.destroy_process_group()


def workers(data: str, size: int, steps: int) -> None:
    """Two workers against one, one thread each."""
    context: SpawnContext = torch.multiprocessing.get_context("spawn")
    seconds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            queue = context.Queue()
            arguments = (count, f"{folder}/meet", data, size, steps, queue)
            processes = [context.Process(target=_ddp, args=(rank, *arguments)) for rank in range(count)]
            for process in processes:
                process.start()
            seconds[count] = queue.get(timeout=600)
            for process in processes:
                process.join()
    one, two = (size * steps * n / seconds[n]["together"] for n in (1, 2))
    share = 1 - seconds[2]["alone"] / seconds[2]["together"]
    print(f"workers    {two:.1f} images/s with two, {one:.1f} with one: {two / one:.2f}x of 2x; all-reduce {share:.1%}")


def loading(data: str, size: int, steps: int, step_rate: float) -> None:
    """Images a second that one thread loads, with the augmentation of S1 and of S2."""
    for name in ("celebdf", "dfdc"):
        config = _config(size, f"strategy={name}", "fit=pad" if name == "dfdc" else "fit=square")
        material = Material.of(Catalogue.read([data]), config, seed=0)
        units = len(material.train.pool)
        rates = []
        for turn in range(steps):
            with _Clock() as clock:
                material.train.batch([Key(0, n, n % units) for n in range(turn * size, (turn + 1) * size)])
            rates.append(size / clock.cpu_s)
        rate = statistics.median(rates)
        print(f"loading    {rate:.1f} images a CPU second with {name}: {rate / step_rate:.2f}x of a step (goal 2x)")


def cached(data: str, rounds: int) -> None:
    """An epoch of a temporal head: kept features against crops."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for kept in (True, False):
            config = _config(4, "head=temporal", "window=16", "strategy=none", "freeze=backbone", "clips_per_video=4",
                             "faces=all", "frames_per_video=none", "fit=square", "select=log_loss",
                             f"cached_features={str(kept).lower()}", "epochs=2")  # fmt: skip
            with tempfile.TemporaryDirectory() as out:
                _training(config, data, out, Context(device=torch.device("cpu"))).fit()
                rows = json.loads((Path(out) / HISTORY).read_text())["epochs"]
                seconds[kept].append(min(row["seconds"] for row in rows))
    crops, features = min(seconds[False]), min(seconds[True])
    print(f"cached     {features * 1000:.0f} ms an epoch, with crops {crops:.2f} s: {crops / features:.0f}x (goal 50x)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; MobileNetV3-Small at {_SIZE} px, one thread")
    rate = loop(options.data, options.batch, options.steps, options.rounds) if "loop" in options.only else 0.0
    if "workers" in options.only:
        workers(options.data, options.batch, options.steps)
    if "loading" in options.only:
        loading(options.data, options.batch, options.steps, rate or 1.0)
    if "cached" in options.only:
        cached(options.data, options.rounds)


if __name__ == "__main__":
    main()
