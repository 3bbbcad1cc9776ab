"""A tiny network of Depth-Anything's architecture with random weights, as weights are published."""

from pathlib import Path

import torch

__all__ = ["tiny_depth"]


def tiny_depth(folder: Path, *, seed: int = 0) -> Path:
    """Write `config.json` and `model.safetensors`; the input's side is a multiple of 14, 56 being its own."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
    from transformers.utils import logging

    logging.disable_progress_bar()
    backbone = Dinov2Config(
        hidden_size=12, num_attention_heads=2, num_hidden_layers=4, image_size=56, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"], apply_layernorm=True, patch_size=14,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=12, neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = DepthAnythingForDepthEstimation(config)
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.kaiming_normal_(weight)  # with its own small ones, maps are nearly flat
    torch.nn.init.constant_(network.head.conv3.bias, 1.0)  # what is below 0 is cut off
    network.save_pretrained(folder)
    return folder
