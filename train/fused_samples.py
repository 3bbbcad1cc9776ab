"""Clips of kept features for a fusion head: masks where a frame has no face or no depth map, batches always full.

Axes: T frames of a clip, E features of a frame, U units of a pool (a track and one of its copies), L faces of a track.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.catalogue import AskedFrames, Catalogue
from train.clips import Batch, Samples
from train.config import TrainConfig
from train.context import Context
from train.crops import CropReader
from train.extractor import REASONS, Clip, Extractor
from train.keeper import Keeper, Unit
from train.samplers import Batches, Key, Pool, epoch_plan
from unmask.depth import DepthEstimator
from unmask.errors import UsageError
from unmask.models import ForgeryModel, build
from unmask.transforms import Preprocessing

__all__ = ["FusedMaterial", "FusedSamples", "Track"]

_WINDOWS = 0.5  # share of the clips of training that are windows as scoring has them


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A unit's frames as the model takes them.

    Args:
        features_PE: float16 (P, E): a place for each frame that was asked for, from the track's first face to its last.
        valid_P: bool (P,).
        face: The first face, by number in the catalogue.
        masked: Why places are masked, and how many.
    """

    features_PE: NDArray[np.float16]
    valid_P: NDArray[np.bool_]
    face: int
    masked: Mapping[str, int]

    @classmethod
    def of(
        cls,
        rows_L: NDArray[np.int64],
        clip: Clip,
        frame_L: NDArray[np.int32],
        why_not_L: Sequence[str | None],
        asked: AskedFrames,
    ) -> "Track":
        """Spread the faces of a track over the frames that were asked for.

        Args:
            rows_L: The faces, by number in the catalogue.
            clip: Their features.
            frame_L: The frames they are in.
            why_not_L: Why the configuration leaves one of them out; None where it takes it.
            asked: All frames of the video.
        """
        place_L = asked.places_of(frame_L)
        first, last = int(place_L[0]), int(place_L[-1])
        features_PE = np.zeros((last - first + 1, clip.features_LE.shape[1]), np.float16)
        valid_P = np.zeros(len(features_PE), np.bool_)
        why_L = [why or REASONS.get(int(state)) for why, state in zip(why_not_L, clip.state_L, strict=True)]
        good_L = np.array([why is None for why in why_L], np.bool_)
        features_PE[place_L[good_L] - first], valid_P[place_L[good_L] - first] = clip.features_LE[good_L], True
        seen = set(place_L.tolist())
        holes = [asked.reasons.get(place, "no_face") for place in range(first, last + 1) if place not in seen]
        return cls(features_PE, valid_P, int(rows_L[0]), Counter([why for why in why_L if why] + holes))


class FusedSamples(Samples):
    """Samples of kept features.

    Args:
        catalogue: All faces.
        reader: Their crops.
        pool: One unit for each track and copy that has a valid frame.
        config: Of the run.
        preprocessing: The model's.
        tracks: Of each unit.
        seed: Of all random numbers.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        reader: CropReader,
        pool: Pool,
        config: TrainConfig,
        preprocessing: Preprocessing,
        tracks: Sequence[Track],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(catalogue, reader, pool, config, preprocessing, seed=seed)
        self.tracks = tracks

    def clip(self, key: Key) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """At most T places of a track in a row, at least one of them valid: features (T, E), and valid (T,).

        In validation it is a window as scoring has it (`unmask.window.MaskedWindow`): it ends with a face, and is
        shorter at the track's beginning, which is its first valid place. In training half of the clips are; the others
        begin anywhere.
        """
        track, length = self.tracks[key.unit], self.length
        valid = np.flatnonzero(track.valid_P)
        begin = int(valid[0])
        rng = np.random.default_rng([self.seed, key.epoch + 1, key.position])
        if key.epoch < 0 or rng.random() < _WINDOWS:
            stop = int(rng.choice(valid)) + 1
            part = slice(max(stop - length, begin), stop)
        else:
            starts = range(begin, max(len(track.valid_P) - length, begin) + 1)
            start = int(rng.choice([n for n in starts if track.valid_P[n : n + length].any()]))
            part = slice(start, start + length)
        features_TE = np.zeros((length, track.features_PE.shape[1]), np.float16)
        valid_T = np.zeros(length, np.bool_)
        count = len(track.valid_P[part])
        features_TE[:count], valid_T[:count] = track.features_PE[part], track.valid_P[part]
        return features_TE, valid_T

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The batch of some keys."""
        clips = [self.clip(key) for key in keys]
        units = [key.unit for key in keys]
        return Batch(
            pixels=torch.from_numpy(np.stack([features for features, _ in clips])),
            valid_BT=torch.from_numpy(np.stack([valid for _, valid in clips])),
            label_B=torch.from_numpy(self.pool.label_U[units]),
            unit_B=torch.tensor(units),
            mask=None,
            faces=tuple(self.tracks[unit].face for unit in units),
            substituted=0,
            unchanged=0,
        )


class FusedMaterial:
    """Gathers the clips of a run, and says what became of them.

    Args:
        catalogue: All faces.
        reader: Their crops.
        config: Of the run.
        preprocessing: The model's.
        context: The worker's, on whose device features are made.

    Raises:
        UsageError: The extra `depth` is not installed.
        ModelError: The weights of the backbone or of the depth network cannot be had.

    Attributes:
        report: What became of each split's clips, as JSON can say it.
        notes: What a person should be told, in sentences.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        reader: CropReader,
        config: TrainConfig,
        preprocessing: Preprocessing,
        context: Context,
    ) -> None:
        self._catalogue, self._reader, self._config, self._preprocessing = catalogue, reader, config, preprocessing
        self._context, device = context, context.device
        weights = Path(config.weights) if config.weights else None
        self.model = build(config.model, pretrained=config.pretrained and not weights, weights=weights).to(device)
        depth = DepthEstimator.load(config.input.depth, device=device, size_px=config.input.depth_px)
        extractor = Extractor(self.model, preprocessing, depth)
        self.keeper = Keeper(catalogue, reader, extractor, config.augment.strategy)
        self.report: dict[str, Any] = {}
        self.notes: list[str] = []

    def share(self, pools: Sequence[tuple[Pool, int]]) -> None:
        """Make what is missing of the features of some pools, each with its number of copies, among all workers.

        Raises:
            StorageError: Features cannot be read or written.
            RuntimeError: Another worker was lost.
        """
        units = [
            self._unit(pool, n, copy) for pool, copies in pools for n in range(len(pool)) for copy in range(copies + 1)
        ]
        self.keeper.share(units, self._context)

    def _unit(self, pool: Pool, unit: int, copy: int) -> Unit:
        return Unit(int(pool.video_U[unit]), int(self._catalogue.track_N[pool.faces[unit][0]]), copy)

    def samples(self, pool: Pool, name: str, *, videos: int, copies: int, seed: int) -> FusedSamples:
        """The samples of one split.

        Args:
            pool: Its videos' main tracks.
            name: Of the split.
            videos: How many it has, with those that gave no usable face.
            copies: Augmented ones of each track, beside the track itself.
            seed: Of all random numbers.

        Raises:
            UsageError: No clip has a valid frame.
            StorageError: Features cannot be read or written.
        """
        frames, masked = 0, Counter[str]()
        left_out: dict[str, Mapping[str, int]] = {}
        units: list[tuple[int, Track]] = []
        for unit in range(len(pool)):
            for copy in range(copies + 1):
                track = self._track(pool, unit, copy)
                frames += len(track.valid_P)
                masked.update(track.masked)
                if track.valid_P.any():
                    units.append((unit, track))
                else:
                    left_out[f"{self._catalogue.videos[pool.video_U[unit]].key} copy {copy}"] = track.masked
        if left_out:
            many = f"{len(left_out):,} clips of {name} are" if len(left_out) > 1 else f"a clip of {name} is"
            first, its = next(iter(left_out.items()))
            self.notes.append(f"{many} left out, such as {first}: every frame of it is masked ({_counts(its)})")
        if not units:
            raise UsageError(f"no clip of the split {name} has a frame with a depth map ({_counts(masked)})")
        numbers = [unit for unit, _ in units]
        kept = Pool([pool.faces[n] for n in numbers], pool.video_U[numbers], pool.label_U[numbers])
        self.report[name] = {
            "videos": videos,
            "videos_without_usable_face": videos - len(np.unique(pool.video_U)),
            "clips": len(units),
            "clips_left_out": left_out,
            # Of all clips, also of those left out: what is not masked is what there is to learn from.
            "frames": frames,
            "frames_masked": masked,
            "clips_filled": self._filled(kept, seed) if name == "train" else 0,
        }
        tracks = [track for _, track in units]
        return FusedSamples(self._catalogue, self._reader, kept, self._config, self._preprocessing, tracks, seed=seed)

    def _filled(self, pool: Pool, seed: int) -> int:
        """How many samples of an epoch are there a second time, so that its last batch is as large as the others."""
        plan = epoch_plan(pool, self._catalogue, self._config.data, seed=seed, epoch=0)
        loop, workers = self._config.loop, self._context.workers
        steps = Batches(plan, loop.batch, workers=workers, steps=loop.steps_per_epoch).steps
        return max(steps * loop.batch * workers - len(plan), 0)

    def _track(self, pool: Pool, unit: int, copy: int) -> Track:
        rows_N = pool.faces[unit]
        rows_L, clip = self.keeper.track(*self._unit(pool, unit, copy))
        catalogue, data = self._catalogue, self._config.data
        # A larger face beside it picks another main track, or none of this one's frames: evaluation sees them all.
        taken = set((rows_L if data.frames_per_video is None else rows_N).tolist())
        why_not_L = [
            "face_too_small" if side < data.min_face_px else None if row in taken else "not_taken"
            for row, side in zip(rows_L.tolist(), catalogue.side_px_N(rows_L).tolist(), strict=True)
        ]
        asked = catalogue.videos[pool.video_U[unit]].asked
        return Track.of(rows_L, clip, catalogue.frame_N[rows_L], why_not_L, asked)

    def told(self) -> dict[str, Any]:
        """The report: what was masked, left out and filled, and what keeping the features came to."""
        return {
            "videos_without_face": Counter(video.reason for video in self._catalogue.faceless),
            **self.report,
            "kept_features": self.keeper.account.to_json(),
        }

    def start(self, model: ForgeryModel) -> None:
        """Give a model the backbone that the features came from."""
        model.backbone.load_state_dict(self.model.backbone.state_dict())


def _counts(masked: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in sorted(masked.items())) or "none"
