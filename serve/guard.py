"""Who may ask: API keys, and no other website's script in the browser of somebody who may.

Without keys the service answers this machine only, whatever it is bound to, and only where the browser thinks that it
talks to this machine: else a page from anywhere could call it (DNS rebinding, cross-site requests).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from serve.faults import ApiError
from serve.settings import LOOPBACK

__all__ = ["SUBPROTOCOL", "Guard"]

SUBPROTOCOL = "unmask.v1"
"""Of the live socket. A browser cannot set headers there: its key comes as a second one, `key.` and base64url."""
_KEY_PROTOCOL = "key."
_LOCAL_CLIENTS = LOOPBACK | {"::ffff:127.0.0.1"}


class Guard:
    """Checks requests.

    Args:
        digests: SHA-256 of the keys, in hexadecimal digits; without any, only this machine may ask.
    """

    def __init__(self, digests: frozenset[str]) -> None:
        self._digests = digests

    def check(self, headers: Mapping[str, str], client: str | None) -> None:
        """Let a request pass, or refuse it.

        Args:
            headers: With names in lower case.
            client: The address of who asks.

        Raises:
            ApiError: KEY_REQUIRED or FORBIDDEN.
        """
        self._check_origin(headers)
        if not self._digests:
            self._check_local(headers, client or "")
        elif not self._has_key(_key(headers)):
            raise ApiError("KEY_REQUIRED", "This service needs a key: send it as Authorization: Bearer KEY")

    def _has_key(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).hexdigest()
        # All are compared, in the same time each.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _check_local(self, headers: Mapping[str, str], client: str) -> None:
        host = _host(headers.get("host", ""))
        if client not in _LOCAL_CLIENTS or host not in LOOPBACK:
            raise ApiError(
                "FORBIDDEN",
                "Without API keys this service answers its own machine only, as localhost or 127.0.0.1; start it with "
                "--api-key-file to let others in",
            )

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise ApiError("FORBIDDEN", "Pages of other websites may not call this service from a browser")


def _host(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _key(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"].strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        name = protocol.strip()
        if name.startswith(_KEY_PROTOCOL):
            return _decoded(name.removeprefix(_KEY_PROTOCOL))
    return ""


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""
