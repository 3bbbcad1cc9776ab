"""A sheet of augmented crops, for a person to look at."""

from pathlib import Path

import cv2
import numpy as np

from train.augment import BLENDS, contact_sheet, strategy
from train.catalogue import Catalogue
from train.config import TrainConfig
from train.crops import CropReader
from unmask.atomic import replacing
from unmask.errors import UsageError

__all__ = ["write_augmented"]

_FACES = 6


def write_augmented(config: TrainConfig, data: tuple[str, ...], path: Path) -> None:
    """Draw what the recipe's augmentation makes of some faces.

    Args:
        config: The recipe.
        data: Outputs of `unmask preprocess`.
        path: A PNG file.

    Raises:
        UsageError: The data cannot be read, or the file not written.
        StorageError: A crop is damaged.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--show-augment writes a PNG file; got {path}")
    catalogue = Catalogue.read(data)
    preprocessing = config.input.preprocessing(config.model.backbone)
    catalogue.check_covers(preprocessing)
    reader = CropReader(catalogue)
    rng = np.random.default_rng(0)
    videos = rng.permutation(len(catalogue.videos))[:_FACES]
    rows = [int(rng.integers(*catalogue.videos[v].rows.indices(len(catalogue))[:2])) for v in videos]
    pictures = [(catalogue.name_of(n), reader.picture(n, preprocessing)) for n in rows]
    blends = BLENDS[config.augment.blends] if config.data.draw == "selfblend" else None
    sheet = contact_sheet(pictures, strategy(config.augment.strategy, preprocessing.size_HW), blends=blends)
    ok, data_png = cv2.imencode(".png", sheet[..., ::-1])
    assert ok
    try:
        with replacing(path) as beside:
            beside.write_bytes(data_png.tobytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another place") from None
