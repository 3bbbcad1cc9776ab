"""Scores of videos at their assembly: the heads of a model, on the features that the stages computed."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import ScoreOptions
from pipelines.embedders import load
from pipelines.parcels import FrameNote
from pipelines.scores import SCORES, EmbeddedFrame, head_of, score_row, score_video
from unmask.devices import select_device
from unmask.errors import MediaError, Reason
from unmask.inputs import without_password
from unmask.manifest import Video
from unmask.records import Faces, VideoInfo
from unmask.tally import Subject

__all__ = ["Judge"]


class Judge:
    """Judges videos.

    Args:
        options: The model, and what counts as evidence.

    Raises:
        ModelError: The model cannot be had, or is another than when the run began.
    """

    def __init__(self, options: ScoreOptions) -> None:
        embedder = load(options.model, select_device("cpu"))
        assert embedder.model is not None
        assert embedder.description is not None
        self._model, self._description = head_of(embedder.model), embedder.description
        self._options = options.options

    def scored(
        self,
        video: Video,
        content_id: str,
        info: VideoInfo | None,
        frames: Iterable[tuple[FrameNote, Faces | Reason, NDArray[np.float32]]],
    ) -> dict[str, Any]:
        """The row of a video whose frames were looked at; each with its faces, or why there are none, and features."""
        subject = Subject(input=without_password(video.uri), id=content_id, media=info)
        return self._row(video, subject, (_embedded(*frame) for frame in frames), None)

    def failed(self, video: Video, error: MediaError) -> dict[str, Any]:
        """The row of a video that gave nothing."""
        return self._row(video, Subject(input=without_password(video.uri)), (), error)

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The rows as a table."""
        return pa.Table.from_pylist(rows, SCORES)

    def _row(
        self, video: Video, subject: Subject, frames: Iterable[EmbeddedFrame], error: MediaError | None
    ) -> dict[str, Any]:
        score = score_video(
            subject,
            frames,
            model=self._model,
            description=self._description,
            options=self._options,
            error=error,
        )
        return score_row(video.video, score)


def _embedded(note: FrameNote, seen: Faces | Reason, features_ND: NDArray[np.float32]) -> EmbeddedFrame:
    if isinstance(seen, Reason):
        return EmbeddedFrame(pts_s=note.pts_s, index=note.index, seen=seen, cut=note.cut)
    return EmbeddedFrame(pts_s=note.pts_s, index=note.index, seen=seen, cut=note.cut, features_ND=features_ND)
