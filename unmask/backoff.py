"""How long to wait before the next try: exponential backoff with full jitter (Brooker, AWS 2015).

The first minute is different: cables are plugged in again and cameras restart, and a stream should be scored again
within seconds of that. Until then the bound stays low; only a source that is away for longer is asked rarely.
"""

import random

from unmask.errors import Reason

__all__ = ["Backoff"]

# What a person must mend first: a password, a path, a certificate, a codec.
_NOT_SOON = frozenset(
    {
        Reason.STREAM_AUTH_FAILED,
        Reason.STREAM_NOT_FOUND,
        Reason.STREAM_TLS_CERTIFICATE,
        Reason.STREAM_CODEC_UNSUPPORTED,
        Reason.ADDRESS_REFUSED,
    }
)


# For so long a source that is away is asked at least so often.
_SOON_S, _SOON_BOUND_S = 60.0, 2.0


class Backoff:
    """Waits before tries to connect: evenly random up to a bound that doubles, so that many do not return at once.

    Args:
        first_s: The first bound.
        most_s: The greatest bound.
        healthy_s: A connection that lived so long starts the count again.
        seed: Of the random numbers; by default from the system.
    """

    def __init__(
        self, *, first_s: float = 0.5, most_s: float = 30.0, healthy_s: float = 10.0, seed: int | None = None
    ) -> None:
        self._first_s, self._most_s, self._healthy_s = first_s, most_s, healthy_s
        self._bound_s = first_s
        self._random = random.Random(seed)  # noqa: S311 - not for secrets

    def wait_s(self, reason: Reason, *, lived_s: float = 0.0, away_s: float = 0.0) -> float:
        """Seconds to wait before the next try.

        Args:
            reason: Why the last connection failed or ended.
            lived_s: For how long it gave frames.
            away_s: For how long the source has given none.
        """
        if reason in _NOT_SOON:
            self._bound_s = self._most_s
            return self._most_s
        if lived_s >= self._healthy_s:
            self._bound_s = self._first_s
        if away_s < _SOON_S:
            self._bound_s = min(self._bound_s, max(_SOON_BOUND_S, self._first_s))
        bound_s, self._bound_s = self._bound_s, min(2 * self._bound_s, self._most_s)
        return self._random.uniform(0.0, bound_s)
