"""What SparseGPT costs on one layer beside the linear algebra that it cannot do without."""

import torch

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier.layerwise import NM, LayerInputs, SparseGPT, Wanda


def sparsegpt(quick: bool = False) -> Part:
    """SparseGPT on a square layer of 4096 inputs, against one Cholesky factorization and one solve of that size.

    The solve is of the layer's own equations: the factor's two triangles against a square right-hand side. Beside it,
    for whoever means less by a solve, one triangle alone.
    """
    n = 128 if quick else 4096
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, n, generator=generator)
    x = torch.randn(2 * n, n, generator=generator)
    gram = x.T @ x
    inputs = LayerInputs(len(x), gram.diagonal().double(), gram.double())
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(n)
    del x

    def one_triangle() -> None:
        torch.linalg.solve_triangular(torch.linalg.cholesky(damped), weight, upper=False)

    times = interleaved(
        {
            "Cholesky and solve": lambda: torch.cholesky_solve(weight, torch.linalg.cholesky(damped)),
            "Cholesky and one triangle": one_triangle,
            "SparseGPT 50 %": lambda: SparseGPT().prune(weight, inputs, 0.5),
            "SparseGPT 2:4": lambda: SparseGPT().prune(weight, inputs, NM(2, 4)),
            "Wanda 50 %": lambda: Wanda().prune(weight, inputs, 0.5),
        },
        2 if quick else 3,
    )
    base = times["Cholesky and solve"]
    goals = [
        Goal(f"{name}, {n} x {n}, over Cholesky and solve", 2.0, *ratio(times[name], base))
        for name in ("SparseGPT 50 %", "SparseGPT 2:4")
    ]
    return Part(goals, {"seconds": table(times), "n": n})
