"""Callbacks: a caller's server is told of a result, by a signed request that goes only where the policy allows."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason
from unmask.inputs import pinned

__all__ = ["call_back", "signature"]

# The pauses, each four times the one before, add up to 23 minutes: a server may be restarted meanwhile.
_CALL_TRIES, _CALL_PAUSE_S, _CALL_GROWTH, _CALL_S = 7, 1.0, 4, 10.0


def signature(secret: bytes, at: str, body: bytes) -> str:
    """What `X-Unmask-Signature` says: the HMAC-SHA256 of the time, a full stop and the body."""
    return "sha256=" + hmac.new(secret, at.encode() + b"." + body, hashlib.sha256).hexdigest()


async def call_back(url: str, plain: Mapping[str, Any], secret: bytes, policy: AddressPolicy) -> str:
    """Tell a caller's server of a result: a signed POST, tried again for some minutes. Redirects are not followed.

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
            at_url, host, extensions = await asyncio.get_running_loop().run_in_executor(None, pinned, url, policy)
            async with httpx.AsyncClient(timeout=_CALL_S) as client:
                answer = await client.post(at_url, content=body, headers={**headers, **host}, extensions=extensions)
            if answer.is_success:
                return "delivered"
        except MediaError as error:
            if error.reason is Reason.ADDRESS_REFUSED:
                return "refused"
        except httpx.HTTPError:
            pass
        await asyncio.sleep(_CALL_PAUSE_S * _CALL_GROWTH**attempt if attempt < _CALL_TRIES - 1 else 0.0)
    return "failed"
