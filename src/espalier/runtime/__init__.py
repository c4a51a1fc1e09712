"""Pruned networks that run faster on a CPU, where that was measured, and a bench that says whether to deploy them."""

from espalier.runtime.acceleration import accelerate, plan_of
from espalier.runtime.kernels import KERNELS, AbstractKernel, Bag, Csr
from espalier.runtime.layers import Choice, SparseConv2d, SparseLinear
from espalier.runtime.plan import LayerPlan, Machine, Plan

__all__ = [
    "KERNELS",
    "AbstractKernel",
    "Bag",
    "Choice",
    "Csr",
    "LayerPlan",
    "Machine",
    "Plan",
    "SparseConv2d",
    "SparseLinear",
    "accelerate",
    "plan_of",
]
