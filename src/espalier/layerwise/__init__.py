"""Prune linear layers from the inputs that reach them, without gradients or training: Wanda and SparseGPT.

masks = prune_linears(model, calibration_inputs, SparseGPT(), 0.5)
"""

from espalier.layerwise._base import NM as NM
from espalier.layerwise._base import AbstractLayerRule as AbstractLayerRule
from espalier.layerwise._base import LayerInputs as LayerInputs
from espalier.layerwise.linears import prune_linears as prune_linears
from espalier.layerwise.sparsegpt import SparseGPT as SparseGPT
from espalier.layerwise.wanda import Wanda as Wanda
