"""The cascade as a tracker: search now and then, and let ONet follow the known faces in between.

A frame is searched when the last search is long past, when the picture jumps (a scene cut, or a gap in time), and when
a face gets lost. On all other frames each known box is moved on at its speed and ONet corrects it, at full resolution.
ONet was trained on such nearly right boxes; its answer is the box, the landmarks and whether there is still a face.

Axes: N faces, K = 5 landmarks, H rows, W columns, C = 3 channels.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.detection import FaceDetector, Images
from unmask.errors import UsageError
from unmask.records import Faces

__all__ = ["Find", "Follower", "follow", "follow_with"]

Image = NDArray[np.uint8] | Tensor
Find: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.float32] | None], Awaitable[Faces]]
"""Looks at a frame uint8 (H, W, 3), wherever the detector runs: near the given boxes float32 (N, 4), with one answer a
box in their order, as `MTCNN.refine`; or everywhere, as `MTCNN.search`."""

# A followed face may be somewhat less sure than a found one, or faces at the threshold would come and go.
_KEEP_ABOVE = 0.5
# A face less sure than this that gets lost is not worth a search of its own: most such are found in one frame only.
_SURE = 0.9
# Below this overlap of prediction and answer, ONet slid off to something else.
_SAME_IOU = 0.5
# Two followed boxes that share this much of the smaller one have run into one face.
_MERGED = 0.7
# A search for a lost face waits this many frames after the search before; it doubles while searches find nothing new.
_FIRST_WAIT = 4
_THUMBNAIL = 48
# Presentation times are rounded by their containers.
_TICK_S = 2e-3


class Follower:
    """Follows the faces of one video or stream. Feed it every frame, in order.

    Args:
        detector: The detector; many followers may share it. None for `follow_with`, which is told how to look.
        search_every: Search at least every so many frames.
        search_every_s: And on the first frame that comes so long after the last search, so that a new face is missed
            for less; a jump in time by more also makes it search.
        scale: Scale of the searches, as in `MTCNN.search`.
        cut: Mean change of brightness, in grey levels between two frames, that counts as a scene cut.
        phase: In [0, 1): after a jump, the second search comes so much of `search_every_s` sooner. Streams that began
            together share a machine better where they are not searched together.

    Attributes:
        searched: Whether the last frame was searched.
        cut: Whether a scene cut lies before the last frame.

    Raises:
        UsageError: An argument is not positive, or `phase` is not in [0, 1).
    """

    def __init__(
        self,
        detector: FaceDetector | None,
        *,
        search_every: int = 15,
        search_every_s: float = 0.5,
        scale: float | Literal["auto"] = "auto",
        cut: float = 28.0,
        phase: float = 0.0,
    ) -> None:
        if search_every < 1 or not search_every_s > 0 or not cut > 0:
            raise UsageError(
                f"search_every, search_every_s and cut are above 0: {search_every}, {search_every_s}, {cut}"
            )
        if not 0 <= phase < 1:
            raise UsageError(f"the phase of the searches lies in [0, 1); got {phase:g}")
        self.detector, self.scale = detector, scale
        self._every, self._every_s, self._cut = search_every, search_every_s, cut
        self._sooner_s, self._next_sooner_s = phase * search_every_s, 0.0
        self.searched = self.cut = False
        self._faces = Faces.none()
        self._speeds_N2 = np.zeros((0, 2), np.float32)
        self._pts_s = self._searched_pts_s = -np.inf
        self._frames, self._wait, self._lost = 0, _FIRST_WAIT, False
        self._thumbnail: NDArray[np.int16] | None = None

    def __call__(self, image: Image, pts_s: float) -> Faces:
        """The faces of the next frame, most probable first.

        Args:
            image: RGB, uint8 (H, W, 3).
            pts_s: Presentation time in seconds, above that of the frame before.
        """
        return follow([self], [image], [pts_s])[0]

    def _must_search(self, image: Image, pts_s: float) -> bool:
        """Look at the next frame: is it time to search, or did the picture jump?"""
        before, self._thumbnail = self._thumbnail, _thumbnail(image)
        self.cut = before is not None and (
            before.shape != self._thumbnail.shape or float(np.abs(self._thumbnail - before).mean()) > self._cut
        )
        jumped = self.cut or not 0 < pts_s - self._pts_s <= self._every_s
        if jumped:
            self._faces, self._speeds_N2 = Faces.none(), np.zeros((0, 2), np.float32)
            self._lost, self._wait, self._next_sooner_s = False, _FIRST_WAIT, self._sooner_s
        self._frames += 1
        late = pts_s - self._searched_pts_s > self._every_s - _TICK_S
        return jumped or late or self._frames >= self._every or self._search_due()

    def _search_due(self) -> bool:
        return self._lost and self._frames >= self._wait

    def _predicted(self, pts_s: float) -> NDArray[np.float32]:
        moved = self._speeds_N2 * (pts_s - self._pts_s) if len(self._faces) else self._speeds_N2
        return (self._faces.boxes_N4 + np.tile(moved, 2)).astype(np.float32)

    def _followed(self, answer: Faces, pts_s: float) -> bool:
        """Take ONet's answer for the predicted boxes; whether a face got lost and a search is due on this frame."""
        predicted_N4 = self._predicted(pts_s)
        same = _overlap(predicted_N4, answer.boxes_N4, over_smaller=False).diagonal() >= _SAME_IOU
        keep = same & (answer.probabilities_N >= _KEEP_ABOVE)
        over_NN = _overlap(answer.boxes_N4, answer.boxes_N4, over_smaller=True)
        for i in np.argsort(-answer.probabilities_N):
            # One box stays where several ran into one face; the lost one, if still there, is searched for.
            if keep[i]:
                keep &= (over_NN[i] <= _MERGED) | (np.arange(len(keep)) == i)
        self._lost = self._lost or bool((~keep & (self._faces.probabilities_N >= _SURE)).any())
        if self._search_due():
            return True
        old = _rows(self._faces, np.flatnonzero(keep))
        self._advance(old, self._speeds_N2[keep], _rows(answer, np.flatnonzero(keep)), pts_s)
        self.searched = False
        return False

    def _found(self, found: Faces, pts_s: float) -> None:
        """Take the result of a search; faces that were known keep their speed."""
        over_NM = _overlap(found.boxes_N4, self._predicted(pts_s), over_smaller=False)
        # Searches that bring no face back become rarer, up to the ordinary rate.
        vain = self._lost and len(found) <= len(self._faces) - 1
        self._wait = min(2 * self._wait, self._every) if vain else _FIRST_WAIT
        known = over_NM.max(1, initial=0) >= _SAME_IOU
        match = over_NM[known].argmax(1) if known.any() else np.zeros(0, int)
        old_boxes_N4, speeds_N2 = found.boxes_N4.copy(), np.zeros((len(found), 2), np.float32)
        old_boxes_N4[known], speeds_N2[known] = self._faces.boxes_N4[match], self._speeds_N2[match]
        old = Faces(old_boxes_N4, found.probabilities_N, found.landmarks_NK2)
        self._advance(old, speeds_N2, found, pts_s)
        self._searched_pts_s, self._next_sooner_s = pts_s - self._next_sooner_s, 0.0
        self._frames, self._lost, self.searched = 0, False, True

    def _answer(self) -> Faces:
        return _rows(self._faces, np.argsort(-self._faces.probabilities_N, kind="stable"))

    def _advance(self, old: Faces, speeds_N2: NDArray[np.float32], new: Faces, pts_s: float) -> None:
        if len(new) and 0 < pts_s - self._pts_s < np.inf:
            step_N2 = (new.boxes_N4 - old.boxes_N4).reshape(-1, 2, 2).mean(1) / (pts_s - self._pts_s)
            # Half the new speed: single boxes jitter.
            speeds_N2 = ((speeds_N2 + step_N2) / 2).astype(np.float32)
        self._faces, self._speeds_N2, self._pts_s = new, speeds_N2, pts_s


def follow(followers: Sequence[Follower], images: Images, pts_s: Sequence[float]) -> list[Faces]:
    """The next frame of several streams at once: one batch for those to search and one for those to follow.

    Args:
        followers: One a stream; all share one detector and one scale.
        images: The next frame of each.
        pts_s: Their presentation times in seconds.

    Returns:
        For each stream the faces of its frame, most probable first.

    Raises:
        UsageError: The followers do not share one detector and one scale, or the lengths differ.
    """
    if not len(followers) == len(images) == len(pts_s) or len({(id(f.detector), f.scale) for f in followers}) > 1:
        raise UsageError(
            "follow() needs one image and one time a follower, and followers that share detector and scale"
        )
    if not followers:
        return []
    detector = followers[0].detector
    assert detector is not None, "these followers are told how to look"
    search = [f._must_search(image, t) for f, image, t in zip(followers, images, pts_s, strict=True)]
    known = [i for i, f in enumerate(followers) if not search[i]]
    answers = detector.refine([images[i] for i in known], [followers[i]._predicted(pts_s[i]) for i in known])
    for i, answer in zip(known, answers, strict=True):
        search[i] = followers[i]._followed(answer, pts_s[i])
    chosen = [i for i in range(len(followers)) if search[i]]
    found = detector.search([images[i] for i in chosen], scale=followers[0].scale)
    for i, faces in zip(chosen, found, strict=True):
        followers[i]._found(faces, pts_s[i])
    return [f._answer() for f in followers]


async def follow_with(follower: Follower, image_HWC: NDArray[np.uint8], pts_s: float, find: Find) -> Faces:
    """The next frame of one stream, where the detector is elsewhere. The same answers as `follow`.

    Args:
        follower: The stream's.
        image_HWC: RGB, uint8 (H, W, 3).
        pts_s: Its presentation time in seconds, above that of the frame before.
        find: Looks; called once, or twice where a followed face got lost.

    Returns:
        The faces, most probable first.
    """
    if not follower._must_search(image_HWC, pts_s):
        near_N4 = follower._predicted(pts_s)
        answer = await find(image_HWC, near_N4) if len(near_N4) else Faces.none()
        if not follower._followed(answer, pts_s):
            return follower._answer()
    follower._found(await find(image_HWC, None), pts_s)
    return follower._answer()


def _thumbnail(image: Image) -> NDArray[np.int16]:
    """Some 48 x 48 samples of the green channel: enough to tell one scene from another."""
    rows, columns = (max(1, side // _THUMBNAIL) for side in image.shape[:2])
    samples = image[rows // 2 :: rows, columns // 2 :: columns, 1]
    samples = samples.cpu().numpy() if isinstance(samples, torch.Tensor) else samples
    return samples.astype(np.int16)


def _rows(faces: Faces, rows: NDArray[np.intp]) -> Faces:
    return Faces(faces.boxes_N4[rows], faces.probabilities_N[rows], faces.landmarks_NK2[rows])


def _overlap(a_N4: NDArray[np.float32], b_M4: NDArray[np.float32], *, over_smaller: bool) -> NDArray[np.float32]:
    """Intersection over union, or over the smaller area, of all pairs (N, M)."""
    corner = np.maximum(a_N4[:, None, :2], b_M4[:, :2])
    inner = np.clip(np.minimum(a_N4[:, None, 2:], b_M4[:, 2:]) - corner, 0, None).prod(2)
    area_a = np.clip(a_N4[:, 2:] - a_N4[:, :2], 0, None).prod(1)[:, None]
    area_b = np.clip(b_M4[:, 2:] - b_M4[:, :2], 0, None).prod(1)
    whole = np.minimum(area_a, area_b) if over_smaller else area_a + area_b - inner
    ratios: NDArray[np.float32] = inner / np.maximum(whole, 1e-9)
    return ratios
