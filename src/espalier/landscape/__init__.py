"""The loss around a network: curvature, what a difference of networks has to do with it, and the way between them."""

from espalier.landscape.operators import AbstractOperator, Curvature, Matrix, Restricted
from espalier.landscape.project import Share, project
from espalier.landscape.risk import Risk, cross_entropy
from espalier.landscape.spectrum import Density, Eigenpairs, Trace, density, leading, trace

__all__ = [
    "AbstractOperator",
    "Curvature",
    "Density",
    "Eigenpairs",
    "Matrix",
    "Restricted",
    "Risk",
    "Share",
    "Trace",
    "cross_entropy",
    "density",
    "leading",
    "project",
    "trace",
]
