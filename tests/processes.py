"""The processes below one: who they are, to kill some of them."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["children", "parent_of"]


def children(root: int) -> Iterator[tuple[int, str]]:
    """All processes below one: their ids and command lines."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = parent_of(int(stat.parent.name))
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    pending = [root]
    while pending:
        for pid in parents.get(pending.pop(), []):
            pending.append(pid)
            try:
                yield pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue


def parent_of(pid: int) -> int:
    """The id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
