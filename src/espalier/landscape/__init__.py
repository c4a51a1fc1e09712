"""The loss around and between networks: curvature, ways, planes, functions, norms, and what masks share."""

from espalier.landscape.cka import layers_cka, linear_cka
from espalier.landscape.curve_between import CurveTraining, trained_path
from espalier.landscape.density import Density, density
from espalier.landscape.embedding import Embedding, embed, family, prediction_distances
from espalier.landscape.functions import Functions, Pair, compare_functions
from espalier.landscape.norms import Norms, series
from espalier.landscape.operators import AbstractOperator, Curvature, Matrix, Restricted
from espalier.landscape.path import Along, Barrier, Path, measure_path
from espalier.landscape.plane import (
    Difference,
    Grid,
    Mark,
    Plane,
    difference,
    filter_normalized,
    measure_plane,
    radial,
    random_plane,
    through,
)
from espalier.landscape.points import Space, average
from espalier.landscape.project import Share, project
from espalier.landscape.risk import Risk, cross_entropy
from espalier.landscape.spectrum import Eigenpairs, leading
from espalier.landscape.surface import Height, Level, Surface
from espalier.landscape.topology import Layer, Overlap, connectivity, dead_units, groups_of, overlaps
from espalier.landscape.trace import Trace, trace

__all__ = [
    "AbstractOperator",
    "Along",
    "Barrier",
    "Curvature",
    "CurveTraining",
    "Density",
    "Difference",
    "Eigenpairs",
    "Embedding",
    "Functions",
    "Grid",
    "Height",
    "Layer",
    "Level",
    "Mark",
    "Matrix",
    "Norms",
    "Overlap",
    "Pair",
    "Path",
    "Plane",
    "Restricted",
    "Risk",
    "Share",
    "Space",
    "Surface",
    "Trace",
    "average",
    "compare_functions",
    "connectivity",
    "cross_entropy",
    "dead_units",
    "density",
    "difference",
    "embed",
    "family",
    "filter_normalized",
    "groups_of",
    "layers_cka",
    "leading",
    "linear_cka",
    "measure_path",
    "measure_plane",
    "overlaps",
    "prediction_distances",
    "project",
    "radial",
    "random_plane",
    "series",
    "through",
    "trace",
    "trained_path",
]
