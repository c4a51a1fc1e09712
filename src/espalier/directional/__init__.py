"""Directional pruning made explicit: flat subspace, scores, one-shot formula, path; OBS and OBD beside it."""

from espalier.directional.formula import closed_form, objective, one_shot, scores, strength_for
from espalier.directional.method import DirectionalPruning
from espalier.directional.path import Path, Step, follow, refit
from espalier.directional.pruning import Directional, directional, prune_directional
from espalier.directional.regression import Fit, regress
from espalier.directional.subspace import FlatSubspace, by_cutoff, by_energy, by_filter, kappa
from espalier.directional.surgeon import Surgery, brain_damage, brain_surgeon

__all__ = [
    "Directional",
    "DirectionalPruning",
    "Fit",
    "FlatSubspace",
    "Path",
    "Step",
    "Surgery",
    "brain_damage",
    "brain_surgeon",
    "by_cutoff",
    "by_energy",
    "by_filter",
    "closed_form",
    "directional",
    "follow",
    "kappa",
    "objective",
    "one_shot",
    "prune_directional",
    "refit",
    "regress",
    "scores",
    "strength_for",
]
