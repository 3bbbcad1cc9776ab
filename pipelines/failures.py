"""What Ray's errors carry: where an error of ours is among them, it says more than they do."""

from collections.abc import Iterator

from unmask.errors import UnmaskError

__all__ = ["own_error"]


def own_error(error: BaseException) -> UnmaskError | None:
    """The error of ours that made Ray raise this one: in a task, in an actor's method, or where an actor began.

    Returns:
        As it was raised there; None where there is none: a process died, or what it raised is not ours.
    """
    found: BaseException | None = error
    while found is not None and not _is_ours(found):
        found = next(_within(found), None)
    assert found is None or isinstance(found, UnmaskError)
    return found


def _is_ours(error: BaseException) -> bool:
    # Ray gives a task's error a class of both kinds, whose text is the traceback: what it carries is the error itself.
    return isinstance(error, UnmaskError) and not hasattr(error, "as_instanceof_cause")


def _within(error: BaseException) -> Iterator[BaseException]:
    """What an error was made of. That an actor's constructor failed is told by an argument only."""
    for carried in (getattr(error, "cause", None), *error.args, error.__cause__):
        if isinstance(carried, BaseException) and carried is not error:
            yield carried
