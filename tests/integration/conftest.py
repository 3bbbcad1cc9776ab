"""One Ray for all integration tests, and one dataset."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mixed import mixed_dataset


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray with two CPUs that ends with the tests; what `ray_session` finds and uses."""
    import ray

    from cluster.session import ray_session

    # Workers import the tests' own stages, and note windows for the test that asks for them.
    root = Path(__file__).parents[2]
    os.environ["UNMASK_WINDOWS"] = str(tmp_path_factory.mktemp("windows"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(root / "tests/traced"), str(root), os.environ.get("PYTHONPATH")))
    )
    with ray_session(cpus=2):
        assert ray.is_initialized()
        yield


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad clips, in folders `real` and `fake`."""
    return mixed_dataset(tmp_path_factory.mktemp("mixed") / "dataset")
