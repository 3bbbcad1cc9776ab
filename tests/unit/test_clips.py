"""What a batch holds: clips that stop at gaps, pairs that differ in the blend alone, and the same whoever loads it."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.masks import Originals, write_masks
from tests.products import BOX, Clip, faked, finished_run, portrait
from train import clips
from train.augment import SelfBlend, strategy
from train.catalogue import Catalogue
from train.clips import Batch, Samples, _alive, batches
from train.config import TrainConfig, overridden
from train.crops import CropReader
from train.material import pool_of
from train.recipes import recipe
from train.samplers import Batches, Key
from unmask.errors import TrainingError, UsageError
from unmask.faces import crop
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import Preprocessing, resize

INPUT = Preprocessing(size_px=48, margin=1.3)
FRAMES = tuple(range(0, 36, 3))


def configured(*settings: str, frame: bool = False) -> TrainConfig:
    """Clips of four frames by default."""
    head = ["head=frame", "freeze=none"] if frame else ["head=temporal", "window=4", "freeze=none"]
    common = ["backbone=mobilenetv3_small_050", "unfreeze_after=none", "faces=all", "frames_per_video=none"]
    return overridden(recipe("celebdf-mobilenet"), [*common, *head, *settings])


def catalogued(folder: Path, clips: Sequence[Clip]) -> Catalogue:
    finished_run(Store(folder / "run"), clips, margin=1.3)
    return Catalogue.read([str(folder / "run")])


def samples(catalogue: Catalogue, config: TrainConfig, **options: Any) -> Samples:
    pool = pool_of(catalogue, range(len(catalogue.videos)), config, "train")
    return Samples(catalogue, CropReader(catalogue), pool, config, INPUT, **options)


def shown(catalogue: Catalogue, face: int) -> Any:
    """What the frame shows of a face, by the model's preprocessing."""
    frame_HWC = portrait(int(catalogue.frame_N[face]))
    whole_HWC = crop(frame_HWC, catalogue.box_N4[face], catalogue.landmarks_frame_N52[face], INPUT)
    return resize(whole_HWC, INPUT)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    clips = [Clip(video=f"v{n}", faces={f: [BOX] for f in FRAMES}, columns={"label": n % 2}) for n in range(4)]
    return catalogued(tmp_path_factory.mktemp("plain"), clips)


def test_clips_are_faces_in_a_row_from_everywhere(plain: Catalogue) -> None:
    made = samples(plain, configured())
    starts = set()
    for position in range(60):
        batch = made.batch([Key(0, position, 1)])
        (first,) = batch.faces
        starts.add(first)
        assert batch.pixels.shape == (1, 4, 48, 48, 3)
        assert batch.pixels.dtype == torch.uint8
        assert batch.valid_BT.tolist() == [[True] * 4]
        assert batch.label_B.tolist() == [1.0]
        assert (batch.unit_B.tolist(), batch.substituted, batch.unchanged) == ([1], 0, 0)
        if position < 5:
            for t, picture_HWC in enumerate(batch.pixels[0].numpy()):
                np.testing.assert_array_equal(picture_HWC, shown(plain, first + t))
    assert starts == set(range(12, 12 + 9))  # each place where a clip of four fits into twelve


def test_frames_are_clips_of_one(plain: Catalogue) -> None:
    made = samples(plain, configured(frame=True))
    batch = made.batch([Key(0, k, unit) for k, unit in enumerate((0, 13, 47))])
    assert batch.pixels.shape == (3, 1, 48, 48, 3)
    assert batch.faces == (0, 13, 47)
    for k, face in enumerate(batch.faces):
        np.testing.assert_array_equal(batch.pixels[k, 0].numpy(), shown(plain, face))
    assert batch.label_B.tolist() == [0.0, 1.0, 1.0]
    assert len(batch) == 3
    assert "2 above 1/2" in repr(batch)


def test_short_clips_are_masked_and_black(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, [Clip(video="v", faces={0: [BOX], 3: [BOX]}, columns={"label": 0})])
    batch = samples(catalogue, configured()).batch([Key(0, 0, 0)])
    assert batch.valid_BT.tolist() == [[True, True, False, False]]
    assert batch.pixels[0, 1].any()
    assert not batch.pixels[0, 2:].any()


def clips_of(made: Samples, count: int = 80) -> set[tuple[int, ...]]:
    """The faces of many clips of the first video."""
    found = set()
    for position in range(count):
        batch = made.batch([Key(0, position, 0)])
        first, length = batch.faces[0], int(batch.valid_BT.sum())
        unit = made.pool.faces[0].tolist()
        found.add(tuple(unit[unit.index(first) : unit.index(first) + length]))
    return found


def test_clips_stop_at_gaps(tmp_path: Path) -> None:
    faces = {f: [BOX] for f in range(9)}
    catalogue = catalogued(tmp_path, [Clip(video="v", faces=faces, corrupt=frozenset({4}), columns={"label": 0})])
    assert catalogue.after_gap_N.tolist() == [False] * 5 + [True] + [False] * 3
    rows = [0, 1, 2, 3, 5, 6, 7, 8]  # without the damaged one
    wanted = set()
    for start in range(len(rows) - 3):
        clip = rows[start : start + 4]
        wanted.add(tuple(n for n in clip if (n < 4) == (clip[0] < 4)))
    assert clips_of(samples(catalogue, configured())) == wanted


def test_a_face_that_is_left_out_is_a_gap(tmp_path: Path) -> None:
    """Where somebody else is the largest for a frame; and where the face itself is too small for one."""
    near, far, tiny = (40.0, 40.0, 200.0, 220.0), BOX, (110.0, 60.0, 130.0, 90.0)
    faces = {f: [far] for f in range(8)} | {3: [far, near], 6: [tiny]}
    catalogue = catalogued(tmp_path, [Clip(video="v", faces=faces, columns={"label": 0})])
    made = samples(catalogue, configured("faces=largest"))
    assert [int(catalogue.frame_N[n]) for n in made.pool.faces[0]] == [0, 1, 2, 4, 5, 7]
    frames = {tuple(int(catalogue.frame_N[n]) for n in clip) for clip in clips_of(made)}
    assert frames == {(0, 1, 2), (1, 2), (2,)}
    # Frames that nobody wants are no gap.
    few = samples(catalogue, configured("frames_per_video=4"))
    assert [int(catalogue.frame_N[n]) for n in few.pool.faces[0]] == [0, 2, 4, 7]
    assert {len(clip) for clip in clips_of(few, 5)} == {4}


def test_frames_passed_over_hide_no_gap(tmp_path: Path) -> None:
    faces = {f: [BOX] for f in range(12)}
    catalogue = catalogued(tmp_path, [Clip(video="v", faces=faces, corrupt=frozenset({5}), columns={"label": 0})])
    few = samples(catalogue, configured("frames_per_video=4"))
    assert [int(catalogue.frame_N[n]) for n in few.pool.faces[0]] == [0, 3, 8, 11]
    assert {len(clip) for clip in clips_of(few, 5)} == {2}


def equal(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("blended", [False, True])
def test_a_batch_is_the_same_whoever_makes_it(plain: Catalogue, blended: bool) -> None:
    changes = strategy("selfblend" if blended else "celebdf", 48)
    made = samples(plain, configured(), strategy=changes, blend=SelfBlend() if blended else None, seed=5)
    keys = [Key(2, n, n // 2 % 4, blended and n % 2 == 1) for n in range(10)]
    alone = [made.batch(keys[k : k + 2]) for k in range(0, 10, 2)]
    for workers in (0, 2):
        torch.manual_seed(workers)
        np.random.seed(workers)  # noqa: NPY002  (what must not matter)
        state = torch.get_rng_state()
        found = list(batches(made, Batches(keys, 2), workers=workers))
        assert torch.equal(torch.get_rng_state(), state)
        assert len(found) == 5
        assert all(equal(a, b) for a, b in zip(found, alone, strict=True))
    # Later batches alone are those of the whole epoch.
    assert all(equal(a, b) for a, b in zip(batches(made, Batches(keys, 2, start=3), workers=0), alone[3:], strict=True))
    # In batches of another size too.
    whole = made.batch(keys)
    assert torch.equal(whole.pixels, torch.cat([batch.pixels for batch in alone]))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_that_is_killed_is_a_sentence(plain: Catalogue) -> None:
    made = samples(plain, configured())
    keys = [[Key(0, n, n % 4)] for n in range(400)]
    found = batches(made, keys, workers=2)
    next(found)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(TrainingError, match="a process that loads data was killed") as lost:
        for _ in found:
            pass
    assert "\n" not in lost.value.message


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_a_loader_that_is_killed_while_it_hands_over_is_the_same_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "_HEARD_WITHIN_S", 0.0)

    def broken() -> Iterator[Batch]:
        raise kind
        yield

    with pytest.raises(TrainingError, match="a process that loads data was killed"):
        list(_alive(broken(), 2))


def test_places_epochs_and_seeds_have_random_numbers_of_their_own(plain: Catalogue) -> None:
    config = configured(frame=True)
    base, other = (samples(plain, config, strategy=strategy("celebdf", 48), seed=seed) for seed in (0, 1))
    pictures = [
        made.batch([Key(epoch, place, 3)]).pixels
        for made, epoch, place in ((base, 0, 0), (base, 0, 1), (base, 1, 0), (other, 0, 0))
    ]
    assert torch.equal(pictures[0], base.batch([Key(0, 0, 3)]).pixels)
    assert not any(torch.equal(a, b) for n, a in enumerate(pictures) for b in pictures[:n])


def test_one_draw_serves_all_frames_of_a_clip(tmp_path: Path) -> None:
    """Of a picture that stands still, all frames stay alike, whatever is done to them."""
    still = Clip(video="v", picture=lambda _: portrait(0), faces={f: [BOX] for f in range(6)}, columns={"label": 0})
    catalogue = catalogued(tmp_path, [still])
    made = samples(catalogue, configured(), strategy=strategy("celebdf", 48))
    kinds = set()
    for position in range(10):
        pixels_THWC = made.batch([Key(0, position, 0)]).pixels[0]
        assert (pixels_THWC == pixels_THWC[:1]).all()
        kinds.add(pixels_THWC[0].numpy().tobytes())
    assert len(kinds) == 10


def test_real_and_fake_of_a_pair_differ_in_the_blend_alone(plain: Catalogue) -> None:
    made = samples(plain, configured(), blend=SelfBlend())
    shares = []
    for pair in range(12):
        batch = made.batch([Key(0, 2 * pair, 0), Key(0, 2 * pair + 1, 0, blend=True)])
        assert batch.label_B.tolist() == [0.0, 1.0]
        assert batch.faces[0] == batch.faces[1]  # the same clip
        real, fake = batch.pixels.numpy().astype(int)
        changed_THW = (real != fake).any(-1)
        # The rim of the crop is no face: nothing is pasted there.
        rim_HW = np.ones((48, 48), bool)
        rim_HW[2:, 2:-2] = False
        assert not changed_THW[:, rim_HW].any()
        shares.append(changed_THW.mean())
        # Every frame of the clip is blended.
        assert changed_THW.any((1, 2)).all()
    assert 0.05 < np.mean(shares) < 0.8


def test_what_follows_the_blend_is_the_same_for_both(plain: Catalogue) -> None:
    """The strategy's flip, colours and JPEG: pairs stay near one another, and apart from other pairs."""
    made = samples(plain, configured(frame=True), blend=SelfBlend(), strategy=strategy("selfblend", 48))
    reals, fakes = [], []
    for pair in range(12):
        batch = made.batch([Key(0, 2 * pair, 0), Key(0, 2 * pair + 1, 0, blend=True)])
        real, fake = batch.pixels[:, 0].numpy().astype(float)
        reals.append(real)
        fakes.append(fake)
    apart = np.array([[np.abs(r - f)[:4].mean() for f in fakes] for r in reals])
    assert apart.diagonal().max() < 6.0
    assert (apart.argmin(1) == np.arange(12)).mean() > 0.7
    assert np.median(apart[~np.eye(12, dtype=bool)]) > 10.0


def test_a_photograph_is_filmed_where_clips_are_wanted(tmp_path: Path) -> None:
    """One stored face gives a window of different frames, some of them shorter; real and fake are filmed alike."""
    still = Clip(video="v", picture=lambda _: portrait(0), faces={0: [BOX]}, columns={"label": 0})
    catalogue = catalogued(tmp_path, [still])
    made = samples(catalogue, configured(), blend=SelfBlend())
    lengths = set()
    for pair in range(20):
        batch = made.batch([Key(0, 2 * pair, 0), Key(0, 2 * pair + 1, 0, blend=True)])
        valid_BT = batch.valid_BT.numpy()
        assert (valid_BT[0] == valid_BT[1]).all()
        count = int(valid_BT[0].sum())
        lengths.add(count)
        assert valid_BT[0, :count].all()
        real_THWC, fake_THWC = batch.pixels.numpy().astype(int)
        assert all((a != b).any() for a, b in itertools.pairwise(real_THWC[:count]))
        assert (real_THWC[:count] != fake_THWC[:count]).any((1, 2, 3)).all()
        assert not real_THWC[count:].any()
    assert lengths == {1, 2, 3, 4}
    # Without a blend nothing is made of a photograph.
    assert int(samples(catalogue, configured()).batch([Key(0, 0, 0)]).valid_BT.sum()) == 1


def masked(folder: Path, fakes: Sequence[Clip]) -> Catalogue:
    frames = {f: [BOX] for f in (0, 6, 12)}
    store = Store(folder / "run")
    finished_run(store, [Clip(video="real", faces=frames, columns={"label": 0}), *fakes], margin=1.3)
    products = Products(store)
    originals = Originals.of(products)
    for shard in products.shards():
        write_masks(store, shard, originals)
    return Catalogue.read([str(folder / "run")])


def fake(video: str, *, changed: bool, source: str | None = "real") -> Clip:
    about = {"label": 1, "source": source}
    return Clip(
        video=video, picture=faked if changed else portrait, faces={f: [BOX] for f in (0, 6, 12)}, columns=about
    )


def test_fakes_without_a_change_are_passed_over(tmp_path: Path) -> None:
    catalogue = masked(tmp_path, [fake("same", changed=False), fake("other", changed=True)])
    made = samples(catalogue, configured("only_changed=true", frame=True))
    names = [catalogue.videos[n].about.video for n in made.pool.video_U]
    assert names == ["run/real"] * 3 + ["run/same"] * 3 + ["run/other"] * 3
    batch = made.batch([Key(0, n, n) for n in range(9)])
    assert batch.unchanged == 3
    assert batch.substituted == 0
    assert batch.label_B.tolist() == [0.0] * 3 + [1.0] * 6
    # Others of their class stand in for them.
    assert batch.faces[:3] == (0, 1, 2)
    assert batch.faces[6:] == (6, 7, 8)
    assert set(batch.faces[3:6]) <= {6, 7, 8}
    # Left open, all fakes are taken.
    assert samples(catalogue, configured(frame=True)).batch([Key(0, n, n) for n in range(9)]).unchanged == 0


def test_fakes_without_a_mask_are_kept(tmp_path: Path) -> None:
    catalogue = masked(tmp_path, [fake("orphan", changed=False, source=None)])
    batch = samples(catalogue, configured("only_changed=true", frame=True)).batch([Key(0, 0, 3)])
    assert (batch.faces, batch.unchanged) == ((3,), 0)


def test_where_no_fake_shows_a_change_it_is_said(tmp_path: Path) -> None:
    catalogue = masked(tmp_path, [fake("same", changed=False)])
    made = samples(catalogue, configured("only_changed=true", frame=True))
    with pytest.raises(UsageError, match=r"20 crops in a row show no change, run/same's among them; preprocess"):
        made.batch([Key(0, 0, 4)])


def damaged(catalogue: Catalogue, faces: Sequence[int]) -> None:
    for face in faces:
        place = catalogue.place_of(face)
        store, name = catalogue.files[place.file]
        with store.local_path(name).open("r+b") as file:
            file.seek(place.offset)
            file.write(b"\0" * place.size)


def four(folder: Path) -> Catalogue:
    clips = [Clip(video=f"v{n}", faces={0: [BOX], 9: [BOX]}, columns={"label": n % 2}) for n in range(4)]
    return catalogued(folder, clips)


def test_another_of_its_class_stands_in_for_a_damaged_crop(tmp_path: Path) -> None:
    catalogue = four(tmp_path)
    damaged(catalogue, [2, 3, 6])
    made = samples(catalogue, configured(frame=True))
    batch = made.batch([Key(0, n, n) for n in range(8)])
    assert batch.substituted == 3
    assert len(batch) == 8
    assert batch.label_B.tolist() == [0.0, 0.0, 1.0, 1.0] * 2
    # Only one fake crop is whole.
    assert batch.faces == (0, 1, 7, 7, 4, 5, 7, 7)
    assert batch.unit_B.tolist() == [0, 1, 7, 7, 4, 5, 7, 7]
    assert batch.pixels.flatten(1).any(1).all()
    assert equal(batch, made.batch([Key(0, n, n) for n in range(8)]))
    # Another epoch draws another one where there are several.
    damaged(catalogue, [0])
    assert {made.batch([Key(epoch, 0, 0)]).faces[0] for epoch in range(30)} == {1, 4, 5}


def test_a_clip_with_a_damaged_crop_is_replaced_whole(tmp_path: Path) -> None:
    catalogue = four(tmp_path)
    damaged(catalogue, [1])
    batch = samples(catalogue, configured()).batch([Key(0, 0, 0)])
    assert (batch.faces, batch.substituted) == ((4,), 1)
    assert batch.valid_BT.tolist() == [[True, True, False, False]]


def test_too_many_damaged_crops_are_said(tmp_path: Path) -> None:
    catalogue = four(tmp_path)
    damaged(catalogue, range(8))
    with pytest.raises(
        UsageError, match=r"20 crops in a row cannot be read, run/v0's among them; preprocess that data"
    ):
        samples(catalogue, configured(frame=True)).batch([Key(0, 0, 0)])


@pytest.mark.parametrize("frame", [True, False])
def test_features_stand_in_for_crops(tmp_path: Path, frame: bool) -> None:
    catalogue = four(tmp_path)
    damaged(catalogue, range(8))  # which nobody looks at
    features_ND = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float16)
    batch = samples(catalogue, configured(frame=frame), features=features_ND).batch([Key(0, 0, 1), Key(0, 1, 3)])
    assert batch.pixels.dtype == torch.float16
    if frame:
        np.testing.assert_array_equal(batch.pixels[:, 0].numpy(), features_ND[[1, 3]])
        assert batch.valid_BT.tolist() == [[True], [True]]
    else:
        assert batch.pixels.shape == (2, 4, 5)
        np.testing.assert_array_equal(batch.pixels[0, :2].numpy(), features_ND[2:4])
        np.testing.assert_array_equal(batch.pixels[1, :2].numpy(), features_ND[6:8])
        assert not batch.pixels[:, 2:].any()
        assert batch.valid_BT.tolist() == [[True, True, False, False]] * 2
    assert batch.label_B.tolist() == ([0.0, 1.0] if frame else [1.0, 1.0])
