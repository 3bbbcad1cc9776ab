"""Do heat maps show what a model looks at? A deletion test (Petsiuk et al. 2018, "RISE", for images of objects).

The pixels of a face that its map marks most are painted over with the face's mean colour, a share after the other, and
the drop of the logit is measured; so it is with pixels taken at random, and with the same map moved to a random place,
which takes away regions of the same shape. A map that is faithful makes the logit drop faster than both. The area is
the mean drop over all shares from 0 to 1, in logits; its interval is by drawing videos.

Axes: P probes, S shares, T frames of a clip (1 for models that judge frames), H rows, W columns, C = 3 channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.crops import CropReader
from train.ensemble import Member
from train.selection import Selection
from unmask.errors import StorageError
from unmask.explain import heatmaps, overlay
from unmask.intervals import draws, interval
from unmask.metrics import Measure
from unmask.models import ForgeryModel
from unmask.transforms import Preprocessing, resize, to_tensor

__all__ = ["KINDS", "SHARES", "Faithfulness", "Probe", "deletion_curves", "faithfulness", "probe_rows"]

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Shares of the pixels that are painted over."""
KINDS: Mapping[str, str] = {
    "map": "what the map marks most",
    "regions": "the same regions at a random place",
    "pixels": "random pixels",
}
"""What is painted over."""
_DRAWS = 3
_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One face with its map.

    Args:
        video: Its number in the catalogue.
        pts_s: When it was seen.
        logit: Of the face, or of the clip that ends with it.
        drops: Of each of `KINDS`, how far the logit fell at each of `SHARES`.
        crop_HWC: The face in the model's size, uint8 RGB.
        overlay_HWC: Under its map.
    """

    video: int
    pts_s: float
    logit: float
    drops: Mapping[str, NDArray[np.float64]]
    crop_HWC: NDArray[np.uint8]
    overlay_HWC: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Faithfulness:
    """What the test found.

    Args:
        model: Whose maps they are.
        probes: The faces.
        without_map: Faces in which nothing raised the logit: they have no map, and are not in the test.
        areas: Of each of `KINDS`, the mean drop of the logit over all shares.
        advantages: How much more the map's area is, in the same faces, than that of `regions` and of `pixels`.
    """

    model: str
    probes: tuple[Probe, ...]
    without_map: int
    areas: Mapping[str, Measure]
    advantages: Mapping[str, Measure]

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`; without the pictures."""
        return {
            "model": self.model,
            "faces": len(self.probes),
            "without_map": self.without_map,
            "shares": list(SHARES),
            "mean_drops": {k: self.mean_drops(k).tolist() for k in KINDS} if self.probes else {},
            "areas": {k: m.to_json() for k, m in self.areas.items()},
            "advantages": {k: m.to_json() for k, m in self.advantages.items()},
        }

    def mean_drops(self, kind: str) -> NDArray[np.float64]:
        """The mean over the faces, (S,)."""
        return np.asarray(np.mean([probe.drops[kind] for probe in self.probes], axis=0))


def probe_rows(
    rows_N: NDArray[np.int64], scores_N: NDArray[np.float64], selection: Selection, length: int
) -> list[int]:
    """The face of a video that scores highest, with those of its track before it: at most `length`, without a gap.

    Args:
        rows_N: The video's faces that were scored, in order of time.
        scores_N: What they scored.
        selection: What is evaluated.
        length: Frames of a clip; 1 for models that judge frames.
    """
    catalogue = selection.catalogue
    highest = int(np.argmax(scores_N))
    same = [
        row for row in rows_N[: highest + 1].tolist() if catalogue.track_N[row] == catalogue.track_N[rows_N[highest]]
    ]
    clip = same[-length:]
    gaps = [n for n, row in enumerate(clip) if n and catalogue.after_gap_N[row]]
    return clip[gaps[-1] :] if gaps else clip


def faithfulness(
    member: Member,
    reader: CropReader,
    probes: Sequence[tuple[int, Sequence[int]]],
    selection: Selection,
    *,
    resamples: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Faithfulness:
    """Run the test.

    Args:
        member: The model.
        reader: Of the crops.
        probes: Of each face, its video and the rows of its clip; see `probe_rows`.
        selection: What is evaluated.
        resamples: Draws of videos for the intervals.
        seed: Of all draws.
        progress: Told of each face.

    Raises:
        ModelError: The model's features form no grid.
    """
    found: list[Probe] = []
    empty = 0
    for n, (video, rows) in enumerate(probes):
        probe = _probe(member, reader, video, rows, float(selection.catalogue.pts_s_N[rows[-1]]), [seed, n])
        if probe is None:
            empty += 1
        else:
            found.append(probe)
        progress(1)
    areas = {kind: np.array([np.trapezoid(p.drops[kind], SHARES) for p in found]) for kind in KINDS}
    more = {kind: areas["map"] - areas[kind] for kind in KINDS if kind != "map"}
    return Faithfulness(
        model=member.name,
        probes=tuple(found),
        without_map=empty,
        areas={kind: _mean(area_P, resamples, seed) for kind, area_P in areas.items()},
        advantages={kind: _mean(more_P, resamples, seed) for kind, more_P in more.items()},
    )


def _probe(
    member: Member, reader: CropReader, video: int, rows: Sequence[int], pts_s: float, seed: list[int]
) -> Probe | None:
    preprocessing: Preprocessing = member.description.preprocessing
    try:
        crops = [resize(reader.picture(row, preprocessing).image_HWC, preprocessing) for row in rows]
    except StorageError:
        return None
    device = next(member.model.parameters()).device
    inputs_T3HW = to_tensor(crops, preprocessing, device)
    maps_THW = heatmaps(member.model, inputs_T3HW)
    if not maps_THW.any():
        return None
    logit, drops = deletion_curves(member.model, inputs_T3HW, maps_THW, seed)
    last_HW = np.asarray(maps_THW[-1].cpu().numpy(), np.float32)
    return Probe(video, pts_s, logit, drops, crops[-1], overlay(crops[-1], last_HW))


def deletion_curves(
    model: ForgeryModel, inputs_T3HW: Tensor, maps_THW: Tensor, seed: Sequence[int]
) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """How far the logit of a face or clip falls as its pixels are painted over.

    Args:
        model: In evaluation mode.
        inputs_T3HW: Normalised crops: one, or a clip.
        maps_THW: Their heat maps.
        seed: Of the random places.

    Returns:
        The logit of the whole, and of each of `KINDS` the drop at each of `SHARES`, float64 (S,); random ones are
        means over three draws.
    """
    rng = np.random.default_rng(seed)
    whole = _logits(model, inputs_T3HW[None])[0]
    ranks = {
        "map": [_rank(maps_THW, rng)],
        "regions": [_rank(_moved(maps_THW, rng), rng) for _ in range(_DRAWS)],
        "pixels": [_rank(torch.zeros_like(maps_THW), rng) for _ in range(_DRAWS)],
    }
    drops = {}
    for kind, several in ranks.items():
        curves = [_logits(model, torch.stack(list(_painted(inputs_T3HW, rank_THW)))) for rank_THW in several]
        drops[kind] = whole - np.mean(curves, axis=0)
    return float(whole), drops


def _rank(maps_THW: Tensor, rng: np.random.Generator) -> Tensor:
    """Each pixel's place in [0, 1), those that are marked most first; equal ones in random order."""
    chance_THW = torch.from_numpy(rng.random(maps_THW.shape, np.float32)).to(maps_THW.device)
    flat_TL, chance_TL = maps_THW.flatten(1), chance_THW.flatten(1)
    # Twice sorted: by chance, then stably by the map.
    order_TL = chance_TL.argsort(1)
    order_TL = order_TL.gather(1, flat_TL.gather(1, order_TL).sort(dim=1, descending=True, stable=True).indices)
    places_TL = torch.empty_like(flat_TL)
    steps_L = torch.arange(flat_TL.shape[1], device=flat_TL.device, dtype=flat_TL.dtype) / flat_TL.shape[1]
    places_TL.scatter_(1, order_TL, steps_L.expand_as(flat_TL).contiguous())
    return places_TL.view_as(maps_THW)


def _moved(maps_THW: Tensor, rng: np.random.Generator) -> Tensor:
    """The maps shifted round the picture, all frames alike."""
    height, width = maps_THW.shape[1:]
    shifts = (int(rng.integers(height)), int(rng.integers(width)))
    return torch.roll(maps_THW, shifts, (1, 2))


def _painted(inputs_T3HW: Tensor, rank_THW: Tensor) -> Iterator[Tensor]:
    """The inputs with each share of the pixels in the face's mean colour."""
    mean_T311 = inputs_T3HW.mean((2, 3), keepdim=True)
    for share in SHARES:
        yield torch.where((rank_THW < share)[:, None], mean_T311, inputs_T3HW)


def _logits(model: ForgeryModel, inputs_BT3HW: Tensor) -> NDArray[np.float64]:
    """Logits float64 (B,) of clips, or of single faces."""
    clips, length = inputs_BT3HW.shape[:2]
    with torch.inference_mode():
        pieces = torch.split(inputs_BT3HW.flatten(0, 1), _BATCH)
        features_BTD = torch.cat([model.features(piece).float() for piece in pieces]).view(clips, length, -1)
        if model.is_temporal:
            valid_BT = torch.ones(clips, length, dtype=torch.bool, device=features_BTD.device)
            logits_B = model.clip_logits(features_BTD, valid_BT)
        else:
            logits_B = model.frame_logits(features_BTD[:, -1])
    return logits_B.double().cpu().numpy()


def _mean(values_P: NDArray[np.float64], resamples: int, seed: int) -> Measure:
    """A mean over faces (one a video) with its interval."""
    if not len(values_P):
        return Measure(None, reason="no face has a map")
    at = Measure(float(values_P.mean()))
    if len(values_P) < 2:
        return Measure(at.value, reason="no interval: it takes two videos or more")
    drawn = [float(values_P @ c / len(values_P)) for c in draws(np.zeros(len(values_P)), resamples, seed)]
    return interval(at, drawn, resamples)
