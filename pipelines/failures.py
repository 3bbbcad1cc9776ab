"""What Ray's errors carry: where an error of ours is among them, it says more than they do."""

from collections.abc import Iterator

from unmask.errors import UnmaskError

__all__ = ["own_error"]


def own_error(error: BaseException) -> UnmaskError | None:
    """The error of ours that made Ray raise this one: in a task, in an actor's method, or where an actor began.

    Returns:
        As it was raised there; None where there is none: a process died, or what it raised is not ours.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if _is_ours(found):
            assert isinstance(found, UnmaskError)
            return found
        if id(found) not in seen:
            seen.add(id(found))
            waiting += _within(found)
    return None


def _is_ours(error: BaseException) -> bool:
    # Ray gives a task's error a class of both kinds, whose text is the traceback: what it carries is the error itself.
    return isinstance(error, UnmaskError) and not hasattr(error, "as_instanceof_cause")


def _within(error: BaseException) -> Iterator[BaseException]:
    """What an error was made of. That an actor's constructor failed is told by an argument only."""
    for carried in (getattr(error, "cause", None), *error.args, error.__cause__):
        if isinstance(carried, BaseException) and carried is not error:
            yield carried
