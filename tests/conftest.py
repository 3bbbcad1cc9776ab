"""Fixtures that more than one folder of tests needs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and two test processes on two cores lose by them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _scheduling_is_left_alone() -> Iterator[None]:
    """Codecs can raise the process that calls them to real-time priority; browsers started later then hang for ever."""
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    yield
    if before is not None:
        assert os.sched_getscheduler(0) == before


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real clips and portraits that lie beside the checkout and are never committed."""
    folder = ROOT.parent / "shared"
    if not (folder / "videos").is_dir():
        pytest.skip("the folder ../shared with real clips is absent")
    return folder
