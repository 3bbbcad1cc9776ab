"""Folds and splits that leak no person: who is in one fold is in no other, and a fake is where its original is.

Videos hang together through the people in them (`identity`) and through what a fake was made from (`source`, also where
that video is not in the manifest). What hangs together, a group, goes whole into one fold. Groups are dealt out largest
first, each to where it brings reals and fakes nearest to their shares. The outcome depends on the seed and on the set
of videos, not on their order.
"""

import hashlib
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmask.errors import UsageError
from unmask.manifest import SPLITS, Video, split_uri
from unmask.storage import Store

__all__ = ["FOLDS", "FOLDS_FILE", "assign_folds", "assign_splits", "check_leaks", "read_folds", "write_folds"]

FOLDS = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("fold", pa.int16()),
        pa.field("split", pa.string()),
    ]
)
"""The columns of `folds.parquet`, one row a video; null for a video that was left out."""

FOLDS_FILE = "folds.parquet"
"""What a run writes them to, in its folder."""

DFDC_PARTS = 50

Crossing = Literal["together", "left_out"]

_HINT = ", or leave out the fakes of people who are in two folds (crossing='left_out')"


@dataclass(frozen=True)
class _Groups:
    """Which videos hang together. Axes: V videos, G groups, 3 labels (real, fake, unknown), F folds."""

    videos: list[str]
    group_V: NDArray[np.int64]
    """Group of each video; -1 for one that lies between groups."""
    between: dict[int, NDArray[np.int64]]
    """The groups of each video that lies between groups, by its position."""
    counts_G3: NDArray[np.int64]
    """Videos of each label. One between groups counts in each of them."""
    names: list[str]
    """The smallest name in each group: the same whatever the order of rows."""


def assign_folds(
    videos: Iterable[Video],
    folds: int,
    *,
    seed: int = 0,
    by: Literal["identity", "part"] = "identity",
    crossing: Crossing = "together",
) -> dict[str, int]:
    """Deal videos out to folds 0 to `folds - 1`.

    Args:
        videos: Gone through once.
        folds: How many.
        seed: Other seeds give other folds. Not used by part.
        by: By people, balanced; or as the winner of DFDC did: its 50 parts in `folds` runs of equal length, the last
            one longer, and a fake in its original's fold.
        crossing: What becomes of a fake of two people. "together" keeps those people in one fold. In datasets where
            everybody is swapped with everybody (Celeb-DF), that makes a single group: "left_out" then deals out the
            people alone, and leaves out the fakes whose people are in two folds.

    Returns:
        The fold of each video; without those left out.

    Raises:
        UsageError: There are fewer groups than folds, or a part that is no number.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds are asked for; there must be at least 2.")
    if by == "part":
        return _by_part(list(videos), folds)
    groups = _grouped(videos, crossing)
    _check_enough(groups, folds, crossing)
    return _of_videos(groups, _dealt(groups, np.full(folds, 1 / folds), seed))


def assign_splits(
    videos: Iterable[Video],
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    *,
    seed: int = 0,
    official: bool = False,
    crossing: Crossing = "together",
) -> dict[str, str]:
    """Deal videos out to train, val and test.

    Args:
        videos: Gone through once where `official` is not set.
        fractions: Shares of train, val and test; they sum to 1. A share of 0 leaves that split empty.
        seed: Other seeds give other splits.
        official: Keep the dataset's own split. Where it has no val, and the share of val is not 0, val is taken from
            train in whole groups. A video without an official split is left out. Such splits may leak: let
            `check_leaks` say.
        crossing: As in `assign_folds`.

    Returns:
        The split of each video; without those left out.

    Raises:
        UsageError: The shares are wrong, there are too few groups, or no video has an official split.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"The shares of train, val and test are {fractions}; they must be three that sum to 1.")
    if official:
        return _official(list(videos), fractions, seed, crossing)
    groups = _grouped(videos, crossing)
    _check_enough(groups, sum(f > 0 for f in fractions), crossing)
    found = _of_videos(groups, _dealt(groups, np.asarray(fractions), seed))
    return {video: SPLITS[index] for video, index in found.items()}


def check_leaks(videos: Iterable[Video], assignment: Mapping[str, int] | Mapping[str, str]) -> None:
    """See to it that no person, and no fake and its original, are in two folds or splits.

    Args:
        videos: Those that are not in `assignment` do not count.
        assignment: The fold or split of each video.

    Raises:
        UsageError: Names the first that is found, in the order of the videos, and says how many leak.
    """
    first: dict[tuple[str, str], tuple[Hashable, str]] = {}
    leaking: dict[tuple[str, str], str] = {}
    for video in videos:
        place = assignment.get(video.video)
        if place is None:
            continue
        sources = {video.video, video.source or video.video}
        for node in (*(("person", name) for name in video.identity), *(("source", name) for name in sorted(sources))):
            there, other = first.setdefault(node, (place, video.video))
            if there != place and node not in leaking:
                leaking[node] = f"{there} ({other}) and {place} ({video.video})"
    if leaking:
        (kind, name), where = next(iter(leaking.items()))
        what = f"the person {name!r}" if kind == "person" else f"the video {name!r} or what was made from it"
        raise UsageError(
            f"The assignment leaks: {what} is in {where}; {len(leaking):,} people and sources leak in all; assign "
            "folds or splits by identity instead."
        )


def write_folds(
    uri: str,
    videos: Iterable[Video],
    *,
    folds: Mapping[str, int] | None = None,
    splits: Mapping[str, str] | None = None,
) -> None:
    """Write `folds.parquet`: a row a video, in the order of the videos.

    Raises:
        StorageError: Nothing can be written at `uri`.
    """
    ids = [v.video for v in videos]
    columns = {"video": ids, "fold": [(folds or {}).get(i) for i in ids], "split": [(splits or {}).get(i) for i in ids]}
    folder, name = split_uri(uri)
    Store(folder).write_table(name, pa.table(columns, FOLDS))


def read_folds(uri: str) -> tuple[dict[str, int], dict[str, str]]:
    """The folds and the splits of a `folds.parquet`, without the videos left out.

    Raises:
        UsageError: It is another table.
        StorageError: It does not exist or cannot be read.
    """
    folder, name = split_uri(uri)
    with Store(folder).open(name) as file:
        try:
            table = pq.read_table(file, columns=FOLDS.names).cast(FOLDS)
        except (pa.ArrowException, ValueError) as error:
            raise UsageError(f"{uri} holds no folds ({error}); write it anew.") from None
    rows: list[dict[str, Any]] = table.to_pylist()
    folds = {row["video"]: row["fold"] for row in rows if row["fold"] is not None}
    return folds, {row["video"]: row["split"] for row in rows if row["split"] is not None}


def _grouped(videos: Iterable[Video], crossing: Crossing) -> _Groups:
    """Connected components of videos, people and sources."""
    nodes: dict[str, int] = {}
    ids, own, labels = [], array("q"), array("b")
    links = array("q")
    crossed: dict[int, list[int]] = {}
    originals: list[tuple[int, int]] = []
    for position, video in enumerate(videos):
        # Videos and people have names of their own kind.
        node = nodes.setdefault(f"video {video.video}", len(nodes))
        others = [nodes.setdefault(f"person {name}", len(nodes)) for name in video.identity]
        if video.source:
            others.append(nodes.setdefault(f"video {video.source}", len(nodes)))
        ids.append(video.video)
        own.append(node)
        labels.append(2 if video.label is None else video.label)
        if crossing == "left_out" and video.label == 1 and len(video.identity) > 1:
            crossed[position] = [node, *others]
            if video.source:
                originals.append((others[-1], others[0]))
        else:
            for other in others:
                links.extend((node, other))
    if not ids:
        raise UsageError("There are no videos to assign; check the manifest.")
    listed = set(own)
    for original, person in originals:
        # Nobody else says who is in an original that is not listed; the readers name the target of a swap first.
        if original not in listed:
            links.extend((original, person))
    group_N = _components(len(nodes), links)
    group_V = group_N[np.frombuffer(own, np.int64)]
    between = _between(crossed, group_N)
    for position, groups in between.items():
        group_V[position] = groups[0] if len(groups) == 1 else -1
    between = {position: groups for position, groups in between.items() if len(groups) > 1}
    return _counted(ids, nodes, group_N, group_V, between, np.frombuffer(labels, np.int8))


def _components(nodes: int, links: "array[int]") -> NDArray[np.int64]:
    start, end = np.frombuffer(links, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(nodes, nodes))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _between(crossed: dict[int, list[int]], group_N: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The groups that each fake of two people touches. Its own counts only where something was made from it."""
    size_G = np.bincount(group_N)
    found = {}
    for position, (own, *others) in crossed.items():
        touched = group_N[others if size_G[group_N[own]] == 1 else [own, *others]]
        found[position] = np.unique(touched)
    return found


def _counted(
    ids: list[str],
    nodes: dict[str, int],
    group_N: NDArray[np.int64],
    group_V: NDArray[np.int64],
    between: dict[int, NDArray[np.int64]],
    label_V: NDArray[np.int8],
) -> _Groups:
    """Number the groups that hold or touch a video from 0, with their counts and names."""
    kept = np.unique(np.concatenate([group_V[group_V >= 0], *between.values()]))
    group_V = np.where(group_V < 0, -1, np.searchsorted(kept, group_V))
    between = {position: np.searchsorted(kept, groups) for position, groups in between.items()}
    counts_G3 = np.zeros((len(kept), 3), np.int64)
    inside = group_V >= 0
    np.add.at(counts_G3, (group_V[inside], label_V[inside]), 1)
    for position, groups in between.items():
        counts_G3[groups, label_V[position]] += 1
    names = [""] * len(kept)
    numbers = dict(zip(kept.tolist(), range(len(kept)), strict=True))
    for name, node_group in zip(nodes, group_N.tolist(), strict=True):
        group = numbers.get(node_group)
        if group is not None and (not names[group] or name < names[group]):
            names[group] = name
    return _Groups(ids, group_V, between, counts_G3, names)


def _check_enough(groups: _Groups, folds: int, crossing: Crossing) -> None:
    """Refuse what would leave a fold without reals or fakes although there are enough videos of that label."""
    for label, word in enumerate(("real", "fake", "unlabelled")):
        count = groups.counts_G3[:, label]
        held = int((count > 0).sum())
        if held < folds <= int(count.sum()):
            raise UsageError(
                f"The {word} videos hang together by people and sources in {held} "
                f"{'group' if held == 1 else 'groups'}, too few for {folds} folds; ask for fewer"
                f"{_HINT if crossing == 'together' else ''}."
            )


def _dealt(groups: _Groups, shares_F: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """The fold of each group: largest group first, each to where reals and fakes come nearest to their shares."""
    open_F = np.flatnonzero(shares_F > 0)
    counts_G3 = groups.counts_G3[:, groups.counts_G3.any(axis=0)].astype(np.float64)
    target_FL = shares_F[open_F, None] * counts_G3.sum(axis=0)
    excess_FL = -target_FL
    sizes = counts_G3.sum(axis=1).tolist()
    order = sorted(range(len(sizes)), key=lambda g: (-sizes[g], _draw(seed, groups.names[g]), groups.names[g]))
    fold_G = np.empty(len(sizes), np.int64)
    empty = set(range(len(open_F)))
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        count_L = counts_G3[group]
        # What the sum of squared excesses, each relative to its target, grows by.
        growth_F = (count_L * (2 * excess_FL + count_L) / target_FL).sum(axis=1)
        if left <= len(empty):
            growth_F[list(set(range(len(open_F))) - empty)] = np.inf  # the last ones fill what a small share left empty
        best = int(growth_F.argmin())
        empty.discard(best)
        excess_FL[best] += count_L
        fold_G[group] = open_F[best]
    return fold_G


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()


def _of_videos(groups: _Groups, fold_G: NDArray[np.int64]) -> dict[str, int]:
    """The fold of each video. One between groups has theirs if it is the same."""
    fold_V = np.where(groups.group_V < 0, -1, fold_G[groups.group_V])
    for position, touched in groups.between.items():
        folds = fold_G[touched]
        fold_V[position] = folds[0] if (folds == folds[0]).all() else -1
    return {video: fold for video, fold in zip(groups.videos, fold_V.tolist(), strict=True) if fold >= 0}


def _by_part(videos: Sequence[Video], folds: int) -> dict[str, int]:
    """The fold of a group is that of its real videos' first part; of all its videos' where no real one is there."""
    groups = _grouped(videos, "together")
    length = max(1, DFDC_PARTS // folds)
    first: dict[int, tuple[bool, int]] = {}
    for video, group in zip(videos, groups.group_V.tolist(), strict=True):
        if not (video.part or "").isdecimal():
            raise UsageError(f"{video.video} is of the part {video.part!r}; folds by part need DFDC's part numbers.")
        rank = (video.label == 1, int(video.part or 0))
        first[group] = min(first.get(group, rank), rank)
    return {
        video.video: min(first[group][1] // length, folds - 1)
        for video, group in zip(videos, groups.group_V.tolist(), strict=True)
    }


def _official(
    videos: Sequence[Video], fractions: tuple[float, float, float], seed: int, crossing: Crossing
) -> dict[str, str]:
    splits = {v.video: v.split for v in videos if v.split}
    if not splits:
        raise UsageError("No video has an official split; assign splits without asking for the official one.")
    if "val" in splits.values() or not fractions[1]:
        return splits
    training = [v for v in videos if v.split == "train"]
    both = fractions[0] + fractions[1]
    shares = (fractions[0] / both, fractions[1] / both, 0.0)
    kept = {video: split for video, split in splits.items() if split != "train"}
    return kept | assign_splits(training, shares, seed=seed, crossing=crossing)
