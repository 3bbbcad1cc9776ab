"""Which number format a device gets, and what it is refused."""

import pytest
import torch

from train.config import LoopConfig
from train.precision import Precision, choose
from unmask.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
VOLTA, TURING, AMPERE, HOPPER = (7, 0), (7, 5), (8, 0), (9, 0)


def chosen(wanted: str, device: torch.device, capability: tuple[int, int] | None = None) -> Precision:
    return choose(LoopConfig(precision=wanted), device, capability)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "name"),
    [
        ("auto", CPU, None, "fp32"),
        ("auto", GPU, VOLTA, "fp16"),
        ("auto", GPU, TURING, "fp16"),
        ("auto", GPU, AMPERE, "bf16"),
        ("auto", GPU, HOPPER, "bf16"),
        ("fp32", GPU, VOLTA, "fp32"),
        ("fp16", GPU, AMPERE, "fp16"),
        ("bf16", GPU, AMPERE, "bf16"),
        ("bf16", CPU, None, "bf16"),
        ("fp32", CPU, None, "fp32"),
    ],
)
def test_each_device_gets_what_it_computes_fast_and_safely(
    wanted: str, device: torch.device, capability: tuple[int, int] | None, name: str
) -> None:
    found = chosen(wanted, device, capability)
    assert found.name == name
    assert found.device == device


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "says"),
    [
        ("fp16", CPU, None, r"loop\.precision=fp16 needs a GPU; on a CPU choose fp32 or bf16"),
        ("bf16", GPU, VOLTA, r"loop\.precision=bf16 needs a GPU from Ampere on; choose fp16 or auto"),
        ("bf16", GPU, TURING, "from Ampere on"),
    ],
)
def test_what_a_device_cannot_do_is_refused(
    wanted: str, device: torch.device, capability: tuple[int, int] | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        chosen(wanted, device, capability)


@pytest.mark.parametrize(("wanted", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_have_that_format(wanted: str, dtype: torch.dtype) -> None:
    found = chosen(wanted, CPU)
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    with found.autocast():
        assert (a @ b).dtype == dtype
    assert (a @ b).dtype == torch.float32  # and nothing outside


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_other_formats_are_not_scaled(wanted: str) -> None:
    scaler = chosen(wanted, CPU).scaler()
    assert not scaler.is_enabled()
    weight = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([weight], lr=0.5)
    scaler.scale((weight * 3).sum()).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimiser)
    scaler.step(optimiser)
    scaler.update()
    assert weight.item() == -0.5
    assert scaler.state_dict() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_small_gradients_survive_float16() -> None:
    scaler = chosen("fp16", GPU).scaler()
    assert scaler.is_enabled()
    weight = torch.nn.Parameter(torch.ones(1, device=GPU))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    scaler.scale((weight.half() * 1e-4).float().sum() * 1e-5).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimiser)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(1e-9, rel=0.01)  # below what float16 can hold


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_device_is_asked_where_nothing_is_said() -> None:
    major, _ = torch.cuda.get_device_capability(GPU)
    assert chosen("auto", GPU).name == ("bf16" if major >= 8 else "fp16")
