"""Area resampling from integral images: a whole level, or any number of crops at once, exactly.

Windows are those of adaptive average pooling, which facenet-pytorch calls "area": output i of an axis of n source and
m target samples averages [floor(i n / m), ceil((i + 1) n / m)). Their borders are integers, so four look-ups in the
integral image (Crow, "Summed-area tables for texture mapping", 1984) give a window's sum without rounding. Sums are
int32 and may wrap round in large frames: differences of wrapped sums are still exact while one window's own sum stays
below 2^31, which holds for windows of up to 8.4 million pixels.

Axes: N images or crops, H rows, W columns, C = 4 channels: RGB and one of padding, so that one look-up moves 16 bytes.
"""

from collections.abc import Sequence
from itertools import accumulate

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IntegralImages", "area_resize", "area_windows"]

# Rows of the result made at once on a CPU: the sums of the rows they need then stay in its cache.
_RESIZE_ROWS = 64


def area_windows(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First sample and one past the last sample of each of `target` windows over `source` samples, int64 (target,)."""
    steps = torch.arange(target + 1, device=device) * source
    return steps[:-1] // target, -(-steps[1:] // target)


class IntegralImages:
    """Integral images of frames of any sizes, side by side in one buffer on one device.

    Args:
        images: uint8 (H, W, 3) each, all on `device`. Need not be contiguous.
        device: Where the sums are built and the look-ups run.
        buffer: Memory to build in, int32 (P, 4) with P at least `cells(images)`; it must outlive this object.
    """

    def __init__(self, images: Sequence[Tensor], device: torch.device, buffer: Tensor | None = None) -> None:
        self.sizes = [(image.shape[0], image.shape[1]) for image in images]
        self._starts = [0, *accumulate((height + 1) * (width + 1) for height, width in self.sizes)]
        if buffer is None:
            buffer = torch.empty((self._starts[-1], 4), dtype=torch.int32, device=device)
        sums_PC = buffer[: self._starts[-1]]
        for image, start, stop in zip(images, self._starts, self._starts[1:], strict=False):
            height, width, _ = image.shape
            _write_integral(image, sums_PC[start:stop].view(height + 1, width + 1, 4))
        self._sums_P = _packed(sums_PC)
        self._starts_N = torch.tensor(self._starts[:-1], device=device)
        self._strides_N = torch.tensor([width + 1 for _, width in self.sizes], device=device)

    @staticmethod
    def cells(images: Sequence[Tensor]) -> int:
        """How many sums the integral images of these images hold."""
        return sum((image.shape[0] + 1) * (image.shape[1] + 1) for image in images)

    def rows(self, first: int, count: int, shape: tuple[int, int], start: int, stop: int) -> Tensor:
        """Rows [start, stop) of `count` images of equal size, each resampled to `shape` (height, width).

        Args:
            first: Index of the first of these images; they follow each other.
            count: How many.
            shape: Height and width of the whole resampled image.
            start: First row wanted.
            stop: One past the last row wanted.

        Returns:
            Channel means in [0, 255], float32 (N, stop - start, W, 4).
        """
        height, width = self.sizes[first]
        device = self._sums_P.device
        sums_NHW = self._sums_P[self._starts[first] : self._starts[first + count]].view(count, height + 1, width + 1)
        top, bottom = (edge[start:stop] for edge in area_windows(height, shape[0], device))
        return _window_means(sums_NHW, (top, bottom), area_windows(width, shape[1], device))

    def crops(self, image_N: Tensor, boxes_N4: Tensor, size: int) -> Tensor:
        """Many crops at once, each resampled to `size` x `size`.

        Args:
            image_N: Which image each crop is of, int64 (N,).
            boxes_N4: int64 (N, 4), half open, inside the image: [x1, x2) by [y1, y2), neither empty.
            size: Side of the result.

        Returns:
            Channel means in [0, 255], float32 (N, size, size, 4).
        """
        steps = torch.arange(size + 1, device=boxes_N4.device)
        spans_N12 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        grid_NS2 = steps[:, None] * spans_N12[:, None]
        low_NS2 = grid_NS2[:, :-1] // size + boxes_N4[:, None, :2]
        high_NS2 = -(-grid_NS2[:, 1:] // size) + boxes_N4[:, None, :2]
        share_NS2 = (high_NS2 - low_NS2).float().reciprocal_()
        origin_N11, stride_N1 = self._starts_N[image_N, None, None], self._strides_N[image_N, None]
        top_NS1 = origin_N11 + (low_NS2[:, :, 1] * stride_N1)[:, :, None]
        bottom_NS1 = origin_N11 + (high_NS2[:, :, 1] * stride_N1)[:, :, None]
        left_N1S, right_N1S = low_NS2[:, None, :, 0], high_NS2[:, None, :, 0]
        sums = self._look_up(bottom_NS1 + right_N1S).sub_(self._look_up(bottom_NS1 + left_N1S))
        sums.sub_(self._look_up(top_NS1 + right_N1S)).add_(self._look_up(top_NS1 + left_N1S))
        return (
            sums.float()
            .mul_(share_NS2[:, None, :, :1].expand(-1, -1, -1, 4).contiguous())
            .mul_(share_NS2[:, :, None, 1:])
        )

    def _look_up(self, places: Tensor) -> Tensor:
        return _unpacked(self._sums_P.index_select(0, places.flatten())).view(*places.shape, 4)


def area_resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resample one uint8 image (H, W, 3) to (height, width, 3); the same on every device.

    Means are rounded to the nearest, halves up.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.device.type == "cpu" and any(image.shape[:2] == (n * height, n * width) for n in (2, 3)):
        # At whole ratios OpenCV averages the same windows, several times faster; up to 3 it rounds as we do.
        return torch.from_numpy(cv2.resize(image.numpy(), (width, height), interpolation=cv2.INTER_AREA))
    top, bottom = area_windows(image.shape[0], height, image.device)
    columns = area_windows(image.shape[1], width, image.device)
    strip = _RESIZE_ROWS if image.device.type == "cpu" else height
    out_HWC = torch.empty((height, width, 3), dtype=torch.uint8, device=image.device)
    for start in range(0, height, strip):
        stop = min(start + strip, height)
        # Borders follow from the sizes alone, so that nothing is fetched from the device.
        first, last = start * image.shape[0] // height, -(-stop * image.shape[0] // height)
        sums_1HW = _packed(_integral(image[first:last])).unsqueeze(0)
        rows = (top[start:stop] - first, bottom[start:stop] - first)
        out_HWC[start:stop] = _window_means(sums_1HW, rows, columns)[0, :, :, :3].add_(0.5).to(torch.uint8)
    return out_HWC


def _window_means(sums_NHW: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Means over all windows of a grid, from packed sums; float32 (N, rows, columns, 4)."""
    (top, bottom), (left, right) = rows, columns
    bands_NHW = _packed(_unpacked(sums_NHW.index_select(1, bottom)).sub_(_unpacked(sums_NHW.index_select(1, top))))
    sums = _unpacked(bands_NHW.index_select(2, right)).sub_(_unpacked(bands_NHW.index_select(2, left)))
    # Two factors, the inner one spelled out for all channels: a broadcast over the last axis costs five times as much.
    across_W4 = (right - left).float().reciprocal_()[:, None].expand(-1, 4).contiguous()
    return sums.float().mul_(across_W4).mul_((bottom - top).float().reciprocal_()[:, None, None])


def _integral(image: Tensor) -> Tensor:
    height, width, _ = image.shape
    out_HWC = torch.empty((height + 1, width + 1, 4), dtype=torch.int32, device=image.device)
    _write_integral(image, out_HWC)
    return out_HWC


def _write_integral(image: Tensor, out_HWC: Tensor) -> None:
    """Sums over all pixels above and to the left, with a row and a column of zeros before them."""
    if out_HWC.device.type == "cpu":
        rgba = cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2RGBA)
        cv2.integral(rgba, sum=out_HWC.numpy(), sdepth=cv2.CV_32S)
        return
    out_HWC[0] = 0
    out_HWC[:, 0] = 0
    padded_HWC = F.pad(image, (0, 1)).to(torch.int32)
    out_HWC[1:, 1:] = padded_HWC.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)


def _packed(sums: Tensor) -> Tensor:
    """Four int32 as one element of 16 bytes, which is only ever moved: gathers then cost a quarter."""
    return sums.view(torch.complex128).squeeze(-1)


def _unpacked(sums: Tensor) -> Tensor:
    return sums.unsqueeze(-1).view(torch.int32)
