"""The part of `requirements.lock` that an image needs: what only tests and tools want is left out.

    python3 -m cluster.lock requirements.lock gpu     # all that runs, each version with its digests
    python3 -m cluster.lock requirements.lock cpu     # the same without PyTorch and CUDA's libraries
    python3 -m cluster.lock requirements.lock torch   # PyTorch's versions alone

uv writes below each package who asked for it; that is followed from the project down. Needs nothing but Python: it runs
in an image that is not yet made.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PARTS", "Pinned", "main", "part_of", "pinned"]

PARTS = ("gpu", "cpu", "torch")
"""What can be asked for."""
_ROOT = "unmask (pyproject.toml)"
_TORCH = ("torch", "torchvision")
# What PyPI's build of PyTorch for x86-64 wants beside itself.
_CUDA = re.compile(r"nvidia-.*|triton|cuda-.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One package of a lock."""

    name: str
    version: str
    wanted_by: frozenset[str]
    """Packages, and the project, with the group in which it asks: `unmask (pyproject.toml:dev)`."""
    text: str
    """As it stands in the lock, digests included."""


def pinned(lock: str) -> Iterator[Pinned]:
    """The packages of a lock; one that has another version for another Python comes twice.

    Args:
        lock: What `uv pip compile --generate-hashes` wrote.
    """
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.strip()):
        head = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block)
        assert head, f"not a pinned package: {block[:60]!r}"
        _, _, reasons = block.partition("# via")
        wanted = [line.strip(" #\n") for line in reasons.splitlines()]
        yield Pinned(name=head[1], version=head[2], wanted_by=frozenset(filter(None, wanted)), text=block)


def part_of(lock: str, part: str) -> str:
    """A part of a lock.

    Args:
        lock: All of it.
        part: One of `PARTS`.

    Raises:
        ValueError: There is no such part.
    """
    if part not in PARTS:
        raise ValueError(f"an image is for gpu or cpu; got {part!r}")
    packages = list(pinned(lock))
    if part == "torch":
        return " ".join(f"{p.name}=={p.version}" for p in packages if p.name in _TORCH)
    kept = _that_run(packages)
    if part == "cpu":
        kept = {name for name in kept if name not in _TORCH and not _CUDA.fullmatch(name)}
    return "\n".join(p.text for p in packages if p.name in kept)


def _that_run(packages: list[Pinned]) -> set[str]:
    """Names of what the project wants, and what that wants."""
    kept, before = {_ROOT}, 0
    while len(kept) > before:
        before = len(kept)
        kept |= {p.name for p in packages if p.wanted_by & kept}
    return kept


def main() -> None:
    """Print a part of a lock; two arguments: its path, and the part."""
    if len(sys.argv) != 3 or sys.argv[2] not in PARTS:
        sys.exit(f"usage: python3 -m cluster.lock LOCK {{{','.join(PARTS)}}}")
    print(part_of(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))


if __name__ == "__main__":
    main()
