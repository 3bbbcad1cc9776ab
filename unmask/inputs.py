"""From what a person names (files, folders, URLs) to files that can be decoded."""

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from unmask.addresses import AddressPolicy, without_password
from unmask.errors import MediaError, Reason

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FetchLimits",
    "Source",
    "content_id",
    "download",
    "expand",
    "fetched",
    "pinned",
    "without_password",
]

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .webm .wmv .y4m".split()
)
IMAGE_SUFFIXES = frozenset(".jpeg .jpg .png .webp".split())
"""Photographs, which are clips of one frame."""


_MOST_HOPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a download may cost before it is given up."""

    max_bytes: int = 2 * 1024**3
    """Larger files are refused, by their announced size where there is one."""
    silence_s: float = 10.0
    """A server that says nothing for so long is given up."""
    total_s: float = 600.0
    """A download that is not complete by then is given up."""


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to score: a file or a URL, or the reason why what was named holds none."""

    input: str
    error: MediaError | None = None

    @property
    def is_url(self) -> bool:
        """Whether it has to be fetched."""
        return self.input.lower().startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The input as it may be printed and stored: without the user and password of a URL."""
        return without_password(self.input)


def expand(inputs: Iterable[str]) -> Iterator[Source]:
    """List the videos behind what a person named.

    Folders are walked in the order of names, and give files with the suffix of a video; hidden files and folders are
    left out. A file named as such is taken whatever its suffix. Nothing is opened here.

    Yields:
        A source for each video; one with an error for a path that is missing and for a folder without videos.
    """
    for name in inputs:
        source = Source(name)
        path = Path(name)
        if not name:
            yield Source(name, MediaError(Reason.MISSING_FILE, "An input's name is empty; check the command."))
        elif source.is_url or path.is_file():
            yield source
        elif path.is_dir():
            yield from _walk(path, name)
        elif path.exists():
            yield Source(name, MediaError(Reason.UNREADABLE_FILE, f"{name} is neither a file nor a folder."))
        else:
            yield Source(name, MediaError(Reason.MISSING_FILE, f"{name} does not exist; check the path."))


def _walk(folder: Path, name: str) -> Iterator[Source]:
    found = False
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and Path(file).suffix.lower() in VIDEO_SUFFIXES:
                found = True
                yield Source(str(Path(parent) / file))
    if not found:
        wanted = ", ".join(sorted(VIDEO_SUFFIXES))
        yield Source(name, MediaError(Reason.EMPTY_FOLDER, f"{name} holds no video; its files should end in {wanted}."))


@contextlib.contextmanager
def fetched(source: Source, limits: FetchLimits | None = None, policy: AddressPolicy | None = None) -> Iterator[Path]:
    """The source as a local file; a download is deleted at the end.

    Args:
        source: A file or a URL.
        limits: What a download may cost.
        policy: Where it may come from; anywhere by default.

    Raises:
        MediaError: The URL cannot be fetched within the limits, or is refused.
    """
    if not source.is_url:
        yield Path(source.input)
        return
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        path = Path(folder) / "download"
        _run(download(source.input, path, limits, policy))
        try:
            yield path
        except MediaError as error:
            # Nobody knows the copy's name.
            raise MediaError(error.reason, error.message.replace(str(path), source.shown)) from None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where an event loop is already running (in a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def pinned(url: str, policy: AddressPolicy) -> tuple[httpx.URL, dict[str, str], dict[str, Any]]:
    """A URL by its checked address, with the header and the name for TLS that belong to it.

    The address that was checked is the one that is connected to: a name that changes its address meanwhile gains
    nothing.

    Raises:
        MediaError: ADDRESS_REFUSED, STREAM_UNREACHABLE, or HTTP_UNREACHABLE for what is no URL.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        message = f"{without_password(url)} cannot be fetched ({error}); check the URL"
        raise MediaError(Reason.HTTP_UNREACHABLE, message) from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise MediaError(Reason.ADDRESS_REFUSED, f"{without_password(url)} is no http or https URL; give one")
    address = policy.check(url)
    if address is None:
        return parsed, {}, {}
    return parsed.copy_with(host=address), {"Host": parsed.netloc.decode()}, {"sni_hostname": parsed.host}


@contextlib.asynccontextmanager
async def _got(client: httpx.AsyncClient, url: str, policy: AddressPolicy) -> AsyncIterator[httpx.Response]:
    """The answer at the end of all redirects."""
    for _ in range(_MOST_HOPS + 1):
        at, headers, extensions = await asyncio.get_running_loop().run_in_executor(None, pinned, url, policy)
        async with client.stream("GET", at, headers=headers, extensions=extensions) as response:
            if not response.has_redirect_location:
                yield response
                return
            url = str(httpx.URL(url).join(response.headers["Location"]))
    raise MediaError(Reason.HTTP_UNREACHABLE, f"{without_password(url)} redirects too often; give the file's own URL")


async def download(
    url: str,
    path: Path,
    limits: FetchLimits | None = None,
    policy: AddressPolicy | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Fetch a URL, each redirect checked.

    Args:
        url: http(s).
        path: Where to.
        limits: What it may cost.
        policy: Where it may come from; anywhere by default.
        tick: Called now and then; what it raises ends the download.

    Raises:
        MediaError: It is refused, cannot be had, or is too large.
    """
    shown, limits = without_password(url), limits or FetchLimits()
    try:
        # One bound on everything: a server may drip its headers, too.
        async with (
            asyncio.timeout(limits.total_s),
            httpx.AsyncClient(timeout=limits.silence_s) as client,
            _got(client, url, policy or AddressPolicy()) as response,
        ):
            if not response.is_success:
                answer = f"{response.status_code} {response.reason_phrase}"
                raise MediaError(Reason.HTTP_STATUS, f"{shown} answered {answer}; check the URL.")
            _check_size(shown, int(response.headers.get("Content-Length") or 0), limits)
            with path.open("wb") as file:
                async for chunk in response.aiter_bytes():
                    file.write(chunk)
                    _check_size(shown, file.tell(), limits)
                    tick()
    except TimeoutError:
        raise MediaError(
            Reason.HTTP_TIMEOUT, f"{shown} was not complete after {limits.total_s:g} s; download it and give the file."
        ) from None
    except httpx.TimeoutException:
        raise MediaError(
            Reason.HTTP_TIMEOUT, f"{shown} did not answer within {limits.silence_s:g} s; try again or give a file."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        cause = without_password(str(error)) or type(error).__name__
        raise MediaError(Reason.HTTP_UNREACHABLE, f"{shown} cannot be fetched ({cause}); check the URL.") from None


def _check_size(url: str, size: int, limits: FetchLimits) -> None:
    if size > limits.max_bytes:
        raise MediaError(
            Reason.TOO_LARGE,
            f"{url} is larger than the limit of {limits.max_bytes:,} bytes; download it yourself and give the file.",
        )


def content_id(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file: the same clip has the same id wherever it lies."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
