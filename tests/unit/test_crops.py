"""What is cut out of a stored crop is what would have been cut out of the frame; files are read whole or refused."""

import gc
import os
import pickle
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.config import CropOptions
from tests.products import BOX, Clip, finished_run, portrait
from tests.recut import recut, tilted
from train.catalogue import Catalogue
from train.crops import CropReader
from unmask.errors import StorageError
from unmask.faces import crop, cut, enlarge
from unmask.storage import Store
from unmask.transforms import Preprocessing

BOXES = [BOX, (100.3, 50.8, 199.9, 171.1), (5.2, 4.9, 62.4, 80.3)]
"""In the middle, between pixels, and at the border, where crops have black parts."""


def catalogued(folder: Path, options: CropOptions, degrees: float = 0.0) -> Catalogue:
    store = Store(folder / "run")
    finished_run(store, [Clip(video="v", faces={0: BOXES, 20: BOXES})], packing="files")
    recut(store, options, degrees=degrees)
    return Catalogue.read([str(folder / "run")])


@pytest.mark.parametrize(
    ("fit", "square"), [("square", True), ("stretch", True), ("stretch", False), ("pad", True), ("pad", False)]
)
@pytest.mark.parametrize("margin", [0.8, 1.0, 1.3, 1.6])
def test_the_picture_is_what_the_frame_shows(tmp_path: Path, fit: str, margin: float, square: bool) -> None:
    catalogue = catalogued(tmp_path, CropOptions(margin=1.7, square=square))
    preprocessing = Preprocessing(size_px=64, margin=margin, fit=fit)  # type: ignore[arg-type]
    catalogue.check_covers(preprocessing)
    reader = CropReader(catalogue)
    for n in range(len(catalogue)):
        picture = reader.picture(n, preprocessing)
        frame_HWC, box_4 = portrait(int(catalogue.frame_N[n])), catalogue.box_N4[n]
        landmarks_K2 = catalogue.landmarks_frame_N52[n]
        np.testing.assert_array_equal(picture.image_HWC, crop(frame_HWC, box_4, landmarks_K2, preprocessing))
        # The landmarks lie on the same pixels as in the frame.
        corner_2 = np.floor(enlarge(box_4, margin, square=fit == "square")[:2] + 0.5)
        np.testing.assert_allclose(picture.landmarks_K2, landmarks_K2 - corner_2, atol=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 14.0, -25.0])
def test_upright_pictures_are_those_of_the_frame(tmp_path: Path, degrees: float) -> None:
    catalogue = catalogued(tmp_path, CropOptions(margin=2.2), degrees)
    preprocessing = Preprocessing(size_px=64, margin=1.3, align=True)
    reader = CropReader(catalogue)
    for n in range(len(catalogue)):
        picture = reader.picture(n, preprocessing)
        frame_HWC = portrait(int(catalogue.frame_N[n]))
        whole_HWC = crop(frame_HWC, catalogue.box_N4[n], catalogue.landmarks_frame_N52[n], preprocessing)
        # OpenCV rounds places to 1/32 of a pixel: a few may fall to the other side.
        assert picture.image_HWC.shape == whole_HWC.shape
        apart = np.abs(picture.image_HWC.astype(int) - whole_HWC)
        assert np.mean(apart > 1) < 0.02
        assert apart.max() < 16


@pytest.mark.parametrize("aligned", [True, False])
def test_upright_landmarks_are_level_and_on_the_template(tmp_path: Path, aligned: bool) -> None:
    catalogue = catalogued(tmp_path, CropOptions(margin=1.3 if aligned else 2.2, align=aligned), 14.0)
    picture = CropReader(catalogue).picture(0, Preprocessing(size_px=64, margin=1.3, align=True))
    left, right, nose, *mouth = picture.landmarks_K2
    assert abs(left[1] - right[1]) < 0.02 * picture.side
    assert left[0] < nose[0] < right[0]
    assert max(left[1], right[1]) < nose[1] < mouth[0][1]
    # A similarity: distances keep their proportions, and turning back leads to where they were in the crop.
    ours, theirs = (np.linalg.norm(k - k.mean(0), axis=1) for k in (picture.landmarks_K2, catalogue.landmarks_N52[0]))
    np.testing.assert_allclose(ours / ours.sum(), theirs / theirs.sum(), atol=1e-4)


def test_landmarks_lie_on_what_they_mark(tmp_path: Path) -> None:
    """White dots painted into the frame at the landmarks are found at the landmarks of turned pictures."""
    catalogue = catalogued(tmp_path, CropOptions(margin=2.2), 14.0)
    reader = CropReader(catalogue)
    place = catalogue.place_of(0)
    store, name = catalogue.files[place.file]
    dots_HWC = np.zeros_like(reader.image(0))
    for x, y in catalogue.landmarks_N52[0]:
        cv2.circle(dots_HWC, (round(float(x) * 16), round(float(y) * 16)), 3 * 16, (255, 255, 255), cv2.FILLED, shift=4)
    ok, data = cv2.imencode(".png", dots_HWC)
    assert ok
    assert len(data) <= place.size
    # The same number of bytes, as the table says: PNG ends before the zeros.
    store.write(name, data.tobytes() + b"\0" * (place.size - len(data)))
    picture = CropReader(catalogue).picture(0, Preprocessing(size_px=64, margin=1.3, align=True))
    count, _, _, centres_N2 = cv2.connectedComponentsWithStats((picture.image_HWC[..., 0] > 127).astype(np.uint8))
    assert count == 6  # and the ground
    for point in picture.landmarks_K2:
        assert np.linalg.norm(centres_N2[1:] - point, axis=1).min() < 0.5


def test_resized_crops_show_the_same_at_their_own_scale(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, CropOptions(margin=1.5, size_px=352))
    preprocessing = Preprocessing(size_px=96, margin=1.2)
    picture = CropReader(catalogue).picture(0, preprocessing)
    whole_HWC = crop(portrait(0), catalogue.box_N4[0], catalogue.landmarks_frame_N52[0], preprocessing)
    small_HWC = cv2.resize(picture.image_HWC, whole_HWC.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small_HWC.astype(int) - whole_HWC).mean() < 4.0
    scale = picture.width / whole_HWC.shape[1]
    assert scale == pytest.approx(352 / 195, rel=0.02)
    corner_2 = np.floor(enlarge(catalogue.box_N4[0], 1.2, square=True)[:2] + 0.5)
    wanted_K2 = (catalogue.landmarks_frame_N52[0] - corner_2 + 0.5) * scale - 0.5
    np.testing.assert_allclose(picture.landmarks_K2, wanted_K2, atol=1.5)


@pytest.mark.parametrize("packing", ["tar", "files"])
@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_images_are_the_stored_ones(tmp_path: Path, packing: str, image_format: str) -> None:
    store = Store(tmp_path / "run")
    clip = Clip(video="v", faces={0: BOXES[:2], 7: [BOX]})
    finished_run(store, [clip], packing=packing, image_format=image_format)  # type: ignore[arg-type]
    catalogue = Catalogue.read([str(tmp_path / "run")])
    reader = CropReader(catalogue)
    for n, (frame, box) in reversed(list(enumerate([(0, BOXES[0]), (0, BOXES[1]), (7, BOX)]))):
        region_4 = np.floor(enlarge(np.array(box, np.float32), 1.3, square=True) + 0.5)
        expected_HWC = cut(portrait(frame), region_4)
        image_HWC = reader.image(n)
        assert image_HWC.dtype == np.uint8
        assert image_HWC.shape == expected_HWC.shape
        assert np.abs(image_HWC.astype(int) - expected_HWC).mean() <= (0 if image_format == "png" else 3)


@pytest.mark.parametrize("damage", ["zeros", "cut", "gone"])
def test_a_damaged_crop_is_refused_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path / "run")
    finished_run(store, [Clip(video="v", faces={0: [BOX], 7: [BOX]})])
    catalogue = Catalogue.read([str(tmp_path / "run")])
    place = catalogue.place_of(1)
    file = store.local_path(catalogue.files[place.file][1])
    with file.open("r+b") as opened:
        if damage == "zeros":
            opened.seek(place.offset)
            opened.write(b"\0" * place.size)
        elif damage == "cut":
            opened.truncate(place.offset + place.size // 2)
    reader = CropReader(catalogue)
    if damage == "gone":
        file.unlink()
        with pytest.raises(StorageError, match=r"crops/00000.tar cannot be read \(No such file or directory\)"):
            reader.image(1)
        return
    with pytest.raises(StorageError, match=r"crops/00000.tar is damaged where the crop of run/v frame 7 face 0 lies"):
        reader.image(1)
    assert reader.image(0).any()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def _few_files() -> Iterator[None]:
    """As on a system that allows few open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 160, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("_few_files")
def test_more_files_than_may_be_open_are_read_and_closed_in_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    finished_run(store, [Clip(video="v", faces={k: [(100, 100, 120, 120)] * 9 for k in range(30)})], packing="files")
    catalogue = Catalogue.read([str(tmp_path / "run")])
    assert len(catalogue.files) == 270
    before = open_files()
    reader = CropReader(catalogue)
    with ThreadPoolExecutor(4) as pool:
        shapes = {image_HWC.shape for image_HWC in pool.map(reader.image, [*range(270), *range(270)])}
    assert shapes == {(26, 26, 3)}
    del reader
    gc.collect()
    assert open_files() == before


@pytest.fixture
def bucket(tmp_path: Path) -> tuple[str, Catalogue]:
    """A run in a bucket, and the same one in a folder."""
    clips = [Clip(video=v, faces={0: [BOX], 7: [BOX]}) for v in "ab"]
    uri = f"memory://crops-{os.getpid()}-{tmp_path.name}/run"
    finished_run(Store(uri), clips, per_shard=1)
    finished_run(Store(tmp_path / "run"), clips, per_shard=1)
    return uri, Catalogue.read([str(tmp_path / "run")])


def test_files_of_buckets_are_fetched_once(bucket: tuple[str, Catalogue], tmp_path: Path) -> None:
    uri, local = bucket
    cache = tmp_path / "cache" / "deeper"
    reader, beside = CropReader(Catalogue.read([uri]), cache), CropReader(local)
    for n in (3, 0, 1, 2):
        np.testing.assert_array_equal(reader.image(n), beside.image(n))
    assert len(list(cache.iterdir())) == 2
    # What was fetched is read without the bucket; another run in the cache does not lead astray.
    for shard in range(2):
        Store(uri).write(f"crops/{shard:05d}.tar", b"gone")
    np.testing.assert_array_equal(reader.image(0), beside.image(0))


def test_a_cache_knows_what_it_holds(bucket: tuple[str, Catalogue], tmp_path: Path) -> None:
    uri, _ = bucket
    other = uri.replace("/run", "/second/run")
    finished_run(Store(other), [Clip(video="c", faces={30: [BOX]})])
    cache = tmp_path / "cache"
    first = CropReader(Catalogue.read([uri]), cache).image(0)
    second = CropReader(Catalogue.read([other]), cache).image(0)
    assert not np.array_equal(first, second)
    # Preprocessed again, with other options: other files at the same place.
    finished_run(Store(uri), [Clip(video=v, faces={0: [BOX], 7: [BOX]}) for v in "ab"], per_shard=1, margin=1.5)
    anew = CropReader(Catalogue.read([uri]), cache).image(0)
    assert anew.shape[0] == 195
    assert first.shape[0] == 169
    assert len(list(cache.iterdir())) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_cache_of_its_own_is_removed(
    bucket: tuple[str, Catalogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, local = bucket
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reader = CropReader(Catalogue.read([uri]))
    (folder,) = tmp_path.glob("unmask-crops-*")
    # Another process, forked while it is in use, finds what was fetched, and leaves it there when it ends.
    np.testing.assert_array_equal(reader.image(0), CropReader(local).image(0))
    child = os.fork()
    if not child:
        status = 1
        try:
            reader.image(1)
            del reader
            gc.collect()
            status = 0 if len(list(folder.iterdir())) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(folder.iterdir())) == 1
    del reader
    gc.collect()
    assert not folder.exists()


def test_a_reader_travels_without_what_it_has_open(bucket: tuple[str, Catalogue]) -> None:
    _, local = bucket
    reader = CropReader(local)
    before = reader.image(2)
    there = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(there.image(2), before)


def test_a_place_that_cannot_be_reached_is_said(bucket: tuple[str, Catalogue], tmp_path: Path) -> None:
    uri, _ = bucket
    catalogue = Catalogue.read([uri])
    Store(uri).delete("crops/00000.tar")
    with pytest.raises(StorageError, match=r"run/crops/00000\.tar cannot be read") as refused:
        CropReader(catalogue, tmp_path / "cache").image(0)
    assert "\n" not in refused.value.message


def test_tilting_is_a_turn() -> None:
    points_K2 = np.array([[0, 0], [2, 0], [1, 1], [0, 2], [2, 2]], np.float32)
    np.testing.assert_allclose(tilted(points_K2, 90.0)[1], [2, 2], atol=1e-6)
