"""Scores: evidence in, same-keyed tensors out, higher = keep. One file per idea."""

from espalier.scores._base import AbstractScore as AbstractScore
from espalier.scores._base import Evidence as Evidence
from espalier.scores._base import ranked as ranked
from espalier.scores.magnitude import Magnitude as Magnitude
from espalier.scores.random import Random as Random
