"""The scorer as a live session sees it: the deployment's replicas, tried again where one of them dies.

Axes: N faces, H rows, W columns, C = 3 channels, D features.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.batcher import Done
from serve.metrics import Meter
from serve.scorer import ModelKey
from serve.within import within
from unmask.mtcnn import MTCNN
from unmask.records import Faces

__all__ = ["RemoteScorer"]

R = TypeVar("R")

_TRIES, _TRY_S, _PAUSE_S = 4, 10.0, 0.2


class RemoteScorer:
    """Finds faces here or there, embeds them there. See `unmask.live.Scorer`.

    Args:
        handle: Of the scorer's deployment.
        key: The model.
        meter: Gets stages, batches and retries.
        detector: Finds faces in this process, where it is given.
        executor: Where the detector works, off the event loop.

    Attributes:
        arrived_s: When the frame came that is looked at, by `time.monotonic`: the scorer hears how old it is, and there
            are more of them where frames grow old.
    """

    def __init__(
        self, handle: Any, key: ModelKey, meter: Meter, detector: MTCNN | None, executor: Executor | None
    ) -> None:
        self._handle, self._key, self._meter = handle, key, meter
        self._detector, self._executor = detector, executor
        self.arrived_s: float | None = None

    @property
    def _age_s(self) -> float:
        return 0.0 if self.arrived_s is None else time.monotonic() - self.arrived_s

    async def find(self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None) -> Faces:
        """The faces of a frame: all of them, or one for each of the boxes near which they are expected."""
        if self._detector is None:
            return await self._asked("detect", lambda: self._handle.find.remote(image_HWC, near_N4, self._age_s))
        started = time.perf_counter()
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._found, image_HWC, near_N4)
        faces = await work
        self._meter.observe("unmask_stage_seconds", time.perf_counter() - started, "detect")
        return faces

    def _found(self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None) -> Faces:
        assert self._detector is not None
        if near_N4 is None:
            return self._detector.search([image_HWC])[0]
        return self._detector.refine([image_HWC], [near_N4])[0]

    async def embed(self, crops_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 (N, D) of crops uint8 (N, H, W, 3) of the model's size."""
        found_ND = await self._asked("embed", lambda: self._handle.embed.remote(self._key, crops_NHWC, self._age_s))
        return np.array(found_ND)  # what comes out of Ray's store cannot be written to, of which PyTorch warns

    async def _asked(self, stage: str, call: Callable[[], Awaitable[Done[R]]]) -> R:
        """Ask a replica; another one, where it dies or is silent."""
        from ray.exceptions import RayActorError, RayError

        for attempt in range(_TRIES):
            try:
                done = await within(_TRY_S, call())
                self._meter.observe("unmask_stage_seconds", done.work_s, stage)
                self._meter.observe("unmask_stage_seconds", done.wait_s, "wait")
                self._meter.observe("unmask_batch_frames", done.batch)
                return done.result
            except (RayActorError, TimeoutError) as error:
                self._meter.count("unmask_scorer_retries", type(error).__name__)
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(_PAUSE_S * (attempt + 1))
            except RayError:
                raise
        raise AssertionError("unreachable")
