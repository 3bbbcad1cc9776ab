"""From an epoch's plan to tensors: crops of frames or clips, augmented, resized, with masks for what is missing.

Every random number of a sample comes from its seed, epoch and place in the plan, so that it does not matter which
process makes it, or when.

Axes: B samples, T frames of a clip (1 for frames), H rows, W columns, C = 3 channels in RGB order, D features.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.augment import Picture, Strategy
from train.augment.film import Film
from train.augment.selfblend import SelfBlend
from train.catalogue import Catalogue
from train.config import TrainConfig
from train.crops import CropReader
from train.samplers import Batches, Key, Pool
from unmask.errors import StorageError, TrainingError, UnmaskError, UsageError
from unmask.prefetch import prefetched
from unmask.products import mask_name
from unmask.pyramid import STRIDE
from unmask.transforms import Preprocessing, resize

__all__ = ["Batch", "Samples", "batches"]

# What each stream of a sample's random numbers is for.
_AUGMENT, _CLIP, _SUBSTITUTE, _BLEND, _FILM = 1, 2, 3, 4, 5
_MOST_SUBSTITUTES = 20
# That PyTorch takes to hear of a process that was killed; the wait ends as soon as it has.
_HEARD_WITHIN_S = 2.0
_FULL = 0.5  # share of filmed photographs that fill a window
# A difference mask of 255 (1 - SSIM) whose brightest point is darker than this shows no change.
_CHANGED = 25


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the model is trained on at once.

    Args:
        pixels: uint8 (B, T, H, W, C), as pixels; or float16 (B, T, D), features that were kept.
        valid_BT: bool (B, T), which frames are there.
        label_B: float32 (B,): 0 or 1, or opinion scores.
        unit_B: int64 (B,), of the pool.
        mask: uint8 (B, T, h, w), share of each place that was blended in, at the stride of `unmask.pyramid`; None where
            nothing asks for it.
        faces: The first face of each sample, by its number in the catalogue.
        substituted: Samples that stand in for others, which could not be read.
        unchanged: Samples that stand in for fake faces without a change.
    """

    pixels: Tensor
    valid_BT: Tensor
    label_B: Tensor
    unit_B: Tensor
    mask: Tensor | None
    faces: tuple[int, ...]
    substituted: int
    unchanged: int

    def __len__(self) -> int:
        return len(self.label_B)

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory; PyTorch's loader asks for it by this name."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            valid_BT=self.valid_BT.pin_memory(),
            label_B=self.label_B.pin_memory(),
            mask=None if self.mask is None else self.mask.pin_memory(),
        )

    def __repr__(self) -> str:
        return f"Batch({tuple(self.pixels.shape)}, {self.pixels.dtype}, {int(self.label_B.gt(0.5).sum())} above 1/2)"


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    pixels: NDArray[Any]
    mask: NDArray[np.uint8] | None
    valid_T: NDArray[np.bool_]
    label: float
    unit: int
    face: int
    substituted: bool
    unchanged: bool


class _Unchanged(Exception):  # noqa: N818  (no error: the sample is passed over)
    """A fake face that the difference mask shows to be the original's."""


class Samples:
    """Makes samples of one split.

    Args:
        catalogue: All faces.
        reader: Their crops.
        pool: What the split holds.
        config: Of the run.
        preprocessing: The model's.
        strategy: What is done to crops; none in validation, but for the way that shared videos go. Self-blended fakes
            are made there too. Where clips are wanted of photographs, they are filmed (`train.augment.film`).
        blend: Makes fakes of real faces.
        seed: Of all random numbers.
        features: Of all faces of the catalogue, float16 (N, D), in place of crops.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        reader: CropReader,
        pool: Pool,
        config: TrainConfig,
        preprocessing: Preprocessing,
        *,
        strategy: Strategy | None = None,
        blend: SelfBlend | None = None,
        seed: int = 0,
        features: NDArray[np.float16] | None = None,
    ) -> None:
        self.catalogue, self.reader, self.pool = catalogue, reader, pool
        self.config, self.preprocessing = config, preprocessing
        self.strategy, self.blend, self.seed = strategy, blend, seed
        self.features = features
        self.length = config.model.window if config.model.takes_clips else 1
        # Where frames stand for those of videos, photographs are filmed too: else a network that sees few of them, and
        # little of what a blend leaves, learns them by heart.
        self._is_for_video = strategy is not None and "video" in strategy.name

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The batch of some keys.

        Raises:
            UsageError: Too many crops are damaged.
        """
        samples = [self._sample(key) for key in keys]
        masks = [s.mask for s in samples if s.mask is not None]
        return Batch(
            pixels=torch.from_numpy(np.stack([s.pixels for s in samples])),
            valid_BT=torch.from_numpy(np.stack([s.valid_T for s in samples])),
            label_B=torch.tensor([s.label for s in samples], dtype=torch.float32),
            unit_B=torch.tensor([s.unit for s in samples]),
            mask=torch.from_numpy(np.stack(masks)) if len(masks) == len(samples) else None,
            faces=tuple(s.face for s in samples),
            substituted=sum(s.substituted for s in samples),
            unchanged=sum(s.unchanged for s in samples),
        )

    def _sample(self, key: Key) -> _Sample:
        """The sample, or another of its class in its place where that one cannot be read."""
        unit, broken, unchanged = key.unit, False, False
        rng = None
        for _ in range(_MOST_SUBSTITUTES):
            try:
                return self._made(key, unit, broken, unchanged)
            except StorageError:
                broken = True
            except _Unchanged:
                unchanged = True
            rng = rng or np.random.default_rng(self._seeds(key, _SUBSTITUTE))
            alike = np.flatnonzero(self.pool.label_U == self.pool.label_U[key.unit])
            unit = int(rng.choice(alike if len(alike) > 1 else np.arange(len(self.pool))))
        what = "show no change" if unchanged and not broken else "cannot be read"
        where = self.catalogue.videos[self.pool.video_U[key.unit]].key
        raise UsageError(f"{_MOST_SUBSTITUTES} crops in a row {what}, {where}'s among them; preprocess that data again")

    def _seeds(self, key: Key, use: int) -> list[int]:
        # A real face and the fake made of it share everything but the blend.
        place = key.position // 2 if self.blend is not None and use != _SUBSTITUTE else key.position
        return [self.seed, key.epoch + 1, place, use]

    def _made(self, key: Key, unit: int, broken: bool, unchanged: bool) -> _Sample:
        rng = np.random.default_rng(self._seeds(key, _CLIP))
        faces = self._clip(self.pool.faces[unit], rng)
        film, frames = None, len(faces)
        if self.blend is not None and len(faces) == 1 and (self.length > 1 or self._is_for_video):
            # A photograph. Half of the clips are shorter, as windows are where a track begins.
            film = Film.draw(np.random.default_rng(self._seeds(key, _FILM)))
            frames = self.length if rng.random() < _FULL else int(rng.integers(1, self.length + 1))
        valid_T = np.zeros(self.length, np.bool_)
        valid_T[:frames] = True
        label = 1.0 if key.blend else float(self.pool.label_U[unit])
        pixels: NDArray[Any]
        mask: NDArray[np.uint8] | None = None
        if self.features is not None:
            pixels = self._features(faces)
        else:
            pixels, mask = self._pixels(key, faces, label, film, frames)
        return _Sample(pixels, mask, valid_T, label, unit, int(faces[0]), broken, unchanged)

    def _clip(self, faces: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """At most T faces in a row from a random start, up to the first gap."""
        if len(faces) > self.length:
            start = int(rng.integers(len(faces) - self.length + 1))
            faces = faces[start : start + self.length]
        gaps = (n for n in range(1, len(faces)) if self._is_gap(int(faces[n - 1]), int(faces[n])))
        return faces[: next(gaps, len(faces))]

    def _is_gap(self, before: int, face: int) -> bool:
        """Whether a face was lost between two frames, or left out there: too small, or not the largest one."""
        between = slice(before + 1, face + 1)
        own = self.catalogue.track_N[between] == self.catalogue.track_N[face]
        lost = self.catalogue.after_gap_N[between][own]
        # Frames that the configuration passes over are no gap.
        return bool(lost.any() or (len(lost) > 1 and self.config.data.frames_per_video is None))

    def _features(self, faces: NDArray[np.int64]) -> NDArray[np.float16]:
        assert self.features is not None
        out_TD = np.zeros((self.length, self.features.shape[1]), np.float16)
        out_TD[: len(faces)] = self.features[faces]
        return out_TD

    def _pixels(
        self, key: Key, faces: NDArray[np.int64], label: float, film: Film | None, frames: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        pictures = [self.reader.picture(int(face), self.preprocessing) for face in faces]
        if film is not None:
            pictures = film.act(pictures[0], frames)
        if self.config.data.only_changed and label and not key.blend:
            self._refuse_unchanged(int(faces[0]))
        if self.blend is not None:
            # Real and fake of a pair are one draw's: they differ in the blend alone.
            blend = self.blend.draw(np.random.default_rng(self._seeds(key, _BLEND)))
            pictures = [fake for _, fake in blend.pairs(pictures)] if key.blend else blend.reals(pictures)
        if film is not None:
            pictures = film.shoot(pictures)
        if self.strategy is not None:
            shared = self.strategy.draw(np.random.default_rng(self._seeds(key, _AUGMENT)))
            pictures = [shared.apply(pictures[0])] if len(pictures) == 1 else shared.apply_clip(pictures)
        mask_THW = self._masks(pictures, changed=key.blend) if self.config.loss.mask else None
        return self._stacked(pictures), mask_THW

    def _masks(self, pictures: Sequence[Picture], *, changed: bool) -> NDArray[np.uint8]:
        height, width = (-(-side // STRIDE) for side in self.preprocessing.size_HW)
        out_Thw = np.zeros((self.length, height, width), np.uint8)
        for out_hw, picture in zip(out_Thw, pictures, strict=False):
            if changed and picture.mask_HW is not None:
                # The way that the picture goes.
                mask_HWC = np.repeat(picture.mask_HW[..., None], 3, 2)
                mask_HW = resize(mask_HWC, self.preprocessing)[..., 0]
                out_hw[...] = cv2.resize(mask_HW, (width, height), interpolation=cv2.INTER_AREA)
        return out_Thw

    def _stacked(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        out_THWC = np.zeros((self.length, *self.preprocessing.size_HW, 3), np.uint8)
        for out_HWC, picture in zip(out_THWC, pictures, strict=False):
            out_HWC[...] = resize(picture.image_HWC, self.preprocessing)
        return out_THWC

    def _refuse_unchanged(self, face: int) -> None:
        catalogue = self.catalogue
        video = catalogue.videos[catalogue.video_N[face]]
        store = catalogue.stores[video.dataset]
        plain = video.about.video.removeprefix(f"{video.dataset}/")
        crop = PurePosixPath(plain) / f"{catalogue.frame_N[face]:06d}_{catalogue.face_N[face]}.png"
        name = mask_name(str(crop))
        if not store.exists(name):
            return  # no original to compare with: nothing says that it is unchanged
        mask = cv2.imdecode(np.frombuffer(store.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is not None and mask.max() < _CHANGED:
            raise _Unchanged


class _Loading(torch.utils.data.Dataset[Batch | UnmaskError]):
    """For PyTorch's loader: whole batches by their keys, or why there is none (raised there, it would be a trace)."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, keys: list[Key]) -> Batch | UnmaskError:
        try:
            return self._samples.batch(keys)
        except UnmaskError as error:
            return error


def _alone(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def batches(
    samples: Samples, keys: Batches | list[list[Key]], *, workers: int, pinned: bool = False
) -> Iterator[Batch]:
    """Load batches ahead, in order.

    Args:
        samples: Makes them.
        keys: Of each batch.
        workers: Processes; 0 is a thread of this process.
        pinned: In page-locked memory, for a GPU.

    Raises:
        UsageError: Too many crops are damaged.
        TrainingError: A process that loads was killed.
    """
    if not workers:
        yield from prefetched((samples.batch(k) for k in keys), cost=lambda _: 1, limit=2)
        return
    loader = torch.utils.data.DataLoader(
        _Loading(samples),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_alone,
        multiprocessing_context="fork",
        prefetch_factor=4,
        # The loader draws a seed that nothing here uses: from the global generator it would be another one on resuming.
        generator=torch.Generator(),
    )
    for found in _alive(loader, workers):
        if isinstance(found, UnmaskError):
            raise found
        yield found


def _alive(loader: Iterable[Batch | UnmaskError], workers: int) -> Iterator[Batch | UnmaskError]:
    """What a loader gives, until one of its processes is lost."""
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not isinstance(error, RuntimeError):
            # A batch's memory is handed over by its process: where that was just killed, the connection breaks first.
            # PyTorch hears of it by a signal, and raises wherever this process is by then: here, and nowhere later.
            with contextlib.suppress(RuntimeError):
                time.sleep(_HEARD_WITHIN_S)
        elif "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a process that loads data was killed, most likely because the memory is used up: set "
            f"loop.loader_workers below {workers}, or loop.batch lower, and give the same command again"
        ) from error
