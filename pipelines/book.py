"""Which shards are complete: the driver's account of what stages committed. Holds no more than the shards in work."""

from dataclasses import dataclass, field

from pipelines.parcels import Parcel, Part
from pipelines.shards import Shards
from pipelines.units import is_whole

__all__ = ["Book"]


@dataclass(slots=True)
class _Open:
    ended: set[int] = field(default_factory=set)
    parts: dict[int, set[Part]] = field(default_factory=dict)


class Book:
    """Takes receipts, and tells when a shard has all that it needs.

    Args:
        shards: How many videos each has.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._open: dict[int, _Open] = {}
        self._complete: set[int] = set()

    def take(self, parcel: Parcel) -> bool:
        """Enter a receipt. Receipts may come twice, and in any order.

        Returns:
            Whether the parcel's shard is complete by it.
        """
        if parcel.shard in self._complete:
            return False
        shard = self._open.setdefault(parcel.shard, _Open())
        shard.ended |= {outcome.video for outcome in (*parcel.outcomes, *parcel.known_outcomes)}
        for part in (*parcel.known, *((parcel.part,) if parcel.part else ())):
            if part.video in shard.ended:
                continue
            parts = shard.parts.setdefault(part.video, set())
            parts.add(part)
            if is_whole(list(parts)):
                shard.ended.add(part.video)
                del shard.parts[part.video]
        if len(shard.ended) < self._shards.count(parcel.shard):
            return False
        del self._open[parcel.shard]
        self._complete.add(parcel.shard)
        return True
