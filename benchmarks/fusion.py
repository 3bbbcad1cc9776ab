"""What an epoch of `ffpp-fusion` costs with kept features and without.

without   an epoch that makes the features of all clips again, and trains on them: what a training without a cache pays
          for each epoch
first     the first epoch of another run, which finds the features in their files
second    the second epoch of a run, which has them in memory

CPU seconds of one thread, since the machine may be shared; an epoch is training, validation and saving the state. The
depth network has random weights, which cost what the published ones do. At 252 px a map costs a quarter of
what it costs at the recipe's own 518, so that two busy cores come to the end in three minutes; what an epoch with kept
features costs is the same.

`python -m benchmarks.fusion DATA [--depth-px 252] [--rounds 2] [--copies 0]`

DATA is an output of `unmask preprocess CLIPS --frames 20 --margin 1.3 --box`; it is not written to.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from train.catalogue import Catalogue
from train.config import TrainConfig, overridden, runs
from train.context import Context
from train.fused_samples import FusedMaterial
from train.loop import Training
from train.material import Material
from train.recipes import recipe
from unmask.storage import Store

__all__ = ["main"]

_PRODUCTS = ("crops", "faces", "videos")


def _material(data: Path, config: TrainConfig) -> tuple[Material, float]:
    """The clips of a run, and the CPU seconds that it took to have them."""
    began = time.process_time()
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    return material, time.process_time() - began


def _epochs_s(material: Material, config: TrainConfig, out: Path) -> list[float]:
    """CPU seconds of each epoch."""
    (run,) = runs(config)
    ends: list[float] = []

    def note(line: str) -> None:
        if "validation" in line:
            ends.append(time.process_time())

    training = Training(run, material, Store(out), Context(device=torch.device("cpu")), say=note)
    began = time.process_time()
    training.fit()
    return [end - start for start, end in zip([began, *ends], ends, strict=False)]


def _copied(data: Path, folder: Path) -> Path:
    """The crops and tables, without features that are kept already."""
    for name in _PRODUCTS:
        shutil.copytree(data / name, folder / name)
    for path in data.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def _measure(data: Path, config: TrainConfig, rounds: int, scratch: Path) -> None:
    material, making_s = _material(data, config)
    assert isinstance(material.kept, FusedMaterial)
    made = material.kept.keeper.account
    assert made.found == 0, "features were kept there already"
    first, second, reading = [], [], []
    for n in range(rounds):
        material, reading_s = _material(data, config)
        epochs_s = _epochs_s(material, config, scratch / f"out-{n}")
        reading.append(reading_s)
        first.append(reading_s + epochs_s[0])
        second += epochs_s[1:]
    assert isinstance(material.kept, FusedMaterial)
    found = material.kept.keeper.account
    epoch_s = statistics.median(second)
    without_s = making_s + epoch_s
    print(f"{made.made} clips of 20 frames, {made.bytes / made.made / 1000:.1f} kB a clip, made in {making_s:.1f} s")
    print(f"hit rate of another run: {found.to_json()['hit_rate']:.0%}, read in {statistics.median(reading):.2f} s")
    print(f"an epoch without   {without_s:8.2f} s")
    for name, cost_s in (("first epoch of another run", statistics.median(first)), ("second epoch", epoch_s)):
        print(f"{name:27s}{cost_s:8.2f} s   {without_s / cost_s:6.1f}x")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--depth-px", type=int, default=252)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--copies", type=int, default=0)
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    settings = [
        "pretrained=false", "input.depth=random", f"depth_px={given.depth_px}", f"copies={given.copies}", "epochs=3",
        "batch=4", "loader_workers=0", "fractions=[0.7,0.3,0.0]",
    ]  # fmt: skip
    if not given.copies:
        settings.append("strategy=none")
    config = overridden(recipe("ffpp-fusion"), settings)
    with tempfile.TemporaryDirectory() as scratch:
        (data := Path(scratch) / "data").mkdir()
        _measure(_copied(given.data, data), config, given.rounds, Path(scratch))


if __name__ == "__main__":
    main()
