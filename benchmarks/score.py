"""A clip from file to verdict: `unmask score` against the notebook that people write today.

The notebook: OpenCV decodes every frame, facenet-pytorch's MTCNN takes one frame after the other at the size that
Unmask detects at, timm's MobileNetV3-Small scores the crops. Both sample 32 frames and use two threads. Each runs in a
process of its own; time is counted after the imports and the loading of models, memory is the process's peak.

`python -m benchmarks.score CLIP [--runs 3]`
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

FRAMES = 32


def ours(clip: str) -> dict[str, float]:
    """Seconds and frames with a face, by Unmask."""
    from unmask.analysis import Analyzer
    from unmask.inputs import Source
    from unmask.plan import Sampling

    analyzer = Analyzer.load(device="cpu")
    started = time.perf_counter()
    score = analyzer.analyze(Source(clip), Sampling(frames=FRAMES)).score
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "frames": score.frames.scored} | dict(score.timings_s)


def notebook(clip: str) -> dict[str, float]:
    """Seconds and frames with a face, by OpenCV, facenet-pytorch and timm."""
    import cv2
    import timm
    import torch
    from facenet_pytorch import MTCNN

    from unmask.detection import detection_scale

    detector = MTCNN(keep_all=True, device="cpu")
    model = timm.create_model("mobilenetv3_small_100", num_classes=1).eval()
    started = time.perf_counter()
    capture = cv2.VideoCapture(clip)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = {(2 * k + 1) * count // (2 * FRAMES) for k in range(FRAMES)}
    crops = []
    found = 0
    for index in range(count):
        ok, bgr = capture.read()
        if not ok or index not in wanted:
            continue
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        scale = detection_scale(rgb.shape[1], rgb.shape[0])
        small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes, _, _ = detector.detect(small, landmarks=True)
        found += boxes is not None
        for x1, y1, x2, y2 in (boxes / scale).clip(0).astype(int) if boxes is not None else ():
            face = cv2.resize(rgb[y1:y2, x1:x2], (224, 224)).astype("float32") / 255
            crops.append(torch.from_numpy(face).permute(2, 0, 1))
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(crops, batch_size=16):  # type: ignore[arg-type]
            model(batch)
    return {"seconds": time.perf_counter() - started, "frames": found}


def measured(who: str, clip: Path) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.score", str(clip), "--only", who]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    plain: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return plain


def main() -> None:
    """Print medians, peak memory and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "notebook"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        figures = {"ours": ours, "notebook": notebook}[arguments.only](str(arguments.clip))
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        print(json.dumps(figures | {"peak_gb": peak_gb}))
        return
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "notebook": []}
    for _ in range(arguments.runs):
        for who, results in runs.items():
            results.append(measured(who, arguments.clip))
    median_s = {who: statistics.median(r["seconds"] for r in results) for who, results in runs.items()}
    for who, results in runs.items():
        peak = max(r["peak_gb"] for r in results)
        print(
            f"{who:9} {median_s[who]:6.2f} s  peak {peak:.2f} GB  {results[0]['frames']:.0f} of {FRAMES} frames scored"
        )
    stages = {k: v for k, v in runs["ours"][-1].items() if k not in {"seconds", "frames", "peak_gb"}}
    print("stages    " + "  ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items()))
    print(f"notebook / ours = {median_s['notebook'] / median_s['ours']:.2f}x")


if __name__ == "__main__":
    main()
