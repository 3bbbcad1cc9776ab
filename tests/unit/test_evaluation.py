"""Preprocessed videos score as their pictures would: the tables and crops lose nothing on the way."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.scores import EmbeddedFrame, score_video
from tests.evaluated import FRAMES, PREPROCESSING, checkpoint, fitted_model, folder, lit, person_clip
from tests.products import BOX, Clip, faked, portrait
from train.catalogue import Catalogue
from train.crops import CropReader
from train.ensemble import Ensemble
from train.evaluation import Outcome, blended, outcomes, scorable_rows, score_all
from train.selection import Selection, select
from unmask.errors import ModelError, Reason
from unmask.faces import crop
from unmask.records import Faces, Status, VideoScore
from unmask.scoring import ScoringOptions
from unmask.tally import Subject
from unmask.transforms import to_tensor

OTHER = (20.0, 80.0, 60.0, 130.0)
"""A second face, smaller and elsewhere: what is there is no face, but a model scores it all the same."""
SMALL = (250.0, 10.0, 275.0, 35.0)
OPTIONS = ScoringOptions(min_track_frames=2)

Pictures = Callable[[int], NDArray[np.uint8]]


def clips() -> list[Clip]:
    two = {f: [BOX, OTHER] for f in FRAMES}
    return [
        *(person_clip(n, n % 2) for n in range(4)),
        Clip(video="two", picture=lit(faked, 4), faces=two, columns={"label": 1}),
        Clip(video="small", picture=lit(portrait, 5), faces={f: [BOX, SMALL] for f in FRAMES}, columns={"label": 0}),
        Clip(video="hurt", picture=lit(faked, 6), faces=two, corrupt=frozenset({8}), columns={"label": 1}),
        Clip(video="tiny", picture=lit(portrait, 7), faces={f: [SMALL] for f in FRAMES}, columns={"label": 0}),
    ]


@pytest.fixture(scope="module", params=["frame", "temporal"])
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    place = tmp_path_factory.mktemp("models")
    names = [str(checkpoint(place / f"{n}.safetensors", fitted_model(request.param, seed=n))) for n in range(2)]
    return Ensemble.load([names[0], f"{names[1]}:0.3"])


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    place = folder(tmp_path_factory.mktemp("data") / "set", clips())
    return select(Catalogue.read([str(place)]), "all", Ensemble(()))


def by_key(selection: Selection, found: Sequence[Outcome]) -> dict[str, Outcome]:
    return {selection.catalogue.videos[o.video].key.removeprefix("set/"): o for o in found}


def from_pictures(clip: Clip, ensemble: Ensemble, number: int = 0) -> VideoScore:
    """The score by another way: from whole pictures, with faces as the detector found them."""
    member = ensemble.members[number]

    def frames() -> Iterator[EmbeddedFrame]:
        for frame, boxes in clip.faces.items():
            boxes_N4 = np.array(boxes, np.float32)
            none = np.zeros((len(boxes), 5, 2), np.float32)
            crops = [crop(clip.picture(frame), box, k, PREPROCESSING) for box, k in zip(boxes_N4, none, strict=True)]
            with torch.inference_mode():
                features = [member.model.features(to_tensor([c], PREPROCESSING))[0].numpy() for c in crops]
            yield EmbeddedFrame(
                pts_s=frame / 25,
                index=frame,
                seen=Faces(boxes_N4, np.full(len(boxes), 0.99, np.float32), none),
                features_ND=np.stack(features),
                is_corrupt=frame in clip.corrupt,
            )

    return score_video(
        Subject(input=clip.video), frames(), model=member.model, description=member.description, options=OPTIONS
    )


def test_scores_are_those_of_the_pictures(selection: Selection, ensemble: Ensemble) -> None:
    reader = CropReader(selection.catalogue)
    found = [by_key(selection, outcomes(ensemble.members[0], selection, reader, OPTIONS, batch=b)) for b in (1, 7, 64)]
    for clip in clips()[1:-1]:
        expected = from_pictures(clip, ensemble)
        assert expected.score is not None
        for outcome in (f[clip.video] for f in found):
            # Crops are stored without loss; a batch of another size may round otherwise.
            assert outcome.score == pytest.approx(expected.score, abs=1e-5), clip.video
            assert outcome.verdict == expected.verdict
            tracks = sorted(score for score, _ in outcome.tracks.values())
            assert tracks == pytest.approx(sorted(face.score for face in expected.faces), abs=1e-5)


def test_the_account_of_frames_and_faces(selection: Selection, ensemble: Ensemble) -> None:
    found = by_key(
        selection, outcomes(ensemble.members[0], selection, CropReader(selection.catalogue), OPTIONS, batch=16)
    )
    assert [len(found[name].rows_N) for name in ("real/0", "two", "small", "hurt", "tiny")] == [6, 12, 6, 10, 0]
    assert found["tiny"].status is Status.UNSCORED
    assert found["tiny"].reason == Reason.NO_USABLE_FACE
    assert found["tiny"].score is None
    for outcome in found.values():
        assert np.array_equal(outcome.rows_N, scorable_rows(selection.catalogue, outcome.video, OPTIONS))
        assert len(outcome.scores_N) == len(outcome.rows_N) == sum(n for _, n in outcome.tracks.values())


def test_frames_without_a_face_count_as_seen(tmp_path: Path, ensemble: Ensemble) -> None:
    more = frozenset(range(1, 28, 2))
    found = []
    for unseen in ({}, {"faceless": more}, {"missing": more}):
        few = Clip(video="few", picture=portrait, faces={f: [BOX] for f in FRAMES}, columns={"label": 0}, **unseen)
        place = folder(tmp_path / "-".join(["set", *unseen]), [few])
        chosen = select(Catalogue.read([str(place)]), "all", Ensemble(()))
        found += outcomes(ensemble.members[0], chosen, CropReader(chosen.catalogue), OPTIONS, batch=8)
    whole, empty, damaged = found
    assert damaged.score == whole.score == empty.score
    assert whole.verdict == empty.verdict != "inconclusive"
    assert damaged.verdict == "inconclusive"  # more than half of the frames are missing


def test_a_crop_that_is_damaged_is_a_gap_and_no_end(tmp_path: Path, ensemble: Ensemble) -> None:
    one = Clip(video="one", picture=lit(faked, 1), faces={f: [BOX] for f in FRAMES}, columns={"label": 1})
    place = folder(tmp_path / "set", [one], packing="files")
    path = place / "crops" / "one" / "000008_0.png"
    path.write_bytes(path.read_bytes()[:200] + bytes(len(path.read_bytes()) - 200))
    if cv2.imread(str(path)) is not None:
        path.write_bytes(b"\0" * path.stat().st_size)
    chosen = select(Catalogue.read([str(place)]), "all", Ensemble(()))
    (found,) = outcomes(ensemble.members[0], chosen, CropReader(chosen.catalogue), OPTIONS, batch=4)
    assert found.damaged == 1
    assert len(found.rows_N) == 5
    without = Clip(video="one", picture=one.picture, faces=one.faces, corrupt=frozenset({8}), columns={"label": 1})
    assert found.score == pytest.approx(from_pictures(without, ensemble).score or 0.0, abs=1e-5)


def test_an_ensemble_says_the_weighted_mean_of_its_members(selection: Selection, ensemble: Ensemble) -> None:
    whole, (first, second) = score_all(ensemble, selection, CropReader(selection.catalogue), OPTIONS, batch=16)
    for mean, a, b in zip(whole, first, second, strict=True):
        if a.score is None:
            assert mean.score is None
            continue
        assert mean.score == pytest.approx(0.7 * a.score + 0.3 * (b.score or 0.0))
        assert np.allclose(mean.scores_N, 0.7 * a.scores_N + 0.3 * b.scores_N)
        assert mean.tracks.keys() == a.tracks.keys()
        assert all(mean.tracks[t][0] == pytest.approx(0.7 * a.tracks[t][0] + 0.3 * b.tracks[t][0]) for t in a.tracks)
        assert mean.verdict is mean.deciding is None
    assert blended([first], [1.0]) == first


def test_changes_are_made_to_crops_before_they_are_resized(selection: Selection, ensemble: Ensemble) -> None:
    reader, sizes = CropReader(selection.catalogue), []

    def black(crops: Sequence[NDArray[np.uint8]], rows_N: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        sizes.extend(c.shape for c in crops)
        assert len(np.unique(selection.catalogue.video_N[rows_N])) == 1
        return [np.zeros_like(c) for c in crops]

    chosen = selection.videos[:2]
    found = outcomes(ensemble.members[0], selection, reader, OPTIONS, batch=5, videos=chosen, change=black)
    assert len(found) == 2
    assert len({round(float(s), 5) for o in found for s in o.scores_N}) == 1  # all black faces are alike
    assert set(sizes) == {(169, 169, 3)}


def test_a_model_that_gives_no_numbers_is_named(selection: Selection, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "bad.safetensors", fitted_model())
    bad = Ensemble.load([str(path)])
    for parameter in bad.members[0].model.head.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"bad\.safetensors cannot score set/real/0"):
        outcomes(bad.members[0], selection, CropReader(selection.catalogue), OPTIONS, batch=8)


def test_progress_is_told_of_every_video(selection: Selection, ensemble: Ensemble) -> None:
    told: list[int] = []
    score_all(ensemble, selection, CropReader(selection.catalogue), OPTIONS, batch=16, progress=told.append)
    assert sum(told) == 2 * len(selection.videos)
