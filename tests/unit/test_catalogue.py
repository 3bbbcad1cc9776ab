"""The catalogue's arrays are the tables of the runs, row for row; what a model cannot be fed from is refused."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import CropOptions
from tests.products import BOX, Clip, finished_run
from tests.recut import recut
from train.catalogue import AskedFrames, Catalogue
from unmask.errors import StorageError, UsageError
from unmask.faces import cut_corners, enlarge
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import Preprocessing

SMALL = (20.0, 30.0, 70.0, 90.0)
TINY = (20.4, 30.4, 50.7, 66.9)
"""Between pixels: what is cut out of the frame lacks up to half of one, which are several of an enlarged crop."""
CLIPS = [
    Clip(video="a/nobody", faces={}, columns={"label": 0}),
    Clip(
        video="a/two",
        faces={0: [BOX, SMALL], 5: [BOX], 9: [SMALL, BOX]},
        corrupt=frozenset({5}),
        columns={"label": 1, "source": "a/nobody", "identity": ["anna", "bert"], "split": "val", "mos": 2.5},
    ),
    Clip(video="b", faces={3: [BOX]}, columns={"label": 0, "identity": ["anna"]}),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "first"
    # The first shard has no face at all.
    finished_run(Store(folder), CLIPS, per_shard=1)
    return str(folder)


def rows_of(uris: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of all tables of faces, with their dataset's name."""
    products = [(Path(uri).name, Products(Store(uri))) for uri in uris]
    return [row | {"in": name} for name, p in products for shard in p.shards() for row in p.faces(shard).to_pylist()]


def test_arrays_are_the_tables(uri: str, tmp_path: Path) -> None:
    other = str(tmp_path / "second")
    finished_run(Store(other), CLIPS[2:], packing="files", side_px=64)
    catalogue = Catalogue.read([uri, other])
    rows = rows_of([uri, other])
    assert len(catalogue) == len(rows) == 7
    for n, row in enumerate(rows):
        video = catalogue.videos[catalogue.video_N[n]]
        assert video.key == video.about.video == f"{row['in']}/{row['video']}"
        assert video.dataset == row["in"]
        assert video.rows.start <= n < video.rows.stop
        assert (catalogue.frame_N[n], catalogue.face_N[n]) == (row["frame"], row["face"])
        assert catalogue.pts_s_N[n] == row["pts_s"]
        assert catalogue.track_N[n] == (-1 if row["track"] is None else row["track"])
        assert catalogue.after_gap_N[n] == row["after_gap"]
        assert catalogue.corrupt_N[n] == row["is_corrupt"]
        assert catalogue.probability_N[n] == np.float32(row["probability"])
        assert catalogue.box_N4[n].tolist() == row["box"]
        assert catalogue.landmarks_frame_N52[n].ravel().tolist() == row["landmarks"]
        assert catalogue.landmarks_N52[n].ravel().tolist() == row["crop_landmarks"]
        assert catalogue.transform_N6[n].tolist() == row["crop_transform"]
        assert catalogue.size_N2[n].tolist() == [row["crop_width"], row["crop_height"]]
        assert catalogue.name_of(n) == f"{video.key} frame {row['frame']} face {row['face']}"
    assert catalogue.corrupt_N.tolist() == [False, False, True, False, False, False, False]
    assert catalogue.after_gap_N.tolist() == [False, False, False, True, True, False, False]
    assert catalogue.side_px_N().tolist() == [100, 50, 100, 50, 100, 100, 100]
    assert "3 videos, 7 faces of first, second" in repr(catalogue)


def test_places_are_where_the_crops_lie(uri: str) -> None:
    catalogue = Catalogue.read([uri])
    for n, row in enumerate(rows_of([uri])):
        place = catalogue.place_of(n)
        store, name = catalogue.files[place.file]
        assert (name, place.offset, place.size) == (row["crop_file"], row["crop_offset"], row["crop_bytes"])
        data = store.read(name)[place.offset : place.offset + place.size]
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape[1::-1] == tuple(catalogue.size_N2[n])
        assert place.shown == f"{uri}/{name}"


def test_videos_are_those_of_the_manifest_with_names_of_their_own(uri: str) -> None:
    catalogue = Catalogue.read([uri])
    two, b = catalogue.videos  # without the one that gave no face
    assert two.about.video == "first/a/two"
    assert two.about.source == "first/a/nobody"
    assert two.about.identity == ("first/anna", "first/bert")
    assert (two.about.label, two.about.mos, two.about.split, two.shard) == (1, 2.5, "val", 1)
    assert (b.about.source, b.about.label, b.shard) == (None, 0, 2)


def test_it_travels_to_another_process(uri: str) -> None:
    catalogue = Catalogue.read([uri])
    there = pickle.loads(pickle.dumps(catalogue))
    assert [(v.key, v.about, v.rows) for v in there.videos] == [(v.key, v.about, v.rows) for v in catalogue.videos]
    assert [v.asked.frame_A.tolist() for v in there.videos] == [v.asked.frame_A.tolist() for v in catalogue.videos]
    assert there.place_of(3) == catalogue.place_of(3)


def test_the_frames_that_were_asked_for_are_known(tmp_path: Path) -> None:
    clips = [
        Clip(video="v", faces={4: [BOX], 12: [BOX]}, faceless=frozenset({0, 8}), missing=frozenset({20})),
        Clip(video="none", faces={}, faceless=frozenset({0, 4}), status="empty", columns={"reason": "no_face"}),
        Clip(video="lost", faces={}, status="failed", columns={"reason": "not_a_video", "message": "It is text."}),
    ]
    finished_run(Store(tmp_path / "run"), clips)
    catalogue = Catalogue.read([str(tmp_path / "run")])
    (video,) = catalogue.videos
    assert video.asked.frame_A.tolist() == [0, 4, 8, 12, 20]
    assert video.asked.pts_s_A.tolist() == [0, 0.16, 0.32, 0.48, 0.8]
    assert video.asked.reasons == {4: "missing_frame"}
    assert video.asked.places_of(catalogue.frame_N).tolist() == [1, 3]
    said = [(video.key, video.reason, video.message) for video in catalogue.faceless]
    assert said == [("run/none", "no_face", "No face was found."), ("run/lost", "not_a_video", "It is text.")]


def test_a_video_without_its_list_of_frames_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    videos = finished_run(store, [Clip(video="v")]).videos(0)
    fields = [pa.field(f.name, f.type) for f in videos.schema]
    rows = [{**row, "frame_reasons": None} for row in videos.to_pylist()]
    store.write_table("videos/00000.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    with pytest.raises(StorageError, match="run does not list the frames of all videos; preprocess again"):
        Catalogue.read([str(tmp_path / "run")])


def test_a_frame_that_was_asked_for_twice_has_its_first_place() -> None:
    asked = AskedFrames(np.array([4, 8, 8, -1, -1], np.int32), np.arange(5.0), {3: "missing_frame", 4: "missing_frame"})
    assert asked.places_of(np.array([8, 4], np.int32)).tolist() == [1, 0]
    assert len(asked) == 5


def test_a_dataset_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    products = finished_run(store, [Clip(video="v")])
    store.write_table("videos/00000.parquet", products.videos(0).drop_columns(["frame_reasons"]))
    with pytest.raises(UsageError, match=r"run was preprocessed by an earlier version of Unmask, .*; preprocess again"):
        Catalogue.read([str(tmp_path / "run")])


def test_a_face_in_a_frame_that_is_not_listed_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    products = finished_run(store, [Clip(video="v", faces={0: [BOX], 10: [BOX]})])
    videos = products.videos(0)
    column = pa.array([[0, 5]], videos.schema.field("frames").type)
    store.write_table(
        "videos/00000.parquet", videos.set_column(videos.schema.get_field_index("frames"), "frames", column)
    )
    with pytest.raises(StorageError, match="run does not list all frames of v; preprocess again"):
        Catalogue.read([str(tmp_path / "run")])


@pytest.mark.parametrize("size_px", [None, 64, 352])
@pytest.mark.parametrize("square", [True, False])
def test_boxes_in_crops(tmp_path: Path, size_px: int | None, square: bool) -> None:
    store = Store(tmp_path / "run")
    finished_run(store, [Clip(video="v", faces={0: [BOX, SMALL]})], packing="files")
    recut(store, CropOptions(margin=1.4, square=square, size_px=size_px))
    catalogue = Catalogue.read([str(tmp_path / "run")])
    for n, box in enumerate((BOX, SMALL)):
        # The crop is this part of the frame, and shows nothing else.
        left, top, right, bottom = cut_corners(enlarge(np.array(box), 1.4, square=square))
        size_2 = np.array([right - left, bottom - top])
        assert catalogue.size_N2[n].tolist() == ([size_px, size_px] if size_px else size_2.tolist())
        scale_2 = catalogue.size_N2[n] / size_2
        wanted_4 = (np.array(box) - [left, top, left, top]) * np.tile(scale_2, 2)
        np.testing.assert_allclose(catalogue.box_in_crop(n), wanted_4, atol=1e-3)


def run(folder: Path, options: CropOptions, degrees: float = 0.0) -> Catalogue:
    store = Store(folder / "run")
    finished_run(store, [Clip(video="v", faces={k: [BOX, TINY] for k in range(4)})], packing="files")
    recut(store, options, degrees=degrees)
    return Catalogue.read([str(folder / "run")])


@pytest.mark.parametrize("size_px", [None, 90, 352])
@pytest.mark.parametrize(
    ("square", "margin", "fit"),
    [
        (True, 1.3, "square"),
        (True, 1.0, "square"),
        (True, 1.3, "stretch"),
        (True, 1.3, "pad"),
        (False, 1.3, "stretch"),
        (False, 1.0, "pad"),
        (True, 5 / 3, "pad"),
    ],
)
def test_crops_cover_their_own_margin_and_smaller_ones(
    tmp_path: Path, square: bool, margin: float, fit: str, size_px: int | None
) -> None:
    catalogue = run(tmp_path, CropOptions(margin=margin, square=square, size_px=size_px))
    for less in (0.0, 0.1, 0.3):
        wanted = Preprocessing(size_px=64, margin=max(margin - less, 0.9), fit=fit)  # type: ignore[arg-type]
        catalogue.check_covers(wanted)
    more = Preprocessing(size_px=64, margin=margin + 0.5, fit=fit)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"preprocess with --margin {margin + 0.5:.2f} or more"):
        catalogue.check_covers(more)


def test_boxes_of_their_own_proportions_are_no_squares(tmp_path: Path) -> None:
    catalogue = run(tmp_path, CropOptions(margin=1.3, square=False))
    with pytest.raises(UsageError, match="in squares"):
        catalogue.check_covers(Preprocessing(size_px=64, margin=1.3, fit="square"))


def test_what_the_sentence_says_of_the_crops_is_so(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"show about 1\.[23]\d times the face's box, and this model wants 2\.00 times"
    ):
        run(tmp_path, CropOptions(margin=1.3)).check_covers(Preprocessing(size_px=64, margin=2.0))


def test_a_few_crops_may_be_cut_short(tmp_path: Path) -> None:
    """One in twenty, not one in five: whoever writes crops by hand may have some at the border."""
    for count, is_refused in ((1, False), (4, True)):
        store = Store(tmp_path / str(count))
        finished_run(store, [Clip(video="v", faces={k: [BOX] for k in range(20)})], margin=1.7)
        catalogue = Catalogue.read([str(tmp_path / str(count))])
        catalogue.box_N4[:count] += np.array([-60, -60, 60, 60], np.float32)
        if is_refused:
            with pytest.raises(UsageError, match="show about"):
                catalogue.check_covers(Preprocessing(size_px=64, margin=1.6))
        else:
            catalogue.check_covers(Preprocessing(size_px=64, margin=1.6))


def test_turned_crops_serve_models_that_turn_faces(tmp_path: Path) -> None:
    catalogue = run(tmp_path, CropOptions(margin=1.3, align=True), degrees=12.0)
    catalogue.check_covers(Preprocessing(size_px=64, margin=1.3, align=True))
    catalogue.check_covers(Preprocessing(size_px=64, margin=1.1, align=True))
    with pytest.raises(UsageError, match="turned upright"):
        catalogue.check_covers(Preprocessing(size_px=64, margin=1.3))
    with pytest.raises(UsageError, match=r"preprocess with --align --margin 1\.80"):
        catalogue.check_covers(Preprocessing(size_px=64, margin=1.8, align=True))


def test_plain_crops_with_room_serve_models_that_turn_faces(tmp_path: Path) -> None:
    wide = run(tmp_path, CropOptions(margin=2.0), degrees=12.0)
    wide.check_covers(Preprocessing(size_px=64, margin=1.3, align=True))
    with pytest.raises(UsageError, match="too closely to turn faces"):
        wide.check_covers(Preprocessing(size_px=64, margin=2.5, align=True))


@pytest.mark.parametrize("made", ["nothing", "other", "faceless", "cropless"])
def test_what_is_no_such_run_is_refused_in_a_sentence(tmp_path: Path, made: str) -> None:
    folder, says = tmp_path / "run", "holds nothing that was preprocessed; run unmask preprocess first"
    if made == "other":
        folder.mkdir()
        (folder / "notes.txt").write_text("hello")
    elif made == "faceless":
        finished_run(Store(folder), [Clip(video="v", faces={})])
        says = "no face was found in the videos of"
    elif made == "cropless":
        finished_run(Store(folder), CLIPS, packing="none")
        says = "holds no crops; preprocess with `crops` among the products"
    with pytest.raises(UsageError, match=says) as refused:
        Catalogue.read([str(folder)])
    assert str(folder) in refused.value.message


def test_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("x", "y"):
        finished_run(Store(tmp_path / place / "faces"), CLIPS)
    with pytest.raises(UsageError, match=r"x/faces and .*y/faces/? are both called faces; rename one"):
        Catalogue.read([str(tmp_path / "x" / "faces"), f"{tmp_path}/y/faces/"])
