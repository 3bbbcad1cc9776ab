"""What Ray says of its own accord stays out of what our commands print for programs."""

import socket
import time

import pytest
import ray._private.worker as there

from cluster.session import _leave_standard_output, ray_session
from unmask.errors import UsageError


def test_errors_of_ray_do_not_stand_among_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(there, "print_to_stdstream", there.print_to_stdstream)
    _leave_standard_output()
    _leave_standard_output()
    # As Ray's thread for errors does, which looks the function up each time.
    assert "print_to_stdstream" in there.listen_error_messages.__code__.co_names
    there.print_to_stdstream({"lines": ["a task failed"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("a task failed") == 1


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began_s = time.monotonic()
        with (
            pytest.raises(UsageError, match=rf"Ray cannot be reached at {address} .*check --address"),
            ray_session(address),
        ):
            pass
        assert time.monotonic() - began_s < 5
