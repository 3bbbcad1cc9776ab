"""The model in training: what enters the backbone, formats, phases, the optimiser's groups, the moving average."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.clips import Batch
from train.config import LoopConfig, OptimConfig, overridden
from train.context import Context
from train.network import (
    Network,
    accumulating,
    average,
    describe_size,
    optimiser,
    prepared,
    set_phase,
    wrapped,
)
from train.recipes import recipe
from unmask.errors import UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.transforms import Preprocessing, to_tensor

INPUT = Preprocessing(size_px=32)
CPU = torch.device("cpu")
VALID = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


def small(head: str = "frame", backbone: str = "test_efficientnet", **config: Any) -> ForgeryModel:
    return build(ModelConfig(backbone=backbone, head=head, window=3, **config))  # type: ignore[arg-type]


def pixels(frames: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, frames, size, size, 3), dtype=torch.uint8, generator=generator)


class Seen:
    """What enters a backbone."""

    def __init__(self, model: ForgeryModel) -> None:
        self.inputs: list[Tensor] = []
        model.backbone.register_forward_pre_hook(lambda _, arguments: self.inputs.append(arguments[0].detach()))


def test_frames_that_are_not_there_never_enter_the_backbone() -> None:
    model = small("temporal")
    network, seen, images = Network(model, INPUT), Seen(model), pixels()
    logits_B, features_MD, *_ = network(images, VALID)
    assert [tuple(x.shape) for x in seen.inputs] == [(6, 3, 32, 32)]
    torch.testing.assert_close(seen.inputs[0], to_tensor([i.numpy() for i in images[VALID]], INPUT))
    assert features_MD.shape == (6, model.dim)
    images[~VALID] = 255 - images[~VALID]
    assert torch.equal(network(images, VALID)[0], logits_B)


def test_logits_are_the_models_own() -> None:
    images = pixels()
    frame, clip = small(), small("temporal")
    crops = [i.numpy() for i in images[:, 0]]
    logits_B, features_BD, *_ = Network(frame, INPUT)(images[:, :1], VALID[:, :1])
    torch.testing.assert_close(features_BD, frame.features(to_tensor(crops, INPUT)))
    torch.testing.assert_close(logits_B, frame.head(features_BD)[:, 0])
    logits_B = Network(clip, INPUT)(images, VALID)[0]
    for b in range(3):
        own_TD = clip.features(to_tensor([i.numpy() for i in images[b][VALID[b]]], INPUT))
        spread_D = own_TD.std(0) if len(own_TD) > 1 else torch.zeros(clip.dim)
        torch.testing.assert_close(logits_B[b], clip.head(torch.cat([own_TD.mean(0), spread_D]))[0])


@pytest.mark.parametrize("head", ["frame", "temporal"])
def test_features_that_were_kept_stand_in_for_pixels(head: str) -> None:
    model = small(head)
    network, seen = Network(model, INPUT), Seen(model)
    images, valid_BT = (pixels(), VALID) if head == "temporal" else (pixels(1), VALID[:, :1])
    logits_B, features_MD, *_ = network(images, valid_BT)
    kept_BTD = torch.full((*valid_BT.shape, model.dim), torch.nan, dtype=torch.float16)
    kept_BTD[valid_BT] = features_MD.half()
    again_B = network(kept_BTD, valid_BT)[0]
    assert len(seen.inputs) == 1
    torch.testing.assert_close(again_B, logits_B, atol=1e-3, rtol=1e-2)


def test_gradients_reach_the_backbone_through_the_mask() -> None:
    network = Network(small("temporal"), INPUT)
    network.train()
    network(pixels(), VALID)[0].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.model.backbone.parameters())


def test_what_is_judged_on_a_cpu_lies_channels_last_as_in_scoring() -> None:
    model, images = small().eval(), pixels()[:, :1]
    seen, network = Seen(model), Network(model, INPUT)
    with torch.inference_mode():
        found = network.eval()(images, VALID[:, :1])[0]
        expected = model.frame_logits(model.features(to_tensor([i.numpy() for i in images[:, 0]], INPUT).contiguous()))
    assert seen.inputs[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_channels_last_changes_the_layout_alone() -> None:
    loop = LoopConfig(channels_last=True)
    plain, model = small(), prepared(small(), loop, CPU)
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    seen = Seen(model)
    found = Network(model, INPUT, channels_last=True)(pixels(1), VALID[:, :1])[0]
    assert seen.inputs[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, Network(plain, INPUT)(pixels(1), VALID[:, :1])[0])


def test_a_batch_is_judged_where_the_model_is() -> None:
    network = Network(small(), INPUT)
    batch = Batch(
        pixels=pixels(1),
        valid_BT=VALID[:, :1],
        label_B=torch.zeros(3),
        unit_B=torch.arange(3),
        mask=None,
        faces=(0, 1, 2),
        substituted=0,
        unchanged=0,
    )
    assert torch.equal(network.logits(batch, CPU), network(pixels(1), VALID[:, :1])[0])


def test_activations_may_be_computed_twice() -> None:
    gradients = []
    for checkpoint in (False, True):
        model = prepared(small(backbone="test_vit"), LoopConfig(checkpoint_activations=checkpoint), CPU).train()
        Network(model, Preprocessing(size_px=160))(pixels(1, 160), VALID[:, :1])[0].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(once, twice)
    with pytest.raises(UsageError, match="vgg11 cannot recompute activations"):
        prepared(small(backbone="vgg11"), LoopConfig(checkpoint_activations=True), CPU)


def test_batch_norm_stays_what_it_is_on_a_cpu() -> None:
    model = prepared(small(), LoopConfig(sync_bn=True), CPU)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batch_norm_is_shared_on_gpus() -> None:
    model = prepared(small(), LoopConfig(sync_bn=True), torch.device("cuda"))
    kinds = {type(m).__name__ for m in model.modules() if "BatchNorm" in type(m).__name__}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), kinds


def trainable(model: ForgeryModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_phases() -> None:
    model = small().train()
    every, head = set(dict(model.named_parameters())), {"head.fc.weight", "head.fc.bias"}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    late = LoopConfig(freeze="backbone", unfreeze_after=2)
    for epoch, wanted in enumerate((head, head, every, every)):
        set_phase(model, late, epoch)
        assert trainable(model) == wanted, epoch
        # A frozen backbone keeps its statistics, also when training is turned on again after validation.
        for _ in range(2):
            assert {m.training for m in norms} == {epoch >= 2}
            model.eval().train()
    set_phase(model, LoopConfig(freeze="backbone"), 99)
    assert trainable(model) == head
    set_phase(model, LoopConfig(), 0)
    assert trainable(model) == every


def test_layer_norms_alone() -> None:
    model = small("l2", backbone="test_vit").train()
    set_phase(model, LoopConfig(freeze="layer_norm"), 0)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    wanted = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert len(wanted) > 4
    assert trainable(model) == wanted | {"head.fc.weight", "head.fc.bias"}
    with pytest.raises(UsageError, match="test_efficientnet has no LayerNorm to tune"):
        set_phase(small(), LoopConfig(freeze="layer_norm"), 0)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimisers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = small()
    set_phase(model, LoopConfig(freeze="backbone"), 0)
    found = optimiser(model, OptimConfig(name=name, lr=0.02, weight_decay=0.3))  # type: ignore[arg-type]
    assert type(found) is kind
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in found.param_groups]
    # Frozen ones too, so that a state from one phase fits the next one.
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    assert [group["weight_decay"] for group in found.param_groups] == [0.3, 0.0]
    assert {group["lr"] for group in found.param_groups} == {0.02}
    norms = {
        f"{n}.{part}" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for part in ("weight", "bias")
    }
    assert norms | {"head.fc.bias"} <= groups[1]
    assert all(name.endswith(("weight", "bias")) for name in groups[1])
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert groups[0] == linear
    if name == "sgd":
        assert {(group["momentum"], group["nesterov"]) for group in found.param_groups} == {(0.9, True)}


def test_a_frozen_weight_does_not_decay() -> None:
    model = small().train()
    set_phase(model, LoopConfig(freeze="backbone"), 0)
    before = copy.deepcopy(model.state_dict())
    found = optimiser(model, OptimConfig(name="adamw", lr=0.1, weight_decay=0.5))
    Network(model, INPUT)(pixels(1), VALID[:, :1])[0].sum().backward()
    found.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_the_moving_average_is_one() -> None:
    network, decay = Network(small(), INPUT), 0.9
    network.train()
    averaged = average(network, decay)
    wanted: dict[str, Tensor] = {}
    for step in range(4):
        with torch.no_grad():
            for parameter in network.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        network(pixels(1), VALID[:, :1])  # which moves BatchNorm's statistics
        averaged.update_parameters(network.model)
        now = {
            name: tensor.clone() for name, tensor in network.model.state_dict().items() if tensor.is_floating_point()
        }
        # The first update takes the weights as they are; the decay rises to its value.
        kept = min(decay, (1 + step) / (10 + step))
        wanted = {k: kept * wanted[k] + (1 - kept) * v for k, v in now.items()} if step else now
    found = averaged.module.state_dict()
    assert any("running_var" in name for name in wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["head.fc.weight"], network.model.state_dict()["head.fc.weight"])


def test_what_is_trained_is_said() -> None:
    config = overridden(recipe("dfdc-b5"), ["backbone=test_efficientnet", "drop_path=0"])
    network = Network(build(config.model), INPUT)
    set_phase(network.model, LoopConfig(freeze="backbone"), 0)
    every = sum(p.numel() for p in network.model.parameters())
    said = describe_size(config, network)
    assert said == f"test_efficientnet, frame head: {every / 1e6:.2f} M weights, 0.000 M trained"


def test_one_worker_needs_no_wrapping() -> None:
    network = Network(small(), INPUT)
    assert wrapped(network, LoopConfig(), Context(device=CPU)) is network
    with accumulating(network, is_last=False):
        pass  # nothing to keep quiet


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_gradients_travel_at_the_last_batch_of_a_step_alone() -> None:
    network = Network(small(), INPUT)
    network.train()
    ddp = wrapped(network, LoopConfig(), Context(device=CPU, rank=0, workers=2))
    assert isinstance(ddp, DistributedDataParallel)
    sent: list[int] = []

    def counted(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        sent.append(bucket.buffer().numel())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    ddp.register_comm_hook(None, counted)
    for step in range(3):
        with accumulating(ddp, is_last=step == 2):
            ddp(pixels(1), VALID[:, :1])[0].sum().backward()
        assert bool(sent) == (step == 2)
    assert sum(sent) == sum(p.numel() for p in network.parameters())
