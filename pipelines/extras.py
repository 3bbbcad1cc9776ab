"""What is made of a run's products beside them, and needs no cluster: folds, and layouts of other trainers."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.depth import DepthOptions
from pipelines.work import MANIFEST_FILE, Work
from unmask.errors import UsageError
from unmask.folds import FOLDS_FILE, assign_folds, assign_splits, check_leaks, read_folds, write_folds
from unmask.manifest import Manifest
from unmask.products import Products
from unmask.storage import Store

__all__ = ["EXPORTS", "Extras", "check_extras", "make_exports", "make_folds"]

EXPORTS = ("dfdc", "deepfakebench")
"""Layouts of other trainers."""

_DFDC_FOLDS, _OTHER_FOLDS = 16, 5
_NAMES = {"ffpp": "FaceForensics++", "celebdf": "Celeb-DF-v2", "dfdc": "DFDC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What is wanted beside the stream's products."""

    folds: int | None = None
    """How many; 0 for the dataset's usual number; None for none."""
    seed: int = 0
    masks: bool = False
    copies: tuple[int, ...] = ()
    """Constant rate factors."""
    depth: DepthOptions | None = None
    """Depth maps of the crops."""
    exports: tuple[str, ...] = ()
    export_name: str | None = None
    """What DeepfakeBench shall call the dataset."""

    @property
    def needs_cluster(self) -> bool:
        """Whether there is work for other processes."""
        return self.masks or bool(self.copies) or self.depth is not None


def check_extras(extras: Extras, *, has_crops: bool) -> None:
    """See that the options can be meant.

    Raises:
        UsageError: One is out of its range.
    """
    if extras.folds is not None and extras.folds != 0 and extras.folds < 2:
        raise UsageError(f"--folds must be at least 2; got {extras.folds}")
    if not has_crops and (extras.masks or extras.exports or extras.depth):
        raise UsageError("masks, depth maps and exports are made of crops; name crops among the --products")
    if extras.depth is not None:
        extras.depth.check()  # better now than when all crops are there
    for crf in extras.copies:
        if not 0 <= crf <= 51:
            raise UsageError(f"--crf takes numbers from 0 to 51; got {crf}")
    for name in extras.exports:
        if name not in EXPORTS:
            raise UsageError(f"--export knows {', '.join(EXPORTS)}; got {name!r}")


def make_folds(work: Work, extras: Extras, say: Callable[[str], None]) -> None:
    """Deal the videos out to folds and splits, people kept together, and write `folds.parquet`.

    Raises:
        UsageError: There are too few people, or the dataset's own split leaks.
    """
    if extras.folds is None:
        return
    with Manifest(work.store.uri_of(MANIFEST_FILE)) as manifest:
        videos = list(manifest)
    by_part = work.dataset == "dfdc" and all(video.part is not None for video in videos)
    count = extras.folds or (_DFDC_FOLDS if by_part else _OTHER_FOLDS)
    folds = assign_folds(videos, count, seed=extras.seed, by="part" if by_part else "identity")
    check_leaks(videos, folds)
    try:
        splits = assign_splits(videos, seed=extras.seed, official=any(video.split for video in videos))
        check_leaks(videos, splits)
    except UsageError as error:
        say(f"folds.parquet has no splits: {error.message}")
        splits = {}
    write_folds(work.store.uri_of(FOLDS_FILE), videos, folds=folds, splits=splits)


def make_exports(work: Work, extras: Extras, say: Callable[[str], None]) -> None:
    """Write the products in other layouts, to `exports/<name>/`.

    Raises:
        UsageError: An export cannot be made of these products.
        StorageError: The output cannot be read or written.
    """
    if not extras.exports:
        return
    from pipelines.exports import export_deepfakebench, export_dfdc

    products = Products(work.store)
    has_folds = work.store.exists(FOLDS_FILE)
    folds, splits = read_folds(work.store.uri_of(FOLDS_FILE)) if has_folds else ({}, {})
    for name in extras.exports:
        out = Store(work.store.uri_of(f"exports/{name}"))
        if name == "dfdc":
            count = export_dfdc(products, out, folds or None)
        else:
            called = extras.export_name or _NAMES.get(work.dataset, work.dataset)
            count = export_deepfakebench(products, out, called, splits=splits or None)
        left = f"; left out: {', '.join(f'{n} {why}' for why, n in count.left_out.items())}" if count.left_out else ""
        say(f"exports/{name}: {count.videos:,} videos, {count.crops:,} crops, {count.diffs:,} masks{left}")
