"""Fakes that get the frames and the boxes of their originals, as the DFDC challenge's winner does (Seferbekov 2020).

A face is then cut out of both videos at the same place, so that the two crops differ in what was manipulated.

Axes: N faces, T frames.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.work import MANIFEST_FILE, Work
from unmask.manifest import Video
from unmask.products import Products

__all__ = ["GivenBoxes", "SourceFaces"]


@dataclass(frozen=True, slots=True, eq=False)
class GivenBoxes:
    """Where the faces of an original are: times (T,) in seconds, ascending, and for each float32 boxes (N, 4)."""

    times_s: tuple[float, ...]
    boxes: list[NDArray[np.float32]]

    def only(self, places: list[int]) -> "GivenBoxes":
        """Those at some places of the times, ascending."""
        return GivenBoxes(tuple(self.times_s[n] for n in places), [self.boxes[n] for n in places])


class SourceFaces:
    """Looks up the faces of originals in the products of their shards, which are whole by then.

    Args:
        work: The run.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._products = Products(work.store)
        self._ids: pa.ChunkedArray | None = None
        self._faces: tuple[int, pa.Table] | None = None

    def of(self, video: Video) -> GivenBoxes | None:
        """The faces of a video's original; None where there is no original, or none of its frames shows a face."""
        row = -1 if video.source is None else self._row(video.source)
        if not 0 <= row < self._work.shards.paired_from:
            return None
        shard = self._work.shards.shard_of(row)
        if self._faces is None or self._faces[0] != shard:
            self._faces = shard, self._products.faces(shard).select(["video", "pts_s", "box", "is_corrupt"])
        table = self._faces[1]
        wanted = pc.and_(pc.equal(table["video"], video.source), pc.invert(table["is_corrupt"]))
        faces = table.filter(wanted).combine_chunks()
        if not len(faces):
            return None
        times_N = faces["pts_s"].to_numpy()
        boxes_N4 = np.asarray(faces["box"].combine_chunks().flatten(), np.float32).reshape(-1, 4)
        times_T, starts_T = np.unique(times_N, return_index=True)
        return GivenBoxes(tuple(times_T.tolist()), np.split(boxes_N4, starts_T[1:]))

    def _row(self, video: str) -> int:
        """Where a video stands in the manifest; -1 where it does not."""
        if self._ids is None:
            with self._work.store.open(MANIFEST_FILE) as file:
                self._ids = pq.read_table(file, columns=["video"])["video"]
        return int(pc.index(self._ids, video).as_py())
