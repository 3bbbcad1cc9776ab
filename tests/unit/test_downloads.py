"""Downloads for strangers: each hop is checked, and limits hold."""

import asyncio
import http.server
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.webserver import listening, serving
from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason
from unmask.inputs import FetchLimits, Source, download, fetched

ANYWHERE = AddressPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHost(AddressPolicy):
    """Allows one host, by its checked address, and remembers what it was asked."""

    allowed: str
    asked: list[str] = field(default_factory=list)

    def check(self, url: str) -> str | None:
        self.asked.append(url)
        if urlsplit(url).hostname != self.allowed:
            raise MediaError(Reason.ADDRESS_REFUSED, f"{url} is not allowed")
        return "127.0.0.1"


def test_a_file_is_fetched_over_a_redirect(tmp_path: Path) -> None:
    with serving({"/clip.mp4": b"bytes of a clip"}) as url:
        asyncio.run(download(f"{url}/moved", tmp_path / "file", FetchLimits(), ANYWHERE))
    assert (tmp_path / "file").read_bytes() == b"bytes of a clip"


def test_a_source_is_fetched_only_from_where_it_may_be() -> None:
    with serving({"/clip.mp4": b"x"}) as url:
        named = Source(url.replace("127.0.0.1", "cam.invalid") + "/clip.mp4")
        with fetched(named, policy=OneHost(allowed="cam.invalid")) as path:
            assert path.read_bytes() == b"x"
        private = AddressPolicy(allow_private=False)
        with pytest.raises(MediaError) as refused, fetched(Source(f"{url}/clip.mp4"), policy=private):
            raise AssertionError("nothing should have been fetched")
    assert refused.value.reason is Reason.ADDRESS_REFUSED


def test_the_checked_address_is_connected_to_and_each_hop_checked(tmp_path: Path) -> None:
    with serving({"/clip.mp4": b"x"}) as url:
        # This name has no address anywhere: only the checked one can have been used.
        named = url.replace("127.0.0.1", "cam.invalid")
        policy = OneHost(allowed="cam.invalid")
        asyncio.run(download(f"{named}/moved", tmp_path / "file", FetchLimits(), policy))
    assert policy.asked == [f"{named}/moved", f"{named}/clip.mp4"]


class Redirect(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/inside")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_redirect_into_the_private_network_is_refused(tmp_path: Path) -> None:
    with listening(Redirect) as httpd:
        policy = OneHost(allowed="127.0.0.1")
        with pytest.raises(MediaError) as refused:
            asyncio.run(download(f"http://127.0.0.1:{httpd.server_port}/", tmp_path / "file", FetchLimits(), policy))
    assert refused.value.reason is Reason.ADDRESS_REFUSED
    assert len(policy.asked) == 2
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]:9/", "http://localhost:9/x", "ftp://x/", "nothing"])
def test_private_addresses_and_other_schemes_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(MediaError) as refused:
        asyncio.run(download(url, tmp_path / "file", FetchLimits(), AddressPolicy(allow_private=False)))
    assert refused.value.reason is Reason.ADDRESS_REFUSED


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none", Reason.HTTP_STATUS),
        ("/huge", Reason.TOO_LARGE),
        ("/huge-unannounced", Reason.TOO_LARGE),
        ("/drip", Reason.HTTP_TIMEOUT),
    ],
)
def test_limits_hold(tmp_path: Path, path: str, reason: Reason) -> None:
    limits = FetchLimits(max_bytes=2**20, silence_s=5, total_s=1.0)
    with serving({}) as url, pytest.raises(MediaError) as refused:
        asyncio.run(download(url.replace("//", "//ann:hunter2@") + path, tmp_path / "file", limits, ANYWHERE))
    assert refused.value.reason is reason
    assert "hunter2" not in refused.value.message
