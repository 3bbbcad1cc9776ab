import pickle

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pipelines.masks import MaskCount, Originals, Unpaired, difference_mask, write_masks
from tests.products import BOX, Clip, faked, finished_run, portrait
from unmask.errors import StorageError, UsageError
from unmask.products import Products, mask_name
from unmask.storage import Store


def reference(real_HWC: NDArray[np.uint8], fake_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, similar_HWC = structural_similarity(real_HWC, fake_HWC, channel_axis=2, full=True)
    return cv2.cvtColor(np.clip(255 * (1 - similar_HWC), 0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)


def changed(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle blurred, noise all over."""
    height, width, _ = image_HWC.shape
    noise = np.random.default_rng(1).normal(0, 3, image_HWC.shape)
    copy = image_HWC.copy()
    middle = copy[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    middle[:] = cv2.GaussianBlur(middle, (0, 0), 3)
    return np.clip(copy + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(7, 7), (7, 300), (300, 7), (8, 31), (224, 224), (380, 301), (512, 512)])
def test_mask_is_scikit_image_s(shape: tuple[int, int]) -> None:
    real_HWC = cv2.resize(skimage.data.astronaut(), shape[::-1], interpolation=cv2.INTER_AREA)
    fake_HWC = changed(real_HWC)
    ours_HW, theirs_HW = difference_mask(real_HWC, fake_HWC), reference(real_HWC, fake_HWC)
    assert ours_HW.dtype == np.uint8
    assert np.abs(ours_HW.astype(int) - theirs_HW).max() <= 1
    assert (ours_HW != theirs_HW).mean() < 0.001
    assert ours_HW.any()


@pytest.mark.parametrize("width", [300, 10_000])
def test_strips_leave_no_seams(width: int) -> None:
    rng = np.random.default_rng(0)
    for height in (7, 13, 219, 230):
        real_HWC, fake_HWC = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        if width == 10_000 and height > 13:
            continue
        assert np.abs(difference_mask(real_HWC, fake_HWC).astype(int) - reference(real_HWC, fake_HWC)).max() <= 1


def test_a_negative_similarity_is_white_and_equality_black() -> None:
    pattern = np.indices((40, 40)).sum(0) % 2 * 255
    real_HWC = np.repeat(pattern[..., None], 3, 2).astype(np.uint8)
    assert (difference_mask(real_HWC, 255 - real_HWC) == 255).all()
    for same in (real_HWC, np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)):
        assert not difference_mask(same, same).any()


@pytest.mark.parametrize("shapes", [((20, 20), (20, 21)), ((6, 20), (6, 20))])
def test_crops_that_cannot_be_compared_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    real_HWC, fake_HWC = (np.zeros((*shape, 3), np.uint8) for shape in shapes)
    with pytest.raises(UsageError, match="cannot be compared"):
        difference_mask(real_HWC, fake_HWC)


def real(video: str = "real", **options: object) -> Clip:
    return Clip(video=video, columns={"label": 0}, **options)  # type: ignore[arg-type]


def fake(video: str = "fake", source: str | None = "real", **options: object) -> Clip:
    options = {"picture": faked, **options}
    return Clip(video=video, columns={"label": 1, "source": source}, **options)  # type: ignore[arg-type]


def masks_of(products: Products) -> MaskCount:
    originals = pickle.loads(pickle.dumps(Originals.of(products)))
    return sum((write_masks(products.store, shard, originals) for shard in products.shards()), MaskCount())


def read_mask(store: Store, name: str) -> NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(store.read(name), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("packing", ["tar", "files"])
def test_masks_of_a_run(tmp_path, packing) -> None:
    # The original comes after one of its fakes, in another shard.
    clips = [fake("a/fake"), fake("b/fake"), real(), fake("c/fake")]
    products = finished_run(Store(tmp_path), clips, packing=packing)
    assert masks_of(products) == MaskCount(written=6)
    names = products.store.names("masks", deep=True)
    assert names == [f"masks/{v}/fake/{f:06d}_0_diff.png" for v in "abc" for f in (0, 10)]
    crops = {row["crop"]: image for shard in (0, 1) for row, image in products.crops(products.faces(shard))}
    for frame in (0, 10):
        mask_HW = read_mask(products.store, f"masks/a/fake/{frame:06d}_0_diff.png")
        expected = difference_mask(crops[f"real/{frame:06d}_0.png"], crops[f"a/fake/{frame:06d}_0.png"])
        np.testing.assert_array_equal(mask_HW, expected)
        # Changed from (140, 100) to (180, 150) of the frame; the crop starts at 160 - 84, 125 - 84 (half of 1.3 x 130).
        ys, xs = np.nonzero(mask_HW)
        assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((61, 106, 56, 111), abs=4)
        assert mask_HW[59:109, 64:104].mean() > 100


def test_a_second_time_nothing_is_done_and_what_is_gone_comes_back(tmp_path) -> None:
    products = finished_run(Store(tmp_path), [real(), fake()])
    assert masks_of(products) == MaskCount(written=2)
    name = "masks/fake/000010_0_diff.png"
    before = products.store.read(name)
    assert masks_of(products) == MaskCount(kept=2)
    products.store.delete(name)
    assert masks_of(products) == MaskCount(written=1, kept=1)
    assert products.store.read(name) == before


def test_every_face_without_a_mask_has_its_reason(tmp_path) -> None:
    moved = tuple(v + 90 for v in BOX)
    clips = [
        real(faces={0: [BOX], 10: [BOX], 20: [BOX]}, corrupt=frozenset({20})),
        real("faceless", faces={}, status="empty"),
        fake("no source", None),
        fake("absent", "elsewhere"),
        fake("of faceless", "faceless"),
        fake("partly", faces={0: [BOX, moved], 5: [BOX], 10: [BOX], 20: [BOX]}, corrupt=frozenset({10})),
        real("tiny real", faces={0: [(50, 50, 54, 54)]}),
        fake("tiny", "tiny real", faces={0: [(50, 50, 54, 54)]}),
    ]
    count = masks_of(finished_run(Store(tmp_path), clips, per_shard=3))
    assert count == MaskCount(
        written=1,
        unpaired={
            Unpaired.NO_SOURCE: 2,
            Unpaired.SOURCE_ABSENT: 2,
            Unpaired.SOURCE_WITHOUT_FACES: 2,
            Unpaired.NO_SAME_FACE: 1,
            Unpaired.NO_FACE_IN_FRAME: 1,
            Unpaired.CORRUPT_FRAME: 2,
            Unpaired.FACE_TOO_SMALL: 1,
        },
    )


def test_faces_are_paired_by_place_not_by_rank(tmp_path) -> None:
    left, right = (20.0, 60.0, 120.0, 190.0), (180.0, 60.0, 280.0, 190.0)
    near_left = tuple(v + 8 for v in left)
    clips = [real(faces={0: [right, left, near_left]}), fake(faces={0: [left, right]}, picture=portrait)]
    products = finished_run(Store(tmp_path), clips)
    assert masks_of(products) == MaskCount(written=2)
    assert not any(read_mask(products.store, name).any() for name in products.store.names("masks/fake"))


def test_crops_that_were_cut_a_little_apart_are_laid_over_each_other(tmp_path) -> None:
    # Nothing has changed between the two, and the boxes are three pixels and two pixels apart, and of another size.
    apart = (BOX[0] + 3, BOX[1] - 2, BOX[2] + 9, BOX[3] + 4)
    products = finished_run(Store(tmp_path), [real(), fake(faces={0: [apart]}, picture=portrait)])
    assert masks_of(products) == MaskCount(written=1)
    assert not read_mask(products.store, "masks/fake/000000_0_diff.png").any()


def test_crops_of_other_parts_of_the_picture_are_refused(tmp_path) -> None:
    # The boxes overlap by more than half, and the crop is the box itself.
    apart = (BOX[0], BOX[1] + 40, BOX[2], BOX[3] + 40)
    products = finished_run(Store(tmp_path), [real(), fake(faces={0: [apart]})], margin=1.0)
    assert masks_of(products) == MaskCount(unpaired={Unpaired.OTHER_CROP: 1})
    assert products.store.names("masks", deep=True) == []


def test_resized_crops(tmp_path) -> None:
    apart = tuple(v + 2 for v in BOX)
    clips = [real(), fake(), fake("near", faces={0: [apart]}, picture=portrait)]
    products = finished_run(Store(tmp_path), clips, side_px=112)
    assert masks_of(products) == MaskCount(written=3)
    assert read_mask(products.store, "masks/fake/000000_0_diff.png").shape == (112, 112)
    # Resampled between pixels: not black, and far from a change.
    same_HW, changed_HW = (read_mask(products.store, f"masks/{v}/000000_0_diff.png") for v in ("near", "fake"))
    assert same_HW.mean() < 10
    assert changed_HW.max() > 150


def test_a_run_without_crops_is_refused(tmp_path) -> None:
    products = finished_run(Store(tmp_path), [real(), fake()], packing="none")
    with pytest.raises(StorageError, match="holds no crops"):
        masks_of(products)


def test_names() -> None:
    assert mask_name("a/b.c/000010_1.png") == "masks/a/b.c/000010_1_diff.png"
