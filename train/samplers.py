"""What an epoch looks at, and in which order: the same on every machine, whatever the number of workers.

A plan is made anew for each epoch from the seed, the epoch and the catalogue alone. All workers make the same plan and
take their share of each of its batches, so that a run which is taken up again at any batch goes on as it would have.

Axes: N faces, S samples of an epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.catalogue import Catalogue
from train.config import DataConfig
from unmask.errors import UsageError

__all__ = ["Batches", "Key", "Pool", "epoch_plan", "main_track"]


@dataclass(frozen=True, slots=True)
class Key:
    """One sample of an epoch.

    Args:
        epoch: From 0; -1 in validation.
        position: In the epoch's plan: with the epoch, it seeds the sample's random numbers.
        unit: Index into the pool.
        blend: Make a fake of it (self-blended images).
    """

    epoch: int
    position: int
    unit: int
    blend: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What samples of one split are drawn from: frames, or videos whose clips are drawn later.

    Args:
        faces: Of each unit, its faces in the order of time: one for a frame, all of a video's main track for a clip.
        video_U: int32, the video of each unit.
        label_U: float32: 0 or 1; or the opinion score.
    """

    faces: list[NDArray[np.int64]]
    video_U: NDArray[np.int32]
    label_U: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.faces)

    @classmethod
    def of(cls, catalogue: Catalogue, videos: Sequence[int], config: DataConfig, *, clips: bool, mos: bool) -> "Pool":
        """Gather the faces of some videos.

        Args:
            catalogue: Where they are.
            videos: Which.
            config: Which of their faces.
            clips: Units are videos; otherwise frames.
            mos: Labels are opinion scores.
        """
        side_N = catalogue.side_px_N()
        faces: list[NDArray[np.int64]] = []
        video_U: list[int] = []
        label_U: list[float] = []
        for number in videos:
            about = catalogue.videos[number].about
            rows = _usable(catalogue, number, side_N, config)
            if not len(rows):
                continue
            label = about.mos if mos else float(about.label or 0)
            assert label is not None
            units = [rows] if clips else [rows[k : k + 1] for k in range(len(rows))]
            faces += units
            video_U += [number] * len(units)
            label_U += [label] * len(units)
        return cls(faces, np.array(video_U, np.int32), np.array(label_U, np.float32))

    def on_main_tracks(self, catalogue: Catalogue) -> "Pool":
        """The same videos, each with the faces of its longest track alone; without those that have no track."""
        faces = [main_track(catalogue, rows) for rows in self.faces]
        kept = [n for n, rows in enumerate(faces) if len(rows)]
        return Pool([faces[n] for n in kept], self.video_U[kept], self.label_U[kept])


def _usable(catalogue: Catalogue, number: int, side_N: NDArray[np.float32], config: DataConfig) -> NDArray[np.int64]:
    rows = catalogue.faces_of(number)
    rows = rows[~catalogue.corrupt_N[rows] & (side_N[rows] >= config.min_face_px)]
    if config.faces == "largest" and len(rows):
        # The largest face of each frame.
        order = np.lexsort((-side_N[rows], catalogue.frame_N[rows]))
        rows = rows[order]
        rows = rows[np.concatenate(([True], np.diff(catalogue.frame_N[rows]) > 0))]
    if config.frames_per_video is not None:
        frames = np.unique(catalogue.frame_N[rows])
        if len(frames) > config.frames_per_video:
            kept = frames[np.linspace(0, len(frames) - 1, config.frames_per_video).round().astype(np.int64)]
            rows = rows[np.isin(catalogue.frame_N[rows], kept)]
    return rows


def main_track(catalogue: Catalogue, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of a video's faces, those of the track with the most; the earlier one where two have as many."""
    tracks, counts = np.unique(catalogue.track_N[rows], return_counts=True)
    known = tracks >= 0
    if not known.any():
        return rows[:0]
    longest = tracks[known][np.argmax(counts[known])]
    return np.asarray(rows[catalogue.track_N[rows] == longest])


def epoch_plan(
    pool: Pool, catalogue: Catalogue, config: DataConfig, *, seed: int, epoch: int, mos: bool = False
) -> list[Key]:
    """The samples of an epoch, in order. S is whatever they are: `Batches` fills the last batch.

    Raises:
        UsageError: A class is missing that the drawing needs.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    if config.draw == "selfblend":
        real = np.flatnonzero(pool.label_U == 0)
        _need(len(real), "real")
        units = rng.permutation(real)
        pairs = [(int(u), blend) for u in units for blend in (False, True)]
        return [Key(epoch, n, unit, blend) for n, (unit, blend) in enumerate(pairs)]
    if mos or config.draw == "all":
        times = config.clips_per_video if any(len(f) > 1 for f in pool.faces) else 1
        units = rng.permutation(np.repeat(np.arange(len(pool)), times))
    elif config.draw == "balanced":
        units = _balanced(pool, rng)
    else:
        units = _paired(pool, catalogue, rng)
    return [Key(epoch, n, int(unit)) for n, unit in enumerate(units)]


def _balanced(pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
    """All reals, and as many fakes, drawn anew; where fakes are fewer, each as often as the others, or once more."""
    real, fake = np.flatnonzero(pool.label_U == 0), np.flatnonzero(pool.label_U == 1)
    _need(len(real), "real")
    _need(len(fake), "fake")
    drawn = np.resize(rng.permutation(fake), len(real))
    return rng.permutation(np.concatenate([real, drawn]))


def _paired(pool: Pool, catalogue: Catalogue, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each fake beside a real face of the same source: at the same frame where there is one, else the nearest."""
    real, fake = np.flatnonzero(pool.label_U == 0), np.flatnonzero(pool.label_U == 1)
    _need(len(real), "real")
    _need(len(fake), "fake")
    frame_U = np.array([catalogue.frame_N[f[0]] for f in pool.faces])
    by_video: dict[str, list[int]] = {}
    for unit in real.tolist():
        by_video.setdefault(catalogue.videos[pool.video_U[unit]].key, []).append(unit)
    pairs = []
    for unit in fake.tolist():
        candidates = by_video.get(catalogue.videos[pool.video_U[unit]].about.source or "")
        if candidates:
            near = np.abs(frame_U[candidates] - frame_U[unit])
            pairs.append((candidates[int(near.argmin())], unit))
        else:
            pairs.append((int(rng.choice(real)), unit))
    order = rng.permutation(len(pairs))
    return np.array([unit for k in order for unit in pairs[k]], np.int64)


def _need(count: int, what: str) -> None:
    if not count:
        raise UsageError(f"there is no {what} face to train on, and this recipe needs both classes; see the manifest")


class Batches:
    """A worker's share of the batches of one epoch, from any of them on.

    A batch of all workers is `batch x workers` consecutive samples; worker r takes the r-th run of `batch`. The last
    batch is filled up from the beginning of the plan, so that no batch is smaller.

    Args:
        plan: The epoch's samples.
        batch: Samples of a batch on each worker.
        rank: Which worker this is.
        workers: How many there are.
        steps: Batches of the epoch; by default as many as the plan fills.
        start: Begin with this one.
    """

    def __init__(
        self, plan: list[Key], batch: int, *, rank: int = 0, workers: int = 1, steps: int | None = None, start: int = 0
    ) -> None:
        assert plan
        self._plan, self._batch, self._rank, self._workers = plan, batch, rank, workers
        self.steps = steps or -(-len(plan) // (batch * workers))
        self.start = start

    def __len__(self) -> int:
        return max(self.steps - self.start, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            first = (step * self._workers + self._rank) * self._batch
            yield [self._at(first + k) for k in range(self._batch)]

    def _at(self, place: int) -> Key:
        key = self._plan[place % len(self._plan)]
        # A sample that comes again has random numbers of its own.
        return key if place < len(self._plan) else Key(key.epoch, place, key.unit, key.blend)
