"""What `unmask submit` refuses before anything travels, and what travels."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.jobs import PACKAGES, JobServer, packed
from cluster.submit import COMMANDS, app, checked
from tests.rayhead import environment
from unmask.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("prepare", [], "knows preprocess, train, evaluate, score; got 'prepare'"),
        ("preprocess", ["/data", "--frame", "4", "--out", "/out"], "no such option: --frame"),
        ("preprocess", ["/data"], "missing option '--out'"),
        ("preprocess", ["/data", "--out", "/out", "--frames", "many"], "invalid value for '--frames'"),
        ("preprocess", ["videos", "--out", "/out"], "videos would be looked for"),
        ("preprocess", ["/data", "--out", "out"], "out would be looked for"),
        ("train", ["--recipe", "x", "--data", "/a", "--data", "b", "--out", "/o"], "b would be looked for"),
        ("evaluate", ["--model", "m", "--data", "s3://b/x", "--out", "e"], "e would be looked for"),
    ],
    ids=["command", "option", "missing", "number", "dataset", "out", "data", "evaluation"],
)
def test_what_is_wrong_is_told_before_anything_travels(command: str, words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked(command, words)
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_options_are_read_as_the_command_itself_reads_them() -> None:
    found = checked("preprocess", ["s3://bucket/videos", "--frames", "8", "--out", "/shared/out"])
    assert (found["dataset"], found["frames"], found["out"]) == ("s3://bucket/videos", 8, "/shared/out")
    assert set(COMMANDS) == {"preprocess", "train", "evaluate", "score"}


def test_only_code_travels(tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name / "inner" / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "inner" / "page.html.jinja").write_text(name)
        (tmp_path / name / "inner" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "large.mp4").write_bytes(bytes(1000))
    (tmp_path / ".env").write_text("KEY=secret")
    (tmp_path / "table.csv").write_text("a")
    with packed(tmp_path, [Path("table.csv")]) as folder:
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    expected = {f"{name}/{file}" for name in PACKAGES for file in ("__init__.py", "inner/page.html.jinja")}
    assert found == expected | {"table.csv"}
    assert not folder.exists()


def test_the_whole_project_travels_and_runs_there(tmp_path: Path) -> None:
    with packed(ROOT) as folder:
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        assert size < 12 * 2**20
        done = subprocess.run(
            [sys.executable, "-c", "import pipelines.config, unmask; print(unmask.__file__)"],
            cwd=folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(folder))


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkout of Unmask"), packed(tmp_path):
        pass
    with pytest.raises(UsageError, match="is not in"), packed(ROOT, [Path("../elsewhere")]):
        pass


def submit(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "unmask.cli", "submit", *words]
    return subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=120)


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    words = ("preprocess", "/data", "--out", "/out")
    with socket.socket() as taken, socket.create_server(("127.0.0.1", 0)) as silent:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        refused_by(words, taken.getsockname()[1])
        assert "timed out" in refused_by(words, silent.getsockname()[1])


def refused_by(words: tuple[str, ...], port: int) -> str:
    nobody = submit(*words, "--address", f"http://127.0.0.1:{port}")
    assert nobody.returncode == 2
    assert nobody.stderr.startswith(f"unmask: Ray's job server at http://127.0.0.1:{port} cannot be reached")
    assert len(nobody.stderr.splitlines()) == 1
    return nobody.stderr


def test_a_head_that_is_away_for_a_moment_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server, away = object.__new__(JobServer), iter([UsageError("away"), UsageError("away"), None])

    def info(_: str) -> str:
        if (error := next(away)) is not None:
            raise error
        return "running"

    monkeypatch.setattr(server, "_info", info)
    monkeypatch.setattr("cluster.jobs._POLL_S", 0.0)
    assert server._patiently("job") == "running"
    monkeypatch.setattr("cluster.jobs._AWAY_S", -1.0)
    away = iter([UsageError("away")])
    with pytest.raises(UsageError, match="away"):
        server._patiently("job")


def test_the_address_must_be_said() -> None:
    words = ("preprocess", "/data", "--out", "/out")
    unnamed = submit(*words)
    assert unnamed.returncode == 2
    assert (
        unnamed.stderr == "unmask: give --address http://HEAD:8265, the dashboard of the cluster, or set RAY_ADDRESS.\n"
    )
    # What is given counts for more than what surrounds.
    both = submit("--address", "http://127.0.0.1:1", *words, RAY_ADDRESS="http://192.0.2.1:8265")
    assert "127.0.0.1:1 cannot be reached" in both.stderr


def test_help_is_that_of_the_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "--stop-on-interrupt" in shown.output
    inner = CliRunner().invoke(app, ["train", "--help"])
    assert inner.exit_code == 0
    assert "--recipe" in inner.output
