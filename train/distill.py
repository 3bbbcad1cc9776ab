"""Distillation: what one or several large models say of each crop, taught to a small one (Hinton et al. 2015).

The student sees what the teachers see: the crops, blends and augmentations of their own training, drawn anew. Besides
the labels it is given the teachers' probabilities, softened by a temperature; and, where that is asked for, which faces
of a batch the teachers find alike (similarity-preserving distillation, Tung & Mori 2019), which needs no features of
the same size.

Axes: B samples, T frames of a clip (1 for frames), M valid frames of a batch, H rows, W columns, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import DistillConfig, InputConfig, LossConfig, TrainConfig
from train.ensemble import Ensemble, Member
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.provenance import USED, has_digests
from unmask.transforms import Preprocessing, normalised

__all__ = ["Said", "Teachers", "distilled", "similarity", "soft_loss"]

_MASK = 3.0  # weight of finding what was blended in, as in the recipe selfblend


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What teachers say of a batch.

    Args:
        logits: (B,) of each, calibrated.
        features: (M, D) of each.
    """

    logits: list[Tensor]
    features: list[Tensor]


class Teachers:
    """The models that a student learns from. They stand still.

    Args:
        ensemble: The models and their weights.
        config: How much they count.
        student: What the student takes.
        clips: Whether it judges clips.
    """

    def __init__(self, ensemble: Ensemble, config: DistillConfig, student: Preprocessing, *, clips: bool) -> None:
        self.ensemble, self.config, self._clips = ensemble, config, clips
        for member in ensemble.members:
            _check(member, student, clips=clips)
            member.model.eval().requires_grad_(False)

    @classmethod
    def load(cls, config: TrainConfig, student: Preprocessing, device: torch.device) -> "Teachers":
        """Load the teachers of a run.

        Raises:
            ModelError: One cannot be had, or is no detector of faces in pictures.
            UsageError: One sees other crops than the student, or judges clips and the student does not.
        """
        ensemble = Ensemble.load(config.distill.teachers, device)
        for member in ensemble.members:
            if config.loop.channels_last:
                member.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(ensemble, config.distill, student, clips=config.model.takes_clips)

    @torch.no_grad()
    def __call__(self, pixels_BTHWC: Tensor, valid_BT: Tensor) -> Said:
        """What they say of a batch: uint8 (B, T, H, W, 3) on their device, and which frames are there."""
        found = [_told(member, pixels_BTHWC[valid_BT], valid_BT, clips=self._clips) for member in self.ensemble.members]
        return Said([logits for logits, _ in found], [features for _, features in found])

    def loss(self, hard: Tensor, logits_B: Tensor, features_MD: Tensor, said: Said) -> Tensor:
        """The loss of a batch: a share of the labels' own, and the teachers'.

        Args:
            hard: The labels'.
            logits_B: The student's.
            features_MD: The student's.
            said: The teachers'.
        """
        config = self.config
        weights = [member.weight for member in self.ensemble.members]
        loss = (1 - config.share) * hard + config.share * soft_loss(logits_B, said.logits, weights, config.temperature)
        if config.similarity:
            pairs = zip(weights, said.features, strict=True)
            likeness = torch.stack([w * similarity(features_MD, each) for w, each in pairs]).sum()
            loss = loss + config.similarity * likeness
        return loss

    def used(self) -> list[Mapping[str, Any]]:
        """Whom they were made from, as digests: the student knows them through them."""
        provenances = (member.description.provenance for member in self.ensemble.members)
        return [p[USED] for p in provenances if has_digests(p)]

    def to_json(self) -> list[dict[str, Any]]:
        """Who they are, for the student's provenance."""
        return [
            {"name": m.description.name, "sha256": m.description.sha256, "weight": m.weight}
            for m in self.ensemble.members
        ]


def soft_loss(logits_B: Tensor, teachers: Sequence[Tensor], weights: Sequence[float], temperature: float) -> Tensor:
    """Cross-entropy with the teachers' mean softened probability, scaled so that gradients do not fade with it.

    Args:
        logits_B: The student's.
        teachers: Logits (B,) of each teacher.
        weights: Their shares of 1.
        temperature: Divides all logits; above 1 it shows how sure the teachers are not.
    """
    pairs = zip(weights, teachers, strict=True)
    target_B = torch.stack([w * torch.sigmoid(logits.float() / temperature) for w, logits in pairs]).sum(0)
    return temperature**2 * F.binary_cross_entropy_with_logits(logits_B.float() / temperature, target_B)


def similarity(student_MD: Tensor, teacher_ME: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of a batch: 0 where both find the same faces alike."""
    student_MD, teacher_ME = (F.normalize(each.float(), dim=1) for each in (student_MD, teacher_ME))
    return F.mse_loss(student_MD @ student_MD.T, teacher_ME @ teacher_ME.T)


def _told(member: Member, pixels_MHWC: Tensor, valid_BT: Tensor, *, clips: bool) -> tuple[Tensor, Tensor]:
    """A teacher's calibrated logits (B,) and its features (M, D)."""
    model, preprocessing = member.model, member.description.preprocessing
    features_MD = model.features(normalised(_resized(pixels_MHWC, preprocessing), preprocessing)).float()
    calibration = member.description.calibration
    if model.is_temporal:
        features_BTD = features_MD.new_zeros((*valid_BT.shape, features_MD.shape[-1]))
        features_BTD = features_BTD.masked_scatter(valid_BT[..., None], features_MD)
        return model.clip_logits(features_BTD, valid_BT) / calibration.temperature + calibration.bias, features_MD
    logits_M = model.frame_logits(features_MD).float() / calibration.temperature + calibration.bias
    if not clips:
        return logits_M, features_MD
    # Of a clip, the mean of its frames' probabilities.
    probability_BT = torch.zeros(valid_BT.shape, device=valid_BT.device).masked_scatter(valid_BT, logits_M.sigmoid())
    return torch.logit(probability_BT.sum(1) / valid_BT.sum(1), eps=1e-6), features_MD


def _resized(pixels_MHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels of the student's size at the teacher's."""
    if pixels_MHWC.shape[1:3] == preprocessing.size_HW:
        return pixels_MHWC
    pixels_MCHW = pixels_MHWC.permute(0, 3, 1, 2).float()
    resized_MCHW = F.interpolate(pixels_MCHW, preprocessing.size_HW, mode="bilinear", antialias=True)
    return resized_MCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _check(member: Member, student: Preprocessing, *, clips: bool) -> None:
    member.description.check_detects()
    if member.model.is_temporal and not clips:
        raise UsageError(f"{member.given} judges clips and its student would not: set model.head=temporal")
    theirs = member.description.preprocessing
    for field in ("margin", "fit", "align"):
        wanted, given = getattr(theirs, field), getattr(student, field)
        if wanted != given and not (isinstance(wanted, float) and abs(wanted - given) < 0.01):
            raise UsageError(f"{member.given} takes crops with {field}={wanted} and its student {given}: make them one")


def distilled(config: TrainConfig, teachers: Sequence[str], student: str | None) -> TrainConfig:
    """A recipe of distillation, with what its first teacher says of itself: crops, data, augmentation.

    Args:
        config: The recipe.
        teachers: As the ensemble names them.
        student: A timm backbone; by default the recipe's own.

    Raises:
        UsageError: The first teacher was trained by no recipe of this version of Unmask.
        ModelError: It cannot be had, or is no detector of faces in pictures.
    """
    description = Ensemble.load(teachers[:1]).members[0].description
    description.check_detects()
    learnt = _learnt(description, teachers[0])
    finds = description.config.pyramid and learnt.data.draw == "selfblend"
    head = "frame" if description.config.head == "mobilenet" else description.config.head
    backbone = student or config.model.backbone
    model = replace(description.config, backbone=backbone, head=head, drop_path=0.0, pyramid=finds, stages=3)
    given = description.preprocessing
    return replace(
        config,
        model=model,
        input=InputConfig(size_px=given.size_HW[0], margin=given.margin, fit=given.fit, align=given.align),
        data=replace(learnt.data, cached_features=False),
        augment=replace(learnt.augment, compare=False),
        loss=LossConfig(kind="bce", mask=_MASK if finds else 0.0),
        distill=replace(config.distill, teachers=tuple(teachers)),
    )


def _learnt(description: Description, given: str) -> TrainConfig:
    try:
        return TrainConfig.from_json(description.provenance["config"])
    except (KeyError, UsageError) as error:
        raise UsageError(
            f"{given} does not say how it was trained ({error}): a teacher is a checkpoint that unmask train wrote"
        ) from None
