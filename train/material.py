"""What one model is trained on: the samples of its splits, made from preprocessed folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from train.augment import BLENDS, Strategy, strategy
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import TrainConfig
from train.context import Context
from train.crops import CropReader
from train.fused_samples import FusedMaterial
from train.kept import KeptFeatures
from train.samplers import Pool
from train.splits import Splits, splits_of
from unmask.errors import UsageError
from unmask.transforms import Preprocessing

__all__ = ["Material", "pool_of"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Material:
    """Everything that a run reads."""

    catalogue: Catalogue
    splits: Splits
    preprocessing: Preprocessing
    train: Samples
    val: Samples
    kept: KeptFeatures | FusedMaterial | None
    """Features in place of crops."""
    notes: tuple[str, ...] = ()
    """What a person should be told, in sentences."""

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        config: TrainConfig,
        *,
        seed: int,
        cache: Path | None = None,
        context: Context | None = None,
    ) -> "Material":
        """Gather it.

        Args:
            catalogue: All faces.
            config: The run's.
            seed: The run's.
            cache: A local folder for crops that lie in buckets.
            context: The worker's: features that are made are made on its device, and shared with the others. None is
                one process, with a GPU if there is one.

        Raises:
            UsageError: Splits that cannot be used, crops or features that do not fit the model.
        """
        preprocessing = config.input.preprocessing(config.model.backbone)
        splits = splits_of(catalogue, config, seed)
        if config.model.head == "fusion":
            context = context or Context(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            return _fused(catalogue, splits, config, preprocessing, context, seed=seed, cache=cache)
        kept = None
        if config.data.cached_features:
            kept = KeptFeatures.find(catalogue, config.model.backbone, preprocessing)
        else:
            catalogue.check_covers(preprocessing)
        reader = CropReader(catalogue, cache)
        blend = BLENDS[config.augment.blends] if config.data.draw == "selfblend" else None
        made = {
            name: Samples(
                catalogue,
                reader,
                pool_of(catalogue, videos, config, name),
                config,
                preprocessing,
                strategy=_strategy_of(config, preprocessing, trains=name == "train"),
                blend=blend,
                seed=seed if name == "train" else 0,
                features=None if kept is None else kept.features_ND,
            )
            for name, videos in (("train", splits.train), ("val", splits.val))
        }
        return cls(
            catalogue=catalogue,
            splits=splits,
            preprocessing=preprocessing,
            train=made["train"],
            val=made["val"],
            kept=kept,
        )


def _fused(
    catalogue: Catalogue,
    splits: Splits,
    config: TrainConfig,
    preprocessing: Preprocessing,
    context: Context,
    *,
    seed: int,
    cache: Path | None,
) -> Material:
    """Clips of RGB and depth. Copies are made of what is trained on alone, after the split."""
    catalogue.check_covers(preprocessing)
    fused = FusedMaterial(catalogue, CropReader(catalogue, cache), config, preprocessing, context)
    parts = {"train": (splits.train, config.data.copies, seed), "val": (splits.val, 0, 0)}
    pools = {name: pool_of(catalogue, videos, config, name) for name, (videos, _, _) in parts.items()}
    fused.share([(pools[name], copies) for name, (_, copies, _) in parts.items()])
    train, val = (
        fused.samples(pools[name], name, videos=len(videos), copies=copies, seed=own)
        for name, (videos, copies, own) in parts.items()
    )
    notes = (*fused.notes, str(fused.keeper.account))
    return Material(
        catalogue=catalogue, splits=splits, preprocessing=preprocessing, train=train, val=val, kept=fused, notes=notes
    )


def _strategy_of(config: TrainConfig, preprocessing: Preprocessing, *, trains: bool) -> Strategy | None:
    """What is done to crops. In validation nothing, but where training is for shared videos: they stay such."""
    name = config.augment.strategy
    if not trains:
        name = "video" if name == "selfblend-video" else "none"
    return None if name == "none" else strategy(name, preprocessing.size_HW)


def pool_of(catalogue: Catalogue, videos: Sequence[int], config: TrainConfig, name: str) -> Pool:
    """What samples of a split are drawn from.

    Raises:
        UsageError: It has no usable face.
    """
    clips = config.model.takes_clips
    pool = Pool.of(catalogue, videos, config.data, clips=clips, mos=config.model.task == "mos")
    if clips:
        pool = pool.on_main_tracks(catalogue)
    if not len(pool):
        raise UsageError(
            f"the split {name} has no usable face: all are smaller than data.min_face_px={config.data.min_face_px} or "
            "in damaged frames"
        )
    return pool
