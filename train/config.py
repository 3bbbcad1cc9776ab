"""What a training run shall do: checked, keyword-only, with a line of help under each field. Recipes return one.

Every field can be set by its path (`optim.lr=1e-4`), or by its last name where only one field is called so (`lr=1e-4`).
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from train.augment.selfblend import BLENDS
from train.augment.strategies import STRATEGIES
from train.values import MISFIT, fitted, typed
from unmask.depth import DEPTH_MODEL
from unmask.errors import UsageError
from unmask.models import ModelConfig
from unmask.transforms import Fit, Preprocessing

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DistillConfig",
    "InputConfig",
    "LoopConfig",
    "LossConfig",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "field_path",
    "overridden",
    "runs",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """What the model takes; see `unmask.transforms.Preprocessing`."""

    size_px: int | None = None
    """Side of the input; left open, what the backbone was trained with."""
    margin: float = 1.3
    """Side of the crop over side of the face's box."""
    fit: Fit = "square"
    """How the crop meets the input's proportions: stretch, square or pad."""
    align: bool = False
    """Turn the face upright by its landmarks."""
    depth: str = DEPTH_MODEL
    """Weights of the depth maps (fusion head): a name on the hub, a folder, or random."""
    depth_px: int = 518
    """Side of the depth network's input."""

    def preprocessing(self, backbone: str) -> Preprocessing:
        """The description that goes into the checkpoint."""
        size = {} if self.size_px is None else {"size_px": self.size_px}
        return Preprocessing.for_backbone(backbone, margin=self.margin, fit=self.fit, align=self.align, **size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which faces are trained on."""

    draw: Literal["all", "balanced", "pairs", "selfblend"] = "all"
    """How an epoch is drawn: all samples; all reals and as many fakes, anew each epoch (S2); each real with its fakes
    side by side; each real with a fake made from it on the fly."""
    faces: Literal["all", "largest"] = "all"
    """Which faces of a frame."""
    frames_per_video: int | None = None
    """At most so many frames of a video, spread evenly over those that were preprocessed."""
    clips_per_video: int = 1
    """Clips that an epoch takes of each video (temporal heads)."""
    clips_per_video_tested: int = 10
    """Clips whose mean is a video's output in validation (temporal heads)."""
    max_videos_per_class: int | None = None
    """At most so many videos of each class, drawn by the seed."""
    min_face_px: int = 32
    """Faces with a shorter side are left out."""
    only_changed: bool = False
    """Leave out fake faces whose difference mask shows no change (needs masks among the products)."""
    unlabelled: Literal["refuse", "real"] = "refuse"
    """What videos without a label are taken for."""
    split: Literal["auto", "official", "identity"] = "auto"
    """Who is trained on: `folds.parquet` where there is one, else the dataset's own split, else people dealt out by
    `fractions`; or one of the last two."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test where people are dealt out."""
    val_fold: int | None = None
    """Where `folds.parquet` has folds: the one to validate on; the others are trained on."""
    copies: int = 0
    """Augmented copies of each clip that is trained on, made once and kept (fusion head)."""
    cached_features: bool = False
    """Train the head alone, on the features that `preprocess --embed` kept (freeze=backbone, no augmentation)."""

    def __post_init__(self) -> None:
        for name in ("frames_per_video", "max_videos_per_class"):
            _at_least_one(f"data.{name}", getattr(self, name))
        if self.copies < 0:
            raise UsageError(f"data.copies is 0 or more; got {self.copies}")
        for name in ("clips_per_video", "clips_per_video_tested", "min_face_px"):
            _at_least_one(f"data.{name}", getattr(self, name))
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6 or not self.fractions[0]:
            raise UsageError(f"data.fractions are shares of train, val and test that sum to 1; got {self.fractions}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How crops are changed before they are trained on."""

    strategy: str = "none"
    """A system's: none, dfgc, celebdf, dfdc, fusion, selfblend, or selfblend-video, which then lowers the quality as
    shared videos do; see `unmask train --show-augment`."""
    compare: bool = False
    """Train without it too, and plot both histories (S1)."""
    blends: str = "paper"
    """Which self-blends are made: the paper's; mixed with single traces of generators; or video, which has hard
    negatives too, and traces that only clips show."""

    def __post_init__(self) -> None:
        if self.blends not in BLENDS:
            raise UsageError(f"augment.blends is one of {', '.join(BLENDS)}; got {self.blends!r}")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"augment.strategy is one of {', '.join(STRATEGIES)}; got {self.strategy!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    kind: Literal["bce", "per_class", "rmse"] = "bce"
    """Binary cross-entropy; the mean of the reals' and of the fakes' own mean of it (S2); root mean square error of
    opinion scores (S0)."""
    pos_weight: Literal["auto"] | float | None = None
    """Weight of fakes in `bce`; auto is reals over fakes (S1)."""
    label_smoothing: float = 0.0
    """Moves labels towards 1/2: 0.01 makes them 0.005 and 0.995."""
    alignment: float = 0.0
    """Weight of the alignment of features of one class (Wang & Isola 2020)."""
    uniformity: float = 0.0
    """Weight of the uniformity of all features on the sphere (Wang & Isola 2020)."""
    mask: float = 0.0
    """Weight of finding the region that was blended in (model.pyramid with self-blended images)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"loss.label_smoothing lies in [0, 1); got {self.label_smoothing}")
        if isinstance(self.pos_weight, float | int) and not (math.isfinite(self.pos_weight) and self.pos_weight > 0):
            raise UsageError(f"loss.pos_weight is auto, none or above 0; got {self.pos_weight}")
        if min(self.alignment, self.uniformity, self.mask) < 0:
            raise UsageError("loss.alignment, loss.uniformity and loss.mask are 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The optimiser and the schedule of its learning rate."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """SGD is Nesterov's with momentum 0.9."""
    lr: float = 1e-4
    """Learning rate at the start."""
    weight_decay: float = 0.0
    """L2 (decoupled in adamw)."""
    schedule: Literal["constant", "plateau", "cosine", "poly"] = "constant"
    """`plateau` falls by `factor` when validation has not improved for more than `patience` epochs; `cosine` and `poly`
    fall to 0 over all steps."""
    factor: float = 0.1
    """Of `plateau`."""
    patience: int = 2
    """Of `plateau`, in epochs."""
    power: float = 0.9
    """Of `poly`: lr (1 - step / steps) ^ power."""
    warmup_steps: int = 0
    """Optimiser steps in which the rate rises from 0 (cosine, poly, constant)."""
    clip_norm: float | None = None
    """Longest gradient; longer ones are scaled down."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0) or self.weight_decay < 0 or not 0 < self.factor < 1:
            raise UsageError(
                f"optim.lr is above 0, weight_decay 0 or more, factor in (0, 1); got {self.lr}, {self.weight_decay}, "
                f"{self.factor}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"optim.clip_norm is above 0 or none; got {self.clip_norm}")
        if min(self.warmup_steps, self.patience, self.power) < 0:
            raise UsageError("optim.warmup_steps, optim.patience and optim.power are 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long, how much at once, by what means."""

    epochs: int = 10
    """At most."""
    steps_per_epoch: int | None = None
    """Batches of an epoch on each worker; left open, as many as its samples fill."""
    batch: int = 32
    """Samples of a batch on each worker."""
    accumulate: int = 1
    """Batches whose gradients make one step of the optimiser."""
    freeze: Literal["none", "backbone", "layer_norm"] = "none"
    """What of the backbone stands still: nothing, all of it, all but its LayerNorms."""
    unfreeze_after: int | None = None
    """Epochs after which a frozen backbone is trained too."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the forward pass; auto: fp16 with a scaler on Volta and Turing, bf16 from Ampere on, fp32 on CPU."""
    sync_bn: bool = False
    """BatchNorm over all workers (on GPUs)."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """torch.compile the backbone."""
    checkpoint_activations: bool = False
    """Compute activations twice in place of keeping them: less memory, a third more time."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then validated and kept."""
    early_stopping: int | None = None
    """Epochs without a better validation after which training ends."""
    select: Literal["loss", "auc", "log_loss", "weighted_log_loss", "rmse", "plcc"] = "log_loss"
    """By what validation picks the best epoch. `weighted_log_loss` is (1.4 fakes' + reals') / 2 (S2)."""
    seeds: tuple[int, ...] = (0,)
    """A model is trained for each; several make an ensemble."""
    save_every_steps: int | None = None
    """Save the state every so many batches too, besides at every epoch's end."""
    loader_workers: int | None = None
    """Processes that load data for each worker; left open, by the machine's cores. 0 loads in the training process."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            _at_least_one(f"loop.{name}", getattr(self, name))
        for name in ("steps_per_epoch", "early_stopping", "save_every_steps", "unfreeze_after"):
            _at_least_one(f"loop.{name}", getattr(self, name))
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"loop.ema is a decay in (0, 1), or none; got {self.ema}")
        if self.loader_workers is not None and self.loader_workers < 0:
            raise UsageError(f"loop.loader_workers is 0 or more; got {self.loader_workers}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) >= 2**32:
            raise UsageError(f"loop.seeds are different numbers from 0, below 2^32; got {self.seeds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """What is learnt from other models; see `train.distill`."""

    teachers: tuple[str, ...] = ()
    """Checkpoints, or an ensemble.json; MODEL:WEIGHT weighs them."""
    temperature: float = 2.0
    """Divides the logits of teachers and student."""
    share: float = 0.7
    """Of the loss, what is the teachers'; the rest is the labels'."""
    similarity: float = 0.0
    """Weight of finding those faces alike which the teachers find alike."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"distill.temperature is above 0; got {self.temperature}")
        if not 0 <= self.share <= 1 or self.similarity < 0:
            raise UsageError(
                f"distill.share lies in [0, 1], and similarity is 0 or more; got {self.share} and {self.similarity}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Raises:
        UsageError: Fields that do not go together, or out of their range.
    """

    recipe: str
    """The recipe that it came from."""
    model: ModelConfig
    """The architecture."""
    pretrained: bool = True
    """Whether the backbone starts from timm's published weights."""
    weights: str | None = None
    """A file of weights to start from instead."""
    input: InputConfig = field(default_factory=InputConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        mos, cached = self.model.task == "mos", self.data.cached_features
        if mos != (self.loss.kind == "rmse") or mos != (self.loop.select in ("rmse", "plcc")):
            raise UsageError(
                "opinion scores go with model.task=mos, loss.kind=rmse and loop.select=rmse or plcc, detection with "
                f"none of them; got {self.model.task}, {self.loss.kind} and {self.loop.select}"
            )
        if mos and (self.data.draw != "all" or self.model.head != "temporal"):
            raise UsageError("model.task=mos takes model.head=temporal and data.draw=all")
        if self.model.head == "temporal" and self.data.draw in ("balanced", "pairs") and self.data.only_changed:
            raise UsageError("data.only_changed chooses frames, and model.head=temporal takes clips: leave it out")
        if cached and (self.loop.freeze != "backbone" or self.loop.unfreeze_after or self.augment.strategy != "none"):
            raise UsageError("data.cached_features needs loop.freeze=backbone, no unfreezing and augment.strategy=none")
        if cached and self.data.draw == "selfblend":
            raise UsageError("data.cached_features cannot go with data.draw=selfblend, which makes new pictures")
        if (self.data.draw == "selfblend") != (self.augment.strategy in ("selfblend", "selfblend-video")):
            raise UsageError("data.draw=selfblend and augment.strategy=selfblend or selfblend-video go together")
        if self.loss.mask and not (self.model.pyramid and self.data.draw == "selfblend"):
            raise UsageError("loss.mask above 0 needs model.pyramid=true and data.draw=selfblend")
        if self.model.pyramid and not self.loss.mask and self.loop.freeze != "backbone":
            raise UsageError("model.pyramid=true needs loss.mask above 0, or loop.freeze=backbone")
        if self.model.takes_clips and (self.loss.alignment or self.loss.uniformity):
            raise UsageError("loss.alignment and loss.uniformity are of frames, and this model.head takes clips")
        if self.loop.compile and self.model.pyramid:
            raise UsageError("loop.compile cannot go with model.pyramid")
        if self.loop.unfreeze_after and self.loop.freeze == "none":
            raise UsageError("loop.unfreeze_after needs loop.freeze=backbone or layer_norm")
        if self.distill.teachers and (mos or cached):
            raise UsageError("teachers take pictures and detect: leave out model.task=mos and data.cached_features")
        if self.model.head == "fusion":
            self._check_fusion()
        elif self.data.copies:
            raise UsageError("data.copies goes with model.head=fusion, whose features are kept")

    def _check_fusion(self) -> None:
        if self.loop.freeze != "backbone" or self.loop.unfreeze_after or self.data.cached_features or self.input.align:
            raise UsageError(
                "model.head=fusion keeps its own features: it needs loop.freeze=backbone, and no unfreezing, "
                "data.cached_features or input.align"
            )
        if self.data.draw not in ("all", "balanced") or self.data.only_changed or self.distill.teachers:
            raise UsageError("model.head=fusion takes data.draw=all or balanced, no data.only_changed and no teachers")
        if bool(self.data.copies) != (self.augment.strategy != "none"):
            raise UsageError(
                "model.head=fusion augments copies alone: set data.copies and augment.strategy, or neither"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "TrainConfig":
        """The configuration that `to_json` gave.

        Raises:
            UsageError: A field is missing, unknown, of another type or out of its range.
        """
        found = _built(cls, plain, "")
        assert isinstance(found, cls)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One model of those that a configuration asks for."""

    name: str
    """Of its folder: seed-0, or seed-0-plain for the one without augmentation."""
    seed: int
    config: TrainConfig


def runs(config: TrainConfig) -> list[Run]:
    """The models to train: one a seed, and one without augmentation beside it where they are compared."""
    found = []
    for seed in config.loop.seeds:
        found.append(Run(name=f"seed-{seed}", seed=seed, config=config))
        if config.augment.compare:
            plain = replace(config, augment=AugmentConfig())
            found.append(Run(name=f"seed-{seed}-plain", seed=seed, config=plain))
    return found


def overridden(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """A configuration with some fields set otherwise.

    Args:
        config: Where to start.
        assignments: Such as `optim.lr=1e-4`, `epochs=3`, `loop.seeds=[0,1]` or `clip_norm=none`.

    Raises:
        UsageError: No field, or more than one, is called that; a value is of another type or out of its range.
    """
    plain = config.to_json()
    kinds = dict(_leaves(TrainConfig))
    for assignment in assignments:
        name, mark, text = assignment.partition("=")
        if not mark:
            raise UsageError(f"--set takes key=value; got {assignment!r}")
        path = field_path(name.strip(), set(kinds))
        *groups, leaf = path.split(".")
        place = plain
        for group in groups:
            place = place[group]
        # "none" is the name of a choice, where a field has no other nothing.
        place[leaf] = text.strip() if fitted(_value(text.strip()), kinds[path]) is MISFIT else _value(text.strip())
    return TrainConfig.from_json(plain)


def field_path(name: str, paths: set[str]) -> str:
    """The path of the field that a user means.

    Args:
        name: A path, or its last part.
        paths: Of all fields.

    Raises:
        UsageError: None is called that, or several are.
    """
    if name in paths:
        return name
    ends = sorted(p for p in paths if p.rpartition(".")[2] == name)
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"--set {name} could be {' or '.join(ends)}; give the whole name")
    known = {**{p.rpartition(".")[2]: p for p in paths}, **{p: p for p in paths}}
    close = [known[n] for n in difflib.get_close_matches(name, known, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(dict.fromkeys(close))}?" if close else "see unmask train --recipe NAME --show"
    raise UsageError(f"--set {name}: no field is called that; {hint}")


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _leaves(group: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(group)
    for each in fields(group):
        kind = hints[each.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _leaves(kind, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, kind


def _built(group: type, plain: Any, prefix: str) -> Any:
    """An instance of a dataclass, with all values of the types that its fields say."""
    if not isinstance(plain, Mapping):
        raise UsageError(f"{prefix.rstrip('.') or 'a configuration'} is a group of fields; got {plain!r}")
    hints = get_type_hints(group)
    if unknown := sorted(set(plain) - set(hints)):
        raise UsageError(f"{prefix}{unknown[0]} is no field of a configuration of this version of Unmask")
    values = {}
    for name, value in plain.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            values[name] = _built(kind, value, f"{prefix}{name}.")
        else:
            values[name] = typed(value, kind, prefix + name)
    try:
        return group(**values)
    except TypeError as error:
        raise UsageError(f"{prefix.rstrip('.') or 'the configuration'} is incomplete ({error})") from None


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{name} is at least 1; got {value}")
