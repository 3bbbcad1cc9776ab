"""Fakes that get the frames and the boxes of their originals, as the DFDC challenge's winner does (Seferbekov 2020).

A face is then cut out of both videos at the same place, so that the two crops differ in what was manipulated. Frames of
the original that show no face are the fake's, too: were they the original's alone, holes would tell what is real.

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
    """Where the faces of an original are: for each of its frames the time in seconds, ascending, and boxes.

    Args:
        times_s: (T,), of all frames that were asked for.
        boxes: For each float32 (N, 4); N is 0 where no face was found, or the frame is damaged or missing.
    """

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
        self._held: tuple[int, pa.Table, pa.Table] | None = None

    def of(self, video: Video) -> GivenBoxes | None:
        """The frames and faces of a video's original; None where there is no original, or it shows no face at all."""
        row = -1 if video.source is None else self._row(video.source)
        if not 0 <= row < self._work.shards.paired_from:
            return None
        videos, table = self._tables(self._work.shards.shard_of(row))
        wanted = pc.and_(pc.equal(table["video"], video.source), pc.invert(table["is_corrupt"]))
        faces = table.filter(wanted).combine_chunks()
        if not len(faces):
            return None
        times_N = faces["pts_s"].to_numpy()
        boxes_N4 = np.asarray(faces["box"].combine_chunks().flatten(), np.float32).reshape(-1, 4)
        asked = videos.filter(pc.equal(videos["video"], video.source))["frame_pts_s"].combine_chunks()
        times_T = np.unique(asked.flatten().to_numpy())
        bounds = (np.searchsorted(times_N, times_T, side) for side in ("left", "right"))
        return GivenBoxes(tuple(times_T.tolist()), [boxes_N4[start:stop] for start, stop in zip(*bounds, strict=True)])

    def _tables(self, shard: int) -> tuple[pa.Table, pa.Table]:
        """What is needed of the videos and of the faces of a shard."""
        if self._held is None or self._held[0] != shard:
            faces = self._products.faces(shard).select(["video", "pts_s", "box", "is_corrupt"])
            self._held = shard, self._products.videos(shard).select(["video", "frame_pts_s"]), faces
        return self._held[1], self._held[2]

    def _row(self, video: str) -> int:
        """Where a video stands in the manifest; -1 where it does not."""
        if self._ids is None:
            with self._work.store.open(MANIFEST_FILE) as file:
                self._ids = pq.read_table(file, columns=["video"])["video"]
        return int(pc.index(self._ids, video).as_py())
