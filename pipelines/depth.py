"""Depth maps of the crops of a run whose shards are whole, made by a pool of actors; nothing is made twice.

    depth/<key>/00000.parquet   one row a face, in the rows of faces/: the map as PNG, or why there is none
    depth/<key>/key.json        all that shaped them

Where only their features are wanted, a row holds what a backbone says of the map in place of the map: some hundred
numbers of half precision, a hundredth of its bytes.

A shard's table is written whole, as the other products are: whoever is killed, the next run makes what is missing. It
says of which faces it is: where a shard was preprocessed again, or a crop was damaged, the next run makes it again.

Axes: N faces, D features, H rows, W columns.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import EmbedOptions, digest
from pipelines.failures import own_error
from unmask.errors import DamagedError, StorageError
from unmask.products import Products, shard_name
from unmask.storage import Store

if TYPE_CHECKING:
    import torch

    from pipelines.embedders import Embedder
    from pipelines.work import Work
    from unmask.depth import DepthEstimator

__all__ = [
    "DEPTH",
    "DEPTH_FEATURES",
    "DEPTH_WEIGHTS",
    "DepthMaker",
    "DepthOptions",
    "DepthStage",
    "make_depth",
    "shares",
    "unmade",
]

DEPTH_WEIGHTS = "depth-anything/Depth-Anything-V2-Small-hf"
"""As `unmask.depth.DEPTH_MODEL`, which takes PyTorch to import."""

_ROW = [
    pa.field("video", pa.string(), nullable=False),
    pa.field("frame", pa.int32(), nullable=False),
    pa.field("face", pa.int16(), nullable=False),
]
_REASON = pa.field("reason", pa.string())  # depth_failed or crop_damaged, where there is no map

DEPTH = pa.schema([*_ROW, pa.field("depth", pa.binary()), _REASON])
"""The columns of `depth/<key>/`: the map is a PNG, grey levels of the crop's size; null where there is none."""

DEPTH_FEATURES = pa.schema([*_ROW, pa.field("features", pa.list_(pa.float16())), _REASON])
"""The same where only features are kept."""

_BATCH = 16
_RETRIES = 3
_FACES = b"faces"  # in a table's metadata: the digest of the table of faces that it follows


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthOptions:
    """Which depth maps are made."""

    weights: str
    """A name on the hub, a folder, or random; see `unmask.depth`."""
    size_px: int = 518
    """Side of the network's input."""
    features: EmbedOptions | None = None
    """Keep what this backbone says of the maps, and not the maps."""
    device: str = "auto"

    def check(self) -> "DepthOptions":
        """Load the networks once, to see that they can be had, and give the options with the backbone's digest.

        Raises:
            UsageError: As `DepthEstimator.load`.
            ModelError: As `DepthEstimator.load` and `pipelines.embedders.plan`.
        """
        from unmask.depth import DepthEstimator

        DepthEstimator.load(self.weights, size_px=self.size_px)
        if self.features is None:
            return self
        from pipelines.embedders import plan

        return replace(self, features=plan(self.features).options)


class DepthMaker:
    """Makes the table of a shard's depth maps, or of their features.

    Args:
        estimator: Makes the maps.
        embedder: Sees them, where only features are kept.
    """

    def __init__(self, estimator: "DepthEstimator", embedder: "Embedder | None" = None) -> None:
        self.estimator, self._embedder = estimator, embedder

    @classmethod
    def load(cls, options: DepthOptions, device: "torch.device") -> "DepthMaker":
        """Load the networks. Raises as `DepthOptions.check` does, and where a backbone is not the one that it found."""
        from unmask.depth import DepthEstimator

        estimator = DepthEstimator.load(options.weights, device=device, size_px=options.size_px)
        if options.features is None:
            return cls(estimator)
        from pipelines.embedders import load

        return cls(estimator, load(options.features, device))

    def to_json(self) -> dict[str, Any]:
        """Everything that shapes the rows, as JSON can say it."""
        said: dict[str, Any] = self.estimator.to_json()
        if self._embedder is not None:
            plan = self._embedder.plan
            said["features"] = {"sha256": plan.sha256, "preprocessing": plan.preprocessing.to_json(), "dim": plan.dim}
        plain: dict[str, Any] = json.loads(json.dumps(said))
        return plain

    def write(self, store: Store, shard: int, key: str) -> dict[str, int]:
        """Write the rows of a shard that is whole, all or none.

        Args:
            store: The run's output.
            shard: Its number.
            key: Of the maps.

        Returns:
            How many faces came to what: `done`, or a reason.

        Raises:
            StorageError: Something cannot be read or written.
        """
        products = Products(store)
        of, faces = products.faces_digest(shard), products.faces(shard)
        found: list[tuple[Any, str | None]] = []
        for start in range(0, len(faces), _BATCH):
            found += self._rows(list(_crops(store, faces.slice(start, _BATCH))))
        schema = DEPTH if self._embedder is None else DEPTH_FEATURES
        columns = [faces[name] for name in ("video", "frame", "face")]
        columns += [pa.array([each[n] for each in found], schema.field(n + 3).type) for n in (0, 1)]
        table = pa.table(columns, schema=schema.with_metadata({_FACES: of}))
        store.write_table(shard_name(f"depth/{key}", shard), table)
        return dict(Counter(why or "done" for _, why in found))

    def _rows(self, crops: list[NDArray[np.uint8] | None]) -> list[tuple[Any, str | None]]:
        """Of each crop what is kept of it, or why that is nothing."""
        maps = iter(self.estimator.maps([crop for crop in crops if crop is not None]))
        found = [None if crop is None else next(maps) for crop in crops]
        kept = iter(self._kept([map_HW for map_HW in found if map_HW is not None]))
        lost = ["crop_damaged" if crop is None else "depth_failed" for crop in crops]
        return [(None, why) if m is None else (next(kept), None) for m, why in zip(found, lost, strict=True)]

    def _kept(self, maps: Sequence[NDArray[np.uint8]]) -> list[bytes] | list[NDArray[np.float16]]:
        if self._embedder is None:
            return [cv2.imencode(".png", map_HW)[1].tobytes() for map_HW in maps]
        from unmask.depth import as_rgb
        from unmask.transforms import resize

        inputs = [resize(as_rgb(map_HW), self._embedder.plan.preprocessing) for map_HW in maps]
        return [features_D.astype(np.float16) for features_D in self._embedder.features(inputs)]


class DepthStage:
    """An actor's part: loads the networks once, then makes whole shards.

    Args:
        store: The run's output.
        options: Which maps.
        known: What the driver's `DepthMaker` says of itself.
    """

    def __init__(self, store: Store, options: DepthOptions, known: Mapping[str, Any]) -> None:
        import torch

        from unmask.devices import select_device

        device = select_device(options.device)
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a process for each core
        self._store, self._maker = store, DepthMaker.load(options, device)
        if self._maker.to_json() != known:
            raise StorageError(f"{options.weights} has other depth weights here than where the run began")

    def make(self, shard: int, key: str) -> dict[str, int]:
        """Write the rows of one shard; how many, and why others are not there."""
        return self._maker.write(self._store, shard, key)


def _crops(store: Store, faces: pa.Table) -> Iterator[NDArray[np.uint8] | None]:
    """Each crop by itself, so that a damaged one takes no other with it; None for that one.

    A place that cannot be read says nothing of its crops: that is an error, and the shard is made another time.
    """
    products = Products(store)
    for n in range(len(faces)):
        row = faces.slice(n, 1)
        if row["crop"].null_count:
            raise StorageError(f"{store.shown} holds no crops; preprocess with `crops` among the products")
        try:
            ((_, crop_HWC),) = products.crops(row)
        except DamagedError:
            crop_HWC = None
        yield crop_HWC


def unmade(store: Store, key: str, shards: int) -> list[int]:
    """The shards whose depth table is not there, is of other faces than are there now, or lacks damaged crops.

    Raises:
        StorageError: Something cannot be read.
    """
    there = set(store.names(f"depth/{key}"))
    names = [shard_name(f"depth/{key}", shard) for shard in range(shards)]
    return [n for n, name in enumerate(names) if name not in there or not _is_current(store, n, name)]


def _is_current(store: Store, shard: int, name: str) -> bool:
    table = store.read_table(name, ["reason"])
    same = (table.schema.metadata or {}).get(_FACES) == Products(store).faces_digest(shard).encode()
    return same and "crop_damaged" not in table["reason"].to_pylist()


def shares(device: str, cpus: float, gpus: float, actors: int | None, shards: int) -> tuple[int, float]:
    """How many actors share the work, and what part of a GPU each of them reserves.

    Args:
        device: As in `DepthOptions`.
        cpus: Of the cluster.
        gpus: Of the cluster.
        actors: As in `make_depth`; left open, one for each GPU, or for each CPU where none is used.
        shards: How many are left to make.
    """
    uses_gpus = device != "cpu" and gpus >= 1
    most = max(int(min(cpus, gpus) if uses_gpus else cpus), 1)
    count = min(actors or most, shards)
    # All on one GPU must fit in it: Ray counts in ten-thousandths.
    return count, math.floor(10_000 / math.ceil(count / int(gpus))) / 10_000 if uses_gpus else 0.0


def make_depth(
    work: "Work", options: DepthOptions, actors: int | None, *, say: Callable[[str], None], tick: Callable[[], None]
) -> str:
    """Make the depth maps of all crops of a run on its cluster.

    Args:
        work: A run whose shards are whole.
        options: Which maps.
        actors: How many processes share the shards; see `shares`.
        say: Tells a person something.
        tick: Time passes.

    Returns:
        The key of the maps.

    Raises:
        UsageError: As `DepthOptions.check`, here or where an actor begins.
        ModelError: The weights cannot be had, here or where an actor begins.
        StorageError: The output cannot be read or written, an actor finds other weights than are here, or a shard
            killed its process each time.
    """
    import ray
    import torch
    from ray.exceptions import RayError
    from ray.util import ActorPool

    options = options.check()
    known = DepthMaker.load(options, torch.device("cpu")).to_json()
    key = f"depth-{digest(known)}"
    work.store.write(f"depth/{key}/key.json", json.dumps({**known, "options": asdict(options)}, indent=1).encode())
    todo = unmade(work.store, key, len(work.shards))
    if todo:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count, gpus = shares(options.device, there.get("CPU", 1), there.get("GPU", 0), actors, len(todo))
        stage: Any = ray.remote(DepthStage).options(
            num_cpus=1, num_gpus=gpus, max_restarts=_RETRIES, max_task_retries=_RETRIES
        )
        pool = ActorPool([stage.remote(work.store, options, known) for _ in range(count)])
        try:
            for _ in pool.map_unordered(lambda actor, shard: actor.make.remote(shard, key), todo):
                tick()
        except RayError as error:
            if (own := own_error(error)) is not None:
                raise own from error
            raise StorageError(f"depth maps killed their process each time ({type(error).__name__})") from error
    say(f"depth/{key}: {_counted(work.store, key, len(work.shards))}")
    return key


def _counted(store: Store, key: str, shards: int) -> str:
    reasons: Counter[str | None] = Counter()
    for shard in range(shards):
        reasons.update(store.read_table(shard_name(f"depth/{key}", shard), ["reason"])["reason"].to_pylist())
    lost = "".join(f", {count:,} {why}" for why, count in sorted((w, n) for w, n in reasons.items() if w is not None))
    return f"{reasons[None]:,} maps{lost}"
