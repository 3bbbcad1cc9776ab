"""`unmask serve` says in one sentence what is wrong, before anything is started."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.command import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--port", "70000"], "--port"),
        (["--max-streams", "0"], "--max-streams"),
        (["--api-key-file", "/nonexistent/keys"], "cannot be read"),
        (["--model", "a=x", "--model", "a=y"], "twice"),
        (["--model", "=x"], "--model"),
        (["--model", "default=x"], "another name"),
        (["--port", "0", "--model", "no-such-network"], "no model is called"),
        (["--port", "0", "--model", "missing.safetensors"], "missing.safetensors"),
        (["--port", "0", "--device", "tpu"], "--device"),
        (["--port", "0", "--aggregation", "sum"], "--aggregation"),
        (["--port", "0", "--host", "203.0.113.1", "--api-key-file", "KEYS"], "cannot be listened at"),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    arguments = [str(keys) if a == "KEYS" else a for a in arguments]
    result = CliRunner().invoke(app, [*arguments, "--state", str(tmp_path / "state")])
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "state").exists()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["--port", str(port), "--state", str(tmp_path / "state")])
    assert result.exit_code == 2
    assert "choose another --port" in result.output


def test_the_help_names_what_can_be_set() -> None:
    result = CliRunner().invoke(app, ["--help"], terminal_width=200)
    assert result.exit_code == 0
    for option in ("--max-streams", "--api-key-file", "--allow-private", "--state", "--model"):
        assert option in result.output
