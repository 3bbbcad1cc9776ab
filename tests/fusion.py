"""Eight people whose clips are trained on in RGB and depth, in small."""

from pathlib import Path

import torch

from tests.products import BOX, Clip, faked, finished_run
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden
from train.context import Context
from train.crops import CropReader
from train.fused_samples import FusedMaterial
from train.recipes import recipe
from unmask.storage import Store

__all__ = ["CPU", "HUGE", "LARGE", "SETTINGS", "SMALL", "configured", "eight_people", "made"]

CPU = torch.device("cpu")
SETTINGS = [
    "model.backbone=test_efficientnet", "heads=4", "layers=1", "hidden=16", "window=4", "pretrained=false",
    "size_px=32", "depth_px=56", "copies=1", "epochs=2", "batch=8", "loader_workers=0",
    "fractions=[0.5,0.25,0.25]", "lr=1e-3",
]  # fmt: skip
SMALL = (BOX[0], BOX[1], BOX[0] + 12, BOX[1] + 12)
HUGE = (20.0, 20.0, 300.0, 220.0)
LARGE = (BOX[0] - 8, BOX[1] - 8, BOX[2] + 8, BOX[3] + 8)


def eight_people(folder: Path) -> Path:
    """Each real and fake: six frames looked at, no face in the fourth, a larger face in the last."""
    faces = {0: [BOX], 4: [BOX], 8: [BOX], 16: [BOX], 20: [LARGE]}
    clips = []
    for n in range(8):
        about = {"identity": [f"p{n}"]}
        seen = {"faces": faces, "faceless": frozenset({12})}
        clips.append(Clip(video=f"real/{n}", columns={"label": 0, **about}, **seen))
        clips.append(Clip(video=f"fake/{n}", picture=faked, columns={"label": 1, **about}, **seen))
    finished_run(Store(folder), clips, per_shard=20, margin=1.3)
    return folder


def configured(depth: Path, *more: str) -> TrainConfig:
    """The recipe in small.

    Args:
        depth: A folder with depth weights.
        more: Further settings.
    """
    return overridden(recipe("ffpp-fusion"), [*SETTINGS, f"input.depth={depth}", *more])


def made(config: TrainConfig, data: Path, *, workers: int = 1) -> tuple[FusedMaterial, Catalogue]:
    """What gathers the clips, and all faces."""
    catalogue, context = Catalogue.read([str(data)]), Context(device=CPU, workers=workers)
    preprocessing = config.input.preprocessing(config.model.backbone)
    return FusedMaterial(catalogue, CropReader(catalogue), config, preprocessing, context), catalogue
