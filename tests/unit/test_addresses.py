"""Which addresses a server connects to."""

import socket
from typing import Any

import pytest

from unmask.addresses import AddressPolicy, refused_network, without_password
from unmask.errors import MediaError, Reason

CLOSED = AddressPolicy(allow_private=False)

REFUSED = {
    "127.0.0.1": "loopback",
    "127.8.9.1": "loopback",
    "::1": "loopback",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "fd00::1": "private",
    "fec0::1": "private",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "100.64.0.1": "reserved",
    "255.255.255.255": "private",
    # IPv4 addresses in IPv6 clothes: mapped, 6to4, NAT64, compatible.
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "2002:7f00:1::": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "::7f00:1": "loopback",
}


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_named(address: str) -> None:
    assert refused_network(address) == REFUSED[address]


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_pass(address: str) -> None:
    assert refused_network(address) is None


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://user:secret@127.0.0.1/cam",
        "http://localhost:8080/",
        "http://0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "https://[::1]/",
        "rtsp://[::ffff:127.0.0.1]:554/",
        "http:///nothing",
        "http://[broken/",
    ],
)
def test_urls_to_this_machine_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(MediaError) as caught:
        CLOSED.check(url)
    assert caught.value.reason is Reason.ADDRESS_REFUSED
    assert "secret" not in caught.value.message


def test_one_bad_address_among_good_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    with pytest.raises(MediaError, match="private"):
        CLOSED.check("http://two-faced.example/")


def test_the_address_that_was_looked_at_is_the_one_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*found, (next(answers), 80))])
    assert CLOSED.check("http://rebinding.example/") == "8.8.8.8"


def test_where_all_is_allowed_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert AddressPolicy().check("rtsp://camera.local/") is None


SHOWN = {
    "rtsp://ann:secret@cam:554/1": "rtsp://cam:554/1",
    "rtsp://cam/user=admin&password=secret&channel=1": "rtsp://cam/user=admin&password=***&channel=1",
    "rtsp://cam/user=admin_password=secret_channel=1": "rtsp://cam/user=admin_password=***",
    "http://cam/video.cgi?user=admin&pwd=secret#1": "http://cam/video.cgi?user=admin&pwd=***#1",
    "https://cam/1?access_token=secret&apiKey=secret&n=1": "https://cam/1?access_token=***&apiKey=***&n=1",
    "https://b/1.mp4?X-Amz-Credential=secret&X-Amz-Signature=secret": (
        "https://b/1.mp4?X-Amz-Credential=***&X-Amz-Signature=***"
    ),
    "rtsp://ann:sec/ret@cam/1": "rtsp://cam/1",
    "rtsp://ann:sec#ret@cam/1": "rtsp://cam/1",
    "rtsp://ann:sec?ret@cam/1": "rtsp://cam/1",
    "rtsp://ann:sec@ret:x/y@cam/1": "rtsp://cam/1",
    # What is no secret stays.
    "https://cam:443/@ann/1?monkey=2": "https://cam:443/@ann/1?monkey=2",
    "http://[2606:4700::1111]:80/a@b": "http://[2606:4700::1111]:80/a@b",
    "s3://bucket/key=1/a.mp4?key=secret": "s3://bucket/key=1/a.mp4?key=***",
    "clips/a@b.mp4?password=1": "clips/a@b.mp4?password=1",
}


@pytest.mark.parametrize("url", SHOWN)
def test_what_is_shown_of_a_url_holds_no_secret(url: str) -> None:
    assert without_password(url) == SHOWN[url]
