"""A model in the forms it is shipped in: as a checkpoint, as ONNX and in 8 bits, and what each says of the same people.

Axes: N samples (frames or clips), T frames of a clip, H rows, W columns, C = 3 channels; K samples of a split.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.augment import BLENDS
from train.catalogue import Catalogue
from train.clips import Batch, Samples, batches
from train.config import TrainConfig
from train.crops import CropReader
from train.material import pool_of
from train.network import Network
from train.samplers import Key
from train.splits import left_for_test, splits_of, untold
from train.turns import TIMED_BATCH, how_timed, medians
from train.validation import keys_of
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.metrics import Detections
from unmask.models import ForgeryModel
from unmask.onnx_export import OnnxModel

__all__ = ["Forms"]

_BATCH, _RANGES, _SEED = 8, 64, 1
# What follows the backbone is small, and sums over time are not to be rounded. A clipping activation is part of the
# convolution before it: a range that is taken before ReLU6 wastes most of its 256 steps on what is cut off.
_EIGHT_BITS = ["Conv", "MatMul", "Gemm", "Clip", "Relu"]
_HEAD = "model.head."


class Forms:
    """One model, and the data that it was trained on.

    Args:
        model: On the CPU.
        description: Its own: it says how the model was trained, and with that who was left for the test.
        data: Outputs of `unmask preprocess`.

    Raises:
        UsageError: The model does not say how it was trained, or knows all who are left for the test.
    """

    def __init__(self, model: ForgeryModel, description: Description, data: Sequence[str]) -> None:
        description.check_detects()
        self._model, self._description = model, description
        try:
            self._config = TrainConfig.from_json(description.provenance["config"])
        except (KeyError, UsageError) as error:
            raise UsageError(
                f"{description.name} does not say how it was trained ({error}), so nobody can tell who was left for a "
                "test: leave out --data"
            ) from None
        self._catalogue = Catalogue.read(data)
        self._catalogue.check_covers(description.preprocessing)
        self._splits = splits_of(self._catalogue, self._config, 0)
        # Another deal than that of training may leave people whom it knows.
        self._left = left_for_test(self._catalogue, self._splits, [description])

    def measured(self, paths: Sequence[Path]) -> dict[str, Any]:
        """What the checkpoint and its exported forms say of the people who were left.

        Args:
            paths: ONNX files of this model.

        Returns:
            As JSON can say it: of each form its size, time (`train.turns`), AUC, and the largest difference of a
            probability.
        """
        samples = self._samples("test", self._left)
        keys = keys_of(samples)
        network = Network(self._model, self._description.preprocessing).eval()
        size = sum(t.numel() * t.element_size() for t in self._model.state_dict().values())
        forms: list[tuple[str, int, Callable[[Batch], NDArray[Any]]]] = [
            ("checkpoint", size, lambda batch: _of_network(network, batch))
        ]
        for path in paths:
            exported = OnnxModel(path, threads=torch.get_num_threads())
            forms.append((path.name, path.stat().st_size, lambda batch, of=exported: _of_onnx(of, batch)))  # type: ignore[misc]
        label_K = np.array([float(k.blend) or float(samples.pool.label_U[k.unit]) for k in keys])
        logits: list[list[NDArray[Any]]] = [[] for _ in forms]
        for batch in self._batches(samples, keys):
            for (_, _, run), found in zip(forms, logits, strict=True):
                found.append(run(batch))
        # Now that nothing loads any more.
        timed, cpu = samples.batch(keys[:TIMED_BATCH]), torch.device("cpu")
        seconds = medians([partial(run, timed) for _, _, run in forms], cpu)
        probabilities = [self._description.calibration.probability(np.concatenate(parts)) for parts in logits]
        aucs = [Detections(p, label_K).auc() for p in probabilities]
        rows = [
            {
                "name": name,
                "bytes": size,
                "ms_per_sample": round(1000 * took / len(timed), 3),
                "auc": auc,
                "auc_lost": aucs[0] - auc,
                "largest_difference": float(np.abs(p - probabilities[0]).max()),
            }
            for (name, size, _), took, auc, p in zip(forms, seconds, aucs, probabilities, strict=True)
        ]
        level = "frame" if samples.length == 1 else "clip"
        caveats = untold(self._description.name, self._description)
        return {
            "videos": len(self._left),
            "samples": len(keys),
            "level": level,
            "timed": how_timed(len(timed), cpu),
            "forms": rows,
            "caveats": caveats,
        }

    def write_int8(self, plain: Path, path: Path) -> None:
        """Write a form of 8 bits: weights and what convolutions and linear layers take; ranges from people of training.

        Args:
            plain: The model as ONNX.
            path: Where.
        """
        from onnxruntime import quantization

        samples = self._samples("train", self._splits.train)
        given = self._given(samples)
        with TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ready = Path(scratch) / "ready.onnx"
            quantization.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(ready),
                str(path),
                _Ranges(given),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                # Weights of 8 bits can overflow where a processor lacks VNNI; of 7 they cannot.
                reduce_range=True,
                op_types_to_quantize=_EIGHT_BITS,
                nodes_to_exclude=_kept_plain(ready),
                # What linear layers give goes into attention's products, into sums and norms: single precision all.
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
            )

    def _given(self, samples: Samples) -> Iterator[dict[str, NDArray[Any]]]:
        keys = keys_of(samples)
        chosen = [keys[n] for n in np.linspace(0, len(keys) - 1, min(_RANGES, len(keys))).astype(int)]
        for batch in self._batches(samples, chosen):
            yield _inputs(batch, clips=self._model.is_temporal)

    def _batches(self, samples: Samples, keys: list[Key]) -> Iterator[Batch]:
        yield from batches(samples, [keys[k : k + _BATCH] for k in range(0, len(keys), _BATCH)], workers=0)

    def _samples(self, name: str, videos: Sequence[int]) -> Samples:
        config = self._config
        return Samples(
            self._catalogue,
            CropReader(self._catalogue),
            pool_of(self._catalogue, videos, config, name),
            config,
            self._description.preprocessing,
            blend=BLENDS[config.augment.blends] if config.data.draw == "selfblend" else None,
            seed=_SEED,
        )


def _kept_plain(path: Path) -> list[str]:
    """Nodes that stay in single precision: the first convolution, the last layer, and attention's products.

    The first sees pixels, the last gives logits; both are small. 256 steps from a frame's lowest logit to its highest
    would make ties; 256 steps for all heads of attention would leave those that look at many tokens at 0 or 1 of them,
    beside one that looks at a single token, and every face would get the same logit.
    """
    import onnx

    graph = onnx.load(path).graph
    weights = {each.name for each in graph.initializer}
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    heads = [node.name for node in graph.node if any(name.startswith(_HEAD) for name in node.input)]
    products = [n.name for n in graph.node if n.op_type == "MatMul" and weights.isdisjoint(n.input)]
    return convolutions[:1] + heads[-1:] + products


class _Ranges:
    """For ONNX Runtime: the inputs by which ranges are found, one after the other."""

    def __init__(self, given: Iterator[dict[str, NDArray[Any]]]) -> None:
        self._given = given

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next input, or None at the end."""
        return next(self._given, None)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        return self._given


def _inputs(batch: Batch, *, clips: bool) -> dict[str, NDArray[Any]]:
    if clips:
        return {"pixels": batch.pixels.numpy(), "valid": batch.valid_BT.numpy()}
    return {"pixels": batch.pixels[batch.valid_BT].numpy()}


def _of_network(network: Network, batch: Batch) -> NDArray[Any]:
    with torch.inference_mode():
        found: NDArray[Any] = network.logits(batch, torch.device("cpu")).numpy()
    return found


def _of_onnx(exported: OnnxModel, batch: Batch) -> NDArray[Any]:
    return exported.logits(*_inputs(batch, clips=exported.takes_clips).values())
