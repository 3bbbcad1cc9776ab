"""HTTP on behalf of strangers: downloads and callbacks that go only where the policy allows, each redirect checked.

The address that was checked is the one that is connected to: a name that changes its address meanwhile gains nothing.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason
from unmask.inputs import FetchLimits, without_password

__all__ = ["call_back", "fetch", "signature"]

_MOST_HOPS = 5
_CALL_TRIES, _CALL_PAUSE_S, _CALL_S = 4, 1.0, 10.0


def _pinned(url: str, policy: AddressPolicy) -> tuple[httpx.URL, dict[str, str], dict[str, Any]]:
    """A URL by its checked address, with the header and the name for TLS that belong to it.

    Raises:
        MediaError: ADDRESS_REFUSED, STREAM_UNREACHABLE, or HTTP_UNREACHABLE for what is no URL.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise MediaError(Reason.HTTP_UNREACHABLE, f"{without_password(url)} is no URL; check it") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise MediaError(Reason.ADDRESS_REFUSED, f"{without_password(url)} is no http or https URL; give one")
    address = policy.check(url)
    if address is None:
        return parsed, {}, {}
    return parsed.copy_with(host=address), {"Host": parsed.netloc.decode()}, {"sni_hostname": parsed.host}


@asynccontextmanager
async def _got(client: httpx.AsyncClient, url: str, policy: AddressPolicy) -> AsyncIterator[httpx.Response]:
    """The answer at the end of all redirects."""
    for _ in range(_MOST_HOPS + 1):
        loop = asyncio.get_running_loop()
        pinned, headers, extensions = await loop.run_in_executor(None, _pinned, url, policy)
        async with client.stream("GET", pinned, headers=headers, extensions=extensions) as response:
            if not response.has_redirect_location:
                yield response
                return
            url = str(httpx.URL(url).join(response.headers["Location"]))
    raise MediaError(Reason.HTTP_UNREACHABLE, f"{without_password(url)} redirects too often; give the file's own URL")


async def fetch(
    url: str, path: Path, limits: FetchLimits, policy: AddressPolicy, tick: Callable[[], None] = lambda: None
) -> None:
    """Download a file.

    Args:
        url: http(s).
        path: Where to.
        limits: What it may cost.
        policy: Where it may come from.
        tick: Called now and then; what it raises ends the download.

    Raises:
        MediaError: It is refused, cannot be had, or is too large.
    """
    shown = without_password(url)
    try:
        async with (
            asyncio.timeout(limits.total_s),
            httpx.AsyncClient(timeout=limits.silence_s) as client,
            _got(client, url, policy) as response,
        ):
            if not response.is_success:
                answer = f"{response.status_code} {response.reason_phrase}"
                raise MediaError(Reason.HTTP_STATUS, f"{shown} answered {answer}; check the URL")
            _check_size(shown, int(response.headers.get("Content-Length") or 0), limits)
            with path.open("wb") as file:
                async for chunk in response.aiter_bytes():
                    file.write(chunk)
                    _check_size(shown, file.tell(), limits)
                    tick()
    except (TimeoutError, httpx.TimeoutException):
        raise MediaError(Reason.HTTP_TIMEOUT, f"{shown} did not answer in time; try again or upload the file") from None
    except (httpx.HTTPError, ValueError) as error:
        cause = without_password(str(error)) or type(error).__name__
        raise MediaError(Reason.HTTP_UNREACHABLE, f"{shown} cannot be fetched ({cause}); check the URL") from None


def _check_size(shown: str, size: int, limits: FetchLimits) -> None:
    if size > limits.max_bytes:
        message = f"{shown} is larger than the limit of {limits.max_bytes:,} bytes; make a smaller copy"
        raise MediaError(Reason.TOO_LARGE, message)


def signature(secret: bytes, at: str, body: bytes) -> str:
    """What `X-Unmask-Signature` says: the HMAC-SHA256 of the time, a full stop and the body."""
    return "sha256=" + hmac.new(secret, at.encode() + b"." + body, hashlib.sha256).hexdigest()


async def call_back(url: str, plain: Mapping[str, Any], secret: bytes, policy: AddressPolicy) -> str:
    """Tell a caller's server of a result: a signed POST, tried again a few times. Redirects are not followed.

    Returns:
        delivered, failed or refused.
    """
    body = json.dumps(plain, allow_nan=False).encode()
    for attempt in range(_CALL_TRIES):
        at = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "X-Unmask-Timestamp": at,
            "X-Unmask-Signature": signature(secret, at, body),
        }
        try:
            pinned, host, extensions = await asyncio.get_running_loop().run_in_executor(None, _pinned, url, policy)
            async with httpx.AsyncClient(timeout=_CALL_S) as client:
                answer = await client.post(pinned, content=body, headers={**headers, **host}, extensions=extensions)
            if answer.is_success:
                return "delivered"
        except MediaError as error:
            if error.reason is Reason.ADDRESS_REFUSED:
                return "refused"
        except httpx.HTTPError:
            pass
        await asyncio.sleep(_CALL_PAUSE_S * 2**attempt if attempt < _CALL_TRIES - 1 else 0.0)
    return "failed"
