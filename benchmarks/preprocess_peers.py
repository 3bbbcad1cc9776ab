"""What `benchmarks.preprocess` compares, each in a process of its own: `python -m benchmarks.preprocess_peers NAME`.

Arguments come as JSON on standard input; the last line of standard output is the result as JSON: `finished_s`, the
times (seconds since the epoch) at which videos, or frames of the peers, were finished; and what else there is to tell.
"""

import contextlib
import json
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.mtcnn import MTCNN

__all__ = ["main"]

FRAMES, WIDTH, EVERY = 32, 2, 10
# facenet-pytorch gets our thresholds.
_THRESHOLDS, _MARGIN, _AT_ONCE = [0.7, 0.8, 0.8], 1 / 3, 10
_POLL_S = 0.1

Result = dict[str, Any]


class _StoreWatch(threading.Thread):
    """Asks the raylet of this process's Ray for its object store, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self.peak = self.capacity = self.spilled = self.created = self.polls = 0

    def run(self) -> None:
        while not self._ended.wait(_POLL_S):
            ray = sys.modules.get("ray")
            if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
                continue
            with contextlib.suppress(Exception):  # a Ray that is starting or stopping
                self._poll(ray)

    def _poll(self, ray: Any) -> None:
        generated = "ray.core.generated.node_manager_pb2"
        messages, services = import_module(generated), import_module(f"{generated}_grpc")
        connect = import_module("ray._private.grpc_utils").init_grpc_channel
        node = next(node for node in ray.nodes() if node["Alive"])
        channel = connect(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", options=[])
        ask = services.NodeManagerServiceStub(channel).GetNodeStats
        while not self._ended.wait(_POLL_S):
            store = ask(messages.GetNodeStatsRequest(include_memory_info=False), timeout=5.0).store_stats
            self.polls += 1
            self.capacity = store.object_store_bytes_avail
            self.peak = max(self.peak, store.object_store_bytes_used)
            self.spilled = max(self.spilled, store.spilled_bytes_total)
            self.created = max(self.created, store.cumulative_created_bytes)

    def end(self) -> Result:
        """Stop asking; what was found, in bytes."""
        self._ended.set()
        self.join(10)
        names = ("peak", "capacity", "spilled", "created", "polls")
        return {name: getattr(self, name) for name in names}


def stream(dataset: str, out: str, more: list[str]) -> Result:
    """`unmask preprocess`, its store watched. Finished is what is published."""
    watch = _StoreWatch()
    watch.start()
    from pipelines.preprocess import main as preprocess

    try:
        preprocess([dataset, "--out", out, *more])
    except SystemExit as ended:
        if ended.code:
            raise
    return {"finished_s": sorted(p.stat().st_mtime for p in Path(out, "videos").iterdir()), "store": watch.end()}


def pool(paths: list[str], out: str) -> Result:
    """Unmask's core without Ray: a process does all of a video, a file a video."""
    return _pooled(_pool_worker, paths, out)


def script(paths: list[str], out: str, frames: int) -> Result:
    """What people write today (peer A), over the first `frames` frames of each clip."""
    return _pooled(_script_worker, paths, out, frames)


def _pooled(worker: Callable[..., None], paths: list[str], out: str, *more: Any) -> Result:
    """One process a core; they start together when all are warm, and take one path after the other."""
    context = multiprocessing.get_context("spawn")
    todo, done, ready = context.Queue(), context.Queue(), context.Barrier(WIDTH + 1)
    workers = [context.Process(target=worker, args=(ready, todo, done, out, *more), daemon=True) for _ in range(WIDTH)]
    for item in [*enumerate(paths), *[None] * WIDTH]:
        todo.put(item)
    for process in workers:
        process.start()
    ready.wait(300)
    started_s = time.time()
    results = [_taken(done, workers) for _ in paths]
    for process in workers:
        process.join(60)
    return {"started_s": started_s, "finished_s": [r.pop("at_s") for r in results], "clips": results}


def _taken(done: Any, workers: Sequence[Any]) -> Any:
    """The next result; an error where a worker died."""
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=2.0)
        assert not any(process.exitcode for process in workers), "a worker of the pool died; see above"


def _one_thread() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _pool_worker(ready: Any, todo: Any, done: Any, out: str) -> None:
    _one_thread()
    import numpy as np

    from unmask.mtcnn import MTCNN

    detector = MTCNN(thresholds=(0.7, 0.8, 0.8))
    detector.search([np.zeros((720, 1280, 3), np.uint8)])
    ready.wait(300)
    for number, path in iter(todo.get, None):
        faces = _core(path, Path(out, f"{number:05d}.bin"), detector)
        done.put({"at_s": time.time(), "path": path, "faces": faces})


def _core(path: str, out: Path, detector: "MTCNN") -> int:
    """Decode, detect, crop, encode, write."""
    import cv2

    from unmask.faces import cut, enlarge
    from unmask.plan import Sampling
    from unmask.records import Frame
    from unmask.video import VideoReader

    encoded = []
    with VideoReader(path) as reader:
        for frame in reader.frames(Sampling(frames=FRAMES)):
            assert isinstance(frame, Frame), f"{path}: {frame}"
            for box_4 in detector.search([frame.image_HWC])[0].boxes_N4:
                crop_HWC = cut(frame.image_HWC, enlarge(box_4, 1.3, square=True))
                _, data = cv2.imencode(".png", crop_HWC[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
                encoded.append(data.tobytes())
    out.write_bytes(b"".join(encoded))
    return len(encoded)


def _script_worker(ready: Any, todo: Any, done: Any, out: str, frames: int) -> None:
    _one_thread()
    import numpy as np
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True, thresholds=_THRESHOLDS, device="cpu")
    detector.detect([np.zeros((360, 640, 3), np.uint8)])
    ready.wait(300)
    for number, path in iter(todo.get, None):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        total, read = _script(path, Path(out, f"{number:05d}"), detector, frames)
        spent = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
        done.put({"at_s": time.time(), "path": path, "frames": read, "of": total, **spent})


def _script(path: str, folder: Path, detector: Any, frames: int) -> tuple[int, int]:
    """Frames of the clip, and those that were looked at."""
    import cv2

    folder.mkdir()
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total, images = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), list[Any]()
    while len(images) < frames:
        there, bgr = capture.read()
        if not there:
            break
        images.append(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    for first in range(0, len(images), _AT_ONCE):
        large = images[first : first + _AT_ONCE]
        small = [cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2)) for image in large]
        found, _ = detector.detect(small)
        for at, (image, boxes) in enumerate(zip(large, found, strict=True), first):
            if at % EVERY == 0:
                _write_crops(image, boxes, 2, folder / f"{at}")
    return total, len(images)


def _write_crops(image: Any, boxes: Any, scale: int, name: Path) -> int:
    """Cut out with a margin, as PNG; how many."""
    import cv2

    found = [] if boxes is None else [[int(v) * scale for v in box] for box in boxes]
    for rank, (x1, y1, x2, y2) in enumerate(found):
        mx, my = int((x2 - x1) * _MARGIN), int((y2 - y1) * _MARGIN)
        crop = image[max(y1 - my, 0) : y2 + my, max(x1 - mx, 0) : x2 + mx]
        cv2.imwrite(f"{name}_{rank}.png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return len(found)


class _Facenet:
    """Peer B's actor."""

    def __init__(self, out: str) -> None:
        _one_thread()
        from facenet_pytorch import MTCNN

        self._out, self._detector = out, MTCNN(keep_all=True, thresholds=_THRESHOLDS, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        faces = []
        for path, index, image in zip(batch["path"], batch["index"], batch["image"], strict=True):
            boxes, _ = self._detector.detect(image)
            faces.append(_write_crops(image, boxes, 1, Path(self._out, f"{Path(path).stem}_{index}")))
        return {"path": batch["path"], "faces": faces, "at_s": [time.time()] * len(faces)}


def _frames_of(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """32 evenly spread frames as RGB."""
    import cv2

    capture = cv2.VideoCapture(row["item"], cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = {(2 * k + 1) * count // (2 * FRAMES) for k in range(FRAMES)}
    for index in range(count):
        if not capture.grab():
            break
        if index in wanted:
            _, bgr = capture.retrieve()
            yield {"path": row["item"], "index": index, "image": cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)}


def map_batches(paths: list[str], out: str) -> Result:
    """Ray Data in the straightforward way (peer B). Finished is a frame."""
    watch = _StoreWatch()
    watch.start()
    from cluster.session import ray_session

    with ray_session():
        import ray

        rows = (
            ray.data.from_items(paths, override_num_blocks=len(paths))
            .flat_map(_frames_of, num_cpus=0.5)
            .map_batches(
                _Facenet,
                fn_constructor_kwargs={"out": out},
                batch_size=8,
                num_cpus=0.4,
                compute=ray.data.ActorPoolStrategy(size=WIDTH),
            )
        )
        finished_s = [row["at_s"] for row in rows.iter_rows()]
        store = watch.end()
    return {"finished_s": sorted(finished_s), "store": store}


def main() -> None:
    """Run the contender that is named."""
    contenders: dict[str, Callable[..., Result]] = {
        "stream": stream,
        "pool": pool,
        "script": script,
        "map_batches": map_batches,
    }
    result = contenders[sys.argv[1]](**json.load(sys.stdin))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
