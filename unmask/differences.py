"""Where two configurations differ, in words: what a run was begun with, and what is asked for now."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences"]

_LONGEST = 60


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each value that is another, as `path was X, now Y`.

    Args:
        before: As JSON gives it back.
        now: The same.
        path: What to call them.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for n, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}.{n}")
    elif before != now:
        yield f"{path} was {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
