"""Take a pruned network away: ONNX with sparse initializers, torch files, dense and sparse safetensors."""

from espalier.export.examples import Example, hf_example, image_example
from espalier.export.files import Converted, to_safetensors, to_sparse, to_torch
from espalier.export.initializers import Indices, Initializer
from espalier.export.onnx_file import Exported, to_onnx
from espalier.export.parity import Difference

__all__ = [
    "Converted",
    "Difference",
    "Example",
    "Exported",
    "Indices",
    "Initializer",
    "hf_example",
    "image_example",
    "to_onnx",
    "to_safetensors",
    "to_sparse",
    "to_torch",
]
