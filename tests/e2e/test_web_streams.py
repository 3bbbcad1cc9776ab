"""Live sources over HTTP, from a real server: files, playlists in clear and encrypted, redirects, passwords, drips."""

import base64
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from tests import clips
from tests.watcher import SLACK_S, watching
from tests.webserver import serving
from unmask.errors import Reason
from unmask.frame_queue import StateChange, StreamState
from unmask.streams import StreamOptions, StreamSource


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.clip(tmp_path_factory.mktemp("web") / "clip", frames=50, width=320, height=240)


def test_a_file_on_a_web_server_is_played_and_ends(clip: Path, tmp_path: Path) -> None:
    header_first = clips.remuxed(clip, tmp_path / "clip.mp4", {"movflags": "faststart"})
    with serving({"/clip.mp4": header_first.read_bytes()}) as url, watching(f"{url}/clip.mp4") as watcher:
        watcher.finish()
        assert len(watcher.frames) == 10
        assert watcher.source.state is StreamState.ENDED  # type: ignore[attr-defined]


def test_a_playlist_is_played_and_leads_to_no_files(clip: Path, tmp_path: Path) -> None:
    part = clips.remuxed(clip, tmp_path / "part.ts").read_bytes()
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    files = {"/near.m3u8": playlist.format("part.ts"), "/far.m3u8": playlist.format("file:///etc/passwd")}
    with serving({"/part.ts": part, **{k: v.encode() for k, v in files.items()}}) as url:
        with watching(f"{url}/near.m3u8") as watcher:
            watcher.finish()
            assert len(watcher.frames) == 10
        with watching(f"{url}/far.m3u8", retry="established") as watcher:
            watcher.finish()
            assert not watcher.frames


@pytest.mark.parametrize("given", ["the key", "another key", "no key", "half a part"])
def test_an_encrypted_playlist_is_played_with_its_key_only(clip: Path, tmp_path: Path, given: str) -> None:
    key, iv = bytes(range(16)), bytes(range(100, 116))
    padder, cipher = PKCS7(128).padder(), Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    plain = padder.update(clips.remuxed(clip, tmp_path / "part.ts").read_bytes()) + padder.finalize()
    part = cipher.update(plain) + cipher.finalize()
    method = f'#EXT-X-KEY:METHOD=AES-128,URI="key",IV=0x{iv.hex()}'
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n{method}\n#EXTINF:2.0,\npart.ts\n#EXT-X-ENDLIST\n"
    keys = {"the key": {"/key": key}, "half a part": {"/key": key}, "another key": {"/key": iv}, "no key": {}}
    files = {"/list.m3u8": playlist.encode(), "/part.ts": part[:6001] if given == "half a part" else part}
    with serving({**files, **keys[given]}) as url, watching(f"{url}/list.m3u8", retry="established") as watcher:
        watcher.finish()
        assert len(watcher.frames) == 10 if given == "the key" else len(watcher.frames) < 10
        if given in ("another key", "no key"):
            assert not watcher.frames
            assert watcher.source.state is StreamState.FAILED  # type: ignore[attr-defined]


def test_a_playlist_that_moved_leads_to_where_it_is_now(clip: Path, tmp_path: Path) -> None:
    part = clips.remuxed(clip, tmp_path / "part.ts").read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\npart.ts\n#EXT-X-ENDLIST\n"
    files = {"/new/list.m3u8": playlist, "/new/part.ts": part}
    with serving(files) as url, watching(f"{url}/moved/new/list.m3u8") as watcher:
        watcher.finish()
        assert len(watcher.frames) == 10


def test_passwords_are_sent_as_they_are_meant(clip: Path, tmp_path: Path) -> None:
    header_first = clips.remuxed(clip, tmp_path / "clip.mp4", {"movflags": "faststart"}).read_bytes()
    expected = "Basic " + base64.b64encode(b"ann:p@ss/w").decode()
    with serving({"/clip.mp4": header_first}, expected=expected) as url:
        for password, reason in (("p%40ss%2Fw", None), ("guess", Reason.STREAM_AUTH_FAILED)):
            with watching(f"{url}/clip.mp4".replace("://", f"://ann:{password}@")) as watcher:
                watcher.state(StreamState.RECONNECTING, reason) if reason else watcher.frame()


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_server_that_drips_is_given_up_in_time(path: str) -> None:
    with serving({}) as url, watching(url + path, open_timeout_s=1.0) as watcher:
        began_s = time.monotonic()
        assert watcher.state(StreamState.RECONNECTING, Reason.STREAM_TIMEOUT) - began_s < 2.0 + SLACK_S


def test_a_server_that_drips_is_left_at_once() -> None:
    with serving({}) as url:
        source = StreamSource(f"{url}/drip", StreamOptions(open_timeout_s=60.0))
        source.start()
        assert isinstance(source.queue.get(5.0), StateChange)
        assert source.close(2.0 + 5 * SLACK_S)


@pytest.mark.parametrize(
    ("path", "reason"), [("/nothing", Reason.STREAM_NOT_FOUND), ("/text", Reason.MEDIA_UNREADABLE)]
)
def test_web_servers_that_give_no_video(path: str, reason: Reason) -> None:
    with serving({"/text": b"no video at all\n" * 1000}) as url, watching(url + path) as watcher:
        watcher.state(StreamState.RECONNECTING, reason)
