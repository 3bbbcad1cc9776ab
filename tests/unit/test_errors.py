import pickle

import pytest

from unmask.errors import MediaError, ModelError, Reason, UnmaskError, UsageError


@pytest.mark.parametrize(
    "error",
    [
        UsageError("--frames must be at least 1."),
        MediaError(Reason.EMPTY_FILE, "a.mp4 is empty."),
        ModelError(Reason.CHECKPOINT_HASH, "m.safetensors was changed."),
    ],
)
def test_errors_cross_processes_whole(error: UnmaskError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.reason, again.message, str(again)) == (error.reason, error.message, error.message)


def test_what_a_caller_can_mend_is_a_value_error() -> None:
    assert issubclass(UsageError, ValueError)
    assert issubclass(ModelError, ValueError)
    assert not issubclass(MediaError, ValueError)
