"""The number format of the forward pass, by what the device computes fast and safely."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from train.config import LoopConfig
from unmask.errors import UsageError

__all__ = ["Precision", "choose"]

# From Ampere on: bfloat16 in hardware.
_AMPERE = 8


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format.

    Args:
        device: Where the model is.
        dtype: float32 without mixed precision, else float16 or bfloat16.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """fp32, fp16 or bf16."""
        return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> GradScaler:
        """Keeps small gradients of float16 from vanishing; does nothing for other formats."""
        return GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose(config: LoopConfig, device: torch.device, capability: tuple[int, int] | None = None) -> Precision:
    """The format that is wanted, or the device's best.

    Args:
        config: What is wanted.
        device: Where the model is.
        capability: CUDA's, of the device; asked of it where it is left open.

    Raises:
        UsageError: float16 on a CPU, or bfloat16 on a GPU that lacks it.
    """
    is_gpu = device.type == "cuda"
    major = (capability or torch.cuda.get_device_capability(device))[0] if is_gpu else 0
    wanted = config.precision
    if wanted == "auto":
        wanted = ("bf16" if major >= _AMPERE else "fp16") if is_gpu else "fp32"
    if wanted == "fp16" and not is_gpu:
        raise UsageError("loop.precision=fp16 needs a GPU; on a CPU choose fp32 or bf16")
    if wanted == "bf16" and is_gpu and major < _AMPERE:
        raise UsageError("loop.precision=bf16 needs a GPU from Ampere on; choose fp16 or auto")
    return Precision(device, {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted])
