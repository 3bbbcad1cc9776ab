"""What the HTML pages of Unmask have in common: one file each, nothing to fetch, nothing from outside unescaped.

Pictures are data URIs, style and script are admitted by their digests in the page's own content security policy. Every
string from outside (file names above all) is escaped by the template, and characters that would hide or reorder text
are spelled out.

Axes: H rows, W columns, C = 3 channels in RGB order.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

__all__ = ["environment", "fitted", "jpeg_uri", "svg_uri"]


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder, strict and escaping.

    Filters: `digest`, the source expression by which a policy admits an inline style or script; `number`, a whole
    number with separators.
    """
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    found.filters["digest"] = _digest
    found.filters["number"] = lambda value: f"{value:,}"
    return found


def _visible(value: Any) -> Any:
    r"""Spell out characters that hide or reorder text: a name with U+202E reads `\u202e`, as does a lone surrogate."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in value)


def _digest(text: str) -> Markup:
    return Markup("'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'")  # noqa: S704


def fitted(image_HWC: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The picture shrunk until its longer side is `side_px`; a smaller one stays as it is."""
    height, width, _ = image_HWC.shape
    scale = side_px / max(height, width)
    if scale >= 1.0:
        return image_HWC
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def jpeg_uri(image_HWC: NDArray[np.uint8], side_px: int, quality: int = 82) -> Markup:
    """A picture as a JPEG in a data URI, its longer side at most `side_px`."""
    bgr_HWC = np.ascontiguousarray(fitted(image_HWC, side_px)[..., ::-1])
    coded = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return Markup("data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode("ascii"))  # noqa: S704


def svg_uri(svg: str) -> Markup:
    """A drawing as a data URI. It is shown as a picture: a script in it would not run."""
    return Markup("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii"))  # noqa: S704
