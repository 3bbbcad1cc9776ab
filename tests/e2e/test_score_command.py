"""`unmask score` as a person runs it: real files, real sockets, exit statuses, what is printed and what is written."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from typer.testing import CliRunner, Result

from tests import clips
from tests.clips import ENCODINGS
from tests.portraits import filmed, scenery
from tests.webserver import serving
from unmask.cli import app

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}
FIELDS = (
    "id input status verdict score score_kind calibrated threshold model media faces frames timings_s warnings error"
).split()
SIZE = {"width": 320, "height": 240}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def rows(result: Result) -> list[dict[str, Any]]:
    """The JSON rows, each checked for what holds of all of them."""
    plain = [json.loads(line) for line in result.stdout.splitlines()]
    for row in plain:
        assert list(row) == FIELDS
        assert row["frames"]["received"] == row["frames"]["scored"] + sum(row["frames"]["dropped"].values())
        if row["status"] == "scored":  # by the model that comes with Unmask
            assert row["verdict"] in {"authentic", "manipulated", "inconclusive"}
            assert row["calibrated"]
            assert row["model"]["trained"]
        else:
            assert row["verdict"] == "inconclusive"
            assert row["score"] is None
            assert row["error"]["message"].count("\n") == 0
            assert row["error"]["message"].endswith(".")
            assert "Traceback" not in row["error"]["message"]
    return plain


def score(*arguments: object) -> dict[str, Any]:
    (row,) = rows(run("score", "--json", "--device", "cpu", *arguments))
    return row


def portrait(path: Path, name: str = "h264-mp4", frames: int = 30, **options: Any) -> Path:
    return clips.clip(path, BY_NAME[name], images=filmed(frames), **SIZE, **options)


def moov_first(path: Path) -> Path:
    return clips.remuxed(portrait(path.with_stem("source"), frames=60), path, {"movflags": "faststart"})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return portrait(tmp_path_factory.mktemp("good") / "good")


# --- inputs that hold no video --------------------------------------------------------------------------------------

BROKEN: dict[str, Callable[[Path], Path]] = {
    "missing_file": lambda folder: folder / "gone.mp4",
    "empty_file": lambda folder: clips.empty(folder / "zero.mp4"),
    "not_a_video": lambda folder: clips.text(folder / "text.mp4"),
    "truncated_header": lambda folder: clips.cut(portrait(folder / "whole"), folder / "cut.mp4", 0.5),
    "no_video_stream": lambda folder: clips.audio_only(folder / "sound.mp4"),
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_file_fails_with_its_code_and_harms_no_other(code: str, good: Path, tmp_path: Path) -> None:
    broken = BROKEN[code](tmp_path)
    result = run("score", "--json", "--frames", 4, broken, good)
    assert result.exit_code == 1
    bad, fine = rows(result)
    assert (bad["status"], bad["error"]["code"]) == ("failed", code)
    assert str(broken) in bad["error"]["message"]
    assert fine["status"] == "scored"
    assert fine["error"] is None


def test_an_empty_folder(tmp_path: Path) -> None:
    result = run("score", "--json", tmp_path)
    assert result.exit_code == 1
    assert rows(result)[0]["error"]["code"] == "empty_folder"


# --- damaged, odd and extreme videos --------------------------------------------------------------------------------


def test_cut_in_the_middle_scores_what_is_left(tmp_path: Path) -> None:
    row = score("--frames", 12, clips.cut(moov_first(tmp_path / "first.mp4"), tmp_path / "cut.mp4", 0.6))
    assert row["status"] == "scored"
    assert row["frames"]["received"] == 12
    assert row["frames"]["dropped"]["missing_frame"] >= 2
    assert any("damaged or missing" in warning for warning in row["warnings"])


def test_300_flipped_bytes_are_counted_and_left_out(tmp_path: Path) -> None:
    whole = portrait(tmp_path / "whole", frames=60)
    row = score("--every", 1, clips.flipped(whole, tmp_path / "flipped.mp4", after=0.5))
    assert row["frames"]["received"] == 60
    assert 0 < sum(row["frames"]["dropped"].values()) < 60
    assert set(row["frames"]["dropped"]) <= {"corrupt_frame", "decode_failed", "missing_frame", "no_face"}
    assert row["status"] == "scored"


def test_one_frame(tmp_path: Path) -> None:
    row = score(portrait(tmp_path / "one", frames=1))
    assert (row["frames"]["received"], row["frames"]["scored"]) == (1, 1)
    assert any("4 are needed" in warning for warning in row["warnings"])
    assert row["faces"][0]["uncertainty"] == 0.5


def test_16_by_16(tmp_path: Path) -> None:
    row = score(clips.clip(tmp_path / "tiny", width=16, height=16))
    assert (row["status"], row["error"]["code"]) == ("unscored", "frame_too_small")


def test_8192_by_4320(tmp_path: Path) -> None:
    large = clips.clip(tmp_path / "large", BY_NAME["mjpeg-avi"], images=filmed(2, 8192, 4320), width=8192, height=4320)
    row = score("--frames", 1, large)
    assert row["status"] == "scored"
    assert (row["media"]["width"], row["media"]["height"]) == (8192, 4320)


def test_variable_rate(tmp_path: Path) -> None:
    row = score("--every", 1, portrait(tmp_path / "vfr", pts=lambda i: i + i // 10 * 5))
    assert row["frames"]["received"] == row["frames"]["scored"] == 30
    assert row["faces"][0]["segments"][-1]["end_s"] > 1.5


def test_rotated_by_90(tmp_path: Path) -> None:
    sideways = clips.clip(tmp_path / "source", images=filmed(20, 240, 320, turned=1), width=240, height=320)
    assert score("--frames", 4, sideways)["status"] == "unscored"  # a face that lies on its side is not found
    path = clips.turned(tmp_path / "turned", 90, images=filmed(20, 240, 320, turned=1), width=240, height=320)
    row = score("--frames", 4, path)
    assert row["status"] == "scored"
    assert (row["media"]["width"], row["media"]["height"]) == (320, 240)
    assert row["media"]["rotation"] % 180 == 90


@pytest.mark.parametrize("name", ["h264-mkv-interlaced", "png-mov-alpha", "vp9-webm", "av1-mp4", "hevc-mp4-10-bit-422"])
def test_formats(name: str, tmp_path: Path) -> None:
    row = score("--frames", 4, portrait(tmp_path / "clip", name))
    assert row["frames"]["scored"] == 4
    assert row["media"]["interlaced"] == ("interlaced" in name)


def test_a_header_that_claims_a_million_frames(tmp_path: Path) -> None:
    row = score(
        "--frames", 6, clips.lying_header(portrait(tmp_path / "honest", "mpeg4-avi-no-b"), tmp_path / "lies.avi")
    )
    assert row["media"]["frames"] == 30
    assert row["media"]["duration_s"] < 5
    assert row["frames"]["scored"] == 6


def test_no_face(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "coffee", images=scenery(30), **SIZE)
    result = run("score", "--json", "--frames", 8, path)
    assert result.exit_code == 0
    (row,) = rows(result)
    assert (row["status"], row["error"]["code"]) == ("unscored", "no_face")
    assert row["frames"] == {"received": 8, "scored": 0, "dropped": {"no_face": 8}}


def test_a_face_for_one_second_only(tmp_path: Path) -> None:
    images = itertools.chain(scenery(50), filmed(25), scenery(50))
    row = score("--fps", 10, clips.clip(tmp_path / "brief", images=images, **SIZE))
    assert row["status"] == "scored"
    assert 8 <= row["frames"]["scored"] <= 12
    assert row["frames"]["dropped"]["no_face"] >= 38
    segments = [s for face in row["faces"] for s in face["segments"]]
    assert min(s["start_s"] for s in segments) == pytest.approx(2.0, abs=0.15)
    assert max(s["end_s"] for s in segments) == pytest.approx(3.0, abs=0.15)


# --- URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(good: Path) -> Iterator[str]:
    with serving({"/good.mp4": good.read_bytes()}) as url:
        yield url


def test_urls_good_and_bad(server: str, good: Path) -> None:
    result = run("score", "--json", "--frames", 4, f"{server}/good.mp4", f"{server}/gone.mp4", f"{server}/huge", good)
    assert result.exit_code == 1
    fetched, gone, huge, local = rows(result)
    assert [gone["error"]["code"], huge["error"]["code"]] == ["http_status", "too_large"]
    assert fetched["id"] == local["id"]
    assert fetched["score"] == local["score"]


def test_a_password_is_written_nowhere(server: str, tmp_path: Path) -> None:
    url = server.replace("http://", "http://user:secret@") + "/good.mp4"
    assert run("score", "--frames", 2, "--out", tmp_path / "report", url).exit_code == 0
    assert run("faces", url, "--frames", 2, "--out", tmp_path / "faces").exit_code == 0
    written = [path for path in tmp_path.rglob("*") if path.suffix in {".json", ".jsonl", ".html"}]
    assert len(written) == 3
    assert not [path for path in written if "secret" in path.read_text()]


def test_a_url_that_never_answers(good: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        result = run("score", "--json", "--frames", 4, "--url-timeout", 0.3, url, good)
    assert result.exit_code == 1
    assert [row["error"] and row["error"]["code"] for row in rows(result)] == ["http_timeout", None]


# --- options and models ---------------------------------------------------------------------------------------------


def refused(*arguments: object) -> str:
    result = run("score", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", 0], "--frames must be at least 1; got 0"),
        (["--every", 0], "--every must be at least 1; got 0"),
        (["--fps", -1], "--fps must be above 0"),
        (["--frames", 4, "--fps", 2], "exclude each other"),
        (["--aggregation", "median"], "confident, mean, max"),
        (["--device", "cuda:99"], "--device cuda:99 is not there"),
        (["--device", "toaster"], "--device toaster is not there"),
        (["--model", "mobilenetv3-smal"], "mobilenetv3-small"),
        (["--model", "gone.safetensors"], "gone.safetensors"),
        (["--url-timeout", 0], "--url-timeout"),
        (["--url-timeout", "nan"], "--url-timeout"),
        (["--device", "meta"], "--device meta is not there"),
        (["--model", ""], "no model is called"),
        (["--weights", "w.safetensors", "--pretrained"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_sentence(options: list[object], message: str, good: Path) -> None:
    said = refused(*options, good)
    assert said.startswith("unmask: ")
    assert message in said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dataclasses import replace

    from unmask.checkpoints import save
    from unmask.presets import resolve

    model, description = resolve("mobilenetv3-small-temporal")
    path = tmp_path_factory.mktemp("checkpoint") / "ours.safetensors"
    save(path, model, replace(description, name="ours", version="3", trained=True))
    return path


def test_a_trained_checkpoint_gives_a_verdict_and_is_named(checkpoint: Path, good: Path) -> None:
    result = run("score", "--json", "--model", checkpoint, "--frames", 20, good)
    row = json.loads(result.stdout)
    assert row["verdict"] in {"authentic", "manipulated"}
    assert row["verdict"] == ("manipulated" if row["score"] >= row["threshold"] else "authentic")
    assert row["model"]["trained"] is True
    assert (row["model"]["name"], row["model"]["version"]) == ("ours", "3")
    assert row["calibrated"] is False
    assert any("not calibrated" in warning for warning in row["warnings"])
    assert result.exit_code == 0


def test_a_truncated_checkpoint(checkpoint: Path, good: Path, tmp_path: Path) -> None:
    bad = clips.cut(checkpoint, tmp_path / "cut.safetensors", 0.7)
    assert "cut.safetensors" in refused("--model", bad, good)


def test_a_checkpoint_with_a_changed_tensor(checkpoint: Path, good: Path, tmp_path: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[-5] ^= 1
    bad = tmp_path / "changed.safetensors"
    bad.write_bytes(data)
    assert "changed.safetensors" in refused("--model", bad, good)


def test_a_checkpoint_of_an_unknown_version(checkpoint: Path, good: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint)
    with safetensors.safe_open(checkpoint, "pt") as file:
        description = json.loads(file.metadata()["unmask"])
    description["format"] = 99
    bad = tmp_path / "future.safetensors"
    safetensors.torch.save_file(tensors, bad, {"unmask": json.dumps(description)})
    assert "99" in refused("--model", bad, good)


# --- what is printed and written ------------------------------------------------------------------------------------


def test_people_get_a_table(good: Path) -> None:
    result = run("score", "--frames", 4, good)
    assert result.exit_code == 0
    assert "inconclusive" in result.stdout
    assert "4/4" in result.stdout


def test_out_writes_the_report_and_the_rows(good: Path, tmp_path: Path) -> None:
    result = run("score", "--json", "--frames", 12, "--out", tmp_path / "deep" / "report", good, tmp_path / "gone.mp4")
    out = tmp_path / "deep" / "report"
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "results.jsonl"]
    assert (out / "results.jsonl").read_text() == result.stdout
    page = (out / "report.html").read_text()
    assert "missing_file" in page
    assert "data:image/" in page
    assert "<svg" in page
    assert str(out / "report.html") in result.stderr.replace("\n", "")


def test_an_out_that_cannot_be_written(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "--out" in refused("--frames", 2, "--out", tmp_path / "file", good)
    assert "--out" in " ".join(run("score", "--frames", 2, "--out", tmp_path / "file" / "in", good).stderr.split())


def test_the_same_clip_gets_the_same_score_again(good: Path) -> None:
    first, second = (score("--frames", 8, good) for _ in range(2))
    assert first["score"] == second["score"]
    assert first["model"]["sha256"] == second["model"]["sha256"]


@pytest.mark.parametrize("every", [1, 3])
def test_dense_and_sparse_samples_find_the_one_face(every: int, good: Path) -> None:
    row = score("--every", every, good)
    assert row["frames"]["received"] == 30 // every
    assert row["frames"]["scored"] == 30 // every
    assert len(row["faces"]) == 1
    assert len(row["faces"][0]["segments"]) == 1


def test_a_pipe_in_a_folder_is_not_waited_for(good: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    shutil.copy(good, tmp_path / "b.mp4")
    pipe, fine = rows(run("score", "--json", "--frames", 2, tmp_path))
    assert pipe["error"]["code"] == "unreadable_file"
    assert fine["status"] == "scored"


def test_the_larger_of_two_streams_is_scored(good: Path, tmp_path: Path) -> None:
    path = clips.joined(tmp_path / "two.mkv", clips.clip(tmp_path / "small"), good)
    row = score("--frames", 3, path)
    assert (row["media"]["width"], row["frames"]["scored"]) == (320, 3)


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_output_that_cannot_be_written_is_one_sentence(where: str, good: Path) -> None:
    command = f"{sys.executable} -m unmask.cli score --json --frames 1 {good} >{where}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("unmask: Standard output")
    assert result.stderr.count("\n") == 1


def test_signals_during_the_imports(good: Path) -> None:
    """Two of them, while half of the modules are there: still one sentence."""
    command = [sys.executable, "-m", "unmask.cli", "score", "--json", str(good)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stdout == ""
    # A C extension that is interrupted in its import may add a line of its own.
    assert stderr.endswith("unmask: Interrupted; nothing half-written was left.\n")


def test_ctrl_c_leaves_nothing_half_written(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    command = [
        sys.executable,
        "-m",
        "unmask.cli",
        "score",
        "--json",
        "--every",
        "1",
        "--out",
        str(out),
        *[str(good)] * 500,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["status"] == "scored"  # it is at work
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert stderr.strip() == "unmask: Interrupted; nothing half-written was left."
    assert not out.exists() or not list(out.iterdir())


def test_a_closed_pipe_is_no_error(good: Path) -> None:
    command = f"{sys.executable} -m unmask.cli score --json --frames 1 {good} {good} {good} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(result.stdout)["status"] == "scored"
    assert "Traceback" not in result.stderr


# --- the neighbours -------------------------------------------------------------------------------------------------


def test_probe(good: Path, tmp_path: Path) -> None:
    plain = json.loads(run("probe", "--json", good).stdout)
    assert {"container", "codec", "width", "height", "rotation", "duration_s", "frames"} <= set(plain)
    assert (plain["codec"], plain["frames"], plain["width"]) == ("h264", 30, 320)
    assert "h264" in run("probe", good).stdout
    gone = run("probe", tmp_path / "gone.mp4")
    assert gone.exit_code == 1
    assert "gone.mp4" in gone.stderr


@pytest.mark.parametrize("options", [[], ["--align"]])
def test_faces(options: list[str], good: Path, tmp_path: Path) -> None:
    result = run("faces", good, "--out", tmp_path, "--frames", 5, *options)
    assert result.exit_code == 0
    plain = json.loads((tmp_path / "faces.json").read_text())
    assert len(plain["frames"]) == 5
    for frame in plain["frames"]:
        (face,) = frame["faces"]
        assert (tmp_path / face["crop"]).read_bytes().startswith(b"\x89PNG")
        x1, y1, x2, y2 = face["box"]
        assert all(x1 < x < x2 and y1 < y < y2 for x, y in face["landmarks"])
    assert not list(tmp_path.rglob("*.part"))


# --- real clips -----------------------------------------------------------------------------------------------------


def test_real_clips_have_a_face_in_nearly_every_frame(shared_dir: Path) -> None:
    result = run("score", shared_dir / "videos" / "ffpp", "--json", "--frames", 8)
    assert result.exit_code == 0
    found = rows(result)
    assert len(found) == 7
    for row in found:
        assert row["frames"]["scored"] >= 0.95 * row["frames"]["received"] == 0.95 * 8
