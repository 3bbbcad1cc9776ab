"""The deletion test tells a map that shows what a model reads from one that does not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.evaluated import PREPROCESSING, checkpoint, fitted_model, folder, lit, person_clip
from tests.products import BOX, Clip, faked
from train.catalogue import Catalogue
from train.crops import CropReader
from train.ensemble import Ensemble
from train.faithfulness import KINDS, SHARES, deletion_curves, faithfulness, probe_rows
from train.selection import Selection, select
from unmask.explain import heatmaps
from unmask.models import ForgeryModel, ModelConfig, build


class Corner(nn.Module):
    """Reads the upper left quarter of a picture alone: its mean brightness, on a grid of 4 x 4."""

    num_features = 1

    def forward_features(self, x_N3HW: Tensor) -> Tensor:
        grid_N144 = nn.functional.adaptive_avg_pool2d(x_N3HW.mean(1, keepdim=True), 4)
        kept = torch.zeros(4, 4)
        kept[:2, :2] = 1
        return grid_N144 * kept

    def forward(self, x_N3HW: Tensor) -> Tensor:
        return self.forward_features(x_N3HW).mean((2, 3))


def corner_model(head: str = "frame") -> ForgeryModel:
    config = ModelConfig(backbone="mobilenetv3_small_050", head=head, window=3)  # type: ignore[arg-type]
    model = ForgeryModel(config, Corner(), 1).eval()
    if head == "frame":
        model.head.fc.weight.data.fill_(40.0)  # type: ignore[union-attr]
        model.head.fc.bias.data.zero_()  # type: ignore[union-attr]
    return model


def bright_corner(length: int = 1) -> Tensor:
    inputs = torch.randn(length, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    inputs[..., :32, :32] += 1.0
    return inputs


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return Ensemble.load([str(checkpoint(tmp_path_factory.mktemp("m") / "m.safetensors", fitted_model()))])


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    two = Clip(
        video="two", picture=lit(faked, 9), columns={"label": 1}, corrupt=frozenset({8}),
        faces={f: [BOX, (20.0, 80.0, 60.0, 130.0)] for f in (0, 4, 8, 12, 16)},
    )  # fmt: skip
    place = folder(tmp_path_factory.mktemp("d") / "set", [*(person_clip(n, n % 2) for n in range(4)), two])
    return select(Catalogue.read([str(place)]), "all", Ensemble(()))


def test_a_faithful_map_beats_random_places_and_a_false_one_does_not() -> None:
    model, inputs = corner_model(), bright_corner()
    true = heatmaps(model, inputs)
    assert true[0, :32, :32].mean() > 10 * true[0, 40:, 40:].mean()
    logit, drops = deletion_curves(model, inputs, true, [0])
    with torch.inference_mode():
        assert logit == pytest.approx(float(model.frame_logits(model.features(inputs))), rel=1e-5)
    areas = {kind: np.trapezoid(drop, SHARES) for kind, drop in drops.items()}
    assert areas["map"] > areas["regions"] + 1
    assert areas["map"] > areas["pixels"] + 1
    false = torch.flip(true, (1, 2))  # marks the corner that is never read
    _, misled = deletion_curves(model, inputs, false, [0])
    assert np.trapezoid(misled["map"], SHARES) < areas["pixels"]
    assert set(drops) == set(KINDS)


def test_curves_begin_and_end_where_they_must() -> None:
    model, inputs = corner_model(), bright_corner()
    _, drops = deletion_curves(model, inputs, heatmaps(model, inputs), [1])
    grey = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
    with torch.inference_mode():
        all_gone = float(model.frame_logits(model.features(inputs)) - model.frame_logits(model.features(grey)))
    for drop in drops.values():
        assert drop.shape == (len(SHARES),)
        assert drop[0] == 0.0
        assert drop[-1] == pytest.approx(all_gone, rel=1e-4)
    # A quarter of the pixels is all that is read: when it is gone, so is what it adds.
    assert drops["map"][SHARES.index(0.3)] == pytest.approx(all_gone, rel=0.2)
    assert drops["pixels"][SHARES.index(0.5)] == pytest.approx(all_gone / 2, rel=0.1)


def test_clips_are_painted_over_in_all_their_frames() -> None:
    model = build(ModelConfig(backbone="mobilenetv3_small_050", head="temporal", window=3))
    inputs = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logit, drops = deletion_curves(model, inputs, heatmaps(model, inputs), [2])
    with torch.inference_mode():
        features = model.features(inputs)[None]
        assert logit == pytest.approx(float(model.clip_logits(features, torch.ones(1, 3, dtype=torch.bool))), abs=1e-5)
    assert all(np.isfinite(drop).all() for drop in drops.values())


def test_probes_are_the_highest_faces_with_what_comes_before(selection: Selection) -> None:
    catalogue = selection.catalogue
    (number,) = (n for n in selection.videos if catalogue.videos[n].key == "set/two")
    rows = np.arange(*catalogue.videos[number].rows.indices(len(catalogue)))
    rows = rows[catalogue.track_N[rows] >= 0]  # frames 0, 4, 12, 16; 8 is damaged
    first = rows[catalogue.track_N[rows] == 0].tolist()
    scores = np.zeros(len(rows))
    scores[rows.tolist().index(first[3])] = 1.0
    assert probe_rows(rows, scores, selection, 1) == [first[3]]
    assert probe_rows(rows, scores, selection, 2) == first[2:]
    assert probe_rows(rows, scores, selection, 9) == first[2:]  # a gap lies before frame 12
    scores[rows.tolist().index(first[1])] = 2.0
    assert probe_rows(rows, scores, selection, 9) == first[:2]


def test_the_test_says_what_it_found(ensemble: Ensemble, selection: Selection) -> None:
    reader = CropReader(selection.catalogue)
    probes = [(n, [selection.catalogue.videos[n].rows.start]) for n in selection.videos[:4]]
    told: list[int] = []
    found = faithfulness(ensemble.members[0], reader, probes, selection, resamples=50, progress=told.append)
    assert len(told) == 4
    assert len(found.probes) + found.without_map == 4
    assert found.probes
    areas = [np.trapezoid(p.drops["map"], SHARES) for p in found.probes]
    assert found.areas["map"].value == pytest.approx(np.mean(areas))
    more = [a - np.trapezoid(p.drops["pixels"], SHARES) for a, p in zip(areas, found.probes, strict=True)]
    assert found.advantages["pixels"].value == pytest.approx(np.mean(more))
    assert found.probes[0].crop_HWC.shape == found.probes[0].overlay_HWC.shape == (64, 64, 3)
    plain = found.to_json()
    assert plain["faces"] == len(found.probes)
    assert len(plain["mean_drops"]["map"]) == len(SHARES)
    again = faithfulness(ensemble.members[0], reader, probes, selection, resamples=50)
    assert again.to_json() == plain


def test_faces_without_a_map_are_counted(selection: Selection, tmp_path: Path) -> None:
    silent = Ensemble.load([str(checkpoint(tmp_path / "silent.safetensors", fitted_model()))])
    silent.members[0].model.head.fc.weight.data.zero_()  # type: ignore[union-attr]
    probes = [(n, [selection.catalogue.videos[n].rows.start]) for n in selection.videos[:3]]
    found = faithfulness(silent.members[0], CropReader(selection.catalogue), probes, selection, resamples=10)
    assert (len(found.probes), found.without_map) == (0, 3)
    assert found.areas["map"].reason == "no face has a map"
    assert found.to_json()["mean_drops"] == {}
    assert PREPROCESSING.size_px == 64
