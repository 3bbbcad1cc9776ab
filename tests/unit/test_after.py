"""Which masks of pairs are made again: those of a shard in which one of two videos was preprocessed again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import after
from pipelines.after import masks_of, unmade_masks
from pipelines.masks import MaskCount, Originals
from pipelines.run import _reopen
from tests.products import BOX, Clip, faked, finished_run, portrait
from unmask.products import Products
from unmask.storage import Store

REALS = [Clip(video=f"real/{n}", columns={"label": 0}) for n in range(2)]
FAKES = [
    Clip(video=f"fake/{n}", picture=faked, columns={"label": 1, "source": f"real/{n}"}, faces={0: [BOX], 10: [BOX]})
    for n in range(2)
]
ALL = [*REALS, *FAKES]
"""A shard each."""


def made(products: Products) -> list[int]:
    """Make what is to be made; its shards."""
    originals = Originals.of(products)
    shards = unmade_masks(products.store, originals)
    for shard in shards:
        masks_of(products.store, shard, originals)
    return shards


def run_again(products: Products, clips: Sequence[Clip]) -> None:
    """As `--retry-failed` does it: shards with failed videos are opened, and written anew."""
    _reopen(products)
    finished_run(products.store, clips, per_shard=1)


def masks(products: Products, video: str) -> dict[str, bytes]:
    return {name: products.store.read(name) for name in products.store.names(f"masks/{video}")}


@pytest.fixture
def products(tmp_path: Path) -> Products:
    products = finished_run(Store(tmp_path), ALL, per_shard=1)
    assert made(products) == [0, 1, 2, 3]
    assert made(products) == []
    return products


def test_masks_of_a_fake_made_anew_are_made_again(products: Products) -> None:
    before = {video: masks(products, video) for video in ("fake/0", "fake/1")}
    # At one frame fewer, and nothing changed in the other.
    run_again(products, [*REALS, replace(FAKES[0], picture=portrait, faces={0: [BOX]}), FAKES[1]])
    assert made(products) == [2]
    after_it = masks(products, "fake/0")
    assert set(after_it) == {"masks/fake/0/000000_0_diff.png"}
    assert after_it["masks/fake/0/000000_0_diff.png"] != before["fake/0"]["masks/fake/0/000000_0_diff.png"]
    assert masks(products, "fake/1") == before["fake/1"]
    assert made(products) == []


def test_masks_of_fakes_whose_original_was_made_anew_are_made_again(products: Products) -> None:
    before = masks(products, "fake/1")
    run_again(products, [REALS[0], replace(REALS[1], picture=faked), *FAKES])
    assert made(products) == [1, 3]
    assert set(masks(products, "fake/1")) == set(before)
    assert masks(products, "fake/1") != before


def test_an_original_that_failed_at_first_gives_its_fakes_masks_whenever_they_are_asked_for(tmp_path: Path) -> None:
    lost = replace(REALS[1], faces={}, status="failed")
    products = finished_run(Store(tmp_path), [REALS[0], lost, *FAKES], per_shard=1)
    made(products)
    assert (len(masks(products, "fake/0")), masks(products, "fake/1")) == (2, {})
    # Tried again by a run that was not asked for masks.
    run_again(products, ALL)
    assert 3 in unmade_masks(products.store, Originals.of(products))
    assert made(products) == [1, 3]
    assert len(masks(products, "fake/1")) == 2


def test_a_shard_that_was_killed_half_way_keeps_its_masks_if_they_are_of_these_faces(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> MaskCount:
        raise KeyboardInterrupt

    again = [REALS[0], replace(REALS[1], picture=faked), *FAKES]
    run_again(products, again)
    originals = Originals.of(products)
    with monkeypatch.context() as patch:
        patch.setattr(after, "write_masks", killed)
        with pytest.raises(KeyboardInterrupt):
            masks_of(products.store, 3, originals)
    assert masks(products, "fake/1") == {}
    assert unmade_masks(products.store, originals) == [1, 3]
    products.store.write("masks/fake/1/000000_0_diff.png", b"of these faces")
    assert masks_of(products.store, 3, originals) == MaskCount(written=1, kept=1)
    # And those of other faces are not, though no run that made them has come to its end.
    run_again(products, ALL)
    assert masks_of(products.store, 3, Originals.of(products)) == MaskCount(written=2)


def test_masks_of_videos_whose_names_begin_alike_are_left_alone(tmp_path: Path) -> None:
    inner = replace(FAKES[0], video="fake/0/inner")
    products = finished_run(Store(tmp_path), [REALS[0], FAKES[0], inner], per_shard=1)
    made(products)
    before = masks(products, "fake/0/inner")
    run_again(products, [REALS[0], replace(FAKES[0], picture=portrait), inner])
    assert made(products) == [1]
    assert len(before) == 2
    assert masks(products, "fake/0/inner") == before


@pytest.mark.parametrize("record", [b"", b'{"of": "1', b"[]", b'{"count": {}}'])
def test_a_record_that_was_cut_short_is_none(record: bytes, products: Products) -> None:
    products.store.write("masks/00002.json", record)
    assert made(products) == [2]
    assert made(products) == []
