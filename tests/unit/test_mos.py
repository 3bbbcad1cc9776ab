"""Opinion scores: ten random clips of the main face, and the table that a model has to beat."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from tests.evaluated import FRAMES, PREPROCESSING, checkpoint, fitted_model, folder, lit, person_clip
from tests.products import BOX, Clip, faked, portrait
from train.catalogue import Catalogue
from train.crops import CropReader
from train.ensemble import Ensemble
from train.mos import METHOD_MOS, looked_up, main_rows, method_means, predict_all, random_clips
from train.mos_tables import known_means, mos_rows, mos_tables
from train.selection import Selection, select
from unmask.calibration import Calibration
from unmask.faces import crop
from unmask.manifest import Video
from unmask.scoring import ScoringOptions
from unmask.transforms import to_tensor

OPTIONS = ScoringOptions()
OTHER = (20.0, 80.0, 60.0, 130.0)


def about(n: int, mos: float | None, method: str | None, split: str | None = None) -> Video:
    return Video(video=f"d/{n}", uri="/x", mos=mos, method=method, split=split)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for n, head in enumerate(("temporal", "frame")):
        model = fitted_model(head, task="mos", seed=n, strength=1.0)
        checkpoint(place / f"{head}.safetensors", model, calibration=Calibration())
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [
        person_clip(
            n, 1, split=("train", "test")[n % 2], mos=1.0 + n / 3, method=f"m{n % 3}", part=f"C{n // 2 % 2 + 1}"
        )
        for n in range(12)
    ]
    boxes = {f: [BOX, OTHER] if f != 8 else [OTHER] for f in FRAMES}
    clips.append(
        Clip(video="two", picture=lit(faked, 50), faces=boxes, columns={"mos": 2.0, "split": "test", "part": "C1"})
    )
    small = {f: [(1.0, 1.0, 20.0, 20.0)] for f in FRAMES}
    clips.append(Clip(video="tiny", picture=lit(portrait, 51), faces=small, columns={"mos": 2.0, "split": "test"}))
    return folder(tmp_path_factory.mktemp("data") / "set", clips)


def chosen(data: Path, ensemble: Ensemble) -> Selection:
    return select(Catalogue.read([str(data)]), "test", ensemble)


@pytest.mark.parametrize(
    ("length", "frames", "gaps"), [(4, 20, []), (4, 20, [5, 11]), (5, 3, []), (1, 4, [2]), (4, 4, [1])]
)
def test_clips_are_consecutive_frames_without_a_gap(length: int, frames: int, gaps: list[int]) -> None:
    gap_N = np.zeros(frames, np.bool_)
    gap_N[gaps] = True
    clips = random_clips(gap_N, length, 200, np.random.default_rng(0))
    starts = max(frames - length, 0) + 1
    assert len(clips) == (200 if starts > 1 else 1)
    assert {int(c[0]) for c in clips} == set(range(starts))  # every start comes up
    for clip in clips:
        assert 1 <= len(clip) <= length
        assert (np.diff(clip) == 1).all()
        assert not gap_N[clip[1:]].any()
        ends_early = len(clip) < min(length, frames - clip[0])
        assert not ends_early or gap_N[clip[-1] + 1]


def test_a_video_scores_the_mean_of_clips_of_its_main_face(models: Path, data: Path) -> None:
    ensemble = Ensemble.load([str(models / "temporal.safetensors")])
    selection = chosen(data, ensemble)
    catalogue, model = selection.catalogue, ensemble.members[0].model
    found, _ = predict_all(ensemble, selection, CropReader(catalogue), OPTIONS, batch=8)
    (number,) = (n for n in selection.videos if catalogue.videos[n].key == "set/two")
    (opinion,) = (o for o in found if o.video == number)
    rows = main_rows(catalogue, number, OPTIONS)
    assert set(catalogue.track_N[rows].tolist()) == {0}  # it is in six frames, the other in five
    features = {}
    for row, frame in zip(rows.tolist(), catalogue.frame_N[rows].tolist(), strict=True):
        pixels = crop(lit(faked, 50)(frame), catalogue.box_N4[row], np.zeros((5, 2), np.float32), PREPROCESSING)
        with torch.inference_mode():
            features[frame] = model.features(to_tensor([pixels], PREPROCESSING))
    frames = sorted(features)
    possible = set()
    for start in range(len(frames) - model.config.window + 1):
        clip = torch.cat([features[f] for f in frames[start : start + model.config.window]])[None]
        with torch.inference_mode():
            possible.add(round(float(model.clip_logits(clip, torch.ones(1, clip.shape[1], dtype=torch.bool))), 4))
    assert len(opinion.clips) == 10
    assert {round(c, 4) for c in opinion.clips} <= possible
    assert opinion.score == pytest.approx(np.mean(opinion.clips))


def test_the_same_seed_gives_the_same_clips(models: Path, data: Path) -> None:
    ensemble = Ensemble.load([str(models / "temporal.safetensors")])
    selection = chosen(data, ensemble)
    reader = CropReader(selection.catalogue)
    first, second, other = (
        predict_all(ensemble, selection, reader, OPTIONS, batch=8, seed=seed)[0] for seed in (0, 0, 1)
    )
    assert [o.clips for o in first] == [o.clips for o in second]
    assert [o.clips for o in first] != [o.clips for o in other]
    assert {o.score is None for o in first if selection.catalogue.videos[o.video].key == "set/tiny"} == {True}


def test_members_are_averaged_and_a_frame_head_takes_all_frames(models: Path, data: Path) -> None:
    ensemble = Ensemble.load([f"{models / 'temporal.safetensors'}:0.75", f"{models / 'frame.safetensors'}:0.25"])
    selection = chosen(data, ensemble)
    found, (temporal, frame) = predict_all(ensemble, selection, CropReader(selection.catalogue), OPTIONS, batch=8)
    for mean, a, b in zip(found, temporal, frame, strict=True):
        if a.score is None:
            assert mean.score is b.score is None
            continue
        assert mean.score == pytest.approx(0.75 * a.score + 0.25 * (b.score or 0.0))
        assert len(b.clips) == len(main_rows(selection.catalogue, b.video, OPTIONS))


def test_the_table_of_methods() -> None:
    train = [about(0, 1.0, "a"), about(1, 2.0, "a"), about(2, 4.0, "b"), about(3, None, "b"), about(4, 3.0, None)]
    means = method_means(train)
    assert means == {"": 3.0, "a": 1.5, "b": 4.0}
    scores, unknown = looked_up(means, [about(9, None, "b"), about(8, None, "c"), about(7, None, None)])
    assert scores.tolist() == pytest.approx([4.0, (3.0 + 1.5 + 4.0) / 3, 3.0])
    assert unknown == 1


def test_the_table_comes_from_the_checkpoint_or_the_training_split(models: Path, data: Path, tmp_path: Path) -> None:
    ensemble = Ensemble.load([str(models / "temporal.safetensors")])
    selection = chosen(data, ensemble)
    means, source = known_means(ensemble, selection)
    assert source == "the split train of set"
    assert means == pytest.approx({"m0": 1 + (0 + 6) / 2 / 3, "m1": 1 + (4 + 10) / 2 / 3, "m2": 1 + (2 + 8) / 2 / 3})
    told = checkpoint(
        tmp_path / "told.safetensors", fitted_model("temporal", task="mos"), provenance={METHOD_MOS: {"m0": 2.5}}
    )
    assert known_means(Ensemble.load([str(told)]), selection) == ({"m0": 2.5}, "the training data of told")


def test_tables_of_each_test_set_with_the_lookup_beside(models: Path, data: Path) -> None:
    ensemble = Ensemble.load([str(models / "temporal.safetensors")])
    selection = chosen(data, ensemble)
    found, parts = predict_all(ensemble, selection, CropReader(selection.catalogue), OPTIONS, batch=8)
    tables = mos_tables(ensemble, selection, found, parts, resamples=20, seed=0)
    assert [(row["set"], row["videos"]) for row in tables["sets"]] == [("set/C1", 4), ("set/C2", 3)]
    assert tables["members"] == []
    own = [o for o in found if o.score is not None and selection.catalogue.videos[o.video].about.part == "C2"]
    mos = [selection.catalogue.videos[o.video].about.mos for o in own]
    expected = stats.spearmanr([o.score for o in own], mos).statistic
    assert tables["sets"][1]["metrics"]["srcc"]["value"] == pytest.approx(expected)
    parts_mean = [tables["sets"][n]["metrics"]["agreement"]["value"] for n in range(2)]
    assert tables["challenge"]["value"] == pytest.approx(np.mean(parts_mean))
    assert tables["lookup"]["unknown"] == 1  # "two" has no method
    assert [row["videos"] for row in tables["lookup"]["sets"]] == [4, 3]
    rows = {row["video"]: row for row in mos_rows(selection, found)}
    assert rows["set/tiny"]["reason"] == "no_usable_face"
    assert len(rows) == len(selection.videos)
