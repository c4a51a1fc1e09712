"""Pruning methods as frozen values: dense, one-shot, gradual, thresholds in the optimizer, and more, one file each.

fit(model, data, training, method=TargetGRDA(), sparsity=0.9)
"""

from espalier.methods._base import AbstractMethod as AbstractMethod
from espalier.methods._base import Dense as Dense
from espalier.methods._base import Plan as Plan
from espalier.methods._base import Rule as Rule
from espalier.methods.evidence import gather as gather
from espalier.methods.fixed import Fixed as Fixed
from espalier.methods.gradual import Gradual as Gradual
from espalier.methods.masked import MaskRule as MaskRule
from espalier.methods.movement import MovementPruning as MovementPruning
from espalier.methods.one_shot import OneShot as OneShot
from espalier.methods.thresholding import TargetGRDA as TargetGRDA
from espalier.methods.thresholding import Threshold as Threshold
