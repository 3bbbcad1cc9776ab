"""Values of configurations as their types have them: what JSON gave, or what somebody typed."""

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

from unmask.errors import UsageError

__all__ = ["MISFIT", "fitted", "typed"]

MISFIT = object()
"""Stands for a value that is of another type."""


def typed(value: Any, kind: Any, name: str) -> Any:
    """The value as the type has it: lists become tuples, whole numbers become floats where floats are wanted."""
    found = fitted(value, kind)
    if found is MISFIT:
        raise UsageError(f"{name} is {_shown(kind)}; got {value!r}")
    return found


def fitted(value: Any, kind: Any) -> Any:
    """The value as the type has it, or `MISFIT`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((f for f in (fitted(value, k) for k in inner) if f is not MISFIT), MISFIT)
    if origin is Literal:
        return value if value in inner and not isinstance(value, bool) else MISFIT
    if origin is tuple:
        return _fitted_tuple(value, inner)
    if kind is float and type(value) in (int, float):
        return float(value) if math.isfinite(value) else MISFIT
    return value if type(value) is kind or (kind is type(None) and value is None) else MISFIT


def _fitted_tuple(value: Any, inner: tuple[Any, ...]) -> Any:
    values = [value] if isinstance(value, int | float) and len(inner) == 2 and inner[1] is ... else value
    if not isinstance(values, list | tuple):
        return MISFIT
    kinds = [inner[0]] * len(values) if inner[-1] is ... else list(inner)
    if len(kinds) != len(values):
        return MISFIT
    found = tuple(fitted(v, k) for v, k in zip(values, kinds, strict=True))
    return MISFIT if any(f is MISFIT for f in found) else found


def _shown(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_shown(k) for k in get_args(kind))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return names.get(kind) or f"a list like {str(kind).removeprefix('tuple')}"
