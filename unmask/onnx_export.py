"""A model as one ONNX file, which runs where there is no PyTorch: pixels in, calibrated probabilities out.

The graph holds the preprocessing's normalisation and the calibration, so that whoever runs it has to cut the crop and
bring it to the model's size alone. Its metadata holds the checkpoint's description under the key `unmask`.

    frame, mobilenet, l2   pixels uint8 (N, H, W, 3)                         -> logit, probability float32 (N,)
    temporal               pixels uint8 (N, T, H, W, 3), valid bool (N, T)   -> the same, of each clip

Axes: N crops or clips, T frames of a clip, H rows, W columns, C = 3 channels in RGB order.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.atomic import replacing
from unmask.checkpoints import Description
from unmask.errors import ModelError, Reason, UsageError
from unmask.models import ForgeryModel

__all__ = ["OnnxModel", "Scoring", "needed", "write_onnx"]

_KEY = "unmask"
_OPSET = 18


def needed(*modules: str) -> None:
    """See that the packages of the extra `onnx` are there.

    Raises:
        UsageError: One is not.
    """
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs {missing[0]}, which is not installed: pip install unmask[onnx]")


class Scoring(nn.Module):
    """What is exported: from pixels to a logit and a probability.

    Args:
        model: In evaluation mode.
        description: The model's.
    """

    def __init__(self, model: ForgeryModel, description: Description) -> None:
        super().__init__()
        self.model, self._calibration = model, description.calibration
        std_3 = torch.tensor(description.preprocessing.std)
        self.register_buffer("scale", (1 / (255.0 * std_3)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (torch.tensor(description.preprocessing.mean) / std_3).view(3, 1, 1), False)

    scale: Tensor
    shift: Tensor

    def forward(self, pixels: Tensor, valid_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 (N,). Inputs as in the module's text."""
        if valid_NT is None:
            logit_N = self.model.frame_logits(self._features(pixels))
        else:
            features_ND = self._features(pixels.flatten(0, 1))
            features_NTD = features_ND.reshape(*valid_NT.shape, features_ND.shape[-1])
            logit_N = self.model.clip_logits(features_NTD, valid_NT)
        probability_N = torch.sigmoid(logit_N / self._calibration.temperature + self._calibration.bias)
        return logit_N, probability_N

    def _features(self, pixels_NHWC: Tensor) -> Tensor:
        # The backbone itself: looking at shapes, as the model does, would fix them.
        inputs_N3HW = pixels_NHWC.permute(0, 3, 1, 2).float() * self.scale - self.shift
        return torch.as_tensor(self.model.backbone(inputs_N3HW))


def write_onnx(path: Path, model: ForgeryModel, description: Description) -> None:
    """Write a model as ONNX, whole or not at all.

    Args:
        path: Where; it ends in `.onnx`.
        model: On the CPU.
        description: Its own.

    Raises:
        UsageError: The name is another, the place cannot be written, or a package is not installed.
        ModelError: A model with depth maps or of opinion scores, or one that the exporter cannot translate.
    """
    needed("onnx", "onnxscript")
    if path.suffix != ".onnx":
        raise UsageError(f"an exported model's name ends in .onnx; got {path}")
    if description.config.head == "fusion":
        raise ModelError(Reason.BAD_OPTION, f"{description.name} takes depth maps: models of pictures can be exported")
    if description.config.task != "detection":
        raise ModelError(
            Reason.BAD_OPTION,
            f"{description.name} predicts how real people find a fake, and what is exported gives the probability that "
            "it is one: export a detector",
        )
    scoring = Scoring(model, description).eval()
    program = _translated(scoring, _example(scoring, description), clips=model.is_temporal, name=description.name)
    _forget_folders(program.model)
    program.model.metadata_props[_KEY] = json.dumps(description.to_json(), sort_keys=True)
    try:
        with replacing(path) as beside:
            program.save(str(beside))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _forget_folders(model: Any) -> None:
    """Leave out from which lines of which files each operation came, with the folders that they lie in."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _example(scoring: Scoring, description: Description) -> tuple[Tensor, ...]:
    height, width = description.preprocessing.size_HW
    generator = torch.Generator().manual_seed(0)
    if not scoring.model.is_temporal:
        return (torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8),)
    frames = max(min(description.config.window, 3), 2)
    shape = (2, frames, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), torch.ones(shape[:2], dtype=torch.bool)


def _translated(scoring: Scoring, example: tuple[Tensor, ...], *, clips: bool, name: str) -> Any:
    number, frames = torch.export.Dim("N"), torch.export.Dim("T")
    shapes = ({0: number, 1: frames}, {0: number, 1: frames}) if clips else ({0: number},)
    try:
        with _quiet():
            return torch.onnx.export(
                scoring,
                example,
                dynamo=True,
                verbose=False,
                opset_version=_OPSET,
                input_names=["pixels", "valid"][: len(example)],
                output_names=["logit", "probability"],
                dynamic_shapes=shapes,
            )
    except Exception as error:  # it may fail anywhere in tracing
        cause = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)[:200]
        raise ModelError(Reason.BAD_OPTION, f"{name} cannot be translated to ONNX ({cause})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what is to come in its own dependencies, and logs what it leaves out."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class OnnxModel:
    """An exported model, ready to score on the CPU.

    Args:
        path: What `write_onnx` wrote.
        threads: Of its own.

    Raises:
        UsageError: ONNX Runtime is not installed.
        ModelError: The file is missing, damaged or no model of Unmask.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        needed("onnxruntime")
        import onnxruntime as ort

        if not path.is_file():
            raise ModelError(Reason.MISSING_FILE, f"no model {path}: check the path")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        # Else they go on spinning for a while beside whatever comes next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            told = self._session.get_modelmeta().custom_metadata_map[_KEY]
            self.description = Description.from_json(json.loads(told))
        except Exception as error:  # what is damaged may trip the reader anywhere
            raise ModelError(
                Reason.CHECKPOINT_CORRUPT, f"{path} is damaged or no ONNX model that Unmask wrote: export it again"
            ) from error

    @property
    def takes_clips(self) -> bool:
        """Whether it wants clips and which of their frames are there."""
        return len(self._session.get_inputs()) == 2

    def logits(self, pixels: NDArray[np.uint8], valid_NT: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits (N,), without calibration."""
        return self._run("logit", pixels, valid_NT)

    def probabilities(
        self, pixels: NDArray[np.uint8], valid_NT: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Calibrated probabilities (N,)."""
        return self._run("probability", pixels, valid_NT)

    def _run(self, output: str, pixels: NDArray[np.uint8], valid_NT: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        given: dict[str, NDArray[Any]] = {"pixels": pixels}
        if valid_NT is not None:
            given["valid"] = valid_NT
        found: NDArray[np.float32] = self._session.run([output], given)[0]
        return found
