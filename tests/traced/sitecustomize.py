"""Every process whose PYTHONPATH names this folder runs this as it starts: it notes the windows that go to a head.

Each process appends to a file of its own in the folder UNMASK_WINDOWS, as long as there is a file `wanted` in it:
track, time, and the statistics that the temporal head gets. So a test sees what the processes of a service compute, and
the service itself need not show it.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__: list[str] = []


class _Finder(importlib.abc.MetaPathFinder):
    """Stands beside the import of `unmask.tally`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "unmask.tally":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_watch(module: ModuleType) -> None:
            run(module)
            _watch(module)

        spec.loader.exec_module = run_and_watch  # type: ignore[method-assign]
        return spec


def _watch(module: ModuleType) -> None:
    statistics = module.TrackTally.statistics

    def noted(tally: Any, face: Any, feature_D: Any) -> Any:
        found_S = statistics(tally, face, feature_D)
        folder = os.environ["UNMASK_WINDOWS"]
        if not os.path.exists(f"{folder}/wanted"):  # noqa: PTH110
            return found_S
        note = {"track": face.track_id, "pts_s": face.pts_s, "statistics": found_S.tolist()}
        with open(f"{folder}/{os.getpid()}.jsonl", "a") as file:  # noqa: PTH123
            file.write(json.dumps(note) + "\n")
        return found_S

    module.TrackTally.statistics = noted  # type: ignore[attr-defined]


if "UNMASK_WINDOWS" in os.environ:
    sys.meta_path.insert(0, _Finder())
