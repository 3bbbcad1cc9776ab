"""Where the models run."""

import torch

from unmask.errors import Reason, UsageError

__all__ = ["select_device"]


def select_device(device: str | torch.device) -> torch.device:
    """The device that a user means; `auto` is a GPU where there is one.

    From then on this process's convolutions in float32 keep all of its bits: by default GPUs since Ampere round to the
    ten of TF32, and scores would differ from a CPU's by more than 1e-4. Training is fast by mixed precision instead.

    Raises:
        UsageError: There is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type in {"cpu", "cuda"}:
            torch.empty(1, device=chosen)
            torch.backends.cudnn.allow_tf32 = False
            return chosen
    except (RuntimeError, AssertionError):
        pass
    raise UsageError(
        f"--device {device} is not there; choose cpu, cuda, or auto for the better one of them",
        Reason.DEVICE_UNAVAILABLE,
    )
