import asyncio
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webserver import serving
from unmask.errors import MediaError, Reason
from unmask.inputs import FetchLimits, Source, content_id, expand, fetched, without_password


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving({"/clip.mp4": b"v" * 5000}) as url:
        yield url


@pytest.fixture
def silent_url() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"


def refusal(url: str, limits: FetchLimits) -> MediaError:
    with pytest.raises(MediaError) as caught, fetched(Source(url), limits):
        raise AssertionError("nothing should have been fetched")
    assert url in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def test_folders_give_their_videos_in_order(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "deep/c.webm", ".git/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [Path(s.input).relative_to(tmp_path).as_posix() for s in expand([str(tmp_path)])]
    assert found == ["a.MKV", "b.mp4", "deep/c.webm"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    sources = list(expand([str(tmp_path / "gone.mp4"), str(tmp_path / "void")]))
    assert [s.error.reason for s in sources if s.error] == [Reason.MISSING_FILE, Reason.EMPTY_FOLDER]


def test_a_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    path.write_bytes(b"x")
    assert list(expand([str(path)])) == [Source(str(path))]


@pytest.mark.parametrize("path", ["/clip.mp4", "/moved"])
def test_a_url_is_fetched_and_its_copy_deleted(server: str, path: str) -> None:
    with fetched(Source(server + path)) as local:
        assert local.read_bytes() == b"v" * 5000
    assert not local.exists()


def test_404(server: str) -> None:
    error = refusal(server + "/nothing", FetchLimits())
    assert error.reason is Reason.HTTP_STATUS
    assert "404" in error.message


def test_a_server_that_never_answers(silent_url: str) -> None:
    assert refusal(silent_url, FetchLimits(silence_s=0.2)).reason is Reason.HTTP_TIMEOUT


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_server_that_drips(server: str, path: str) -> None:
    """Each byte comes in time, and all of them never."""
    assert refusal(server + path, FetchLimits(total_s=0.3, silence_s=5)).reason is Reason.HTTP_TIMEOUT


def test_fetching_works_inside_an_event_loop(server: str) -> None:
    async def in_a_notebook() -> bytes:
        with fetched(Source(server + "/clip.mp4")) as local:
            return local.read_bytes()

    assert asyncio.run(in_a_notebook()) == b"v" * 5000


def test_a_password_is_used_and_never_shown(server: str) -> None:
    url = server.replace("http://", "http://user:secret@") + "/nothing"
    assert Source(url).shown == server + "/nothing"
    with pytest.raises(MediaError) as caught, fetched(Source(url)):
        raise AssertionError("nothing should have been fetched")
    assert "secret" not in caught.value.message
    assert without_password("clips/a@b.mp4") == "clips/a@b.mp4"


def test_a_copy_is_called_by_its_address(server: str) -> None:
    with pytest.raises(MediaError) as caught, fetched(Source(server + "/clip.mp4")) as local:
        raise MediaError(Reason.NOT_A_VIDEO, f"{local} is not a video")
    assert caught.value.message == f"{server}/clip.mp4 is not a video."


def test_an_empty_name() -> None:
    (source,) = expand([""])
    assert source.error is not None
    assert source.error.reason is Reason.MISSING_FILE


@pytest.mark.parametrize("path", ["/huge", "/huge-unannounced"])
def test_ten_gigabytes_are_refused(server: str, path: str) -> None:
    assert refusal(server + path, FetchLimits(max_bytes=1 << 20)).reason is Reason.TOO_LARGE


def test_ten_announced_gigabytes_are_refused_by_default(server: str) -> None:
    assert refusal(server + "/huge", FetchLimits()).reason is Reason.TOO_LARGE


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/clip.mp4", "http://no-such-host.invalid/clip.mp4", "http://[bad"])
def test_nobody_there(url: str) -> None:
    assert refusal(url, FetchLimits(silence_s=5)).reason is Reason.HTTP_UNREACHABLE


def test_the_id_is_the_content(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"abc")
    assert content_id(path) == hashlib.sha256(b"abc").hexdigest()[:16]
