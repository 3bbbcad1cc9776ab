"""Recipes: functions that return a checked configuration. Each says what it reproduces, and where it differs.

Where a system's description and its code disagree, what is right was built; see each recipe's text.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from train.config import AugmentConfig, DataConfig, InputConfig, LoopConfig, LossConfig, OptimConfig, TrainConfig
from unmask.errors import UsageError
from unmask.models import ModelConfig
from unmask.transforms import MARGINS

__all__ = [
    "RECIPES",
    "celebdf_mobilenet",
    "dfdc_b5",
    "dfdc_b7",
    "dfgc_convnext",
    "dfgc_eva",
    "distill",
    "ffpp_fusion",
    "ln_tune",
    "recipe",
    "selfblend",
    "selfblend_clips",
    "selfblend_video",
]


def dfgc_convnext() -> TrainConfig:
    """Opinion scores of fakes (DFGC-VRA 2023): ConvNeXt-XL on five-frame clips, mean and std head, RMSE.

    The published system splits by video; here people are kept apart where the dataset tells who they are. Clips that
    are too short are masked, not padded. A DFGC-2022 winner's weights go in by `--set weights=FILE`.
    """
    return _dfgc("dfgc-convnext", "convnext_xlarge.fb_in22k_ft_in1k_384")


def dfgc_eva() -> TrainConfig:
    """The second model of the DFGC-VRA 2023 blend (0.75 ConvNeXt + 0.25 EVA): EVA-L at 336 px, otherwise the same."""
    return _dfgc("dfgc-eva", "eva_large_patch14_336.in22k_ft_in22k_in1k")


def _dfgc(name: str, backbone: str) -> TrainConfig:
    return TrainConfig(
        recipe=name,
        model=ModelConfig(backbone=backbone, head="temporal", dropout=0.1, window=5, task="mos"),
        input=InputConfig(margin=MARGINS["dfgc"], fit="stretch"),
        data=DataConfig(faces="largest", fractions=(0.7, 0.1, 0.2)),
        augment=AugmentConfig(strategy="dfgc"),
        loss=LossConfig(kind="rmse"),
        optim=OptimConfig(name="adamw", lr=2e-5, weight_decay=0.01, schedule="plateau", factor=0.1, patience=2),
        loop=LoopConfig(epochs=50, batch=2, accumulate=8, early_stopping=4, select="rmse", checkpoint_activations=True),
    )


def celebdf_mobilenet() -> TrainConfig:
    """MobileNetV3-Small on Celeb-DF: largest face, 10 frames a video, weighted BCE, with and without augmentation.

    The published split is by video and leaks people; here it is by people where the dataset tells. The backbone is
    frozen for the first epochs, then trained too.
    """
    return TrainConfig(
        recipe="celebdf-mobilenet",
        model=ModelConfig(backbone="mobilenetv3_small_100", head="mobilenet", dropout=0.2),
        input=InputConfig(size_px=224, margin=MARGINS["none"], fit="stretch"),
        data=DataConfig(faces="largest", frames_per_video=10, max_videos_per_class=100, fractions=(0.7, 0.1, 0.2)),
        augment=AugmentConfig(strategy="celebdf", compare=True),
        loss=LossConfig(kind="bce", pos_weight="auto"),
        optim=OptimConfig(name="adam", lr=1e-4, weight_decay=1e-5),
        loop=LoopConfig(epochs=10, batch=32, freeze="backbone", unfreeze_after=2, select="auc"),
    )


def dfdc_b7() -> TrainConfig:
    """The winner of the DFDC challenge: EfficientNet-B7 at 380 px, frame by frame, five seeds.

    Mean of the fakes' and the reals' own loss, fakes drawn anew each epoch, all augmentations and cutouts, poly
    schedule, SyncBN, the epoch picked by (1.4 fake + real) / 2 log loss.
    """
    return _dfdc("dfdc-b7", "tf_efficientnet_b7.ns_jft_in1k", batch=12)


def dfdc_b5() -> TrainConfig:
    """The smaller sibling of `dfdc-b7`: EfficientNet-B5, otherwise the same."""
    return _dfdc("dfdc-b5", "tf_efficientnet_b5.ns_jft_in1k", batch=20)


def _dfdc(name: str, backbone: str, *, batch: int) -> TrainConfig:
    return TrainConfig(
        recipe=name,
        model=ModelConfig(backbone=backbone, drop_path=0.2),
        input=InputConfig(size_px=380, margin=MARGINS["third"], fit="pad"),
        data=DataConfig(draw="balanced"),
        augment=AugmentConfig(strategy="dfdc"),
        loss=LossConfig(kind="per_class", label_smoothing=0.01),
        optim=OptimConfig(name="sgd", lr=0.01, weight_decay=1e-4, schedule="poly", power=0.9, clip_norm=1.0),
        loop=LoopConfig(
            epochs=40,
            steps_per_epoch=2500,
            batch=batch,
            sync_bn=True,
            channels_last=True,
            select="weighted_log_loss",
            seeds=(0, 1, 2, 3, 4),
        ),
    )


def selfblend() -> TrainConfig:
    """Self-blended images (Shiohara & Yamasaki 2022): fakes made on the fly, from real faces alone.

    Any folder of real faces trains a detector. The paper's network is a pretrained EfficientNet-B4 at 380 px with SAM;
    here a pretrained EfficientNet-Lite0 with a feature pyramid at 224 px, which is also asked where the face was
    blended: it learns on a CPU within an hour. Others by `--set model.backbone=...`. Two thirds of the fakes have a
    single trace of a generator instead of the paper's; `--set blends=paper` leaves those out.
    """
    return TrainConfig(
        recipe="selfblend",
        model=ModelConfig(backbone="tf_efficientnet_lite0", dropout=0.2, pyramid=True),
        input=InputConfig(size_px=224, margin=1.3, fit="square"),
        data=DataConfig(draw="selfblend", faces="largest", unlabelled="real"),
        augment=AugmentConfig(strategy="selfblend", blends="mixed"),
        loss=LossConfig(mask=3.0),
        optim=OptimConfig(name="adamw", lr=7e-4, weight_decay=0.05, schedule="cosine", warmup_steps=100, clip_norm=1.0),
        loop=LoopConfig(epochs=50, batch=16, ema=0.995, channels_last=True, select="auc"),
    )


def selfblend_video() -> TrainConfig:
    """`selfblend` for shared videos: filmed, scaled down, noisy, encoded as H.264; hard negatives among the reals.

    It goes on from what `selfblend` made (`--set weights=FILE`): learnt from the beginning under compression, the same
    takes three times as long. `selfblend-clips` takes its weights in turn.
    """
    plain = selfblend()
    return replace(
        plain,
        recipe="selfblend-video",
        augment=replace(plain.augment, strategy="selfblend-video", blends="video"),
        optim=replace(plain.optim, lr=5e-4),
        loop=replace(plain.loop, epochs=32),
    )


def selfblend_clips() -> TrainConfig:
    """A temporal head on a backbone of `selfblend-video`: clips of 8 frames; photographs are filmed.

    The backbone stands still; give it by `--set weights=FILE`. Fakes tremble, flicker or freeze in time, as those do
    that are made frame by frame; real clips have the motion of people and cameras.
    """
    frames = selfblend_video()
    return replace(
        frames,
        recipe="selfblend-clips",
        model=replace(frames.model, head="temporal", dropout=0.1, window=8),
        loss=LossConfig(),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.01, schedule="cosine", warmup_steps=20, clip_norm=1.0),
        loop=LoopConfig(epochs=5, batch=8, freeze="backbone", channels_last=True, select="auc"),
    )


def ln_tune() -> TrainConfig:
    """LayerNorm tuning of a large ViT (Yermakov et al. 2025): 0.03% of the weights, features of unit length.

    CLIP ViT-L/14; real and fake of the same source side by side in a batch. Alignment and uniformity of features are
    optional: `--set loss.alignment=0.1 --set loss.uniformity=0.5`.
    """
    return TrainConfig(
        recipe="ln-tune",
        model=ModelConfig(backbone="vit_large_patch14_clip_224.openai", head="l2"),
        input=InputConfig(margin=1.3, fit="square", align=True),
        data=DataConfig(draw="pairs", frames_per_video=32),
        optim=OptimConfig(name="adam", lr=8e-5, schedule="cosine", warmup_steps=0),
        loop=LoopConfig(epochs=10, batch=64, freeze="layer_norm", select="auc"),
    )


def ffpp_fusion() -> TrainConfig:
    """RGB and depth with cross-attention on FaceForensics++ (S4): kept RepViT features of clips of 20 frames.

    The published split comes after the copies, which leaks; here copies are made of what is trained on alone. Faces
    are found by MTCNN. Backbone and depth network stand still: the first epoch pays for them, the others do not.
    Ablations: `--set model.fusion.streams=rgb`, `model.fusion.cross=none`, `model.fusion.residuals=false`.
    """
    return TrainConfig(
        recipe="ffpp-fusion",
        model=ModelConfig(backbone="repvit_m0_9.dist_450e_in1k", head="fusion", dropout=0.1, window=20),
        input=InputConfig(size_px=224, margin=1.0, fit="stretch"),
        data=DataConfig(faces="largest", copies=3, fractions=(0.7, 0.2, 0.1)),
        augment=AugmentConfig(strategy="fusion"),
        optim=OptimConfig(name="adam", lr=1e-4, clip_norm=1.0),
        loop=LoopConfig(epochs=15, batch=128, freeze="backbone", select="auc"),
    )


def distill() -> TrainConfig:
    """A small student of large models (Hinton et al. 2015): `--teacher CKPT[,CKPT...] --student NAME`.

    Crops, data, augmentation and head are those of the first teacher; a teacher with a pyramid has a student with one.
    Seven tenths of the loss are the teachers' softened probabilities. `--set distill.similarity=1` also teaches which
    faces look alike.
    """
    return TrainConfig(
        recipe="distill",
        model=ModelConfig(backbone="mobilenetv3_small_100"),
        optim=OptimConfig(name="adamw", lr=7e-4, weight_decay=0.05, schedule="cosine", warmup_steps=100, clip_norm=1.0),
        loop=LoopConfig(epochs=50, batch=16, ema=0.995, channels_last=True, select="auc"),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = MappingProxyType(
    {
        "dfgc-convnext": dfgc_convnext,
        "dfgc-eva": dfgc_eva,
        "celebdf-mobilenet": celebdf_mobilenet,
        "dfdc-b7": dfdc_b7,
        "dfdc-b5": dfdc_b5,
        "selfblend": selfblend,
        "selfblend-video": selfblend_video,
        "selfblend-clips": selfblend_clips,
        "ln-tune": ln_tune,
        "ffpp-fusion": ffpp_fusion,
        "distill": distill,
    }
)
"""By name."""


def recipe(name: str) -> TrainConfig:
    """The configuration of a recipe.

    Raises:
        UsageError: None is called that.
    """
    if name not in RECIPES:
        raise UsageError(f"--recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
