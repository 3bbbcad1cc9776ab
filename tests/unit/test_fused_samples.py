"""Clips of kept features: places, masks, what is left out and filled, and what is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.depths import tiny_depth
from tests.fusion import HUGE, SMALL, configured, eight_people, made
from tests.products import BOX, Clip, finished_run
from train.catalogue import AskedFrames, Catalogue
from train.config import overridden
from train.extractor import GOOD, NO_DEPTH
from train.fused_samples import FusedMaterial, FusedSamples, Track
from train.material import Material, pool_of
from train.recipes import recipe
from train.samplers import Batches, epoch_plan
from train.splits import splits_of
from unmask.depth import DepthEstimator
from unmask.errors import UsageError
from unmask.storage import Store


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return eight_people(tmp_path / "faces")


def test_missing_frames_are_masked_and_counted(data: Path, depth: Path) -> None:
    material = Material.of(Catalogue.read([str(data)]), configured(depth, "window=8"), seed=0)
    assert isinstance(material.train, FusedSamples)
    plan = epoch_plan(material.train.pool, material.catalogue, material.train.config.data, seed=0, epoch=0)
    todo = Batches(plan, 24)
    (keys,) = list(todo)
    batch = material.train.batch(keys)
    assert batch.pixels.shape == (24, 8, material.train.tracks[0].features_PE.shape[1])
    seen = torch.tensor([True, True, True, False, True, True, False, False])
    whole_B = batch.valid_BT.sum(1) == 5
    assert 6 <= whole_B.sum() <= 23  # the others are windows that end before the last face
    assert (batch.valid_BT[whole_B] == seen).all()
    for valid_T in batch.valid_BT[~whole_B]:
        count = int(valid_T.nonzero().max()) + 1
        assert valid_T[:count].equal(seen[:count])
    assert batch.pixels[~batch.valid_BT].abs().max() == 0
    assert isinstance(material.kept, FusedMaterial)
    told = material.kept.told()
    clips = 2 * len(material.splits.train)
    assert told["train"] == {
        "videos": clips // 2, "videos_without_usable_face": 0, "clips": clips, "clips_left_out": {},
        "frames": 6 * clips, "frames_masked": {"no_face": clips}, "clips_filled": -clips % 8,
    }  # fmt: skip


def test_what_gave_no_clip_is_counted_with_its_reason(depth: Path, tmp_path: Path) -> None:
    """Videos without a face, without a usable one, small and damaged faces, and what fills an epoch's last batch."""
    faces = {0: [BOX], 4: [SMALL], 12: [BOX]}
    seen = {"corrupt": frozenset({8}), "missing": frozenset({10})}
    clips = []
    for n in range(4):
        about = {"identity": [f"p{n}"]}
        clips.append(Clip(video=f"real/{n}", faces=faces, columns={"label": 0, **about}, **seen))
        clips += [Clip(video=f"fake/{n}-{k}", faces=faces, columns={"label": 1, **about}, **seen) for k in range(3)]
    tiny = {frame: [SMALL] for frame in faces}
    clips.append(Clip(video="tiny", faces=tiny, columns={"label": 0, "identity": ["p9"]}))
    for name, reason in (("none", "no_face"), ("empty", "no_face"), ("lost", "not_a_video")):
        clips.append(Clip(video=name, faces={}, status="failed", columns={"label": 0, "reason": reason}))
    finished_run(Store(tmp_path / "faces"), clips, per_shard=20, margin=1.3)
    config = configured(depth, "copies=0", "strategy=none", "draw=balanced", "batch=3", "fractions=[0.5,0.5,0]")
    material, catalogue = made(config, tmp_path / "faces", workers=2)
    pool = pool_of(catalogue, range(len(catalogue.videos)), config, "train")
    samples = material.samples(pool, "train", videos=len(catalogue.videos), copies=0, seed=0)
    told = material.told()
    assert told["videos_without_face"] == {"no_face": 2, "not_a_video": 1}
    assert told["train"] == {
        "videos": 17, "videos_without_usable_face": 1, "clips": 16, "clips_left_out": {}, "frames": 5 * 16,
        "frames_masked": {"face_too_small": 16, "corrupt_frame": 16, "missing_frame": 16},
        "clips_filled": 4,  # four reals and as many fakes, in threes on each of two workers
    }  # fmt: skip
    longer, _ = made(overridden(config, ["steps_per_epoch=5"]), tmp_path / "faces", workers=2)
    longer.samples(pool, "train", videos=len(catalogue.videos), copies=0, seed=0)
    assert longer.report["train"]["clips_filled"] == 5 * 6 - 8
    assert samples.tracks[0].valid_P.tolist() == [True, False, False, False, True]
    both = Material.of(catalogue, config, seed=0).kept
    assert isinstance(both, FusedMaterial)
    parts = [both.report[name] for name in ("train", "val")]
    assert [sum(part[what] for part in parts) for what in ("videos", "videos_without_usable_face")] == [17, 1]


def test_faces_beside_larger_ones_are_seen_and_frames_that_are_passed_over_are_said(
    depth: Path, tmp_path: Path
) -> None:
    """Evaluation sees a face whichever is the largest in its frame; so does training."""
    both = {frame: [BOX] if frame % 8 else [BOX, HUGE] for frame in range(0, 40, 4)}
    finished_run(Store(tmp_path / "faces"), [Clip(video="v", faces=both, columns={"label": 0})], margin=1.3)

    for settings, valid, masked in (((), 10, {}), (("frames_per_video=4",), 2, {"not_taken": 8})):
        config = configured(depth, *settings)
        material, catalogue = made(config, tmp_path / "faces")
        pool = pool_of(catalogue, [0], config, "train")
        (track,) = material.samples(pool, "train", videos=1, copies=0, seed=0).tracks
        assert (int(track.valid_P.sum()), track.masked) == (valid, masked)


class Patchy(DepthEstimator):
    """Has no map for the crops that it is told, counted over all."""

    def __init__(self, inner: DepthEstimator, fails: set[int]) -> None:
        self.__dict__.update(inner.__dict__)
        self.fails, self.seen = fails, 0

    def maps(self, crops: Any) -> list[NDArray[np.uint8] | None]:
        found = super().maps(crops)
        first, self.seen = self.seen, self.seen + len(crops)
        return [None if first + n in self.fails else each for n, each in enumerate(found)]


def test_a_failed_map_is_masked_and_a_clip_without_any_is_left_out_and_named(data: Path, depth: Path) -> None:
    config = configured(depth)
    material, catalogue = made(config, data)
    extractor = material.keeper.extractor
    extractor.depth = Patchy(extractor.depth, {1, *range(5, 10)})
    pool = pool_of(catalogue, splits_of(catalogue, config, 0).train, config, "train")
    samples = material.samples(pool, "train", videos=len(pool), copies=0, seed=0)
    assert len(samples.pool) == len(pool) - 1
    assert samples.tracks[0].valid_P.tolist() == [True, False, True, False, True, True]
    assert material.report["train"]["frames_masked"] == {"depth_failed": 6, "no_face": len(pool)}
    learnt = sum(int(track.valid_P.sum()) for track in samples.tracks)
    assert material.report["train"]["frames"] == 6 * len(pool) == learnt + 6 + len(pool)
    name = catalogue.videos[pool.video_U[1]].key
    assert material.report["train"]["clips_left_out"] == {f"{name} copy 0": {"depth_failed": 5, "no_face": 1}}
    (said,) = material.notes
    assert (
        f"a clip of train is left out, such as {name} copy 0: every frame of it is masked (5 depth_failed, 1 no_face)"
        in said
    )
    nothing, _ = made(overridden(config, ["depth_px=70"]), data)
    nothing.keeper.extractor.depth = Patchy(nothing.keeper.extractor.depth, set(range(1000)))
    with pytest.raises(UsageError, match=r"no clip of the split val has a frame with a depth map \(10 depth_failed"):
        nothing.samples(
            pool_of(catalogue, splits_of(catalogue, config, 0).val[:2], config, "val"),
            "val",
            videos=2,
            copies=0,
            seed=0,
        )


def test_places_follow_the_frames() -> None:
    class Kept:
        features_LE = np.ones((4, 2), np.float16)
        state_L = np.array([GOOD, GOOD, NO_DEPTH, GOOD], np.uint8)

    asked = AskedFrames(
        np.array([0, 10, 20, 31, 42, 50, 60, 70], np.int32), np.arange(8.0), {0: "corrupt_frame", 4: "corrupt_frame"}
    )
    frames = np.array([10, 20, 31, 60], np.int32)
    track = Track.of(np.arange(4), Kept(), frames, [None, "face_too_small", None, None], asked)  # type: ignore[arg-type]
    assert track.valid_P.tolist() == [True, False, False, False, False, True]
    assert track.masked == {"depth_failed": 1, "no_face": 1, "corrupt_frame": 1, "face_too_small": 1}


def test_places_are_those_of_the_frames_however_few_have_a_face() -> None:
    """A face in every other frame only: the frames between are holes, and not another sampling."""

    class Kept:
        features_LE = np.ones((3, 2), np.float16)
        state_L = np.full(3, GOOD, np.uint8)

    asked = AskedFrames(np.arange(5, dtype=np.int32), np.arange(5.0), {})
    track = Track.of(np.arange(3), Kept(), np.array([0, 2, 4], np.int32), [None] * 3, asked)  # type: ignore[arg-type]
    assert track.valid_P.tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["freeze=none"], "keeps its own features: it needs loop.freeze=backbone"),
        (["draw=pairs"], "takes data.draw=all or balanced"),
        (["copies=0"], "set data.copies and augment.strategy, or neither"),
        (["head=temporal"], "data.copies goes with model.head=fusion"),
        (["copies=-1"], "data.copies is 0 or more"),
        (["alignment=0.1"], "this model.head takes clips"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        overridden(recipe("ffpp-fusion"), settings)
