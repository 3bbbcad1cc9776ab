"""Files that are whole or absent: written beside, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PART", "replacing"]

PART = ".part"
"""How the names of files end that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and put what was written in its place at the end.

    Where the block fails or is interrupted, what was at `path` before is still there, and nothing else is left.

    Raises:
        OSError: The folder cannot be written to.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
