"""Who gets in, what is written to logs, and what settings are refused."""

import base64
import io
import json
import logging
import pickle
from pathlib import Path

import pytest

from serve.faults import ApiError, code_of, from_error
from serve.guard import Guard
from serve.logs import JsonLines, redacted
from serve.settings import Settings, key_digests, settings_from
from unmask.errors import MediaError, ModelError, Reason, UsageError

KEY = "correct-horse-battery"
LOCAL = {"host": "127.0.0.1:8000"}


@pytest.fixture
def keyed(tmp_path: Path) -> Guard:
    file = tmp_path / "keys"
    file.write_text(f"# of the door\nanother-key-of-someone\n{KEY}\n\n")
    return Guard(key_digests(file))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"x-api-key": KEY},
        {"sec-websocket-protocol": "unmask.v1, key." + base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")},
        {"authorization": f"Bearer {KEY}", "host": "cam.example", "origin": "https://cam.example"},
    ],
)
def test_a_key_lets_in_from_anywhere(keyed: Guard, headers: dict[str, str]) -> None:
    keyed.check(headers, "203.0.113.9")


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": KEY}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"x-api-key": KEY + "x"},
        {"sec-websocket-protocol": "unmask.v1, key.!!!"},
    ],
)  # fmt: skip
def test_without_the_key_nobody_gets_in(keyed: Guard, headers: dict[str, str]) -> None:
    with pytest.raises(ApiError, match="key") as refused:
        keyed.check({**LOCAL, **headers}, "127.0.0.1")
    assert (refused.value.code, refused.value.status) == ("KEY_REQUIRED", 401)
    assert refused.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000"])
def test_without_keys_this_machine_gets_in(host: str) -> None:
    Guard(frozenset()).check({"host": host, "origin": f"http://{host}"}, "127.0.0.1")


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        (LOCAL, "192.168.1.7"),
        (LOCAL, None),
        ({"host": "rebound.example:8000"}, "127.0.0.1"),
        ({}, "127.0.0.1"),
        ({**LOCAL, "origin": "https://elsewhere.example"}, "127.0.0.1"),
        ({**LOCAL, "origin": "null"}, "127.0.0.1"),
    ],
)
def test_without_keys_others_stay_out(headers: dict[str, str], client: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        Guard(frozenset()).check(headers, client)
    assert refused.value.status == 403


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n", "long-enough-for-a-key\nshort\n"])
def test_key_files_without_real_keys_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UsageError, match="16 characters"):
        key_digests(file)


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        key_digests(tmp_path / "none")


def test_listening_for_others_takes_a_key(tmp_path: Path) -> None:
    Settings(host="localhost").check_door()
    Settings(host="0.0.0.0", api_key_file=tmp_path / "keys").check_door()
    with pytest.raises(UsageError, match="--api-key-file"):
        Settings(host="0.0.0.0").check_door()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_streams": 0}, "--max-streams"),
        ({"max_streams": "many"}, "--max-streams"),
        ({"colour": "red"}, "--colour"),
        ({"scorers": 5, "max_scorers": 2}, "below"),
        ({"models": {"default": "x"}}, "another name"),
        ({"detect": "nowhere"}, "--detect"),
    ],
)
def test_faulty_settings_are_one_sentence(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        settings_from(values)
    assert "\n" not in refused.value.message


def test_texts_become_settings() -> None:
    found = settings_from({"max_streams": "8", "allow_private": "true", "state": "x/y", "model": "a.safetensors"})
    assert (found.max_streams, found.allow_private, found.state) == (8, True, Path("x/y"))
    assert found.named_models() == {"default": "a.safetensors"}


def test_the_secret_of_callbacks_is_made_once(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    secret = settings.callback_secret()
    assert len(secret) >= 32
    assert settings.callback_secret() == secret
    assert (tmp_path / "callback.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "cannot open rtsp://ann:hunter2@cam.example/1",
        "Authorization: Bearer hunter2",
        "api_key=hunter2&x=1",
        '{"password": "hunter2", "a": 1}',
        "protocol key, token: hunter2",
        "rtsp://ann:my/hunter2@cam.example:554/1 cannot be reached",
        "'https://cam.example/live?sig=hunter2&w=1' answered 403",
    ],
)
def test_logs_hold_no_credentials(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("while connecting: %s", text, extra={"stream": text, "count": 3})
    line = json.loads(stream.getvalue())
    assert "hunter2" not in stream.getvalue()
    assert line["count"] == 3
    assert line["message"].startswith("while connecting")
    assert "ValueError" in line["error"]


def test_ordinary_sentences_stay_as_they_are() -> None:
    text = "https://cam.example/a?b=c was lost (stream_stalled); next try in 0.5 s"
    assert redacted(text) == text


def test_errors_travel_and_say_their_code() -> None:
    error = pickle.loads(pickle.dumps(ApiError("BUSY", "Come again", 5)))
    assert (error.status, error.headers) == (429, {"Retry-After": "5"})
    assert error.to_json() == {"error": {"code": "BUSY", "message": "Come again."}}
    assert from_error(MediaError(Reason.NOT_A_VIDEO, "x")).status == 422
    assert from_error(ModelError(Reason.UNKNOWN_MODEL, "x")).code == "MODEL_UNAVAILABLE"
    assert from_error(UsageError("x")).status == 400


def test_every_reason_has_a_code() -> None:
    assert {code_of(r) for r in Reason} >= {"MEDIA_UNREADABLE", "NO_FACE", "TOO_LARGE"}
    assert code_of("truncated_header") == "MEDIA_UNREADABLE"
    assert all(code_of(r).isupper() for r in Reason)
