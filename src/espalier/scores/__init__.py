"""Scores: evidence in, same-keyed tensors out, higher = keep. One file per idea."""

from espalier.scores._base import AbstractScore as AbstractScore
from espalier.scores._base import Evidence as Evidence
from espalier.scores._base import Sampling as Sampling
from espalier.scores._base import elementwise as elementwise
from espalier.scores._base import ranked as ranked
from espalier.scores.grasp import GraSP as GraSP
from espalier.scores.magnitude import Magnitude as Magnitude
from espalier.scores.movement import Movement as Movement
from espalier.scores.obd import OBD as OBD
from espalier.scores.obd import HessianOBD as HessianOBD
from espalier.scores.random import Random as Random
from espalier.scores.saliency import SNIP as SNIP
from espalier.scores.saliency import Saliency as Saliency
from espalier.scores.synflow import SynFlow as SynFlow
from espalier.scores.woodfisher import WoodFisher as WoodFisher
