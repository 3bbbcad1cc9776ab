import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import (
    CropOptions,
    DetectorOptions,
    EmbedOptions,
    Job,
    Pools,
    ScoreOptions,
    check_same,
    detector_digest,
    digest,
    parse_scale,
    recorded,
)
from unmask.errors import StorageError, UsageError
from unmask.plan import Sampling
from unmask.scoring import ScoringOptions
from unmask.storage import Store

JOBS = {
    "default": Job(),
    "sampling": Job(sampling=Sampling(every=10)),
    "thresholds": Job(detector=DetectorOptions(thresholds=(0.6, 0.7, 0.7))),
    "scale": Job(detector=DetectorOptions(scale=0.5)),
    "face": Job(detector=DetectorOptions(smallest_face_px=40)),
    "margin": Job(crops=CropOptions(margin=1.5)),
    "square": Job(crops=CropOptions(square=False)),
    "align": Job(crops=CropOptions(align=True)),
    "size": Job(crops=CropOptions(size_px=224)),
    "format": Job(crops=CropOptions(format="jpg")),
    "layout": Job(crops=CropOptions(layout="files")),
    "no crops": Job(crops=None),
    "embed": Job(embed=(EmbedOptions(model="facenet"),)),
    "weights": Job(embed=(EmbedOptions(model="facenet", sha256="0123"),)),
    "score": Job(score=ScoreOptions(model=EmbedOptions(model="a"))),
    "score options": Job(score=ScoreOptions(model=EmbedOptions(model="a"), options=ScoringOptions(aggregation="max"))),
    "paired": Job(boxes_from_source=True),
}


def test_jobs_that_differ_have_digests_that_differ() -> None:
    assert len({digest(job.to_json()) for job in JOBS.values()}) == len(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_goes_on_where_it_was_begun_and_nowhere_else(name: str, tmp_path: Path) -> None:
    store, job = Store(tmp_path), JOBS[name]
    begun = check_same(store, job, manifest={"videos": 3}, shard_videos=2)
    written = (tmp_path / "job.json").read_bytes()
    assert check_same(store, replace(job), manifest={"videos": 3}, shard_videos=2) == begun
    assert recorded(store)["shard_videos"] == 2
    for other in JOBS.values():
        if other is not job:
            with pytest.raises(UsageError, match="was made with another configuration"):
                check_same(store, other, manifest={"videos": 3}, shard_videos=2)
    assert (tmp_path / "job.json").read_bytes() == written


def test_a_digest_stays_what_it_is() -> None:
    # Outputs made before are continued: a change here must come with another number of the format.
    assert digest({"b": [1, 0.5, None], "a": "ü"}) == digest({"a": "ü", "b": [1, 0.5, None]}) == "5e6a96156656b7ae"


def test_the_detector_is_named_by_all_that_shapes_it() -> None:
    options = (
        DetectorOptions(),
        DetectorOptions(thresholds=(0.6, 0.7, 0.7)),
        DetectorOptions(scale=1.0),
        DetectorOptions(smallest_face_px=20.0),
    )
    assert Job().to_json()["detector"]["name"] == "mtcnn"
    assert len({detector_digest(option) for option in options}) == len(options)
    assert detector_digest(DetectorOptions()) == detector_digest(DetectorOptions())


def test_all_differences_are_named(tmp_path: Path) -> None:
    check_same(Store(tmp_path), Job(crops=None), manifest={"videos": 3, "digest": "ab"})
    with pytest.raises(UsageError) as caught:
        check_same(Store(tmp_path), Job(sampling=Sampling(every=5)), manifest={"videos": 4, "digest": "ab"})
    message = str(caught.value)
    assert "crops was null, now {" in message
    assert "manifest.videos was 3, now 4; sampling.every was null, now 5; sampling.frames was 32, now null" in message
    assert "digest" not in message
    assert message.endswith("choose another --out, or the same options as before.")


def test_an_output_of_another_version_is_not_continued(tmp_path: Path) -> None:
    check_same(Store(tmp_path), Job())
    record = tmp_path / "job.json"
    record.write_text(record.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(UsageError, match=r"was made by another version of Unmask, .*; choose another --out"):
        check_same(Store(tmp_path), Job())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"job": 3', b"\xff"])
def test_a_damaged_record_is_said(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "job.json").write_bytes(damage)
    with pytest.raises(StorageError, match=r"job.json is damaged"):
        check_same(Store(tmp_path), Job())


def test_a_record_can_be_read_by_people(tmp_path: Path) -> None:
    check_same(Store(tmp_path), Job(), manifest={"videos": 3})
    plain = json.loads((tmp_path / "job.json").read_text())
    assert plain["job"]["crops"]["margin"] == 1.3
    assert plain["config"] == digest(plain["job"])


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (DetectorOptions, {"name": "yolo"}, "--detector is mtcnn or hog; got 'yolo'"),
    (DetectorOptions, {"thresholds": (0.6, 0.7)}, "--thresholds"),
    (DetectorOptions, {"thresholds": (0.6, 0.7, 1.0)}, "--thresholds"),
    (DetectorOptions, {"scale": 0.0}, "--scale"),
    (DetectorOptions, {"scale": 5.0}, "--scale"),
    (DetectorOptions, {"scale": float("nan")}, "--scale"),
    (DetectorOptions, {"smallest_face_px": 3.0}, "face:PX"),
    (CropOptions, {"margin": 0.4}, "--margin"),
    (CropOptions, {"margin": float("nan")}, "--margin"),
    (CropOptions, {"size_px": 7}, "--size"),
    (CropOptions, {"format": "gif"}, "--format is one of png, jpg, webp; got gif"),
    (CropOptions, {"layout": "zip"}, "--crops-as is one of tar, files; got zip"),
    (Pools, {"decode_tasks": 0}, "--decode-tasks"),
    (Pools, {"detect_actors": -1}, "--detect-actors"),
    (Pools, {"embed_gpus": -0.5}, "--embed-gpus"),
    (Pools, {"detect_cpus": float("inf")}, "--detect-cpus"),
    (Pools, {"decode_cpus": 0.4, "detect_cpus": 0.4}, "must differ"),
    (Pools, {"max_batch_mb": 0}, "--max-batch-mb"),
    (Pools, {"decode_timeout_s": 0.0}, "--decode-timeout"),
    (Pools, {"decode_timeout_s": float("nan")}, "--decode-timeout"),
]


@pytest.mark.parametrize(("kind", "values", "told"), REFUSED, ids=[str(values) for _, values, _ in REFUSED])
def test_values_out_of_range_are_refused_by_the_names_of_their_options(
    kind: type[Any], values: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        kind(**values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", ("auto", None)), ("full", (1.0, None)), ("0.5", (0.5, None)), ("face:40", ("auto", 40.0))],
)
def test_scales_are_read(text: str, expected: tuple[object, object]) -> None:
    assert parse_scale(text) == expected


@pytest.mark.parametrize("text", ["", "half", "face:", "face:big", "1/2"])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--scale is auto, full, a factor, or face:PX"):
        parse_scale(text)
