import csv
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.scores import SCORES, EmbeddedFrame, head_of, score_row, score_video, write_submission
from tests import clips
from tests.portraits import filmed, scenery
from unmask.analysis import Analyzer
from unmask.calibration import Calibration
from unmask.checkpoints import Description
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import MediaError, Reason, UsageError
from unmask.faces import crop
from unmask.follow import Follower
from unmask.inputs import Source, content_id
from unmask.models import ModelConfig, build
from unmask.mtcnn import MTCNN
from unmask.plan import Sampling
from unmask.quality import measured
from unmask.records import Faces, Frame, ModelInfo, Status, Verdict, VideoScore
from unmask.scoring import ScoringOptions
from unmask.tally import Subject, usable_rows
from unmask.tracks import reason_not_to_look
from unmask.transforms import Preprocessing, to_tensor
from unmask.video import VideoReader

SIZE = {"width": 320, "height": 240}
PREPROCESSING = Preprocessing(size_px=64)


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN(thresholds=SCORING_THRESHOLDS)


@pytest.fixture(scope="module", params=["frame", "temporal"])
def analyzer(request: pytest.FixtureRequest, detector: MTCNN) -> Analyzer:
    """A model whose scores differ from face to face: random weights, batch statistics fitted to faces, a steep head."""
    model = build(ModelConfig(backbone="mobilenetv3_small_050", head=request.param, window=4))
    faces = [image[40:200, 80:240] for image in filmed(12)]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().features(to_tensor([cv2.resize(face, (64, 64)) for face in faces], PREPROCESSING))
    for parameter in model.head.parameters():
        parameter.data *= 2
    description = Description(
        name="settled",
        version="1",
        config=model.config,
        preprocessing=PREPROCESSING,
        calibration=Calibration(temperature=0.9, fitted=True, band=(0.4, 0.6)),
        trained=True,
        sha256="0" * 64,
    )
    return Analyzer(model, description, detector)


def portrait(path: Path, images: Any, **options: Any) -> Path:
    return clips.clip(path, images=images, **{**SIZE, **options})


def plain(folder: Path) -> Path:
    return portrait(folder / "plain", filmed(30))


def damaged(folder: Path) -> Path:
    return clips.flipped(portrait(folder / "whole", filmed(60)), folder / "flipped.mp4", count=40, after=0.3)


def cut_short(folder: Path) -> Path:
    whole = clips.remuxed(portrait(folder / "whole", filmed(60)), folder / "first.mp4", {"movflags": "faststart"})
    return clips.cut(whole, folder / "cut.mp4", 0.6)


def come_and_gone(folder: Path) -> Path:
    return portrait(folder / "gone", [*filmed(12), *scenery(8), *filmed(10)])


def two_scenes(folder: Path) -> Path:
    images = list(filmed(24))
    return portrait(folder / "scenes", [*images[:12], *(image // 2 + 120 for image in images[12:])])


def zoomed_out(folder: Path) -> Path:
    near = list(filmed(30))
    far = [cv2.resize(image, (160, 120)) for image in near[10:20]]
    small = [cv2.copyMakeBorder(image, 60, 60, 80, 80, cv2.BORDER_REPLICATE) for image in far]
    return portrait(folder / "zoom", [*near[:10], *small, *near[20:]])


def no_face(folder: Path) -> Path:
    return portrait(folder / "coffee", scenery(12))


def tiny(folder: Path) -> Path:
    return clips.clip(folder / "tiny", frames=6, width=16, height=16)


def embedded(reader: VideoReader, sampling: Sampling, analyzer: Analyzer) -> Iterator[EmbeddedFrame]:
    """What the stages of a cluster would hand over: each frame and face by itself, numbers as read-only float32."""
    times_s = reader.times_s(sampling)
    dense = len(times_s) > 1 and float(np.median(np.diff(times_s))) <= 0.12
    follower = Follower(analyzer.detector) if dense else None
    for item in reader.frames(sampling):
        if not isinstance(item, Frame):
            yield EmbeddedFrame(pts_s=item.pts_s, index=item.index, seen=item.reason)
            continue
        height, width, _ = item.image_HWC.shape
        if reason := reason_not_to_look(height, width, is_corrupt=False):
            yield EmbeddedFrame(pts_s=item.pts_s, index=item.index, seen=reason)
            continue
        # A cluster looks at damaged frames too: their faces are a product, though they are not scored.
        if follower is None or item.is_corrupt:
            (faces,) = analyzer.detector.search([item.image_HWC])
        else:
            faces = follower(item.image_HWC, item.pts_s)
        yield EmbeddedFrame(
            pts_s=item.pts_s,
            index=item.index,
            seen=measured(item.image_HWC, faces),
            features_ND=features(item, faces, analyzer),
            is_corrupt=item.is_corrupt,
            cut=follower is not None and follower.cut,
        )


def features(frame: Frame, faces: Faces, analyzer: Analyzer) -> NDArray[np.float32]:
    """One backbone call a face; NaN for those that nobody may read."""
    features_ND = np.full((len(faces), analyzer.model.dim), np.nan, np.float32)
    for row in usable_rows(faces, analyzer.options):
        pixels = crop(frame.image_HWC, faces.boxes_N4[row], faces.landmarks_NK2[row], PREPROCESSING)
        with torch.inference_mode():
            features_ND[row] = analyzer.model.features(to_tensor([pixels], PREPROCESSING))[0].numpy()
    if frame.is_corrupt:
        features_ND[:] = np.nan
    return np.frombuffer(features_ND.tobytes(), np.float32).reshape(features_ND.shape)


def in_bulk(path: Path, sampling: Sampling, analyzer: Analyzer) -> VideoScore:
    with VideoReader(path) as reader:
        return score_video(
            Subject(input=str(path), id=content_id(path), media=reader.info),
            embedded(reader, sampling, analyzer),
            model=head_of(analyzer.model),
            description=analyzer.description,
            options=analyzer.options,
        )


def assert_same(one: Any, other: Any, at: str = "") -> None:
    """Equal plain values, numbers to 1e-6."""
    if isinstance(one, dict):
        assert list(one) == list(other), at
        for key in one:
            assert_same(one[key], other[key], f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for k, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{at}[{k}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-6), at
    else:
        assert one == other, at


def untimed(score: VideoScore) -> dict[str, Any]:
    return {key: value for key, value in score.to_json().items() if key != "timings_s"}


SPARSE, DENSE = Sampling(frames=8), Sampling(every=1)


@pytest.mark.parametrize(
    ("make", "sampling", "least_px", "status"),
    [
        (plain, SPARSE, 32, "scored"),
        (plain, DENSE, 32, "scored"),
        (damaged, DENSE, 32, "scored"),
        (damaged, Sampling(frames=20), 32, "scored"),
        (cut_short, SPARSE, 32, "scored"),
        (come_and_gone, DENSE, 32, "scored"),
        (two_scenes, DENSE, 32, "scored"),
        (zoomed_out, DENSE, 50, "scored"),
        (plain, SPARSE, 150, "unscored"),
        (no_face, SPARSE, 32, "unscored"),
        (tiny, SPARSE, 32, "unscored"),
        (plain, Sampling(times_s=()), 32, "failed"),
        (plain, Sampling(times_s=(70.0, 71.0)), 32, "failed"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_cluster_gives_what_one_process_gives(
    make: Any, sampling: Sampling, least_px: int, status: str, analyzer: Analyzer, tmp_path: Path
) -> None:
    options = ScoringOptions(min_face_px=least_px)
    strict = Analyzer(analyzer.model, analyzer.description, analyzer.detector, options=options)
    path = make(tmp_path)
    expected = strict.analyze(Source(str(path)), sampling).score
    assert expected.status == status
    assert_same(untimed(expected), untimed(in_bulk(path, sampling, strict)))


def blurred(folder: Path) -> Path:
    images = [cv2.GaussianBlur(image, (0, 0), 6) for image in filmed(12, 640, 480)]
    return portrait(folder / "blurred", images, width=640, height=480)


def test_a_cluster_abstains_where_one_process_does(analyzer: Analyzer, tmp_path: Path) -> None:
    """The same quality of each face, and the same sentence."""
    path = blurred(tmp_path)
    expected, bulk = analyzer.analyze(Source(str(path)), SPARSE).score, in_bulk(path, SPARSE, analyzer)
    assert_same(untimed(expected), untimed(bulk))
    assert bulk.faces[0].quality is not None
    assert bulk.faces[0].quality.side_px > 50
    assert any(warning.startswith("The face is blurred") for warning in bulk.warnings)
    plain_score = analyzer.analyze(Source(str(plain(tmp_path))), SPARSE).score
    assert plain_score.faces[0].quality is not None
    assert not any("face is" in warning or "sharp" in warning for warning in plain_score.warnings)


def test_the_features_make_the_score(analyzer: Analyzer, tmp_path: Path) -> None:
    """Nothing else in the frames does: the equality above is not one of constants."""
    path = plain(tmp_path)
    with VideoReader(path) as reader:
        frames = list(embedded(reader, SPARSE, analyzer))
    scores = {len(frames): judged(frames, analyzer).score}
    for k in range(2):
        scores[k] = judged([frame(f.seen, np.roll(f.features_ND, k + 1), f.pts_s) for f in frames], analyzer).score
    values = [value for value in scores.values() if value is not None]
    assert len(values) == 3
    # Far above the difference that the equality lets pass; how far, random weights decide.
    assert min(np.diff(sorted(values))) > 2e-5


# --- one video ------------------------------------------------------------------------------------------------------


def one_face(side: float = 100) -> Faces:
    return Faces(np.array([[0, 0, side, side]], np.float32), np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))


def frame(seen: Faces | Reason, features_ND: NDArray[Any] | None = None, pts_s: float = 0.0) -> EmbeddedFrame:
    values = {} if features_ND is None else {"features_ND": features_ND}
    return EmbeddedFrame(pts_s=pts_s, index=round(25 * pts_s), seen=seen, **values)


def judged(frames: list[EmbeddedFrame], analyzer: Analyzer, **options: Any) -> VideoScore:
    return score_video(
        Subject(input="bucket/a.mp4"),
        frames,
        model=head_of(analyzer.model),
        description=analyzer.description,
        options=analyzer.options,
        **options,
    )


def random_frames(count: int, dim: int) -> list[EmbeddedFrame]:
    draws = np.random.default_rng(0).normal(size=(count, 1, dim)).astype(np.float32)
    return [frame(one_face(), draw, k / 25) for k, draw in enumerate(draws)]


def test_a_head_travels_without_its_backbone(analyzer: Analyzer) -> None:
    head, model = head_of(analyzer.model), analyzer.model
    assert not list(head.backbone.parameters())
    assert list(model.backbone.parameters())
    assert (head.config, head.dim, head.training) == (model.config, model.dim, False)
    for mine, its in zip(head.head.parameters(), model.head.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()


def test_many_faces_are_judged_in_turns(analyzer: Analyzer) -> None:
    frames = random_frames(600, analyzer.model.dim)
    whole, model = judged(frames, analyzer), analyzer.model
    assert whole.frames.scored == 600
    if not model.is_temporal:
        with torch.inference_mode():
            logits_N = model.frame_logits(torch.from_numpy(np.concatenate([f.features_ND for f in frames])))
        scores_N = analyzer.description.calibration.probability(logits_N.numpy())
        assert whole.score == pytest.approx(float(scores_N.mean()), abs=1e-6)


def test_what_ended_a_video_is_its_result(analyzer: Analyzer) -> None:
    frames = [*random_frames(3, analyzer.model.dim), frame(Reason.DECODE_FAILED, pts_s=1.0)]
    crashed = MediaError(Reason.UNREADABLE_FILE, "a.mp4 killed its decoder")
    score = judged(frames, analyzer, error=crashed)
    assert (score.status, score.score, score.verdict) == (Status.FAILED, None, Verdict.INCONCLUSIVE)
    assert score.error is not None
    assert (score.error.code, score.error.message) == (Reason.UNREADABLE_FILE, "a.mp4 killed its decoder.")
    assert (score.frames.received, score.frames.scored) == (4, 3)
    assert judged([], analyzer, error=crashed).frames.received == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_harm_one_video_only(analyzer: Analyzer, value: float) -> None:
    frames = [frame(one_face(), np.full((1, analyzer.model.dim), value, np.float32), k / 25) for k in range(4)]
    score = judged(frames, analyzer)
    assert score.error is not None
    assert (score.status, score.error.code) == (Status.FAILED, Reason.INTERNAL)
    assert "bucket/a.mp4" in score.error.message


def test_features_of_another_model_are_an_error(analyzer: Analyzer) -> None:
    score = judged([frame(one_face(), np.zeros((1, 7), np.float32))], analyzer)
    assert score.error is not None
    assert "(1, 7)" in score.error.message


def test_a_frame_has_one_row_of_features_a_face() -> None:
    with pytest.raises(ValueError, match=r"\(1, D\); got shape \(2, 8\)"):
        frame(one_face(), np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match=r"\(0, D\); got shape \(1, 8\)"):
        frame(Reason.MISSING_FRAME, np.zeros((1, 8), np.float32))
    with pytest.raises(ValueError, match=r"\(1, D\)"):
        frame(one_face())


# --- the table ------------------------------------------------------------------------------------------------------


def test_rows_survive_parquet(analyzer: Analyzer, tmp_path: Path) -> None:
    dim = analyzer.model.dim
    scores = {
        "good": judged([*random_frames(6, dim), frame(Reason.CORRUPT_FRAME, pts_s=1.0)], analyzer),
        "empty": judged([frame(Faces.none(), np.zeros((0, dim), np.float32))], analyzer),
        "bad": judged([], analyzer, error=MediaError(Reason.MISSING_FILE, "There is no such file")),
    }
    table = pa.Table.from_pylist([score_row(video, score) for video, score in scores.items()], SCORES)
    table.validate(full=True)
    pq.write_table(table, tmp_path / "scores.parquet")
    read = pq.read_table(tmp_path / "scores.parquet")
    assert read.schema.equals(SCORES)
    good, empty, bad = read.to_pylist()
    assert good["score"] == scores["good"].score
    assert (good["faces"], good["deciding_track"], good["reason"]) == (1, 1, None)
    assert good["uncertainty"] == scores["good"].faces[0].uncertainty
    assert (good["frames_received"], good["frames_scored"], good["dropped"]) == (7, 6, [("corrupt_frame", 1)])
    assert good["warnings"] == list(scores["good"].warnings) != []
    assert (good["model"], good["model_sha256"], good["calibrated"]) == ("settled", "0" * 64, True)
    assert (empty["status"], empty["reason"], empty["score"]) == ("unscored", "no_face", None)
    assert (bad["status"], bad["reason"], bad["verdict"]) == ("failed", "missing_file", "inconclusive")
    assert (bad["message"], bad["faces"], bad["deciding_track"]) == ("There is no such file.", 0, None)
    assert all(set(row) == set(SCORES.names) for row in (good, empty, bad))
    for row, score in zip((good, empty, bad), scores.values(), strict=True):
        assert row["uri"] == "bucket/a.mp4"
        assert json.loads(row["json"]) == json.loads(json.dumps(untimed(score)))


def test_a_row_says_which_model_it_is_of(analyzer: Analyzer) -> None:
    assert judged([], analyzer).model == ModelInfo("settled", "1", "0" * 64, trained=True)


# --- the submission -------------------------------------------------------------------------------------------------


def rows(*uris: str) -> list[dict[str, Any]]:
    return [{"uri": uri, "score": 0.25} for uri in uris]


def written(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_submission_has_a_label_for_every_video(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    scored = {"uri": "s3://bucket/part/aaa.mp4", "score": np.float64(1 / 3)}
    unscored = {"uri": "/data/bbb.mp4", "score": None, "reason": "no_face"}
    write_submission(iter([scored, unscored]), path)
    assert path.read_bytes() == b"filename,label\naaa.mp4,0.3333333333333333\nbbb.mp4,0.5\n"
    write_submission([], path)
    assert path.read_bytes() == b"filename,label\n"


def test_names_of_files_in_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    uris = {
        "https://host/a/b%20c.mp4?token=1/2": "b c.mp4",
        "FILE:///data/d%20e.mp4": "d e.mp4",
        "s3://bucket/50%25?.mp4": "50%25?.mp4",
        'odd, "name"\n.mp4': 'odd, "name"\n.mp4',
        "ünï.mp4": "ünï.mp4",
    }
    write_submission(rows(*uris), path)
    assert [name for name, _ in written(path)[1:]] == list(uris.values())
    with pytest.raises(UsageError, match="has no file name"):
        write_submission(rows("s3://bucket/folder/"), path)


def test_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("of an earlier run")
    with pytest.raises(UsageError, match=r"called x\.mp4 and 1 more names"):
        write_submission(rows("a/x.mp4", "a/y.mp4", "b/x.mp4", "b/y.mp4", "b/z.mp4", "c/x.mp4"), path)
    with pytest.raises(UsageError, match=r"called y\.mp4, and"):
        write_submission(rows("a/x.mp4", "a/y.mp4", "b/y.mp4"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]
    assert path.read_text() == "of an earlier run"


def test_a_digest_that_two_names_share_is_no_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.scores._digest", lambda _: 7)
    write_submission(rows("a.mp4", "b.mp4"), tmp_path / "submission.csv")
    with pytest.raises(UsageError, match=r"called b\.mp4, and"):
        write_submission(rows("a.mp4", "b.mp4", "c/b.mp4"), tmp_path / "other.csv")


def test_a_submission_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_submission(rows("a.mp4"), tmp_path / "nowhere" / "submission.csv")

    def ends_early() -> Iterator[dict[str, Any]]:
        yield from rows("a.mp4")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_submission(ends_early(), tmp_path / "submission.csv")
    assert not list(tmp_path.iterdir())


def test_a_large_submission_takes_little_memory(tmp_path: Path) -> None:
    count = 50_000
    tracemalloc.start()
    try:
        write_submission(
            ({"uri": f"s3://bucket/{k}.mp4", "score": k / count} for k in range(count)), tmp_path / "s.csv"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * count
    assert len(written(tmp_path / "s.csv")) == count + 1
