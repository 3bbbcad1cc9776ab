"""The face detector: facenet-pytorch's trained MTCNN as a cascade without loops over candidates.

`MTCNN.search` finds the faces of frames, equal to facenet-pytorch's `MTCNN(keep_all=True).detect` on the same pixels.
`MTCNN.refine` runs the last network alone on boxes that are nearly known; `unmask.follow` builds on it.
Method: Zhang et al., "Joint face detection and alignment using multi-task cascaded convolutional networks", 2016.

Axes: N images, candidates or faces, H rows, W columns, C = 3 channels in RGB order, K = 5 landmarks.
Inside the cascade boxes follow the networks' training: both corners are pixels, counted from 1.
"""

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.detection import Images, detection_scale
from unmask.devices import select_device
from unmask.errors import UsageError
from unmask.mtcnn_nets import OutputNet, ProposalNet, RefineNet, load_weights
from unmask.records import Faces
from unmask.resample import IntegralImages, area_resize

__all__ = ["MTCNN"]

Net = TypeVar("Net", bound=torch.nn.Module)

_CELL_PX, _STRIDE = 12, 2
# Positions of PNet judged at once, and pixels searched at once. A CPU is fastest while a strip stays in its cache, and
# gains nothing from several images; a GPU is limited by its memory only.
_STRIP_CELLS = {"cpu": 30_000, "cuda": 4_000_000}
_SEARCH_PX = {"cpu": 0, "cuda": 80_000_000}
_CROPS_AT_ONCE = {"cpu": 64, "cuda": 4096}


class _Candidates(NamedTuple):
    image_N: Tensor
    boxes_N4: Tensor
    scores_N: Tensor

    def select(self, keep: Tensor) -> "_Candidates":
        return _Candidates(self.image_N[keep], self.boxes_N4[keep], self.scores_N[keep])


class MTCNN:
    """A face detector on one device.

    Args:
        device: "cpu", "cuda", "cuda:1" or a `torch.device`.
        thresholds: Lowest probability that passes PNet, RNet and ONet, each in [0, 1).
        min_face_px: Smallest face to search for, in pixels of the copy that is searched.
        factor: Ratio of one pyramid level to the one before it, in (0, 1).
        half: Run PNet, where nearly all the work of a GPU lies, in half precision; by default where the device is a
            GPU. A face whose probability is close to a threshold may then come or go. RNet and ONet stay in single
            precision.

    Raises:
        UsageError: An argument is out of range, or the device is not there.
        ModelError: The weights are not installed.
    """

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        min_face_px: float = 20.0,
        factor: float = 0.709,
        half: bool | None = None,
    ) -> None:
        if len(thresholds) != 3 or not all(0 <= threshold < 1 for threshold in thresholds):
            raise UsageError(f"thresholds are three numbers in [0, 1); got {thresholds}")
        if not (min_face_px > 0 and 0 < factor < 1):
            raise UsageError(f"min_face_px is above 0 and factor between 0 and 1; got {min_face_px} and {factor}")
        self.device = select_device(device)
        self.thresholds, self.min_face_px, self.factor = thresholds, min_face_px, factor
        self._kept = threading.local()
        half = self.device.type == "cuda" if half is None else half
        self._dtype = torch.float16 if half else torch.float32
        self._pnet = _placed(ProposalNet(load_weights("pnet")), self.device, self._dtype)
        # The heads stay in single precision: sigmoids of halves tie, and ties decide which box suppresses which.
        self._pnet.face.float()
        self._pnet.box.float()
        self._rnet = _placed(RefineNet(load_weights("rnet")), self.device, torch.float32)
        self._onet = _placed(OutputNet(load_weights("onet")), self.device, torch.float32)

    @torch.inference_mode()
    def search(self, images: Images, *, scale: float | Literal["auto"] = "auto") -> list[Faces]:
        """Find all faces.

        Args:
            images: RGB, uint8, (H, W, 3) each, sizes may differ; or one tensor (N, H, W, 3).
            scale: Size of the copy that is searched, relative to the image; "auto" for `detection_scale`.

        Returns:
            One `Faces` an image, in pixels of the image. What an image gives does not depend on the others.

        Raises:
            UsageError: An image is not uint8 of shape (H, W, 3), or the scale is not positive.
        """
        full = self._tensors(images)
        small = [self._scaled(image, scale) for image in full]
        faces: list[Faces] = [Faces.none()] * len(full)
        for chunk in _chunks(small, _SEARCH_PX[self.device.type]):
            # One transfer: image, x1, y1, x2, y2, probability, ten landmark coordinates.
            table = self._cascade([small[i] for i in chunk]).cpu().numpy()
            for place, i in enumerate(chunk):
                faces[i] = _as_faces(table[table[:, 0] == place, 1:], small[i], full[i])
        return faces

    @torch.inference_mode()
    def scaled_copy(self, image: NDArray[np.uint8] | Tensor, *, scale: float | Literal["auto"] = "auto") -> Tensor:
        """The copy that `search` looks at: uint8 (H, W, 3) on the detector's device, area-resampled."""
        return self._scaled(self._tensors([image])[0], scale)

    @torch.inference_mode()
    def refine(self, images: Images, boxes: Sequence[NDArray[np.float32]]) -> list[Faces]:
        """Let ONet alone correct boxes that are nearly known, at full resolution.

        Args:
            images: As for `search`.
            boxes: For each image float32 (N, 4), in pixels of the image; N may be 0.

        Returns:
            One `Faces` an image, its rows in the order of the boxes, whatever their probabilities. A box wholly
            outside its image comes back as it is, with probability 0.
        """
        tensors = self._tensors(images)
        parts, regions = [Faces.none() for _ in tensors], []
        for image, image_boxes in zip(tensors, boxes, strict=True):
            regions += [_region(image, box) for box in np.asarray(image_boxes, np.float32).reshape(-1, 4)]
        flat_N4 = np.concatenate([np.zeros((0, 4), np.float32), *(np.reshape(part, (-1, 4)) for part in boxes)])
        table_N15 = np.concatenate((flat_N4, np.zeros((len(flat_N4), 11))), 1).astype(np.float32)
        seen = [i for i, (_, _, pixels) in enumerate(regions) if pixels.numel()]
        if seen:
            offset_N12 = np.array([[regions[i][:2]] for i in seen], np.float32)
            inner_N4 = (flat_N4[seen].reshape(-1, 2, 2) - offset_N12).reshape(-1, 4)
            table = self._refined([regions[i][2] for i in seen], inner_N4)
            table[:, :4] += np.tile(offset_N12[:, 0], 2)
            table[:, 5:] += np.tile(offset_N12[:, 0], 5)
            table_N15[seen] = table
        start = 0
        for i, part in enumerate(boxes):
            rows = table_N15[start : start + len(part)]
            parts[i] = Faces(rows[:, :4], rows[:, 4], rows[:, 5:].reshape(-1, 5, 2))
            start += len(part)
        return parts

    def _refined(self, regions: Sequence[Tensor], boxes_N4: NDArray[np.float32]) -> NDArray[np.float32]:
        """One box a region: rows of box, probability, landmarks, in pixels of the region."""
        integrals = IntegralImages(regions, self.device)
        limits_N2 = torch.tensor([(width, height) for height, width in integrals.sizes], device=self.device)
        image_N = torch.arange(len(regions), device=self.device)
        boxes = torch.from_numpy(boxes_N4).to(self.device)
        found, landmarks_NK2 = self._output(integrals, _Candidates(image_N, boxes, boxes[:, 0]), limits_N2)
        columns = (found.image_N[:, None], found.boxes_N4, found.scores_N[:, None], landmarks_NK2.flatten(1))
        rows = torch.cat(columns, 1).cpu().numpy()
        table = np.concatenate((boxes_N4, np.zeros((len(regions), 11), np.float32)), 1)
        table[rows[:, 0].astype(int)] = rows[:, 1:]
        return table

    def _cascade(self, images: Sequence[Tensor]) -> Tensor:
        integrals = IntegralImages(images, self.device, self._buffer(IntegralImages.cells(images)))
        limits_N2 = torch.tensor([(width, height) for height, width in integrals.sizes], device=self.device)
        found = self._propose(integrals)
        if found is None:
            return torch.empty((0, 16), device=self.device)
        found = self._refine_proposals(integrals, found, limits_N2)
        found, landmarks_NK2 = self._output(integrals, found, limits_N2)
        passed = (found.scores_N > self.thresholds[2]).nonzero().squeeze(1)
        order = passed[found.scores_N[passed].argsort(descending=True, stable=True)]
        found, landmarks_NK2 = found.select(order), landmarks_NK2[order]
        keep = _nms_over_smaller(found, 0.7)
        columns = (found.image_N[:, None], found.boxes_N4, found.scores_N[:, None], landmarks_NK2.flatten(1))
        return torch.cat(columns, 1)[keep]

    def _buffer(self, cells: int) -> Tensor:
        """Memory for integral images, kept for the thread's next search: fresh pages cost more than the sums."""
        kept: Tensor | None = getattr(self._kept, "buffer", None)
        if kept is None or len(kept) < cells:
            kept = torch.empty((cells, 4), dtype=torch.int32, device=self.device)
            self._kept.buffer = kept
        return kept

    def _propose(self, integrals: IntegralImages) -> _Candidates | None:
        """PNet on all levels of all images, its corrections applied, one NMS a level and one an image."""
        levels: list[tuple[Tensor, ...]] = []
        groups, first = 0, 0
        for size, run in groupby(integrals.sizes):
            count = len(list(run))
            for scale in self._pyramid(*size):
                image_N, cells_N2, scores_N, shifts_N4 = self._level(integrals, first, count, scale)
                corners = (
                    ((_STRIDE * cells_N2 + 1) / scale).floor(),
                    ((_STRIDE * cells_N2 + _CELL_PX) / scale).floor(),
                )
                levels.append((image_N + first, image_N + groups, torch.cat(corners, 1), scores_N, shifts_N4))
                groups += count
            first += count
        if not levels:
            return None
        image_N, group_N, boxes_N4, scores_N, shifts_N4 = (torch.cat(parts) for parts in zip(*levels, strict=True))
        # Sorted places keep ties in the order of the levels.
        keep = _nms(boxes_N4, scores_N, group_N, 0.5).sort().values
        keep = keep[_nms(boxes_N4[keep], scores_N[keep], image_N[keep], 0.7)]
        boxes_N4, shifts_N4 = boxes_N4[keep], shifts_N4[keep]
        sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        return _Candidates(image_N[keep], boxes_N4 + shifts_N4 * sides_N2.repeat(1, 2), scores_N[keep])

    def _pyramid(self, height: int, width: int) -> Iterator[float]:
        scale = _CELL_PX / self.min_face_px
        shorter = min(height, width) * scale
        while shorter >= _CELL_PX:
            yield scale
            scale, shorter = scale * self.factor, shorter * self.factor

    def _level(self, integrals: IntegralImages, first: int, count: int, scale: float) -> tuple[Tensor, ...]:
        """Positions of one level that pass PNet: image, cell (x, y), probability, box correction."""
        height, width = (int(side * scale + 1) for side in integrals.sizes[first])
        rows, columns = ((side - 1) // 2 - 4 for side in (height, width))
        strip = max(1, min(rows, _STRIP_CELLS[self.device.type] // (columns * count)))
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, rows, strip):
            stop = min(start + strip, rows)
            last = min(_STRIDE * (stop - 1) + _CELL_PX, height)
            pixels = integrals.rows(first, count, (height, width), _STRIDE * start, last)
            scores_NHW, features_NHWC = self._pnet(_normalised(pixels, self._dtype))
            image_N, y_N, x_N = (scores_NHW >= self.thresholds[0]).nonzero(as_tuple=True)
            shifts_N4 = self._pnet.box(features_NHWC[image_N, y_N, x_N].float())
            cells_N2 = torch.stack((x_N, y_N + start), 1).float()
            parts.append((image_N, cells_N2, scores_NHW[image_N, y_N, x_N], shifts_N4))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _refine_proposals(self, integrals: IntegralImages, found: _Candidates, limits_N2: Tensor) -> _Candidates:
        """RNet on all proposals."""
        found, crops = _crops(integrals, found, limits_N2, 24)
        judged = [self._rnet(part) for part in self._batches(crops)]
        scores_N, shifts_N4 = (torch.cat(parts) for parts in zip(*judged, strict=True))
        passed = (scores_N > self.thresholds[1]).nonzero().squeeze(1)
        found, shifts_N4 = found.select(passed)._replace(scores_N=scores_N[passed]), shifts_N4[passed]
        keep = _nms(found.boxes_N4, found.scores_N, found.image_N, 0.7)
        found = found.select(keep)
        return found._replace(boxes_N4=_shifted(found.boxes_N4, shifts_N4[keep]))

    def _output(self, integrals: IntegralImages, found: _Candidates, limits_N2: Tensor) -> tuple[_Candidates, Tensor]:
        """ONet on boxes: the corrected boxes, their probabilities and landmarks (N, K, 2)."""
        found, crops = _crops(integrals, found, limits_N2, 48)
        judged = [self._onet(part) for part in self._batches(crops)]
        scores_N, shifts_N4, places_NK2 = (torch.cat(parts) for parts in zip(*judged, strict=True))
        corner_N12, end_N12 = found.boxes_N4[:, None, :2], found.boxes_N4[:, None, 2:]
        landmarks_NK2 = (end_N12 - corner_N12 + 1) * places_NK2 + corner_N12 - 1
        return found._replace(boxes_N4=_shifted(found.boxes_N4, shifts_N4), scores_N=scores_N), landmarks_NK2

    def _batches(self, crops_NHWC: Tensor) -> tuple[Tensor, ...]:
        return torch.split(_normalised(crops_NHWC, torch.float32), _CROPS_AT_ONCE[self.device.type])

    def _scaled(self, image: Tensor, scale: float | Literal["auto"]) -> Tensor:
        height, width, _ = image.shape
        ratio = detection_scale(width, height) if scale == "auto" else scale
        if not ratio > 0:
            raise UsageError(f"the detector's scale must be above 0; got {scale}")
        return area_resize(image, max(1, round(height * ratio)), max(1, round(width * ratio)))

    def _tensors(self, images: Images) -> list[Tensor]:
        tensors = []
        for image in images:
            # Read-only and mirrored arrays are copied: torch has neither.
            tensor = (
                image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements=["C", "W"]))
            )
            if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[2] != 3 or tensor.numel() == 0:
                raise UsageError(f"an image is uint8 of shape (H, W, 3); got {tensor.dtype} {tuple(tensor.shape)}")
            tensors.append(tensor.to(self.device))
        return tensors


def _placed(net: Net, device: torch.device, dtype: torch.dtype) -> Net:
    net.requires_grad_(False).eval()
    net.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def _chunks(images: Sequence[Tensor], pixels: int) -> Iterator[list[int]]:
    """Indices of images to search together: equal sizes side by side, at most `pixels` in all, at least one image."""
    chunk: list[int] = []
    total = 0
    for i in sorted(range(len(images)), key=lambda i: tuple(images[i].shape)):
        size = images[i].shape[0] * images[i].shape[1]
        if chunk and total + size > pixels:
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += size
    if chunk:
        yield chunk


def _region(image: Tensor, box_4: NDArray[np.float32]) -> tuple[int, int, Tensor]:
    """Left, top and pixels of the part of an image that holds the square around a box; empty if there is none."""
    height, width, _ = image.shape
    centre, half_side = (box_4[:2] + box_4[2:]) / 2, (box_4[2:] - box_4[:2]).max() / 2 + 2
    left, top = (int(max(0.0, v)) for v in np.floor(np.nan_to_num(centre - half_side)))
    right, bottom = (int(max(0.0, v)) for v in np.ceil(np.nan_to_num(centre + half_side)))
    return left, top, image[min(top, height) : min(bottom, height), min(left, width) : min(right, width)]


def _normalised(pixels_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Channel means in [0, 255] to what the networks were trained on, (N, C, H, W) in channels-last memory."""
    return pixels_NHWC.sub_(127.5).mul_(0.0078125).to(dtype).permute(0, 3, 1, 2)


def _crops(integrals: IntegralImages, found: _Candidates, limits_N2: Tensor, size: int) -> tuple[_Candidates, Tensor]:
    """Square the boxes, cut them at the image's border, resample them; boxes wholly outside are dropped."""
    corner_N2, sides_N2 = found.boxes_N4[:, :2], found.boxes_N4[:, 2:] - found.boxes_N4[:, :2]
    longer_N1 = sides_N2.amax(1, keepdim=True)
    corner_N2 = corner_N2 + sides_N2 * 0.5 - longer_N1 * 0.5
    found = found._replace(boxes_N4=torch.cat((corner_N2, corner_N2 + longer_N1), 1))
    whole_N4 = found.boxes_N4.trunc().long()
    low_N2 = whole_N4[:, :2].clamp(min=1) - 1
    high_N2 = whole_N4[:, 2:].minimum(limits_N2[found.image_N])
    inside = (high_N2 > low_N2).all(1).nonzero().squeeze(1)
    found = found.select(inside)
    return found, integrals.crops(found.image_N, torch.cat((low_N2, high_N2), 1)[inside], size)


def _shifted(boxes_N4: Tensor, shifts_N4: Tensor) -> Tensor:
    return boxes_N4 + shifts_N4 * (boxes_N4[:, 2:] - boxes_N4[:, :2] + 1).repeat(1, 2)


def _nms(boxes_N4: Tensor, scores_N: Tensor, group_N: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression by IoU within each group; places kept, most probable first."""
    if len(boxes_N4) == 0:
        return torch.empty(0, dtype=torch.long, device=boxes_N4.device)
    # Groups are moved apart. Double precision keeps what lies between pixels however far that is.
    low, high = boxes_N4.min(), boxes_N4.max()
    apart = (boxes_N4 - low).double() + (group_N * (high - low + 1).double())[:, None]
    kept: Tensor = _nms_kernel()(apart, scores_N.double(), threshold)
    return kept


@functools.cache
def _nms_kernel() -> Callable[[Tensor, Tensor, float], Tensor]:
    """The kernel of torchvision, loaded without importing torchvision, which takes seconds (for `torch._dynamo`)."""
    spec = importlib.util.find_spec("torchvision")
    library = Path(spec.origin).with_name("_C.so") if spec is not None and spec.origin is not None else None
    if "torchvision" not in sys.modules and library is not None and library.is_file():
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    else:
        import torchvision.ops  # noqa: F401  registers the kernel
    kernel: Callable[[Tensor, Tensor, float], Tensor] = torch.ops.torchvision.nms
    return kernel


def _nms_over_smaller(found: _Candidates, threshold: float) -> Tensor:
    """Greedy suppression by intersection over the smaller area; `found` is sorted, most probable first.

    A candidate is kept if no kept one before it covers it. Taking that rule over all at once, starting from "all are
    kept", settles after as many rounds as the longest chain of candidates that suppress each other.
    """
    corner_N2, end_N2 = found.boxes_N4[:, :2], found.boxes_N4[:, 2:]
    area_N = (end_N2 - corner_N2 + 1).prod(1)
    sides_NN2 = torch.minimum(end_N2[:, None], end_N2) - torch.maximum(corner_N2[:, None], corner_N2) + 1
    over_NN = sides_NN2.clamp(min=0).prod(2) / torch.minimum(area_N[:, None], area_N)
    covers_NN = (~(over_NN <= threshold) & (found.image_N[:, None] == found.image_N)).triu(1)
    kept = torch.ones_like(area_N, dtype=torch.bool)
    while True:
        settled = ~(covers_NN & kept[:, None]).any(0)
        if torch.equal(settled, kept):
            return kept
        kept = settled


def _as_faces(table: NDArray[np.float32], searched: Tensor, image: Tensor) -> Faces:
    """Rows of (box, probability, landmarks) in pixels of the searched copy to faces in pixels of the image."""
    ratio = np.array([image.shape[1] / searched.shape[1], image.shape[0] / searched.shape[0]], np.float32)
    return Faces(table[:, :4] * np.tile(ratio, 2), table[:, 4].copy(), table[:, 5:].reshape(-1, 5, 2) * ratio)
