"""Optimizers that train zeros in: dual averaging, its threshold laws and their proximal maps.

Needs nothing else of this package, so it can be used alone:

    optimizer = GRDA(model.named_parameters(), lr=0.1, c=0.005, mu=0.51)
    law = TargetSparsity(0.9, steps=5000)
    optimizer = DualAveraging(model.named_parameters(), lr=0.05, law=law, momentum=0.9)
"""

from espalier.optim.calibration import power_law_reaching as power_law_reaching
from espalier.optim.calibration import threshold_path as threshold_path
from espalier.optim.dual_averaging import DualAveraging as DualAveraging
from espalier.optim.grda import GRDA as GRDA
from espalier.optim.grda import RDA as RDA
from espalier.optim.grda import ProxSGD as ProxSGD
from espalier.optim.laws import AbstractPathLaw as AbstractPathLaw
from espalier.optim.laws import Clock as Clock
from espalier.optim.laws import ConstantLaw as ConstantLaw
from espalier.optim.laws import Lasso as Lasso
from espalier.optim.laws import Law as Law
from espalier.optim.laws import LinearLaw as LinearLaw
from espalier.optim.laws import PowerLaw as PowerLaw
from espalier.optim.laws import TargetSparsity as TargetSparsity
from espalier.optim.laws import TimePowerLaw as TimePowerLaw
from espalier.optim.prox import elastic_net as elastic_net
from espalier.optim.prox import hard_threshold as hard_threshold
from espalier.optim.prox import lost_scale as lost_scale
from espalier.optim.prox import soft_threshold as soft_threshold
from espalier.optim.report import MaskReport as MaskReport
from espalier.optim.report import TensorMask as TensorMask
from espalier.optim.schedules import CUBIC as CUBIC
from espalier.optim.schedules import AbstractSchedule as AbstractSchedule
from espalier.optim.schedules import Polynomial as Polynomial
from espalier.optim.stopping import Settled as Settled
