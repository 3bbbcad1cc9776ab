"""The features of clips, computed once and kept beside the crops: a fusion head is trained on them for cents (S4).

Copies with an augmentation are made of tracks of training alone, one draw for a whole track. Files lie in
`clips/<key>/` of the dataset; the key is a digest of every setting, so that runs share what they have in common. Each
says by a digest of which crops it is, and is made again where the dataset has been preprocessed anew. Workers of a run
share what is missing.

Axes: L faces of a track, U units.
"""

import datetime as dt
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as packed

from train.augment import Picture, strategy
from train.augment.picture import Steps
from train.catalogue import Catalogue
from train.context import Context
from train.crops import CropReader
from train.extractor import DAMAGED, REASONS, Clip, Extractor
from unmask.console import say
from unmask.errors import DamagedError, StorageError
from unmask.storage import Store

__all__ = ["Account", "Keeper", "Unit", "shares"]

# Faces of a track whose pictures are in memory at once; a multiple of every batch, so that batches stay the same.
_PART = 64
# That workers wait for the last one. Their shares are about as large, so that this is for one that runs much slower.
_LONGEST_WAIT = dt.timedelta(hours=6)


class Unit(NamedTuple):
    """A video by number, one of its tracks, and a copy: 0 for the faces as they are."""

    video: int
    track: int
    copy: int


def shares(faces_U: Sequence[int], workers: int) -> NDArray[np.int64]:
    """Who makes which unit, int64 (U,): everyone has about as many faces. The same on every worker.

    Args:
        faces_U: How many faces each has.
        workers: How many share them.
    """
    rank_U = np.zeros(len(faces_U), np.int64)
    load = [0] * workers
    # The largest first, each to whom has least.
    for unit in np.argsort(-np.asarray(faces_U, np.int64), kind="stable").tolist():
        rank_U[unit] = rank = load.index(min(load))
        load[rank] += faces_U[unit]
    return rank_U


@dataclass(slots=True)
class Account:
    """What keeping came to. Seconds are those of all workers together."""

    found: int = 0
    """Units that were there before."""
    made: int = 0
    damaged: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reading_seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)

    def count(self, clip: Clip, size: int) -> None:
        """Count a unit's bytes, and its faces that are not good."""
        self.bytes += size
        for state, why in REASONS.items():
            if masked := int((clip.state_L == state).sum()):
                self.states[why] = self.states.get(why, 0) + masked

    def of_all(self, context: Context) -> "Account":
        """The sum of all workers' accounts. Every worker calls it."""
        masked = [self.states.get(why, 0) for why in REASONS.values()]
        own = [self.seconds, self.reading_seconds, self.found, self.made, self.damaged, self.bytes, *masked]
        seconds, reading_seconds, *counts = context.sum(own)
        found, made, damaged, size, *masked = map(round, counts)
        states = {why: many for why, many in zip(REASONS.values(), masked, strict=True) if many}
        return Account(found, made, damaged, size, seconds, reading_seconds, states)

    def to_json(self) -> dict[str, Any]:
        """As JSON can say it."""
        clips = self.found + self.made
        return {
            "clips": clips,
            "from_cache": self.found,
            "hit_rate": self.found / max(clips, 1),
            "made": self.made,
            "damaged_files": self.damaged,
            "bytes_per_clip": round(self.bytes / max(clips, 1)),
            "seconds_making": round(self.seconds, 3),
            "seconds_reading": round(self.reading_seconds, 3),
            "faces_masked": dict(sorted(self.states.items())),
        }

    def __str__(self) -> str:
        lost = "".join(f", {count:,} {why}" for why, count in sorted(self.states.items()))
        clips = self.found + self.made
        return (
            f"features of {clips:,} clip{'s' * (clips != 1)}: {self.found:,} kept, {self.made:,} made in "
            f"{self.seconds:.1f} s, {self.bytes / max(clips, 1) / 1000:.1f} kB a clip{lost}"
        )


class Keeper:
    """Gives the features of tracks: those that are kept, or made now and kept for the next time.

    Args:
        catalogue: All faces.
        reader: Their crops.
        extractor: Makes features.
        augment: Of copies.
    """

    def __init__(self, catalogue: Catalogue, reader: CropReader, extractor: Extractor, augment: str = "none") -> None:
        self._catalogue, self._reader, self.extractor = catalogue, reader, extractor
        self._augment = augment
        self._strategy = None if augment == "none" else strategy(augment, extractor.preprocessing.size_HW)
        self.account = Account()
        self._settings = extractor.settings()
        self._checked: set[str] = set()
        self._at_hand: dict[Unit, Clip] = {}

    def share(self, units: Sequence[Unit], context: Context) -> None:
        """Look which units are kept, and make the others, every worker its share; `track` gives each of them once.

        Every worker calls this with the same units. Afterwards the account is that of all, with each unit once.

        Args:
            units: What the run needs, each once.
            context: This worker's.

        Raises:
            StorageError: As in `track`.
            RuntimeError: Another worker was lost.
        """
        is_missing = torch.tensor([not self._is_kept(unit) for unit in units[context.rank :: context.workers]])
        # Nobody has made anything before everybody has looked: all of them see the same list.
        missing_U = np.zeros(len(units), np.bool_)
        for rank, part in enumerate(context.gather(is_missing.to(torch.uint8))):
            missing_U[rank :: context.workers] = part.numpy()
        todo = [unit for unit, missing in zip(units, missing_U, strict=True) if missing]
        rank_U = shares([len(self._rows(unit)) for unit in todo], context.workers)
        with context.apart(_LONGEST_WAIT):
            for unit in (unit for unit, rank in zip(todo, rank_U, strict=True) if rank == context.rank):
                self._at_hand[unit] = self._made(unit, self.account)
        self.account = self.account.of_all(context)
        # What others have made is there now, but for clips with damaged crops: those everybody makes.
        with context.apart(_LONGEST_WAIT):
            for unit in (unit for unit in units if unit not in self._at_hand):
                self._at_hand[unit] = self._had(unit, Account())

    def _is_kept(self, unit: Unit) -> bool:
        clip = self._kept(unit, self.account)
        if clip is not None:
            self._at_hand[unit] = clip
        return clip is not None

    def _had(self, unit: Unit, account: Account) -> Clip:
        clip = self._kept(unit, account)
        return self._made(unit, account) if clip is None else clip

    def track(self, video: int, track: int, copy: int = 0) -> tuple[NDArray[np.int64], Clip]:
        """The faces of a track by number in the catalogue, and their features.

        Args:
            video: By number.
            track: Which of its tracks.
            copy: 0 for the faces as they are; from 1 on, copies with an augmentation of their own each.

        Raises:
            StorageError: Files cannot be read or written, or were put there from another configuration.
        """
        unit = Unit(video, track, copy)
        clip = self._at_hand.pop(unit, None)
        if clip is None:
            clip = self._had(unit, self.account)
        return self._rows(unit), clip

    def _rows(self, unit: Unit) -> NDArray[np.int64]:
        rows_L = self._catalogue.faces_of(unit.video)
        is_of_it_L = (self._catalogue.track_N[rows_L] == unit.track) & ~self._catalogue.corrupt_N[rows_L]
        return np.asarray(rows_L[is_of_it_L])

    def _place(self, unit: Unit) -> tuple[Store, str]:
        about = self._catalogue.videos[unit.video]
        store = self._catalogue.stores[about.dataset]
        name = about.about.video.removeprefix(f"{about.dataset}/")
        return store, f"{self._folder(store, unit.copy)}/{name}-{unit.track}-{unit.copy}.safetensors"

    def _folder(self, store: Store, copy: int) -> str:
        said = {**self._settings, "augment": self._augment if copy else "none"}
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        folder = f"clips/{key}"
        if f"{store.uri} {key}" not in self._checked:
            self._check(store, f"{folder}/key.json", said)
            self._checked.add(f"{store.uri} {key}")
        return folder

    @staticmethod
    def _check(store: Store, name: str, said: Mapping[str, Any]) -> None:
        if not store.exists(name):
            return store.write(name, (json.dumps(said, indent=1) + "\n").encode())
        try:
            there = json.loads(store.read(name))
        except ValueError:
            there = None
        if there != said:
            raise StorageError(
                f"the features in {store.shown}/{name.rpartition('/')[0]} are of another configuration than this one, "
                "although the folder's name says otherwise: remove that folder"
            )
        return None

    def _kept(self, unit: Unit, account: Account) -> Clip | None:
        began, rows_L, (store, name) = time.perf_counter(), self._rows(unit), self._place(unit)
        if not store.exists(name):
            return None
        data = store.read(name)
        try:
            tensors = parse(data)
            clip = Clip(tensors["features"], tensors["state"])
            whole = clip.features_LE.shape == (len(rows_L), 2 * self.extractor.model.dim)
            whole &= clip.state_L.shape == rows_L.shape and bool(np.isfinite(clip.features_LE).all())
            same = np.array_equal(tensors["crops"], self._catalogue.digest_of(rows_L))
        except (SafetensorError, KeyError, ValueError):
            whole = same = False
        if not (whole and same):
            account.damaged += 1
            say(f"{store.shown}/{name} is cut short or of other crops; it is made again")
            return None
        account.found, account.reading_seconds = account.found + 1, account.reading_seconds + _since(began)
        account.count(clip, len(data))
        return clip

    def _made(self, unit: Unit, account: Account) -> Clip:
        began, rows_L, (store, name) = time.perf_counter(), self._rows(unit), self._place(unit)
        clip = self._features(rows_L, self._draw(name) if unit.copy else Steps())
        crops = self._catalogue.digest_of(rows_L)
        data = packed({"features": clip.features_LE, "state": clip.state_L, "crops": crops})
        # A damaged crop may be mended, and then it is to be seen.
        if not (clip.state_L == DAMAGED).any():
            store.write(name, data)
        account.made, account.seconds = account.made + 1, account.seconds + _since(began)
        account.count(clip, len(data))
        return clip

    def _features(self, rows_L: NDArray[np.int64], draw: Steps) -> Clip:
        """Those of a track, a part at a time: thousands of faces would take gigabytes. A video encoder needs all."""
        if len(rows_L) <= _PART or not draw.is_framewise:
            pictures = self._pictures(rows_L, draw)
            return self.extractor(pictures, _side(pictures))
        parts = [rows_L[k : k + _PART] for k in range(0, len(rows_L), _PART)]
        # The square is the whole track's. Which crops can be read, and what a draw makes of them, is known when it is
        # done: the faces of a long track are read twice, which is little beside their depth maps.
        side = max(_side(self._pictures(part_L, draw)) for part_L in parts)
        clips = [self.extractor(self._pictures(part_L, draw), side) for part_L in parts]
        return Clip(np.concatenate([c.features_LE for c in clips]), np.concatenate([c.state_L for c in clips]))

    def _pictures(self, rows_L: NDArray[np.int64], draw: Steps) -> list[Picture | None]:
        """Faces of a track, changed; None where a crop is damaged."""
        pictures = [self._picture(int(row)) for row in rows_L]
        changed = iter(draw.apply_clip([picture for picture in pictures if picture is not None]))
        return [None if picture is None else next(changed) for picture in pictures]

    def _picture(self, row: int) -> Picture | None:
        try:
            return self._reader.picture(row, self.extractor.preprocessing)
        except DamagedError:
            return None

    def _draw(self, name: str) -> Steps:
        """One for a whole track; the same for the same track and copy in every run."""
        if self._strategy is None:
            return Steps()
        seed = int.from_bytes(hashlib.blake2b(name.partition("/")[2].encode(), digest_size=8).digest(), "little")
        return self._strategy.draw(np.random.default_rng(seed))


def _side(pictures: Sequence[Picture | None]) -> int:
    return max((picture.side for picture in pictures if picture is not None), default=0)


def _since(began: float) -> float:
    return time.perf_counter() - began
