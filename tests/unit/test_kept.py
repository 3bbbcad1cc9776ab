"""Features that `preprocess --embed` kept, found again by what shaped them; a head trained on them is the same head."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from pipelines.config import EmbedOptions, Job, detector_digest
from pipelines.embedders import load, plan
from tests.products import BOX, Clip, faked, finished_run, portrait
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden, runs
from train.context import Context
from train.finish import BEST
from train.kept import KeptFeatures
from train.loop import Training
from train.material import Material
from train.recipes import recipe
from unmask.checkpoints import Description, save
from unmask.checkpoints import load as load_checkpoint
from unmask.errors import ModelError, StorageError, UsageError
from unmask.faces import crop
from unmask.models import ModelConfig, build
from unmask.products import Products, features_schema, shard_name
from unmask.storage import Store
from unmask.transforms import Preprocessing, resize, to_tensor

CPU = torch.device("cpu")
TINY = "test_efficientnet"
"""99,000 weights."""
SETTINGS = [
    f"model.backbone={TINY}", "head=frame", "dropout=0", "pretrained=false", "margin=1.3", "fit=square", "size_px=none",
    "freeze=backbone", "unfreeze_after=none", "strategy=none", "compare=false", "batch=4", "loader_workers=0",
    "fractions=[0.5,0.34,0.16]", "epochs=2", "lr=0.01", "select=log_loss",
]  # fmt: skip


def clips(people: int, frames: Sequence[int] = (0, 12)) -> list[Clip]:
    faces = {f: [BOX] for f in frames}
    return [
        Clip(
            video=f"{'fake' if label else 'real'}/{n}",
            picture=faked if label else portrait,
            faces=faces,
            columns={"label": label, "identity": [f"p{n}"], "source": f"real/{n}" if label else None},
        )
        for n in range(people)
        for label in (0, 1)
    ]


def dataset(folder: Path) -> Store:
    store = Store(folder)
    finished_run(store, clips(6), per_shard=5)
    return store


def keep(store: Store, model: str = TINY, weights: Path | None = None, *, real: bool = False) -> str:
    """Write features as a run of `pipelines` does: by its own plan, digest and key. Returns the key.

    Args:
        store: Of the run.
        model: Whose features.
        weights: A file of its weights.
        real: Run the backbone; else the features are numbers that tell rows apart.
    """
    is_checkpoint = model.endswith(".safetensors")
    options = EmbedOptions(
        model=model, pretrained=None if is_checkpoint or weights else False, weights=str(weights) if weights else None
    )
    known = plan(options)
    embedder = load(known.options, CPU)
    shaping = {"sampling": Job().to_json()["sampling"], "detector": detector_digest(Job().detector)}
    key = known.key([shaping, False])
    about = {**asdict(known.options), "sha256": known.sha256, "preprocessing": known.preprocessing.to_json()}
    store.write(f"features/{key}/key.json", json.dumps({**about, **shaping, "dim": known.dim}, indent=1).encode())
    products = Products(store)
    for shard in products.shards():
        rows = products.faces(shard).to_pylist()
        features = embedder.features([shown(row, known.preprocessing) for row in rows]) if real else [
            np.full(known.dim, shard + n / 64, np.float32) for n in range(len(rows))
        ]  # fmt: skip
        columns = [{k: row[k] for k in ("video", "frame", "face")} for row in rows]
        found = [row | {"feature": f.astype(np.float16)} for row, f in zip(columns, features, strict=True)]
        table = pa.Table.from_pylist(found, schema=features_schema(known.dim))
        store.write_table(shard_name(f"features/{key}", shard), table)
    return key


def shown(row: Mapping[str, Any], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """A face of the frame as a model sees it."""
    picture = faked if row["video"].startswith("fake") else portrait
    points_K2 = np.array(row["landmarks"], np.float32).reshape(5, 2)
    return resize(
        crop(picture(row["frame"]), np.array(row["box"], np.float32), points_K2, preprocessing), preprocessing
    )


def configured(*more: str) -> TrainConfig:
    return overridden(recipe("celebdf-mobilenet"), [*SETTINGS, *more])


def trained(data: Path, out: Path, *more: str) -> Training:
    config = configured(*more)
    (run,) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    training = Training(run, material, Store(out), Context(device=CPU))
    if config.data.cached_features:
        training.network.model.backbone.register_forward_pre_hook(_never)
    training.fit()
    return training


def _never(*_: object) -> None:
    raise AssertionError("the backbone was run")


def test_a_head_trained_on_features_is_the_one_trained_end_to_end(tmp_path: Path) -> None:
    keep(dataset(tmp_path / "data"), real=True)
    whole = trained(tmp_path / "data", tmp_path / "whole")
    kept = trained(tmp_path / "data", tmp_path / "kept", "cached_features=true")
    for name, tensor in whole.network.model.state_dict().items():
        found = kept.network.model.state_dict()[name]
        if name.startswith("backbone."):
            assert torch.equal(found, tensor), name
        else:
            torch.testing.assert_close(found, tensor, rtol=0.02, atol=0.002)
    start = build(whole.config.model).head.state_dict()
    assert not torch.allclose(whole.network.model.head.state_dict()["fc.weight"], start["fc.weight"], atol=0.01)
    for a, b in zip(whole.history.rows, kept.history.rows, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=2e-3)
        assert b["val_loss"] == pytest.approx(a["val_loss"], abs=2e-3)
    # What is kept is a whole model: it judges crops.
    model, description = load_checkpoint(tmp_path / "kept" / BEST)
    row = Products(Store(tmp_path / "data")).faces(0).to_pylist()[0]
    with torch.inference_mode():
        inputs = to_tensor([shown(row, description.preprocessing)], description.preprocessing)
        assert torch.isfinite(model.frame_logits(model.features(inputs))).all()


def test_clips_of_features(tmp_path: Path) -> None:
    keep(dataset(tmp_path / "data"), real=True)
    settings = ("head=temporal", "window=2", "epochs=1")
    whole = trained(tmp_path / "data", tmp_path / "whole", *settings)
    kept = trained(tmp_path / "data", tmp_path / "kept", *settings, "cached_features=true")
    (a,), (b,) = whole.history.rows, kept.history.rows
    assert b["val_loss"] == pytest.approx(a["val_loss"], abs=2e-3)


def found(store: Store, backbone: str = TINY, **preprocessing: Any) -> KeptFeatures:
    wanted = Preprocessing.for_backbone(backbone, **preprocessing)
    return KeptFeatures.find(Catalogue.read([store.uri]), backbone, wanted)


def test_features_are_found_by_backbone_and_input(tmp_path: Path) -> None:
    store = dataset(tmp_path / "data")
    keys = [keep(store, TINY), keep(store, "test_resnet")]
    for key, backbone, dim in zip(keys, (TINY, "test_resnet"), (256, 96), strict=True):
        kept = found(store, backbone)
        products = Products(store)
        wanted = np.concatenate([products.features(key, shard) for shard in products.shards()])
        assert kept.features_ND.shape == (24, dim)
        np.testing.assert_array_equal(kept.features_ND, wanted)
        assert (kept.model, kept.pretrained, kept.weights) == (backbone, False, None)
    for wrong in ({"margin": 1.0}, {"size_px": 64}, {"fit": "stretch"}, {"align": True}):
        with pytest.raises(UsageError, match=f"keeps no features of {TINY} at this input: preprocess with --embed"):
            found(store, **wrong)
    with pytest.raises(UsageError, match="keeps no features of test_vit at this input"):
        found(store, "test_vit")


def test_a_preset_stands_for_its_backbone(tmp_path: Path) -> None:
    store = dataset(tmp_path / "data")
    keep(store, "mobilenetv3-small")
    assert found(store, "mobilenetv3_small_100").model == "mobilenetv3-small"


def test_two_datasets_make_one_array(tmp_path: Path) -> None:
    stores = [dataset(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        keep(store)
    catalogue = Catalogue.read([store.uri for store in stores])
    both = KeptFeatures.find(catalogue, TINY, Preprocessing.for_backbone(TINY))
    single = found(stores[0]).features_ND
    np.testing.assert_array_equal(both.features_ND, np.concatenate([single, single]))


def checkpoint(path: Path, seed: int) -> Path:
    config = ModelConfig(backbone=TINY)
    description = Description(
        name="mine", version="1", config=config, preprocessing=Preprocessing.for_backbone(TINY), trained=True
    )
    save(path, build(config, seed=seed), description)
    return path


def test_features_of_two_weights_are_refused(tmp_path: Path) -> None:
    stores = [dataset(tmp_path / name) for name in ("one", "two")]
    for n, store in enumerate(stores):
        keep(store, str(checkpoint(tmp_path / f"model{n}.safetensors", n)))
    catalogue = Catalogue.read([store.uri for store in stores])
    with pytest.raises(
        UsageError, match=r"the features in .*two come from other weights than those of another dataset"
    ):
        KeptFeatures.find(catalogue, TINY, Preprocessing.for_backbone(TINY))


def test_a_model_starts_with_the_backbone_of_the_features(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model.safetensors", 7)
    store = dataset(tmp_path / "data")
    keep(store, str(path))
    kept = found(store)
    model, other = build(ModelConfig(backbone=TINY)), build(ModelConfig(backbone=TINY), seed=7)
    head = {k: v.clone() for k, v in model.head.state_dict().items()}
    kept.start(model)
    for name, tensor in other.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    assert all(torch.equal(model.head.state_dict()[k], v) for k, v in head.items())
    checkpoint(path, 8)  # trained again in the meantime
    with pytest.raises(
        UsageError, match=r"model\.safetensors has changed since its features were kept: preprocess again"
    ):
        kept.start(model)
    path.unlink()
    with pytest.raises(ModelError, match="no checkpoint"):
        kept.start(model)


def test_weights_of_a_file_are_taken_from_there_again(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(build(ModelConfig(backbone=TINY), seed=3).backbone.state_dict(), weights)
    store = dataset(tmp_path / "data")
    keep(store, weights=weights)
    model = build(ModelConfig(backbone=TINY))
    found(store).start(model)
    wanted = build(ModelConfig(backbone=TINY), seed=3).backbone.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.backbone.state_dict().items())
    torch.save(build(ModelConfig(backbone=TINY), seed=4).backbone.state_dict(), weights)
    with pytest.raises(UsageError, match="has changed since"):
        found(store).start(model)


def test_what_was_kept_and_does_not_fit_is_said(tmp_path: Path) -> None:
    store = dataset(tmp_path / "data")
    with pytest.raises(UsageError, match=r"data keeps no features of .* or train without data\.cached_features"):
        found(store)
    key = keep(store)
    table = store.read_table(shard_name(f"features/{key}", 1))
    store.write_table(shard_name(f"features/{key}", 1), table.slice(1))
    with pytest.raises(UsageError, match="there are 23 features for 24 faces; preprocess again"):
        found(store)
    store.write(f"features/{key}/key.json", b"{")
    with pytest.raises(StorageError, match=r"key\.json is damaged; preprocess again"):
        found(store)
