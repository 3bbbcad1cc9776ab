"""Errors of ours are found in those of Ray, as its processes send them."""

import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError, WorkerCrashedError

from pipelines.failures import own_error
from unmask.errors import MediaError, ModelError, Reason, StorageError, UnmaskError, UsageError

OURS = [
    UsageError("the device is not there; name another"),
    ModelError(Reason.CHECKPOINT_CORRUPT, "the weights hold no network; give others"),
    StorageError("the disk is full; make room"),
    MediaError(Reason.NOT_A_VIDEO, "it shows nothing; leave it out"),
]


def sent(error: Exception) -> RayTaskError:
    return RayTaskError("f", f"Traceback\n{error!r}\n", error, proctitle="ray::f", pid=1, ip="127.0.0.1")


def received(error: RayError) -> BaseException:
    found: BaseException = RayError.from_bytes(error.to_bytes())
    return found.as_instanceof_cause() if isinstance(found, RayTaskError) else found


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["task", "constructor", "wrapped"])
def test_what_a_process_raised_comes_back(error: UnmaskError, where: str) -> None:
    told = received(sent(error) if where != "constructor" else ActorDiedError.from_task_error(sent(error)))
    if where == "wrapped":
        outer = RuntimeError("a stage failed")
        outer.__cause__ = told
        told = outer
    found = own_error(told)
    assert (type(found), str(found)) == (type(error), error.message)
    assert found is not None
    assert found.reason is error.reason


@pytest.mark.parametrize(
    "error",
    [WorkerCrashedError(), ActorDiedError(), sent(ValueError("no")), ActorDiedError.from_task_error(sent(OSError()))],
)
def test_a_death_and_what_is_not_ours_are_nothing_of_ours(error: RayError) -> None:
    assert own_error(received(error)) is None


def test_all_that_an_error_carries_is_looked_through_once() -> None:
    ours = UsageError("the device is not there; name another")
    both = RuntimeError(ValueError("another"))
    both.__cause__ = ours
    assert own_error(both) is ours
    first, second = RuntimeError("one"), RuntimeError("other")
    first.__cause__, second.__cause__ = second, first
    assert own_error(first) is None
