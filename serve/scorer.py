"""The scorer: detector and backbone for all streams at once. It keeps nothing of a stream, so any replica serves any.

Axes: N faces, H rows, W columns, C = 3 channels, D features.
"""

import ctypes
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve.batcher import Batcher, Done
from serve.logs import set_up
from serve.settings import Settings
from unmask.checkpoints import Description
from unmask.detection import SCORING_THRESHOLDS
from unmask.devices import select_device
from unmask.errors import ModelError, Reason
from unmask.models import ForgeryModel
from unmask.mtcnn import MTCNN
from unmask.presets import DEFAULT_MODEL, resolve
from unmask.records import Faces
from unmask.transforms import to_tensor

__all__ = ["ModelKey", "Models", "Scorer", "ScoringEngine"]

# Loaded at once; a model that was not asked for the longest goes first.
_MOST_MODELS = 4
# What the autoscaler looks back on.
_RECENT_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model is meant: what `resolve` takes, and the digest that it must have (any, where it is empty)."""

    spec: str
    sha256: str = ""


class Models:
    """Loaded models by key. For several threads.

    Args:
        device: Where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._loaded: OrderedDict[ModelKey, tuple[ForgeryModel, Description]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ModelKey) -> tuple[ForgeryModel, Description]:
        """A model, loaded where it is not. A key without a digest means what lies there now, and is looked at anew.

        Raises:
            ModelError: It cannot be had, is no detector, or is not the one that is meant.
            UsageError: As `resolve`.
        """
        with self._lock:
            if key not in self._loaded:
                model, description = resolve(key.spec or DEFAULT_MODEL, device=self.device)
                description.check_detects()
                if key.sha256 and key.sha256 != description.sha256:
                    message = f"{key.spec or DEFAULT_MODEL} is not the model that it was: name it to the service again"
                    raise ModelError(Reason.CHECKPOINT_HASH, message)
                key = ModelKey(key.spec, description.sha256)
                self._loaded[key] = (model.eval(), description)
                while len(self._loaded) > _MOST_MODELS:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]


def _keep_memory() -> None:
    """Have glibc keep what PyTorch gives back: else each layer's output is mapped and paged in anew, at half the speed.

    All threads share one arena; a threshold of 1 GiB each for maps and for trimming (`man mallopt`).
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-8, 1), (-3, 2**30), (-1, 2**30)):
            mallopt(parameter, value)


class ScoringEngine:
    """The scorer without Ray. Its calls block, and may come from one thread at a time.

    Args:
        device: As `select_device` takes it.
    """

    def __init__(self, device: str = "auto") -> None:
        where = select_device(device)
        if where.type == "cpu":
            torch.set_num_threads(1)  # several processes share the cores
            _keep_memory()
        self.models = Models(where)
        self.detector = MTCNN(device=where, thresholds=SCORING_THRESHOLDS)

    def find(self, calls: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32] | None]]) -> list[Faces]:
        """Search pictures (H, W, 3), or correct the boxes (N, 4) that come with them. One answer a picture."""
        found: dict[int, Faces] = {}
        search = [i for i, (_, near) in enumerate(calls) if near is None]
        known = [i for i, (_, near) in enumerate(calls) if near is not None]
        if search:
            found |= zip(search, self.detector.search([calls[i][0] for i in search]), strict=True)
        if known:
            boxes = [near for _, near in calls if near is not None]
            found |= zip(known, self.detector.refine([calls[i][0] for i in known], boxes), strict=True)
        return [found[i] for i in range(len(calls))]

    @torch.inference_mode()
    def embed(self, calls: Sequence[tuple[ModelKey, NDArray[np.uint8]]]) -> list[NDArray[np.float32]]:
        """Features (N, D) of crops (N, H, W, 3), a pair a call. All calls name one model."""
        model, description = self.models.get(calls[0][0])
        crops = [crop for _, crops_NHWC in calls for crop in crops_NHWC]
        inputs_N3HW = to_tensor(crops, description.preprocessing, self.models.device)
        features_ND = np.asarray(model.features(inputs_N3HW).float().cpu().numpy())
        bounds = np.cumsum([len(crops_NHWC) for _, crops_NHWC in calls])[:-1]
        return list(np.split(features_ND, bounds))


class Scorer:
    """The deployment's class: an engine behind two batchers, in one thread beside the event loop.

    Args:
        settings: As of `Settings`, in plain values.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = Settings(**settings)
        set_up()
        self._engine = ScoringEngine(self._settings.device)
        for spec in self._settings.named_models().values():
            self._engine.models.get(ModelKey(spec))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unmask-scorer")
        most = self._settings.batch_frames
        self._embed = Batcher(self._engine.embed, self._pool, most)
        self._find = Batcher(self._engine.find, self._pool, most)
        self._ages: deque[tuple[float, float]] = deque(maxlen=4096)

    async def embed(
        self, key: ModelKey, crops_NHWC: NDArray[np.uint8], age_s: float = 0.0
    ) -> Done[NDArray[np.float32]]:
        """Features float32 (N, D) of crops uint8 (N, H, W, 3); `age_s` is how long ago the frame arrived."""
        done = await self._embed((key, crops_NHWC), size=len(crops_NHWC), group=key)
        self._note(age_s + done.wait_s + done.work_s)
        return done

    async def find(
        self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None, age_s: float = 0.0
    ) -> Done[Faces]:
        """As `unmask.live.Scorer.find`."""
        done = await self._find((image_HWC, near_N4))
        self._note(age_s + done.wait_s + done.work_s)
        return done

    def _note(self, age_s: float) -> None:
        self._ages.append((time.monotonic(), age_s))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy looks at, beside the queues that Serve sees: the age of frames when done."""
        recent = [age for at, age in self._ages if at > time.monotonic() - _RECENT_S]
        return {
            "frame_age_s": float(np.quantile(recent, 0.9)) if recent else 0.0,
            "waiting": float(len(self._embed) + len(self._find)),
        }
