"""What a smoke test tries on a cluster. Each trial gives a line of what was found, or raises what is wrong.

What runs on nodes is imported there: a node without this code is found out by the first trial.
"""

import importlib.metadata
import json
import platform
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from unmask.errors import Reason, UnmaskError
from unmask.storage import Store

__all__ = ["Nodes", "TrialError", "look_at_gpus", "look_at_storage", "look_at_versions", "preprocess", "serve", "train"]

_PACKAGES = ("unmask", "ray", "torch", "torchvision", "timm", "numpy", "av", "pyarrow", "opencv-python-headless")
_PATIENCE_S = 300.0
_HEADER = struct.Struct(">dI")
_PICTURES = 16


class TrialError(UnmaskError):
    """A trial failed."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INTERNAL, message)


class Nodes:
    """The nodes of the cluster that this process is connected to.

    Attributes:
        ids: Of those that live, by what a person calls them.
        cpus, gpus: Of each, by name.
    """

    def __init__(self) -> None:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self.ids = {f"{n['NodeManagerAddress']} ({n['NodeID'][:6]})": str(n["NodeID"]) for n in alive}
        self.cpus, self.gpus = (
            {name: float(n["Resources"].get(kind, 0)) for name, n in zip(self.ids, alive, strict=True)}
            for kind in ("CPU", "GPU")
        )

    def each(self, function: Callable[..., Any], *args: object, gpus: float = 0.0) -> dict[str, Any]:
        """Call a function on every node; on those with a GPU where one is asked for.

        Raises:
            TrialError: It failed on a node.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        wanted = {name: node for name, node in self.ids.items() if not gpus or self.gpus[name] >= gpus}
        remote = ray.remote(function)
        calls = {
            name: remote.options(
                num_cpus=0, num_gpus=gpus, max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(*args)
            for name, node in wanted.items()
        }  # fmt: skip
        found = {}
        for name, call in calls.items():
            try:
                found[name] = ray.get(call, timeout=_PATIENCE_S)
            except Exception as error:  # of many classes
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                said = lines[-1].removeprefix("RuntimeError: ")[:300] if lines else type(error).__name__
                raise TrialError(f"node {name}: {said}") from None
        return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def look_at_versions(nodes: Nodes) -> str:
    """See that all nodes have the versions of this process.

    Raises:
        TrialError: One has not; its name, and what differs.
    """
    mine = _versions()
    for name, theirs in nodes.each(_versions).items():
        differing = [
            f"{package} {theirs.get(package, 'is missing')} (here {mine.get(package, 'missing')})"
            for package in sorted({*mine, *theirs})
            if mine.get(package) != theirs.get(package)
        ]
        if differing:
            raise TrialError(f"node {name} has other versions: {', '.join(differing)}; give all nodes one image")
    return f"{len(nodes.ids)} nodes with unmask {mine['unmask']}, ray {mine['ray']}, torch {mine['torch']}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("Ray counts a GPU, and PyTorch sees none: look at the driver and the container's runtime")
    x = torch.ones(256, 256, device="cuda", dtype=torch.float16)
    if float((x @ x)[0, 0]) != 256.0:
        raise RuntimeError("the GPU computes wrongly")
    return f"{torch.cuda.get_device_name()} sm_{''.join(map(str, torch.cuda.get_device_capability()))}"


def look_at_gpus(nodes: Nodes, *, least: int) -> str:
    """Compute on a GPU of each node that has one.

    Raises:
        TrialError: There are fewer than `least`, or one does not compute.
    """
    there = int(sum(nodes.gpus.values()))
    if there < least:
        raise TrialError(f"the cluster has {there} GPUs and {least} were expected; look at its GPU nodes")
    names = sorted(set(nodes.each(_gpu, gpus=1.0).values())) if there else []
    return f"{there} GPUs{': ' + ', '.join(names) if names else ''}"


def _touch(uri: str, expected: str) -> None:
    import ray

    store = Store(uri)
    if not store.exists("mark") or store.read("mark").decode() != expected:
        raise RuntimeError(f"{store.shown} is not the folder that the driver writes to")
    node = ray.get_runtime_context().get_node_id()
    store.write(f"nodes/{node}", b"here")


def look_at_storage(nodes: Nodes, storage: Store) -> str:
    """See that all nodes read what this process writes, and the other way round.

    Raises:
        TrialError: One does not.
    """
    mark = f"{socket.gethostname()} {time.time()}"
    storage.write("mark", mark.encode())
    nodes.each(_touch, storage.uri, mark)
    for name, node in nodes.ids.items():
        if not storage.exists(f"nodes/{node}"):
            raise TrialError(f"node {name} wrote to {storage.shown} what is not seen here: its folder is another one")
    return f"{storage.shown} is the same place for {len(nodes.ids)} nodes"


def preprocess(storage: Store) -> str:
    """Find the faces of one clip.

    Raises:
        TrialError: None was found.
    """
    from pipelines.config import Job
    from pipelines.run import RunOptions, run
    from unmask.demo import make_clips
    from unmask.plan import Sampling

    with tempfile.TemporaryDirectory() as folder:
        clip = make_clips(Path(folder))[0].read_bytes()
    storage.write("videos/real/clip.mp4", clip)
    said = run(
        storage.uri_of("videos"), storage.uri_of("faces"), Job(sampling=Sampling(frames=4)), RunOptions(),
        say=lambda _: None,
    )  # fmt: skip
    if said["failed"] or not said["faces"]:
        raise TrialError(f"a clip with a face gave {said['faces']} faces; see {storage.shown}/faces/index.html")
    return f"{said['faces']} faces in 4 frames"


def train(storage: Store, *, use_gpu: bool) -> str:
    """One step of two workers, which must have the same weights after it.

    Args:
        storage: Where Ray Train keeps its books.
        use_gpu: A GPU each.

    Raises:
        TrialError: They have not, or cannot talk to each other.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    system, path = storage.place("train")
    trainer = TorchTrainer(
        _step,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=use_gpu),
        run_config=RunConfig(name="unmask-smoke", storage_filesystem=system, storage_path=path),
    )
    try:
        trainer.fit()
    except Exception as error:  # of many classes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TrialError(f"training failed: {lines[-1][:300] if lines else type(error).__name__}") from None
    return f"a step of two workers on {'GPUs' if use_gpu else 'CPUs'}, the same weights after it"


def _step(_: Mapping[str, Any]) -> None:
    """What each worker does."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    from train.config import LoopConfig
    from train.context import Context
    from train.network import Network, wrapped
    from unmask.presets import resolve

    place = ray_train.get_context()
    context = Context(device=get_device(), rank=place.get_world_rank(), workers=place.get_world_size())
    torch.manual_seed(context.rank)
    model, description = resolve("mobilenetv3_small_050", device=context.device, pretrained=False)
    network = wrapped(Network(model, description.preprocessing), LoopConfig(), context).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    pixels = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8, device=context.device)
    logits_B, *_ = network(pixels, torch.ones(2, 1, dtype=torch.bool, device=context.device))
    logits_B.square().mean().backward()
    optimiser.step()
    weights = torch.cat([p.detach().flatten().double() for p in network.parameters()])
    sums = context.gather(torch.stack([weights.sum(), weights.square().sum()]))
    if len({tuple(s.tolist()) for s in sums}) > 1:
        raise RuntimeError("the workers have different weights after a step: their gradients did not meet")
    ray_train.report({"loss": float(logits_B.square().mean())})


def serve(url: str | None, key: str | None) -> str:
    """Score a short stream of pictures.

    Args:
        url: Of a service that runs; None starts one for the trial.
        key: That lets in there.

    Raises:
        TrialError: Not every picture was answered, or none was scored.
    """
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(_own_service())
        answers = _stream(url, key)
    scored = sum(e["event"] == "score" for e in answers)
    dropped = sum(e.get("count", 1) for e in answers if e["event"] == "dropped")
    if not scored or scored + dropped < _PICTURES:
        raise TrialError(f"of {_PICTURES} pictures {scored} were scored and {dropped} dropped; see the service's log")
    return f"{scored} of {_PICTURES} pictures scored, {dropped} dropped"


@contextmanager
def _own_service() -> Iterator[str]:
    """A service on this node; the driver of a job is on the head, where Serve's proxy is."""
    from ray import serve as ray_serve

    if ray_serve.status().applications:
        raise TrialError("the cluster serves already: give --service URL, and --key-file where it wants a key")
    from serve.command import serving
    from serve.settings import settings_from

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="unmask-smoke-") as state:
        few = {"hosts": 1, "analysts": 0, "max_scorers": 1, "scorer_cpus": 0.1}
        settings = settings_from({"port": port, "state": Path(state), **few})
        with serving(settings) as url:
            yield url


def _stream(url: str, key: str | None) -> list[dict[str, Any]]:
    """Send pictures as the service gives credit; what became of them."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    told: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {key}"} if key else None
    address = url.rstrip("/").replace("http", "ws", 1) + "/v1/live"
    try:
        with connect(address, additional_headers=headers, open_timeout=30, close_timeout=5) as socket_there:
            credit = json.loads(socket_there.recv(60))["credits"]
            for number, picture in enumerate(_pictures()):
                while not credit:
                    told.append(json.loads(socket_there.recv(60)))
                    credit += told[-1]["credits"]
                socket_there.send(_HEADER.pack(number / 5, len(told) + 1) + picture)
                credit -= 1
            socket_there.send('{"end": true}')
            with suppress(ConnectionClosed):
                while True:
                    told.append(json.loads(socket_there.recv(60)))
    except (OSError, InvalidStatus, ConnectionClosed, TimeoutError) as error:
        raise TrialError(f"the service at {url} cannot be talked to ({error}); look whether it runs") from None
    return [event for event in told if event["event"] in ("score", "dropped")]


def _pictures() -> list[bytes]:
    """Frames of the clip, as JPEG."""
    import cv2

    from unmask.demo import make_clips
    from unmask.plan import Sampling
    from unmask.records import Frame
    from unmask.video import VideoReader

    with tempfile.TemporaryDirectory() as folder, VideoReader(make_clips(Path(folder))[0]) as reader:
        frames = [f for f in reader.frames(Sampling(frames=_PICTURES)) if isinstance(f, Frame)]
    return [cv2.imencode(".jpg", f.image_HWC[..., ::-1])[1].tobytes() for f in frames]
