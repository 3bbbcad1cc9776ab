"""The state of a run: whole or that of before, of as many workers, with every generator where it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers import in_two_processes
from train.context import Context
from train.state import LAST, Progress, load, random_state, restore_random, save
from unmask.errors import StorageError
from unmask.storage import Store

CPU = torch.device("cpu")
ALONE = Context(device=CPU)


def parts() -> dict[str, Any]:
    """Of a small model after some steps of an optimiser with momenta."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimiser.step()
    return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "scaler": {}, "average": None}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


PROGRESS = Progress(epoch=3, step=7, updates=40, sums={"loss": 1.25, "samples": 28.0}, course={"best": 0.5, "drops": 1})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store, written = Store(tmp_path / "run"), parts()
    assert load(store, LAST, ALONE) is None
    save(store, LAST, written, PROGRESS, ALONE)
    found = load(store, LAST, ALONE)
    assert found is not None
    assert same(found[0], written)
    assert found[1] == PROGRESS
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LAST]


def test_it_can_lie_in_a_bucket(tmp_path: Path) -> None:
    store = Store(f"memory://state-{os.getpid()}-{tmp_path.name}")
    save(store, LAST, parts(), PROGRESS, ALONE)
    found = load(store, LAST, ALONE)
    assert found is not None
    assert found[1] == PROGRESS
    assert store.names(deep=True) == [LAST]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    torch.manual_seed(5)
    torch.rand(3)
    save(store, LAST, parts(), Progress(), ALONE)  # which draws some, too
    state = torch.get_rng_state()
    wanted = torch.rand(4)
    torch.manual_seed(99)
    load(store, LAST, ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.rand(4), wanted)


def test_generators_are_bytes_of_their_own() -> None:
    state = random_state(CPU)
    assert state.shape == (1, len(torch.get_rng_state()))
    assert state.dtype == torch.uint8
    wanted = torch.rand(2)
    torch.manual_seed(1)
    restore_random(state, CPU)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_generators_of_a_gpu_are_kept() -> None:
    device = torch.device("cuda", 0)
    state = random_state(device)
    wanted = torch.rand(2, device=device)
    torch.cuda.manual_seed(1)
    restore_random(state, device)
    assert torch.equal(torch.rand(2, device=device), wanted)


class Refused(Exception):
    """Stands for whatever stops a process in the midst of writing."""


def test_an_interrupted_write_leaves_the_state_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    save(store, LAST, parts(), PROGRESS, ALONE)
    before = (tmp_path / LAST).read_bytes()
    write = torch.save

    def cut(whole: Any, place: Any) -> None:
        write(whole, place)
        raise Refused

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(Refused):
        save(store, LAST, parts(), Progress(epoch=9), ALONE)
    assert (tmp_path / LAST).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    found = load(store, LAST, ALONE)
    assert found is not None
    assert found[1].epoch == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other", "fields", "format"])
def test_a_damaged_file_is_said_in_a_sentence(tmp_path: Path, damage: str) -> None:
    store, file = Store(tmp_path), tmp_path / LAST
    save(store, LAST, parts(), PROGRESS, ALONE)
    whole = torch.load(file, weights_only=True)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "noise":
        file.write_bytes(bytes(range(256)) * 20)
    elif damage == "other":
        torch.save([1, 2], file)
    elif damage == "fields":
        torch.save({**whole, "progress": {"epoch": 1, "colour": 2}}, file)
    else:
        torch.save({**whole, "format": 99}, file)
    with pytest.raises(StorageError, match=r"/last\.pt is damaged \(\w+\); remove it to train that model anew") as said:
        load(store, LAST, ALONE)
    assert "\n" not in said.value.message


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "progress": _Evil(), "generators": torch.zeros(1, 1)}, tmp_path / LAST)
    with pytest.raises(StorageError, match="is damaged"):
        load(Store(tmp_path), LAST, ALONE)
    assert not (tmp_path / "evil").exists()


def test_another_number_of_workers_goes_on_between_epochs_only(tmp_path: Path) -> None:
    store, two = Store(tmp_path), Context(device=CPU, rank=0, workers=2)
    save(store, LAST, parts(), PROGRESS, ALONE)
    with pytest.raises(
        StorageError, match=r"was begun with 1 worker and stopped within an epoch; go on with --workers 1"
    ):
        load(store, LAST, two)
    save(store, LAST, parts(), Progress(epoch=4), ALONE)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = load(store, LAST, two)
    assert found is not None
    assert found[1].epoch == 4
    assert torch.equal(torch.get_rng_state(), state)  # nobody's generator is anybody else's


def test_sums_are_counted_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, LAST, parts(), Progress(epoch=1, sums={"loss": 2.0}), ALONE)
    found = [load(store, LAST, Context(device=CPU, rank=rank, workers=2)) for rank in (0, 1)]
    assert [each and each[1].sums for each in found] == [{"loss": 2.0}, {"loss": 0.0}]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_share_sums_and_keep_their_generators(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")

    def work(context: Context) -> None:
        torch.manual_seed(10 + context.rank)
        assert context.sum([1.0, 10.0 * context.rank]) == [2.0, 10.0]
        uneven = torch.arange(3 - 2 * context.rank) + 100 * context.rank
        assert [part.tolist() for part in context.gather(uneven)] == [[0, 1, 2], [100]]
        context.barrier()
        assert context.leads == (context.rank == 0)
        progress = Progress(epoch=1, step=4, sums={"loss": 1.0 + context.rank, "samples": 8.0})
        written = {"model": {"w": torch.full((2,), float(context.rank))}}
        save(store, LAST, written, progress, context)
        wanted = torch.rand(5)
        torch.manual_seed(99)
        found = load(store, LAST, context)
        assert found is not None
        state, progress = found
        assert state["model"]["w"].tolist() == [0.0, 0.0]  # the first one writes
        assert torch.equal(torch.rand(5), wanted)
        assert progress.sums == ({"loss": 3.0, "samples": 16.0} if context.leads else {"loss": 0.0, "samples": 0.0})
        assert (progress.epoch, progress.step) == (1, 4)

    in_two_processes(tmp_path, work)
    # One worker cannot go on within that epoch.
    with pytest.raises(StorageError, match=r"begun with 2 workers and stopped within an epoch; go on with --workers 2"):
        load(store, LAST, ALONE)
