"""Pruning methods as frozen values: dense, one-shot, gradual, thresholds in the optimizer, and more, one file each.

fit(model, data, training, method=TargetGRDA(), sparsity=0.9)
"""

from espalier.methods._base import AbstractMethod as AbstractMethod
from espalier.methods._base import Dense as Dense
from espalier.methods._base import Plan as Plan
from espalier.methods._base import Rule as Rule
from espalier.methods.alternating import ACDC as ACDC
from espalier.methods.drop_and_grow import SET as SET
from espalier.methods.drop_and_grow import RigL as RigL
from espalier.methods.evidence import gather as gather
from espalier.methods.fixed import Fixed as Fixed
from espalier.methods.gradual import Gradual as Gradual
from espalier.methods.hard_concrete import L0 as L0
from espalier.methods.iterative import Iterative as Iterative
from espalier.methods.learned_thresholds import STR as STR
from espalier.methods.learning_compression import LC as LC
from espalier.methods.masked import MaskRule as MaskRule
from espalier.methods.movement import MovementPruning as MovementPruning
from espalier.methods.one_shot import OneShot as OneShot
from espalier.methods.straight_through import ST3 as ST3
from espalier.methods.thresholding import TargetGRDA as TargetGRDA
from espalier.methods.thresholding import Threshold as Threshold
from espalier.methods.variational import VariationalDropout as VariationalDropout
