from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.parcels import FaceRecord, FrameNote, Outcome, Parcel, Part, from_row, to_row
from pipelines.units import commit, committed, is_whole, read_unit, state_folder
from unmask.errors import Reason, StorageError
from unmask.products import FACES
from unmask.records import VideoInfo
from unmask.storage import Store

INFO = VideoInfo(
    container="mov", codec="h264", pixel_format="yuv420p", width=320, height=240, rotation=90, duration_s=2.5,
    frames=60, rate_fps=24.0,
)  # fmt: skip
NOTES = [
    FrameNote(index=3, pts_s=0.125, reason=None),
    FrameNote(index=9, pts_s=1 / 3, reason=Reason.CORRUPT_FRAME, cut=True),
    FrameNote(index=12, pts_s=0.5, reason=Reason.NO_FACE),
]


def face(index: int, rank: int, *, dims: tuple[int, ...] = (), crop: bytes | None = b"png") -> FaceRecord:
    """A face whose crop is turned and twice as large as in the frame."""
    rng = np.random.default_rng(index * 10 + rank)
    transform_23 = np.array([[0.0, -0.5, 100.0], [0.5, 0.0, 40.0]], np.float32)
    return FaceRecord(
        index=index,
        rank=rank,
        pts_s=index / 24,
        is_corrupt=index == 9,
        box_4=np.array([40, 30, 100.25, 120], np.float32),
        landmarks_K2=rng.uniform(30, 120, (5, 2)).astype(np.float32),
        probability=0.97,
        sharpness=0.3,
        transform_23=transform_23,
        width=130,
        height=131,
        crop=crop,
        inputs=[],
        features=[rng.normal(size=dim).astype(np.float32) for dim in dims],
    )


def parcel(part: Part, faces: list[FaceRecord], shard: int = 0) -> Parcel:
    return Parcel(shard=shard, part=part, info=INFO, content_id="abc", attempts=2, frames=NOTES, faces=faces)


def outcome(video: int) -> Outcome:
    return Outcome(video=video, status="quarantined", reason=Reason.DECODER_HUNG, message="It hung: “ü”.", attempts=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def only(store: Store, shard: int = 0) -> str:
    (name,) = store.names(state_folder(shard))
    return name


def test_a_batch_comes_back_as_it_was(store: Store) -> None:
    part = Part(video=7, unit=1, units=2, batch=0, batches=3)
    faces = [face(3, 0, dims=(4, 6)), face(3, 1, dims=(4, 6)), face(9, 0, dims=(4, 6))]
    commit(store, 5, parcel(part, faces))
    assert committed(store, 0).parts == {part: (5, only(store))}
    unit = read_unit(store, only(store))
    assert (unit.part, unit.info, unit.content_id, unit.attempts, unit.frames) == (part, INFO, "abc", 2, NOTES)
    table = unit.faces
    assert all(
        table.schema.field(name).type == FACES.field(name).type
        for name in FACES.names
        if name in table.schema.names and name != "crop"
    )
    for row, expected in zip(table.to_pylist(), faces, strict=True):
        assert (row["frame"], row["face"], row["pts_s"]) == (expected.index, expected.rank, expected.pts_s)
        assert row["is_corrupt"] == expected.is_corrupt
        assert row["probability"] == np.float32(expected.probability)
        assert row["sharpness"] == np.float32(expected.sharpness)
        np.testing.assert_array_equal(row["box"], expected.box_4)
        np.testing.assert_array_equal(np.reshape(row["landmarks"], (5, 2)), expected.landmarks_K2)
        np.testing.assert_array_equal(np.reshape(row["crop_transform"], (2, 3)), expected.transform_23)
        assert (row["crop_width"], row["crop_height"], row["crop"]) == (130, 131, b"png")
        # Of a pixel (x, y) of the crop, the frame's is (100 - y / 2, 40 + x / 2).
        x_K, y_K = np.reshape(row["crop_landmarks"], (5, 2)).T
        np.testing.assert_allclose(np.stack([100 - y_K / 2, 40 + x_K / 2], 1), expected.landmarks_K2, rtol=1e-6)
        for n, feature_D in enumerate(expected.features):
            np.testing.assert_array_equal(np.array(row[f"f{n}"], np.float32), feature_D)


@pytest.mark.parametrize("info", [INFO, None])
def test_a_batch_without_faces_comes_back(store: Store, info: VideoInfo | None) -> None:
    part = Part(0, 0, 1, 0, 1)
    sent = parcel(part, [])
    sent.info = info
    commit(store, 1, sent)
    unit = read_unit(store, only(store))
    assert (unit.part, unit.info, unit.frames, len(unit.faces)) == (part, info, NOTES, 0)
    commit(store, 1, parcel(Part(1, 0, 1, 0, 1), [face(3, 0)], shard=1))
    both = pa.concat_tables([unit.faces, read_unit(store, only(store, 1)).faces])
    assert both["frame"].to_pylist() == [3]


def test_faces_without_crops_come_back(store: Store) -> None:
    commit(store, 1, parcel(Part(0, 0, 1, 0, 1), [face(3, 0, crop=None)]))
    assert read_unit(store, only(store)).faces["crop"].to_pylist() == [None]


def test_outcomes_come_back(store: Store) -> None:
    commit(store, 1, Parcel(shard=2, outcomes=(outcome(3), outcome(4))))
    commit(store, 2, Parcel(shard=2, outcomes=(outcome(9),), part=Part(10, 0, 1, 0, 1), frames=NOTES))
    found = committed(store, 2)
    assert found.outcomes == {3: (1, outcome(3)), 4: (1, outcome(4)), 9: (2, outcome(9))}
    assert list(found.parts) == [Part(10, 0, 1, 0, 1)]
    assert found.before(2) == ((), (outcome(3), outcome(4)))
    assert found.before(3) == ((Part(10, 0, 1, 0, 1),), (outcome(3), outcome(4), outcome(9)))
    assert found.ended(1) == set()
    assert found.ended(2) == {3, 4}
    assert found.ended(3) == {3, 4, 9, 10}


def test_a_batch_done_twice_is_written_alike(store: Store) -> None:
    part = Part(0, 0, 1, 0, 2)
    commit(store, 1, parcel(part, [face(3, 0, dims=(8,))]))
    before = store.read(only(store))
    commit(store, 1, parcel(part, [face(3, 0, dims=(8,))]))
    assert store.read(only(store)) == before
    commit(store, 2, parcel(part, [face(3, 0, dims=(8,))]))
    assert len(store.names(state_folder(0))) == 2
    found = committed(store, 0)
    assert found.parts[part][0] == 1
    assert found.ended(3) == set()


def test_what_does_not_belong_is_passed_over(store: Store) -> None:
    commit(store, 1, parcel(Part(0, 0, 1, 0, 1), []))
    for name in (".r1-0.0-1.0-1.arrow.abcd.part", "r1-0.0-1.arrow", "r1-0.0-1.0-1.arrow.bak", "notes.txt"):
        store.write(f"{state_folder(0)}/{name}", b"?")
    assert list(committed(store, 0).parts) == [Part(0, 0, 1, 0, 1)]
    assert committed(store, 1).parts == {}


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -300])
def test_a_damaged_batch_is_said(store: Store, keep: int) -> None:
    commit(store, 1, parcel(Part(0, 0, 1, 0, 1), [face(3, 0)]))
    name = only(store)
    store.write(name, store.read(name)[:keep])
    with pytest.raises(StorageError, match=r"r1-0.0-1.0-1.arrow is damaged; remove it and run again"):
        read_unit(store, name)


def test_a_table_that_is_no_batch_is_said(store: Store) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("a", pa.int8())])) as writer:
        writer.write_table(pa.table({"a": pa.array([1], pa.int8())}))
    store.write("x.arrow", sink.getvalue())
    with pytest.raises(StorageError, match=r"x\.arrow is damaged"):
        read_unit(store, "x.arrow")


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([Part(0, 0, 1, 0, 1)], True),
        ([Part(0, 0, 1, 0, 2)], False),
        ([Part(0, 0, 2, 0, 1)], False),
        ([Part(0, 0, 2, 0, 1), Part(0, 1, 2, 0, 2)], False),
        ([Part(0, 1, 2, 1, 2), Part(0, 0, 2, 0, 1), Part(0, 1, 2, 0, 2)], True),
        ([Part(0, 0, 1, 0, 2), Part(0, 0, 1, 0, 2)], False),
    ],
)
def test_a_video_is_whole_with_all_batches_of_all_units(parts: list[Part], whole: bool) -> None:
    assert is_whole(parts) is whole


def test_parcels_travel_as_rows_beside_their_pixels() -> None:
    pixels = np.random.default_rng(0).bytes(5000)
    sent = parcel(Part(1, 0, 1, 0, 1), [face(3, 0, dims=(8,))])
    table = to_row(sent, pixels)
    assert table.num_rows == 1
    again = pa.ipc.open_stream(_stream(table)).read_all()
    for parcel_there, there in from_row(pa.concat_tables([again, to_row(Parcel(shard=3))])):
        if parcel_there.shard == 3:
            assert len(there) == 0
            continue
        assert bytes(there) == pixels
        assert (parcel_there.part, parcel_there.info, parcel_there.frames) == (sent.part, INFO, NOTES)
        np.testing.assert_array_equal(parcel_there.faces[0].features[0], sent.faces[0].features[0])


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
