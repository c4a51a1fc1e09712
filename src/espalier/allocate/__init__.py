"""Allocations: a budget in, exact counts per tensor out. One file per idea.

Global and LAMP rank all entries together; Uniform, UniformPlus and ERK give each tensor its share. All
respect a `floor` and the zeros that are there already. They are the rows of the comparison in Lee et al.,
ICLR 2021.
"""

from espalier.allocate._base import AbstractAllocation as AbstractAllocation
from espalier.allocate.erk import ERK as ERK
from espalier.allocate.lamp import LAMP as LAMP
from espalier.allocate.uniform import Uniform as Uniform
from espalier.allocate.uniform import UniformPlus as UniformPlus
from espalier.allocate.whole import Global as Global
