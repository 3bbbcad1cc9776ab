"""Features of RGB and depth for an evaluation: those of training, kept, for all faces of the videos.

Axes: N faces of a video, L of a track.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.catalogue import Catalogue
from train.config import TrainConfig
from train.crops import CropReader
from train.embedding import Embedded
from train.ensemble import Member
from train.extractor import GOOD, NO_DEPTH, Extractor
from train.keeper import Keeper
from unmask.console import say
from unmask.depth import DepthEstimator, is_published
from unmask.errors import UsageError

__all__ = ["fused"]


def fused(
    member: Member,
    catalogue: Catalogue,
    reader: CropReader,
    videos: Sequence[NDArray[np.int64]],
    *,
    depth: str | None = None,
    changed: bool,
) -> Iterator[Embedded]:
    """As `train.embedding.embedded`, for a model with a fusion head: features of RGB and depth, kept.

    Args:
        member: The model.
        catalogue: All faces.
        reader: Of the crops.
        videos: Of each video, the numbers of its faces, in order of time.
        depth: Weights of the depth maps, as `DepthEstimator.load` takes them; by default those on the hub that the
            model says it was trained with.
        changed: Whether somebody wants the crops perturbed.

    Raises:
        UsageError: So it is; or the model does not say which depth maps it was trained on, or they lay in a folder and
            none is given.
        ModelError: The depth weights cannot be had, or are others now.
    """
    if changed:
        raise UsageError(f"{member.name} takes depth maps, which are kept for clean crops: leave out --robustness")
    estimator = _depth_of(member, depth)
    keeper = Keeper(catalogue, reader, Extractor(member.model, member.description.preprocessing, estimator))
    for rows_N in videos:
        features_NE = np.full((len(rows_N), member.model.frame_dim), np.nan, np.float32)
        whole_N, failed = np.zeros(len(rows_N), np.bool_), set[int]()
        for track in np.unique(catalogue.track_N[rows_N]).tolist():
            rows_L, clip = keeper.track(int(catalogue.video_N[rows_N[0]]), track)
            place = {int(row): n for n, row in enumerate(rows_L) if clip.state_L[n] == GOOD}
            failed.update(rows_L[clip.state_L == NO_DEPTH].tolist())
            for n, row in enumerate(rows_N.tolist()):
                if row in place:
                    features_NE[n], whole_N[n] = clip.features_LE[place[row]], True
        yield Embedded(rows_N, features_NE, whole_N, frozenset(failed.intersection(rows_N.tolist())))
    say(str(keeper.account))


def _depth_of(member: Member, given: str | None) -> DepthEstimator:
    provenance = member.description.provenance
    try:
        config, wanted = TrainConfig.from_json(provenance["config"]), provenance["depth"]["sha256"]
    except (KeyError, TypeError, UsageError) as error:
        raise UsageError(f"{member.given} does not say which depth maps it was trained on ({error})") from None
    name = config.input.depth if given is None else given
    if given is None and not is_published(name):
        raise UsageError(
            f"{member.given} was trained with depth weights of a folder called {Path(name).name}: give --depth-weights "
            "DIR, the folder that holds them"
        )
    depth = DepthEstimator.load(name, device=next(member.model.parameters()).device, size_px=config.input.depth_px)
    if depth.sha256 != wanted:
        raise UsageError(
            f"the depth weights {depth.name} are others than {member.given} was trained with: give --depth-weights "
            "NAME_OR_DIR, those that it was trained with"
        )
    return depth
