"""Waiting for an answer, but not for ever."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["within"]

R = TypeVar("R")


async def within(seconds: float, answer: Awaitable[R]) -> R:
    """The answer of an actor, a deployment or a coroutine.

    Not `asyncio.wait_for`: in Python 3.11 that forgets that it was cancelled if the answer comes just then, and whoever
    was to end goes on.

    Raises:
        TimeoutError: It does not come in time.
    """
    async with asyncio.timeout(seconds):
        return await answer
