"""Depth maps of the crops of a run whose shards are whole, made by a pool of actors; nothing is made twice.

    depth/<key>/00000.parquet   one row a face, in the rows of faces/: the map as PNG, or why there is none
    depth/<key>/key.json        all that shaped them

A shard's table is written whole, as the other products are: whoever is killed, the next run makes what is missing.

Axes: N faces, H rows, W columns.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import digest
from unmask.errors import StorageError, UnmaskError
from unmask.products import Products, shard_name
from unmask.storage import Store

if TYPE_CHECKING:
    from pipelines.work import Work
    from unmask.depth import DepthEstimator

__all__ = ["DEPTH", "DEPTH_WEIGHTS", "DepthOptions", "DepthStage", "make_depth", "write_depth"]

DEPTH_WEIGHTS = "depth-anything/Depth-Anything-V2-Small-hf"
"""As `unmask.depth.DEPTH_MODEL`, which takes PyTorch to import."""

DEPTH = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("face", pa.int16(), nullable=False),
        pa.field("depth", pa.binary()),  # PNG, grey levels of the crop's size; null where there is no map
        pa.field("reason", pa.string()),  # depth_failed or crop_damaged, where there is no map
    ]
)
"""The columns of `depth/<key>/`."""

_BATCH = 16
_RETRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthOptions:
    """Which depth maps are made."""

    weights: str
    """A name on the hub, a folder, or random; see `unmask.depth`."""
    size_px: int = 518
    """Side of the network's input."""
    device: str = "auto"

    def check(self) -> None:
        """Load the network once, to see that it can be had. Raises as `DepthEstimator.load` does."""
        from unmask.depth import DepthEstimator

        DepthEstimator.load(self.weights, size_px=self.size_px)


class DepthStage:
    """An actor's part: loads the network once, then makes whole shards.

    Args:
        store: The run's output.
        options: Which maps.
        sha256: Of the weights that the driver found.
    """

    def __init__(self, store: Store, options: DepthOptions, sha256: str) -> None:
        import torch

        from unmask.depth import DepthEstimator
        from unmask.devices import select_device

        device = select_device(options.device)
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a process for each core
        self._store = store
        self._estimator = DepthEstimator.load(options.weights, device=device, size_px=options.size_px)
        if self._estimator.sha256 != sha256:
            raise StorageError(f"{options.weights} has other depth weights here than where the run began")

    def make(self, shard: int, key: str) -> dict[str, int]:
        """Write the maps of one shard; how many, and why others are not there."""
        return write_depth(self._store, shard, key, self._estimator)


def write_depth(store: Store, shard: int, key: str, estimator: "DepthEstimator") -> dict[str, int]:
    """Write the depth maps of a shard's crops, whole or not at all.

    Args:
        store: The run's output.
        shard: One that is whole.
        key: Of the maps.
        estimator: Makes them.

    Returns:
        How many faces came to what: `done`, or a reason.

    Raises:
        StorageError: Something cannot be read or written.
    """
    faces = Products(store).faces(shard)
    found: list[tuple[bytes | None, str | None]] = []
    for start in range(0, len(faces), _BATCH):
        crops = list(_crops(store, faces.slice(start, _BATCH)))
        maps = iter(estimator.maps([crop for crop in crops if crop is not None]))
        found += [(None, "crop_damaged") if crop is None else _encoded(next(maps)) for crop in crops]
    columns = [faces[name] for name in ("video", "frame", "face")]
    columns += [pa.array([data for data, _ in found], pa.binary()), pa.array([why for _, why in found], pa.string())]
    store.write_table(shard_name(f"depth/{key}", shard), pa.table(columns, schema=DEPTH))
    counts: dict[str, int] = {}
    for _, why in found:
        counts[why or "done"] = counts.get(why or "done", 0) + 1
    return counts


def _crops(store: Store, faces: pa.Table) -> Iterator[NDArray[np.uint8] | None]:
    """Each crop by itself, so that a damaged one takes no other with it; None for that one."""
    products = Products(store)
    for n in range(len(faces)):
        row = faces.slice(n, 1)
        if row["crop"].null_count:
            raise StorageError(f"{store.shown} holds no crops; preprocess with `crops` among the products")
        try:
            ((_, crop_HWC),) = products.crops(row)
        except StorageError:
            if not store.exists(row["crop_file"][0].as_py()):
                raise
            crop_HWC = None
        yield crop_HWC


def _encoded(map_HW: NDArray[np.uint8] | None) -> tuple[bytes | None, str | None]:
    if map_HW is None:
        return None, "depth_failed"
    ok, data = cv2.imencode(".png", map_HW)
    assert ok
    return data.tobytes(), None


def make_depth(
    work: "Work", options: DepthOptions, actors: int | None, *, say: Callable[[str], None], tick: Callable[[], None]
) -> str:
    """Make the depth maps of all crops of a run on its cluster.

    Args:
        work: A run whose shards are whole.
        options: Which maps.
        actors: How many processes share the shards; left open, one for each CPU.
        say: Tells a person something.
        tick: Time passes.

    Returns:
        The key of the maps.

    Raises:
        ModelError: The weights cannot be had.
        StorageError: The output cannot be read or written, or a shard killed its process each time.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    from unmask.depth import DepthEstimator

    known = DepthEstimator.load(options.weights, size_px=options.size_px).to_json()
    key = f"depth-{digest(known)}"
    work.store.write(f"depth/{key}/key.json", json.dumps({**known, **asdict(options)}, indent=1).encode())
    todo = [n for n in range(len(work.shards)) if not work.store.exists(shard_name(f"depth/{key}", n))]
    if todo:
        stage: Any = ray.remote(DepthStage).options(num_cpus=1, max_restarts=_RETRIES, max_task_retries=_RETRIES)
        cpus: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = min(actors or max(int(cpus.get("CPU", 1)), 1), len(todo))
        pool = ActorPool([stage.remote(work.store, options, known["sha256"]) for _ in range(count)])
        try:
            for _ in pool.map_unordered(lambda actor, shard: actor.make.remote(shard, key), todo):
                tick()
        except RayError as error:
            if isinstance(error, UnmaskError):
                raise
            raise StorageError(f"depth maps killed their process each time ({type(error).__name__})") from error
    say(f"depth/{key}: {_counted(work.store, key, len(work.shards))}")
    return key


def _counted(store: Store, key: str, shards: int) -> str:
    done, reasons = 0, dict[str, int]()
    for shard in range(shards):
        for why in store.read_table(shard_name(f"depth/{key}", shard), ["reason"])["reason"].to_pylist():
            done += why is None
            if why is not None:
                reasons[why] = reasons.get(why, 0) + 1
    lost = "".join(f", {count:,} {why}" for why, count in sorted(reasons.items()))
    return f"{done:,} maps{lost}"
