"""Which videos are evaluated, and whether that is a test at all.

A test is of videos and people that the model was neither trained on nor chosen by. Where its checkpoint knows them
(`unmask.provenance`), an evaluation that would use one is refused; only `train` and `val` may be asked for by name, and
then the results say that they are no test.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.catalogue import Catalogue, CataloguedVideo, Faceless
from train.ensemble import Ensemble, Member
from train.splits import official_splits, untold
from unmask.errors import UsageError
from unmask.provenance import has_digests, overlap, used_for

__all__ = ["CHOICES", "Selection", "select"]

CHOICES = ("test", "val", "train", "all", "unseen")
"""What `--split` takes. `unseen` is all that the model was not made from, whatever split it is in."""

_ANY = ("all", "unseen")
_MADE_BY = {"train": "which models are trained on", "val": "by which models are chosen and calibrated"}


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What is evaluated.

    Args:
        catalogue: All faces there are.
        videos: The videos evaluated, by number in the catalogue.
        split: The name of the split; `all`, `unseen`, or `test or all`.
        notice: Why the results are no test, where they are none.
        caveats: What has to be said beside the results, in sentences.
        unscored: Videos of the split without any face.
        left_out: Videos of the split that have no label, or no opinion score.
    """

    catalogue: Catalogue
    videos: tuple[int, ...]
    split: str
    notice: str | None
    caveats: tuple[str, ...]
    unscored: tuple[Faceless, ...]
    left_out: int

    def chosen(self) -> list[CataloguedVideo]:
        """The videos themselves."""
        return [self.catalogue.videos[n] for n in self.videos]


def select(catalogue: Catalogue, split: str | None, ensemble: Ensemble, beside: Sequence[Member] = ()) -> Selection:
    """Choose the videos, and see to it that the model has not seen them.

    Args:
        catalogue: All faces there are.
        split: One of `CHOICES`; left open, `test` of the datasets that have such a split, and all of the others.
        ensemble: Who is evaluated.
        beside: With whom it is compared: they must not have seen the videos either.

    Raises:
        UsageError: There is nothing to evaluate; or the videos were used to make the model.
    """
    if split is not None and split not in CHOICES:
        raise UsageError(f"--split is one of {', '.join(CHOICES)}; got {split!r}")
    splits, dealt = _splits(catalogue, ensemble)
    wanted = _wanted(catalogue, splits, split)
    chosen = [n for n, v in enumerate(catalogue.videos) if wanted[v.dataset] in (*_ANY, splits.get(v.key))]
    names = set(wanted.values())
    split = names.pop() if len(names) == 1 else "test or all"
    chosen, caveats = _unused(catalogue, chosen, split, (*ensemble.members, *beside))
    caveats += [f"{name} has no splits of its own: they are those that training dealt out." for name in dealt]
    marked = [n for n in chosen if _truth(catalogue.videos[n], ensemble) is not None]
    if not marked:
        what = "an opinion score (mos)" if ensemble.is_mos else "a label"
        raise UsageError(f"none of the {len(chosen):,} videos has {what} to compare with; see the manifest")
    return Selection(
        catalogue=catalogue,
        videos=tuple(marked),
        split=split,
        notice=f"This is no test: these videos are the split {split}, {_MADE_BY[split]}."
        if split in _MADE_BY
        else None,
        caveats=tuple(caveats),
        unscored=tuple(
            video
            for video in catalogue.faceless
            if wanted[video.dataset] in (*_ANY, splits.get(video.key, video.about.split))
        ),
        left_out=len(chosen) - len(marked),
    )


def _splits(catalogue: Catalogue, ensemble: Ensemble) -> tuple[dict[str, str], list[str]]:
    """The split of each video by key; and the datasets whose splits are known from the checkpoint alone.

    Where a dataset has none, training has dealt its people out: the checkpoint knows whom it was made from, and what
    was left is for the test.
    """
    splits = official_splits(catalogue)
    provenance = next((p for m in ensemble.members if has_digests(p := m.description.provenance)), {})
    dealt = []
    for dataset in catalogue.stores:
        videos = [v for v in catalogue.videos if v.dataset == dataset]
        if any(v.key in splits for v in videos):
            continue
        found = used_for(provenance, [v.about for v in videos])
        if any(found):
            dealt.append(dataset)
            splits |= {v.key: split or "test" for v, split in zip(videos, found, strict=True)}
    return splits, dealt


def _wanted(catalogue: Catalogue, splits: Mapping[str, str], split: str | None) -> dict[str, str]:
    """What to take of each dataset: no dataset that was named is left out in silence."""
    wanted = {}
    for dataset in catalogue.stores:
        own = Counter(splits.get(v.key, "no split") for v in catalogue.videos if v.dataset == dataset)
        wanted[dataset] = split or ("test" if "test" in own else "all")
        if wanted[dataset] not in (*_ANY, *own):
            there = ", ".join(f"{name} ({count:,})" for name, count in sorted(own.items()))
            raise UsageError(
                f"no video of {dataset} with a face is in the split {split}, there are {there}: choose another "
                "--split, or all, or unseen for what the model was not made from"
            )
    return wanted


def _truth(video: CataloguedVideo, ensemble: Ensemble) -> float | None:
    return video.about.mos if ensemble.is_mos else video.about.label


def _unused(
    catalogue: Catalogue, chosen: Sequence[int], split: str, members: Sequence[Member]
) -> tuple[list[int], list[str]]:
    """Those of the videos that may be evaluated, and what has to be said."""
    if split in _MADE_BY:
        return list(chosen), []
    caveats: list[str] = []
    seen: set[int] = set()
    for member in members:
        provenance = member.description.provenance
        if not has_digests(provenance):
            if split == "unseen":
                raise UsageError(
                    f"{member.given} does not say what it was trained on, so nobody can tell what it has not seen; "
                    "choose another --split"
                )
            caveats += untold(member.name, member.description)
            continue
        found = overlap(provenance, [catalogue.videos[n].about for n in chosen])
        if found and split != "unseen":
            position, why = next(iter(found.seen.items()))
            raise UsageError(
                f"{len(found.seen):,} of {found.videos:,} videos are no test of {member.given}, such as "
                f"{catalogue.videos[chosen[position]].key} ({why}); choose --split unseen to leave them out, or "
                "train or val to look at those splits as what they are"
            )
        # Of all that were chosen, whoever comes first: in any order of the models the same ones are left.
        seen.update(found.seen)
    left = [n for position, n in enumerate(chosen) if position not in seen]
    if not left:
        raise UsageError("the model was made from all of these videos or their people; nothing is left to test it on")
    return left, caveats
