import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unmask import checkpoints
from unmask.calibration import Calibration
from unmask.checkpoints import FORMAT, Description, describe, digest, load, save
from unmask.errors import ModelError, Reason, UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.transforms import Preprocessing

CONFIG = ModelConfig(backbone="test_efficientnet", head="temporal", dropout=0.1, window=5)


@pytest.fixture(scope="module")
def model() -> ForgeryModel:
    return build(CONFIG, seed=7)


@pytest.fixture
def description() -> Description:
    return Description(
        name="tiny",
        version="1.2",
        config=CONFIG,
        preprocessing=Preprocessing(size_px=96, margin=5 / 3, fit="pad"),
        calibration=Calibration(temperature=1.5, threshold=0.6, band=(0.4, 0.6), fitted=True, source="held out"),
        trained=True,
        provenance={"data": "FaceForensics++ c23", "auc": 0.97, "note": "Überprüft"},
    )


@pytest.fixture
def saved(tmp_path: Path, model: ForgeryModel, description: Description) -> Path:
    save(tmp_path / "tiny.safetensors", model, description)
    return tmp_path / "tiny.safetensors"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description without touching the tensors."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    plain = json.loads(metadata["unmask"])
    change(plain)
    save_file(tensors, path, {"unmask": json.dumps(plain)})


def test_half_the_size_gives_nearly_the_same_model(
    tmp_path: Path, saved: Path, model: ForgeryModel, description: Description
) -> None:
    path = tmp_path / "half.safetensors"
    described = save(path, model, description, half=True)
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    loaded, found = load(path)
    assert found == described
    assert found.sha256 != describe(saved).sha256
    for name, value in model.state_dict().items():
        after = loaded.state_dict()[name]
        assert after.dtype == value.dtype
        assert torch.allclose(after, value, rtol=1e-3, atol=1e-7)
        assert value.ndim > 1 or torch.equal(after, value)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert reason_of(path) is Reason.CHECKPOINT_HASH


def reason_of(path: Path) -> Reason:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.reason


def test_a_checkpoint_comes_back_whole(saved: Path, model: ForgeryModel, description: Description) -> None:
    loaded, described = load(saved)
    assert replace(described, sha256="") == description
    assert described == describe(saved)
    assert not loaded.training
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    features_BTD, valid_BT = torch.randn(2, 5, model.dim), torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(loaded.clip_logits(features_BTD, valid_BT), model.clip_logits(features_BTD, valid_BT))


def test_results_can_say_which_model_they_come_from(saved: Path) -> None:
    info = describe(saved).info()
    assert (info.name, info.version, info.trained) == ("tiny", "1.2", True)
    assert len(info.sha256) == 64


def test_the_digest_covers_description_names_shapes_types_and_bytes(description: Description) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    variants = [
        digest(tensors, description),
        digest(tensors, replace(description, trained=False)),
        digest({"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}, description),
        digest({"a": torch.arange(6.0).view(torch.int32), "b": torch.tensor(3)}, description),
        digest({"c": torch.arange(6.0), "b": torch.tensor(3)}, description),
        digest({"a": torch.arange(6.0), "b": torch.tensor(4)}, description),
        digest({"a": torch.arange(6.0)}, description),
    ]
    assert len(set(variants)) == len(variants)
    assert digest({"b": torch.tensor(3), "a": torch.arange(6.0)}, replace(description, sha256="x")) == variants[0]
    assert digest({"a": torch.arange(12.0)[::2] / 2, "b": torch.tensor(3)}, description) == variants[0]
    assert len(digest({"half": torch.ones(3, dtype=torch.bfloat16), "none": torch.ones(0)}, description)) == 64


def test_a_missing_file(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.safetensors") is Reason.MISSING_FILE


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_a_truncated_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    assert reason_of(saved) is Reason.CHECKPOINT_CORRUPT
    with pytest.raises(ModelError):
        describe(saved)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", struct.pack("<Q", 1 << 62), b"\x80\x04."])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert reason_of(tmp_path / "x.safetensors") is Reason.CHECKPOINT_CORRUPT


def test_plain_weights_are_sent_to_their_option(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    assert reason_of(tmp_path / "x.safetensors") is Reason.CHECKPOINT_CORRUPT
    with pytest.raises(ModelError, match="--weights"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("where", [0.5, 0.999])
def test_one_flipped_bit_in_the_tensors(saved: Path, where: float) -> None:
    content = bytearray(saved.read_bytes())
    content[int(len(content) * where)] ^= 1
    saved.write_bytes(content)
    assert reason_of(saved) is Reason.CHECKPOINT_HASH


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(trained=False),
        lambda plain: plain.update(sha256="0" * 64),
        lambda plain: plain["calibration"].update(temperature=1.0),
        lambda plain: plain["preprocessing"].update(margin=1.0),
        lambda plain: plain["provenance"].update(auc=0.99),
    ],
)
def test_a_changed_description(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewritten(saved, change)
    assert reason_of(saved) is Reason.CHECKPOINT_HASH


@pytest.mark.parametrize(
    ("version", "remedy"), [(FORMAT + 1, "upgrade"), (0, "fetch it again"), ("1", "fetch it again")]
)
def test_an_unknown_version(saved: Path, version: Any, remedy: str) -> None:
    rewritten(saved, lambda plain: plain.update(format=version, something_new=True))
    assert reason_of(saved) is Reason.CHECKPOINT_VERSION
    with pytest.raises(ModelError, match=remedy):
        describe(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("format"),
        lambda plain: plain.pop("calibration"),
        lambda plain: plain.update(trained="yes"),
        lambda plain: plain.update(name=3),
        lambda plain: plain.update(architecture=[]),
        lambda plain: plain["architecture"].update(head="cls"),
        lambda plain: plain["preprocessing"].update(size_px=-1),
    ],
)
def test_a_faulty_description(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewritten(saved, change)
    assert reason_of(saved) is Reason.CHECKPOINT_CORRUPT


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_description_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"unmask": text})
    assert reason_of(tmp_path / "x.safetensors") is Reason.CHECKPOINT_CORRUPT


def signed(path: Path, tensors: dict[str, torch.Tensor], description: Description) -> None:
    """A file whose digest is right, whatever it holds."""
    plain = replace(description, sha256=digest(tensors, description)).to_json()
    save_file(tensors, path, {"unmask": json.dumps(plain)})


def test_tensors_of_another_architecture(tmp_path: Path, model: ForgeryModel, description: Description) -> None:
    path, tensors = tmp_path / "x.safetensors", dict(model.state_dict())
    signed(path, tensors | {"extra": torch.ones(1)}, description)
    assert reason_of(path) is Reason.CHECKPOINT_CORRUPT
    signed(path, tensors, replace(description, config=replace(CONFIG, backbone="test_resnet")))
    assert reason_of(path) is Reason.CHECKPOINT_CORRUPT
    signed(path, tensors, replace(description, config=replace(CONFIG, backbone="test_efficientnett")))
    with pytest.raises(ModelError, match="test_efficientnet") as caught:
        load(path)
    assert caught.value.reason is Reason.UNKNOWN_MODEL


def test_numbers_that_are_not_finite(tmp_path: Path, model: ForgeryModel, description: Description) -> None:
    path, broken = tmp_path / "x.safetensors", build(CONFIG, seed=7)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="training diverged"):
        save(path, broken, description)
    assert list(tmp_path.iterdir()) == []
    signed(path, dict(broken.state_dict()), description)
    assert reason_of(path) is Reason.CHECKPOINT_CORRUPT


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(
    saved: Path, model: ForgeryModel, description: Description, error: type[BaseException], monkeypatch: Any
) -> None:
    before = saved.read_bytes()

    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", interrupted)
    with pytest.raises(UsageError if error is OSError else error):
        save(saved, model, replace(description, version="2"))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_again_replaces_the_file(saved: Path, model: ForgeryModel, description: Description) -> None:
    described = save(saved, model, replace(description, version="2"))
    assert describe(saved) == described
    assert list(saved.parent.iterdir()) == [saved]


def test_what_cannot_be_saved_is_refused(tmp_path: Path, model: ForgeryModel, description: Description) -> None:
    path = tmp_path / "x.safetensors"
    for place, described, match in [
        (path, replace(description, config=replace(CONFIG, window=6)), "the model is"),
        (tmp_path / "x.pth", description, r"ends in \.safetensors"),
        (path, replace(description, provenance={"auc": float("nan")}), "not JSON"),
        (path, replace(description, provenance={"when": object()}), "not JSON"),
        (tmp_path / "absent" / "x.safetensors", description, "cannot write"),
    ]:
        with pytest.raises(UsageError, match=match):
            save(place, model, described)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_saved(tmp_path: Path, description: Description) -> None:
    tied = build(CONFIG)
    tied.head[5].bias = torch.nn.Parameter(tied.head[3].bias.data[:64])  # type: ignore[index,union-attr]
    described = save(tmp_path / "tied.safetensors", tied, description)
    loaded, again = load(tmp_path / "tied.safetensors")
    assert again == described
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in tied.state_dict().items())


def test_a_model_of_opinion_scores_judges_no_videos() -> None:
    config = ModelConfig(backbone="mobilenetv3_small_050", head="temporal", task="mos")
    described = Description(name="m", version="1", config=config, preprocessing=Preprocessing(size_px=64))
    with pytest.raises(ModelError, match="not whether it is one: score with a detector"):
        described.check_detects()
    replace(described, config=ModelConfig(backbone="mobilenetv3_small_050")).check_detects()
