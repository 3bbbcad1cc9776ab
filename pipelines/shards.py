"""How the videos of a manifest are divided into shards: what is decoded by one task, and published together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from unmask.errors import UsageError

__all__ = ["Shards", "default_size"]

_MOST_VIDEOS = 1024
# Enough shards for the CPUs of a large cluster; few enough that a driver can hold one number for each.
_AIM = 512


def default_size(videos: int) -> int:
    """Videos a shard: so that there are some 512 shards, up to 1,024 videos each."""
    return min(max(math.ceil(videos / _AIM), 1), _MOST_VIDEOS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Consecutive rows of the manifest.

    Raises:
        UsageError: The size is below 1.
    """

    videos: int
    size: int
    paired_from: int
    """Rows from this one on wait for the products of those before it. No shard has rows from both sides."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"--shard-videos must be at least 1; got {self.size}")

    @property
    def _before(self) -> int:
        return math.ceil(self.paired_from / self.size)

    def __len__(self) -> int:
        return self._before + math.ceil((self.videos - self.paired_from) / self.size)

    def span(self, shard: int) -> tuple[int, int]:
        """Rows of the manifest, half open."""
        if shard < self._before:
            return shard * self.size, min((shard + 1) * self.size, self.paired_from)
        start = self.paired_from + (shard - self._before) * self.size
        return start, min(start + self.size, self.videos)

    def count(self, shard: int) -> int:
        """Videos in a shard."""
        start, stop = self.span(shard)
        return stop - start

    def passes(self) -> Iterator[range]:
        """Shards that can be worked on at once; each pass waits for the one before."""
        for shards in (range(self._before), range(self._before, len(self))):
            if shards:
                yield shards

    def shard_of(self, row: int) -> int:
        """The shard that holds a row of the manifest."""
        if row < self.paired_from:
            return row // self.size
        return self._before + (row - self.paired_from) // self.size
