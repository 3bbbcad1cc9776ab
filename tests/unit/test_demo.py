from pathlib import Path

import numpy as np

from unmask.demo import make_clips
from unmask.mtcnn import MTCNN
from unmask.plan import Sampling
from unmask.records import Frame
from unmask.video import VideoReader


def test_the_clips_are_what_they_are_called(tmp_path: Path) -> None:
    paths = make_clips(tmp_path / "clips")
    assert [path.name for path in paths] == ["authentic.mp4", "self_blended.mp4", "no_face.mp4", "damaged.mp4"]
    assert sorted((tmp_path / "clips").iterdir()) == sorted(paths)
    detector = MTCNN()
    faces, corrupt, pictures = {}, {}, {}
    for path in paths:
        with VideoReader(path) as reader:
            assert reader.index.frames == 100
            frames = [f for f in reader.frames(Sampling(every=9)) if isinstance(f, Frame)]
        corrupt[path.stem] = sum(f.is_corrupt for f in frames)
        whole = [f for f in frames if not f.is_corrupt][:2]
        pictures[path.stem] = whole[0].image_HWC
        found = detector.search([f.image_HWC for f in whole])
        faces[path.stem] = [bool(len(f)) and float(f.probabilities_N[0]) > 0.99 for f in found]
    assert faces == {
        "authentic": [True, True], "self_blended": [True, True], "no_face": [False, False], "damaged": [True, True]
    }  # fmt: skip
    assert [bool(corrupt[name]) for name in ("authentic", "self_blended", "no_face", "damaged")] == [False] * 3 + [True]
    assert np.ptp(pictures["authentic"]) > 200
