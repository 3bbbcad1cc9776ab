"""Plain folders: real and fake videos apart, or videos of which nobody knows anything.

The nearest folder above a video that is called `real` or `fake` (or `0_real`, `1_fake`; in any case) gives its label.
A folder called `train`, `val`, `validation` or `test` gives its split.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from pipelines.datasets.tree import Listing, Tree, note
from unmask.manifest import Video, video_id

__all__ = ["matches", "read", "read_unlabelled"]

T = TypeVar("T")

_LABELS = {"real": 0, "0_real": 0, "fake": 1, "1_fake": 1}
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def matches(tree: Tree) -> bool:
    """Whether any video lies under a folder called real or fake."""
    return any(_nearest(path, _LABELS) is not None for path in tree.videos)


def read(tree: Tree) -> Listing:
    """List the videos under `real` and `fake`; ids are the paths without `.mp4`."""
    labels = {path: _nearest(path, _LABELS) for path in tree.videos}
    videos = [
        Video(video=video_id(path), uri=tree.uri_of(path), label=label, split=_nearest(path, _SPLITS))
        for path, label in labels.items()
        if label is not None
    ]
    notes = note("under no folder called real or fake, left out", (p for p, label in labels.items() if label is None))
    return Listing(dataset="folder", uri=tree.uri, videos=_ordered(videos), notes=notes)


def read_unlabelled(tree: Tree) -> Listing:
    """List all videos without labels, to score them; ids are the paths without `.mp4`."""
    videos = [Video(video=video_id(path), uri=tree.uri_of(path)) for path in tree.videos]
    return Listing(dataset="unlabelled", uri=tree.uri, videos=_ordered(videos))


def _ordered(videos: Iterable[Video]) -> list[Video]:
    return sorted(videos, key=lambda v: v.video)


def _nearest(path: str, names: Mapping[str, T]) -> T | None:
    folders = path.lower().split("/")[:-1]
    return next((names[f] for f in reversed(folders) if f in names), None)
