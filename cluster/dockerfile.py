"""Reads a Dockerfile, as far as ours goes: stages, and the instructions in them."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Instruction", "Stage", "pairs", "stages"]

_KNOWN = frozenset("ARG CMD COPY ENV EXPOSE HEALTHCHECK RUN USER WORKDIR".split())


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction."""

    name: str
    """RUN, COPY, ..."""
    text: str
    """What follows, on one line."""

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The text as words, with `$NAME` replaced."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return [_filled(word, variables) for word in shlex.split(self.text)]


@dataclass(frozen=True, slots=True)
class Stage:
    """What begins with FROM."""

    name: str
    """Empty for the last one."""
    base: str
    """An image, or the name of an earlier stage."""
    instructions: tuple[Instruction, ...]

    def all_of(self, name: str) -> list[Instruction]:
        """Those with this name, in their order."""
        return [i for i in self.instructions if i.name == name]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile.

    Raises:
        ValueError: It has an instruction that is not known here.
    """
    found: list[Stage] = []
    for name, rest in _lines(text):
        if name == "FROM":
            base, _, label = rest.partition(" AS ")
            found.append(Stage(label.strip(), base.strip(), ()))
        elif name in _KNOWN and found:
            last = found[-1]
            found[-1] = Stage(last.name, last.base, (*last.instructions, Instruction(name, rest)))
        else:
            raise ValueError(f"instruction {name} is not known here")
    return found


def pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """What ARG or ENV sets; an ARG without a value sets nothing."""
    found = (word.partition("=") for word in instruction.words(variables))
    return {name: value for name, mark, value in found if mark}


def _lines(text: str) -> Iterator[tuple[str, str]]:
    whole = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\s*\\\n\s*", " ", whole).splitlines():
        name, _, rest = line.strip().partition(" ")
        yield name, rest.strip()


def _filled(word: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), word)
