from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from pipelines.config import FACENET, EmbedOptions
from pipelines.embedders import load, plan
from unmask.errors import ModelError, Reason, UsageError

CPU = torch.device("cpu")
SMALL = EmbedOptions(model="mobilenetv3_small_050", pretrained=False)
RANDOM_FACENET = EmbedOptions(model=FACENET, pretrained=False)


def pictures(count: int, size_px: int | tuple[int, int]) -> list[NDArray[np.uint8]]:
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def facenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights as facenet-pytorch publishes them: with the layer that tells its 8,631 people apart."""
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "facenet.pt"
    torch.save(InceptionResnetV1(classify=True, num_classes=11).state_dict(), path)
    yield path
    path.unlink()


@pytest.mark.parametrize("name", ["mobilenetv3-small", "mobilenetv3_small_050"], ids=["preset", "backbone"])
def test_a_model_by_name_gives_features(name: str) -> None:
    embedder = load(EmbedOptions(model=name, pretrained=False), CPU)
    known = embedder.plan
    images = pictures(18, known.preprocessing.size_px)
    found = embedder.features(images)
    assert len(found) == 18  # more than a batch
    assert all(feature.shape == (known.dim,) and feature.dtype == np.float32 for feature in found)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(embedder.features(images[17:])[0], found[17], atol=1e-4)
    assert not np.allclose(found[0], found[1])
    assert embedder.features([]) == []


def test_a_plan_says_what_weights_there_were_and_they_are_met_again() -> None:
    known = plan(SMALL)
    assert known.options == replace(SMALL, sha256=known.sha256)
    assert len(known.sha256) == 64
    assert load(known.options, CPU).plan.sha256 == known.sha256


@pytest.mark.parametrize("options", [SMALL, RANDOM_FACENET], ids=["backbone", "facenet"])
def test_other_weights_than_at_the_beginning_are_refused(options: EmbedOptions) -> None:
    with pytest.raises(ModelError, match=f"{options.model} has other weights than when the run began") as caught:
        load(replace(options, sha256="0" * 64), CPU)
    assert caught.value.reason is Reason.CHECKPOINT_HASH


def test_a_key_names_all_that_shapes_features() -> None:
    known = plan(SMALL)
    keys = [
        known.key({"frames": 32}),
        known.key({"frames": 31}),
        replace(known, sha256="0" * 64).key({"frames": 32}),
        replace(known, preprocessing=replace(known.preprocessing, margin=2.0)).key({"frames": 32}),
        replace(known, dim=3).key({"frames": 32}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("mobilenetv3_small_050-") for key in keys)
    assert known.key({"frames": 32}) == plan(SMALL).key({"frames": 32})


def test_facenet_with_random_weights_is_the_same_each_time() -> None:
    one, two = load(RANDOM_FACENET, CPU), load(RANDOM_FACENET, CPU)
    assert one.plan.sha256 == two.plan.sha256
    assert (one.plan.dim, one.plan.preprocessing.size_px) == (512, 160)
    images = pictures(2, 160)
    encodings_ND = np.stack(one.features(images))
    assert encodings_ND.shape == (2, 512)
    np.testing.assert_allclose(np.linalg.norm(encodings_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(encodings_ND, two.features(images))


def test_facenet_sees_what_its_own_detector_feeds_it(facenet_weights: Path) -> None:
    from facenet_pytorch import InceptionResnetV1, fixed_image_standardization

    network = InceptionResnetV1(classify=False).eval()
    tensors = torch.load(facenet_weights, weights_only=True)
    network.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("logits.")})
    images = pictures(3, 160)
    with torch.inference_mode():
        inputs_N3HW = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() for image in images])
        expected = network(fixed_image_standardization(inputs_N3HW)).numpy()
    embedder = load(EmbedOptions(model=FACENET, weights=str(facenet_weights)), CPU)
    np.testing.assert_allclose(np.stack(embedder.features(images)), expected, atol=1e-5)


def test_weights_that_are_no_facenet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=r"other.safetensors holds no weights of InceptionResnetV1") as caught:
        plan(EmbedOptions(model=FACENET, weights=str(path)))
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [FACENET, "mobilenetv3_small_050"])
@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_weights_that_cannot_be_read_are_refused(tmp_path: Path, model: str, kind: str) -> None:
    path = tmp_path / "weights.pt"
    if kind == "damaged":
        path.write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match=r"weights\.pt") as caught:
        plan(EmbedOptions(model=model, weights=str(path)))
    assert caught.value.reason is (Reason.MISSING_FILE if kind == "missing" else Reason.CHECKPOINT_CORRUPT)


def test_a_model_that_nobody_knows_is_refused() -> None:
    with pytest.raises((ModelError, UsageError), match="mobilenetv3_smal"):
        plan(EmbedOptions(model="mobilenetv3_smal_050", pretrained=False))
