"""The trace of curvature, with its standard error."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

from espalier._errors import EspalierError
from espalier.data import seeded
from espalier.landscape.density import mean_and_error
from espalier.landscape.operators import AbstractOperator
from espalier.landscape.records import Records


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Args:
        value: the mean over independent repeats.
        error: its standard error over them.
        repeats: how many.
        products: matrix-vector products in all.
        method: "hutch++" or "hutchinson".
    """

    value: float
    error: float
    repeats: int
    products: int
    method: str


def trace(
    operator: AbstractOperator,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    products: int = 12,
    repeats: int = 5,
    seed: int = 0,
    records: Records | None = None,
) -> Trace:
    """The trace, by curvlinops, repeated independently so that it has a standard error.

    Args:
        operator: symmetric, of dimension above `products`.
        method: Hutch++ (a subspace exactly, the rest at random) or plain Hutchinson (unit variance probes).
        products: matrix-vector products a repeat; a multiple of 3 for Hutch++.
        repeats: at least 2.
        seed: of the probes.
        records: keeps each repeat as soon as it is done, and gives those of an earlier call.

    Raises:
        EspalierError: curvlinops is missing, or numbers out of range.
    """
    estimators = _curvlinops()
    if method not in estimators:
        raise EspalierError(f"trace method {method!r} is unknown; use one of {', '.join(estimators)}")
    if repeats < 2 or products < 3 or (method == "hutch++" and products % 3):
        raise EspalierError(
            f"a trace needs 2 or more repeats, and products in threes, got {repeats} repeats of {products}"
        )
    if products >= operator.dimension:
        raise EspalierError(
            f"{products} products a repeat give no estimate in {operator.dimension} dimensions: "
            "give fewer, or take the diagonal of `operator.dense()`"
        )
    records, found, used = Records(None, {}) if records is None else records, [], 0
    devices = [operator.device] if operator.device.type == "cuda" else []
    for repeat in range(repeats):
        record = records.get(repeat)
        if record is None:
            before = operator.products
            with torch.random.fork_rng(devices):  # curvlinops draws from the global generator
                torch.manual_seed(seeded("trace", seed, repeat).initial_seed())
                value = float(estimators[method](operator, products))
            record = {"value": value, "products": operator.products - before}
            records.add(repeat, record)
        found.append(float(record["value"]))
        used += int(record["products"])
    value, error = mean_and_error(found)
    return Trace(value, error, repeats, used, method)


def _curvlinops() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.script, at its import
            from curvlinops import hutchinson_trace, hutchpp_trace
    except ImportError:
        raise EspalierError(
            "the trace needs curvlinops-for-pytorch: pip install 'espalier[landscape]'"
        ) from None
    return {"hutch++": hutchpp_trace, "hutchinson": hutchinson_trace}
