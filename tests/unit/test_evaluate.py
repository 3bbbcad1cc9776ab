"""`unmask evaluate`: from checkpoints and preprocessed folders to one page and one JSON file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.evaluated import checkpoint, fitted_model, folder, person_clip
from tests.products import Clip
from train.evaluate import PAGE, RESULTS, app
from unmask.calibration import Calibration
from unmask.manifest import Video
from unmask.provenance import USED, used_digests
from unmask.transforms import Preprocessing

HOSTILE = "a<script>alert(1)</script>&\u202e"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    used = [Video(video="train/1", uri="/x", identity=("train/someone",))]
    checkpoint(
        place / "frame.safetensors", fitted_model(), provenance={"recipe": "test", USED: used_digests({"train": used})}
    )
    checkpoint(place / "temporal.safetensors", fitted_model("temporal", seed=1), calibrated=False)
    checkpoint(place / "mos.safetensors", fitted_model("temporal", task="mos", strength=1.0), calibration=Calibration())
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    clips = [person_clip(n, n % 2, split="test", **({"method": HOSTILE} if n == 3 else {})) for n in range(8)]
    clips.append(
        Clip(video="lost", faces={}, status="failed", columns={"label": 1, "split": "test", "reason": "not_a_video"})
    )
    folder(place / "one", clips)
    folder(place / "two", [person_clip(n, n % 2, split="test") for n in range(4)])
    folder(place / "opinions", [person_clip(n, 1, mos=1 + n / 4, part=f"C{n % 2}", split="test") for n in range(8)])
    folder(place / "real", [person_clip(n, 0) for n in range(3)])
    folder(place / "tight", [person_clip(n, n % 2) for n in range(2)], margin=1.0)
    folder(place / "none", [Clip(video="x", faces={}, status="empty", columns={"label": 1})])
    small = {0: [(1.0, 1.0, 20.0, 20.0)]}
    folder(place / "small", [Clip(video=f"x{n}", faces=small, columns={"label": n}) for n in range(2)])
    return place


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def evaluated(out: Path, *arguments: str | Path) -> dict[str, Any]:
    result = run("--device", "cpu", "--resamples", "20", "--out", out, *arguments)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads((out / RESULTS).read_text())
    return document


def test_a_detector_on_two_datasets(models: Path, data: Path, tmp_path: Path) -> None:
    model = models / "frame.safetensors"
    document = evaluated(tmp_path, "--model", model, "--data", data / "one", "--data", data / "two", "--heatmaps", 3)
    assert (document["task"], document["split"], document["is_test"]) == ("detection", "test", True)
    assert [row["dataset"] for row in document["data"]] == ["one", "two"]
    assert document["data"][0]["not_scored"] == {"not_a_video": 1}
    assert document["results"]["overall"]["video"]["items"] == 12
    assert document["results"]["overall"]["frame"]["items"] == 12 * 6
    assert document["results"]["overall"]["video"]["metrics"]["auc"]["value"] > 0.9
    assert document["calibrated"]
    assert document["faithfulness"]["faces"] + document["faithfulness"]["without_map"] == 3
    assert USED not in document["models"][0]["provenance"]
    assert len(document["videos"]) == 13
    assert "NaN" not in (tmp_path / RESULTS).read_text()
    page = (tmp_path / PAGE).read_text()
    assert "<script>alert" not in page
    assert "a&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\u202e" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "not_a_video" in page
    assert "<code>unmask evaluate" in page


def test_the_same_command_gives_the_same_numbers(models: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--model", models / "frame.safetensors", "--data", data / "two", "--batch")
    first = evaluated(tmp_path / "a", *arguments, 16)
    second = evaluated(tmp_path / "b", *arguments, 16)
    assert first.pop("created")
    assert second.pop("created")
    assert first.pop("command")
    assert second.pop("command")
    assert first == second


def test_an_ensemble_with_its_members_beside_it(models: Path, data: Path, tmp_path: Path) -> None:
    frame, temporal = models / "frame.safetensors", models / "temporal.safetensors"
    document = evaluated(tmp_path, "--model", f"{frame}:0.75", "--model", f"{temporal}:0.25", "--data", data / "two")
    assert document["name"] == "0.75 frame + 0.25 temporal"
    assert [row["name"] for row in document["results"]["members"]] == ["frame", "temporal"]
    assert not document["calibrated"]
    assert any("not calibrated" in caveat for caveat in document["caveats"])
    alone = [
        evaluated(tmp_path / n, "--model", models / f"{n}.safetensors", "--data", data / "two")
        for n in ("frame", "temporal")
    ]
    for row, a, b in zip(document["videos"], alone[0]["videos"], alone[1]["videos"], strict=True):
        assert row["score"] == pytest.approx(0.75 * a["score"] + 0.25 * b["score"], abs=1e-6)
    page = (tmp_path / PAGE).read_text()
    assert "the ensemble" in page


def test_robustness(models: Path, data: Path, tmp_path: Path) -> None:
    model = models / "frame.safetensors"
    document = evaluated(tmp_path, "--model", model, "--data", data / "two", "--robustness", "--robustness-videos", 2)
    robust = document["robustness"]
    assert (robust["metric"], robust["videos"]) == ("auc", 2)
    assert len(robust["rows"]) == 9
    assert all(len(row["at"]) == (4 if row["name"] == "crf" else 5) for row in robust["rows"])
    assert all(at["value"] is not None for row in robust["rows"] for at in row["at"])
    assert "CRF 23" in (tmp_path / PAGE).read_text()


def test_opinions(models: Path, data: Path, tmp_path: Path) -> None:
    model = models / "mos.safetensors"
    document = evaluated(tmp_path, "--model", model, "--data", data / "opinions", "--heatmaps", 2)
    assert document["task"] == "mos"
    assert [row["set"] for row in document["results"]["sets"]] == ["opinions/C0", "opinions/C1"]
    assert document["results"]["lookup"] is None
    assert document["results"]["challenge"]["value"] is not None
    assert document["threshold"] is None
    page = (tmp_path / PAGE).read_text()
    assert "There is no lookup of methods" in page
    assert "PLCC" in page


def test_json_on_standard_output(models: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--model", models / "frame.safetensors", "--data", data / "two", "--out", tmp_path, "--resamples", 0)
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / RESULTS).read_text())


def test_what_was_trained_on_is_no_test(models: Path, data: Path, tmp_path: Path) -> None:
    used = [Video(video="two/real/0", uri="/x", identity=("two/person 3",))]
    model = checkpoint(models / "leaky.safetensors", fitted_model(), provenance={USED: used_digests({"val": used})})
    arguments = ("--model", model, "--data", data / "two", "--out", tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "2 of 4 videos are no test" in said(result)
    assert "two/real/0" in said(result)
    assert len(said(result).split(". ")) == 1
    assert not (tmp_path / PAGE).exists()
    assert run(*arguments, "--split", "unseen", "--resamples", 0).exit_code == 0
    assert len(json.loads((tmp_path / RESULTS).read_text())["videos"]) == 2


def test_a_split_of_training_is_labelled(models: Path, tmp_path: Path) -> None:
    place = folder(tmp_path / "set", [person_clip(n, n % 2, split="train") for n in range(4)])
    document = evaluated(tmp_path / "out", "--model", models / "frame.safetensors", "--data", place, "--split", "train")
    assert not document["is_test"]
    assert "This is no test" in document["notices"][0]
    assert "This is no test" in (tmp_path / "out" / PAGE).read_text()


def test_a_model_that_was_never_trained_says_so(data: Path, tmp_path: Path) -> None:
    document = evaluated(tmp_path, "--model", "mobilenetv3-small", "--data", data / "two")
    assert "never trained" in document["notices"][0]
    assert "never trained" in (tmp_path / PAGE).read_text()


def test_one_class_is_no_error_and_no_number(models: Path, data: Path, tmp_path: Path) -> None:
    document = evaluated(tmp_path, "--model", models / "frame.safetensors", "--data", data / "real")
    assert document["results"]["overall"]["video"]["metrics"]["auc"]["value"] is None
    assert document["results"]["overall"]["video"]["metrics"]["brier"]["value"] is not None
    page = (tmp_path / PAGE).read_text()
    assert "Only videos of one class were scored" in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), re.IGNORECASE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "none"), "no face was found in the videos of"),
        (("--data", "small"), "none of the 2 videos has a face of 32 pixels or more"),
        (("--data", "absent"), "holds nothing that was preprocessed"),
        (("--data", "tight"), "preprocess with --margin 1.30 or more"),
        (("--data", "real", "--split", "test"), r"no video of real .* in the split test, there are no split \(3\)"),
        (("--data", "two", "--split", "tests"), "--split is one of"),
        (("--data", "two", "--batch", "0"), "--batch is 1 or more; got 0"),
        (("--data", "two", "--device", "cuda:99"), "--device cuda:99 is not there"),
        (("--data", "two", "--aggregation", "best"), "--aggregation 'best' is unknown"),
        (("--data", "two", "--model", "absent.safetensors"), r"no checkpoint absent\.safetensors"),
        (("--data", "two", "--model", "x:0"), "a model's weight is above 0"),
        (("--data", "two", "--data", "two"), "are both called two"),
        (("--data", "two", "--depth-weights", "random"), "goes with models that take depth maps, and this one takes"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_sentence(
    models: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    places = [
        str(data / a) if before == "--data" else a for before, a in zip(("", *arguments), arguments, strict=False)
    ]
    result = run("--model", models / "frame.safetensors", "--out", tmp_path, *places)
    assert result.exit_code == 2, result.output
    assert re.search(sentence, said(result)), said(result)
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_margin_that_a_model_does_not_have_is_cut_smaller(data: Path, models: Path, tmp_path: Path) -> None:
    box = Preprocessing(size_px=64, margin=1.0, fit="stretch")
    model = checkpoint(models / "box.safetensors", fitted_model(), preprocessing=box)
    assert evaluated(tmp_path, "--model", model, "--data", data / "two")["models"][0]["preprocessing"]["margin"] == 1.0


def test_a_place_that_cannot_be_written_shows_before_anything_is_read(models: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--model", models / "frame.safetensors", "--data", data / "absent", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot be written" in said(result)
