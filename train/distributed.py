"""Training on several workers: Ray Train's TorchTrainer, with DDP between them.

The state of a run lies in its own folder (`train.state`), not in Ray's checkpoints: a file that is renamed into its
place is committed at once, where a reported checkpoint is only when the controller has seen it, and it is the same with
and without Ray. Ray starts the workers, sees when one is lost, and starts them again; they take up what is there.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from cluster.session import Cluster, ray_session
from train.config import TrainConfig
from train.worker import STOPPED, Task
from unmask.errors import StorageError, TrainingError, UsageError
from unmask.storage import Store

__all__ = ["fit_on_ray"]

_SAID, _RAY = "said.json", ".ray"
_MARK = ".reached"
_LOST = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def fit_on_ray(
    task: Task,
    *,
    workers: int | None,
    address: str | None,
    device: str,
    max_failures: int,
    say: Callable[[str], None],
) -> None:
    """Train on a cluster, or on a Ray of one's own.

    Args:
        task: What to do; its folders must be the same for all nodes.
        workers: How many; left open, one for each GPU of the cluster, or one on CPUs.
        address: Of the cluster; see `cluster.session.ray_session`.
        device: auto, cpu or cuda.
        max_failures: How many times lost workers are replaced.
        say: Tells a person how it goes.

    Raises:
        UsageError: The cluster cannot be reached or is too small; what `train_all` raises.
        TrainingError: Workers were lost too often.
    """
    # A lost worker is seen in half a second rather than two.
    os.environ.setdefault(_LOST, "0.5")
    with ray_session(address) as cluster:
        use_gpu = cluster.gpus > 0 if device == "auto" else device.startswith("cuda")
        workers = workers or (max(int(cluster.gpus), 1) if use_gpu else 1)
        _check_fits(cluster, workers, use_gpu=use_gpu)
        out = Store(task.out)
        # Each worker looks for this: a folder of one machine would give every node a run of its own.
        mark = secrets.token_hex(8)
        out.write(_MARK, mark.encode())
        out.delete(_SAID)  # of a driver that was killed
        try:
            with _telling(out, say):
                _fit(task, mark, workers, use_gpu=use_gpu, max_failures=max_failures)
        finally:
            out.delete(_MARK)
            out.delete(_SAID)
            out.delete_folder(_RAY)


def _check_fits(cluster: Cluster, workers: int, *, use_gpu: bool) -> None:
    there, what = (cluster.gpus, "GPU") if use_gpu else (cluster.cpus, "CPU")
    if workers > there:
        raise UsageError(
            f"{workers} workers need {workers} {what}s and the cluster has {there:g}: give --workers {int(there)}"
            f"{', or --device cpu' if use_gpu else ''}, or add nodes"
        )


def _fit(task: Task, mark: str, workers: int, *, use_gpu: bool, max_failures: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    system, path = Store(task.out).place(_RAY)
    plain = {**asdict(task), "config": task.config.to_json(), "mark": mark}
    trainer = TorchTrainer(
        _work,
        train_loop_config=plain,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=f"unmask-{mark}",
            storage_filesystem=system,
            storage_path=path,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # of many classes, in one another
        _raise_stopped(Store(task.out))
        raise TrainingError(_told(error, max_failures)) from error
    _raise_stopped(Store(task.out))


def _raise_stopped(out: Store) -> None:
    if out.exists(STOPPED):
        said = json.loads(out.read(STOPPED))
        kind = TrainingError if said["reason"] == "training_stopped" else UsageError
        raise kind(said["message"])


def _told(error: Exception, max_failures: int) -> str:
    text = str(error)
    if "OutOfMemory" in text or "out of memory" in text.lower():
        return "a worker was ended because its machine's memory was used up: lower loop.batch, or use fewer --workers"
    first = next((line.strip() for line in text.splitlines()[::-1] if line.strip()), type(error).__name__)
    return (
        f"workers were lost more than {max_failures} times ({first[:200]}): see what happens on those nodes; the same "
        "command goes on from the last state"
    )


@contextlib.contextmanager
def _telling(out: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Repeat what the first worker says, which it leaves in a file."""
    import threading

    ended = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = ended.wait(1.0)
            first, lines = _said(out)
            for n, line in enumerate(lines, first):
                if n >= seen:
                    say(line)
                    seen = n + 1
            if last:
                return

    thread = threading.Thread(target=follow, name="unmask-train-said", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _said(out: Store) -> tuple[int, list[str]]:
    """The last lines, with the number of the first; none where there are none yet, or the place cannot be reached."""
    try:
        if not out.exists(_SAID):
            return 0, []
        said: dict[str, Any] = json.loads(out.read(_SAID))
        return said["first"], said["lines"]
    except (StorageError, ValueError, KeyError):
        return 0, []


class _Speaker:
    """Leaves the last lines in a file; after a restart, numbers go on."""

    def __init__(self, out: Store) -> None:
        self._out = out
        self._first, self._lines = _said(out)

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        while len(self._lines) > 50:
            self._lines.pop(0)
            self._first += 1
        self._out.write(_SAID, json.dumps({"first": self._first, "lines": self._lines}).encode())


def _work(plain: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    from train.context import Context
    from train.worker import train_all

    place = ray_train.get_context()
    out = Store(plain["out"])
    context = Context(
        device=get_device(),
        rank=place.get_world_rank(),
        workers=place.get_world_size(),
        report=ray_train.report,
    )
    if out.exists(STOPPED):
        return  # another worker found that it cannot go on: no use in trying again
    if not out.exists(_MARK) or out.read(_MARK).decode() != plain["mark"]:
        message = f"{out.shown} is not the same folder on all nodes: give --out on a shared filesystem or in a bucket"
        out.write(STOPPED, json.dumps({"reason": "bad_option", "message": message}).encode())
        raise UsageError(message)
    if context.device.type == "cpu":
        import torch

        torch.set_num_threads(max(int(_own_cpus()), 1))
    say: Callable[[str], None] = _Speaker(out) if context.leads else (lambda _: None)
    if context.leads:
        say(f"{context.workers} workers on {context.device.type}")
    task = Task(
        config=TrainConfig.from_json(plain["config"]),
        data=tuple(plain["data"]),
        out=plain["out"],
        cache=plain["cache"],
    )
    train_all(task, context, say)


def _own_cpus() -> float:
    """CPUs that Ray has given this worker."""
    import ray

    context = ray.get_runtime_context()
    found: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return found.get("CPU", 1.0)
