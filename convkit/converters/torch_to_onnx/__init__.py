"""PyTorch to ONNX: several ways, tried in order, each verified by the pipeline."""

from __future__ import annotations

from dataclasses import replace

from convkit.converters.torch_to_onnx.decoder import decoder
from convkit.converters.torch_to_onnx.exported import exported, newer, unrolled
from convkit.converters.torch_to_onnx.exported_cache import exported_cache
from convkit.converters.torch_to_onnx.language_folder import folder_ending
from convkit.converters.torch_to_onnx.mobius import mobius
from convkit.converters.torch_to_onnx.traced import legacy
from convkit.step import ladder

torch_to_onnx = replace(
    ladder(
        "torch",
        "onnx",
        decoder,
        mobius,
        exported_cache,
        exported,
        legacy,
        unrolled,
        newer,
        carries=("fp32", "fp16", "bf16"),
        loses="training state, Python code around the network, and control flow that depends on "
        "data unless written with torch.cond or torch.while_loop",
    ),
    ending=folder_ending,
)
