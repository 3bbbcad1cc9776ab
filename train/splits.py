"""Who is trained on, who the epoch is chosen by, and who is left for the test. No person is in two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.catalogue import Catalogue, CataloguedVideo
from train.config import TrainConfig
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.folds import FOLDS_FILE, assign_splits, check_leaks, read_folds
from unmask.provenance import has_digests, overlap

__all__ = ["Splits", "left_for_test", "official_splits", "splits_of", "untold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Videos by number in the catalogue."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    how: str
    """Where they come from, in words."""

    def describe(self) -> str:
        """How many, for people."""
        counts = f"{len(self.train):,} videos to train, {len(self.val):,} to validate, {len(self.test):,} left"
        return f"{counts} ({self.how})"


def official_splits(catalogue: Catalogue) -> dict[str, str]:
    """The splits that come with the data, by key of the video: of `folds.parquet`, else the dataset's own."""
    found: dict[str, str] = {}
    for dataset, store in catalogue.stores.items():
        own = {v.key: v.about.split for v in catalogue.videos if v.dataset == dataset and v.about.split}
        if store.exists(FOLDS_FILE):
            _, splits = read_folds(store.uri_of(FOLDS_FILE))
            own |= {f"{dataset}/{video}": split for video, split in splits.items()}
        found |= own
    return found


def splits_of(catalogue: Catalogue, config: TrainConfig, seed: int) -> Splits:
    """Divide the videos as a configuration asks, and see that nobody is on both sides.

    Args:
        catalogue: All videos with faces.
        config: Says how, and which videos can be used at all.
        seed: Of the people dealt out, and of videos that are drawn.

    Raises:
        UsageError: A split is empty, a class is missing, or a person or source leaks.
    """
    usable = [n for n, video in enumerate(catalogue.videos) if _is_usable(video, config)]
    if not usable:
        raise UsageError(_useless(catalogue, config))
    assignment, how = _assigned(catalogue, usable, config)
    check_leaks((catalogue.videos[n].about for n in usable), assignment)
    by_split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number in usable:
        split = assignment.get(catalogue.videos[number].about.video)
        if split is not None:
            by_split[split].append(number)
    limit = config.data.max_videos_per_class
    if limit is not None:
        by_split = _limited(catalogue, by_split, limit, len(usable), seed)
    splits = Splits(**{name: tuple(numbers) for name, numbers in by_split.items()}, how=how)
    _check_whole(catalogue, splits, config)
    return splits


def left_for_test(catalogue: Catalogue, splits: Splits, models: Sequence[Description]) -> tuple[int, ...]:
    """The videos of the split test that none of some models was made from, nor a person in them.

    Who is left depends on all the data that is dealt out: a model that was trained on more data, on less, or with other
    shares may have learnt from people whom this deal leaves.

    Args:
        catalogue: All videos.
        splits: How they are divided now.
        models: Who shall be measured, with what they say of whom they were made from.

    Raises:
        UsageError: Nobody is left.
    """
    if not splits.test:
        raise UsageError("nobody was left for the test: set data.fractions with a third share above 0 in training")
    abouts = [catalogue.videos[n].about for n in splits.test]
    seen = {n: why for model in models for n, why in overlap(model.provenance, abouts).seen.items()}
    left = tuple(number for n, number in enumerate(splits.test) if n not in seen)
    if not left:
        position, why = next(iter(seen.items()))
        raise UsageError(
            f"nobody is left for the test: all {len(seen):,} videos that these splits leave are known to the models, "
            f"such as {abouts[position].video} ({why}); take the data and data.fractions that they were trained with, "
            "or other people"
        )
    return left


def untold(name: str, model: Description) -> list[str]:
    """What has to be said beside the results of a trained model that does not say what it was made from."""
    if has_digests(model.provenance) or not model.trained:
        return []
    return [f"{name} does not say what it was trained on: nobody can check that it never saw these videos and people."]


def _is_usable(video: CataloguedVideo, config: TrainConfig) -> bool:
    about = video.about
    if config.model.task == "mos":
        return about.mos is not None
    if config.data.draw == "selfblend":
        return about.label == 0 or (about.label is None and config.data.unlabelled == "real")
    return about.label is not None or config.data.unlabelled == "real"


def _useless(catalogue: Catalogue, config: TrainConfig) -> str:
    what = "opinion score" if config.model.task == "mos" else "label"
    if config.data.draw == "selfblend":
        what = "label that says real"
    return f"none of the {len(catalogue.videos):,} videos has a{'n' if what[0] == 'o' else ''} {what}; see the manifest"


def _assigned(catalogue: Catalogue, usable: list[int], config: TrainConfig) -> tuple[Mapping[str, str], str]:
    data, videos = config.data, [catalogue.videos[n].about for n in usable]
    if data.val_fold is not None:
        return _of_fold(catalogue, usable, data.val_fold), f"validation is fold {data.val_fold}"
    official = {} if data.split == "identity" else official_splits(catalogue)
    if data.split == "official" and not official:
        raise UsageError("none of the videos has an official split: set data.split=identity")
    if not official:
        # People are dealt out by a seed of their own: the models of an ensemble leave the same ones for the test.
        return assign_splits(videos, data.fractions, seed=0), "people dealt out"
    known = [v for v in videos if v.video in official]
    assignment, how = {v.video: official[v.video] for v in known}, "official splits"
    if "val" not in assignment.values():
        train = [v for v in known if assignment[v.video] == "train"]
        both = data.fractions[0] + data.fractions[1]
        shares = (data.fractions[0] / both, data.fractions[1] / both, 0.0)
        assignment |= assign_splits(train, shares, seed=0)
        how += ", validation taken from train"
    # Videos that a dataset's splits leave out stay out; a dataset without any is dealt out.
    having = {catalogue.videos[n].dataset for n in range(len(catalogue.videos)) if catalogue.videos[n].key in official}
    others = [n for n in usable if catalogue.videos[n].dataset not in having]
    if others:
        names = ", ".join(sorted({catalogue.videos[n].dataset for n in others}))
        if data.split == "official":
            raise UsageError(f"{names} has no official split: set data.split=auto, which deals out its people")
        assignment |= assign_splits([catalogue.videos[n].about for n in others], data.fractions, seed=0)
        how += f", people of {names} dealt out"
    return assignment, how


def _of_fold(catalogue: Catalogue, usable: list[int], val_fold: int) -> dict[str, str]:
    assignment: dict[str, str] = {}
    for dataset, store in catalogue.stores.items():
        if not store.exists(FOLDS_FILE):
            raise UsageError(f"{store.shown} has no {FOLDS_FILE}: preprocess with --products crops,folds")
        folds, _ = read_folds(store.uri_of(FOLDS_FILE))
        assignment |= {f"{dataset}/{v}": "val" if fold == val_fold else "train" for v, fold in folds.items()}
    named = {catalogue.videos[n].about.video for n in usable}
    return {video: split for video, split in assignment.items() if video in named}


def _limited(
    catalogue: Catalogue, by_split: dict[str, list[int]], limit: int, total: int, seed: int
) -> dict[str, list[int]]:
    """At most `limit` videos of each class over all splits, drawn evenly from them."""
    import numpy as np

    rng = np.random.default_rng([seed, total])
    kept: set[int] = set()
    for label in (0, 1):
        numbers = [n for split in by_split.values() for n in split if (catalogue.videos[n].about.label or 0) == label]
        kept |= set(rng.permutation(numbers)[:limit].tolist())
    return {name: [n for n in numbers if n in kept] for name, numbers in by_split.items()}


def _check_whole(catalogue: Catalogue, splits: Splits, config: TrainConfig) -> None:
    for name in ("train", "val"):
        numbers = getattr(splits, name)
        if not numbers:
            raise UsageError(f"the split {name} is empty ({splits.describe()}): set data.fractions or data.split")
        if config.model.task == "mos" or config.data.draw == "selfblend":
            continue
        labels = {catalogue.videos[n].about.label or 0 for n in numbers}
        if len(labels) == 1:
            word = "real" if labels == {0} else "fake"
            raise UsageError(
                f"the split {name} has {word} videos only ({splits.describe()}): add the others, set data.fractions, "
                "or train on real faces alone with --recipe selfblend"
            )
