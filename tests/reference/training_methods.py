"""Training-time methods written entry by entry from their papers, on lists of floats; slow on purpose."""

import math
from collections.abc import Sequence

Vector = list[float]
Matrix = list[Vector]


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


def str_weight(w: float, s: float) -> float:
    """Kusupati et al. (2020), equation 4, with g the sigmoid."""
    return sign(w) * max(abs(w) - 1 / (1 + math.exp(-s)), 0.0)


def str_gradient_of_s(weights: Vector, upstream: Vector, s: float) -> float:
    """Equation 6, summed over the tensor: thresholds act where the weight passes."""
    g = 1 / (1 + math.exp(-s))
    return sum(-sign(w) * u * g * (1 - g) for w, u in zip(weights, upstream) if abs(w) > g)


def st3_weights(weights: Matrix, threshold: float) -> Matrix:
    """Vanderschueren and De Vleeschouwer (2023): soft threshold, then each output unit gets its scale back."""
    out = []
    for row in weights:
        whole = sum(abs(w) for w in row)
        left = sum(abs(w) for w in row if abs(w) > threshold)
        alpha = 1.01 / (left / whole + 0.01)
        out.append([alpha * sign(w) * max(abs(w) - threshold, 0.0) for w in row])
    return out


def hard_concrete(u: float, log_alpha: float) -> float:
    """Louizos et al. (2018), equations 10 and 11."""
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / beta))
    return min(1.0, max(0.0, s * (zeta - gamma) + gamma))


def divergence_by_quadrature(log_alpha: float) -> float:
    """KL of N(w, alpha w^2) from the log-uniform prior, with its constant such that it vanishes for large alpha.

    Molchanov et al. (2017), equation 13: E log |1 + sqrt(alpha) e| - log(alpha) / 2 - E log |e|, e normal.
    """
    root, total, step = math.exp(log_alpha / 2), 0.0, 1e-3
    for i in range(-8000, 8000):
        e = (i + 0.5) * step
        total += step * math.exp(-e * e / 2) / math.sqrt(2 * math.pi) * math.log(abs(1 + root * e))
    euler = 0.5772156649015329
    return total - log_alpha / 2 + (euler + math.log(2)) / 2


def rigl_update(
    weights: Vector, gradients: Vector, kept: Sequence[bool], fraction: float
) -> tuple[Vector, list[bool]]:
    """Evci et al. (2020), algorithm 1, for one layer: drop by magnitude, grow by gradient from zero."""
    active = [i for i, k in enumerate(kept) if k]
    count = int(fraction * len(active))
    dropped = sorted(active, key=lambda i: (abs(weights[i]), -i))[:count]
    stay = [i for i in active if i not in dropped]
    others = [i for i in range(len(weights)) if i not in stay]
    grown = sorted(others, key=lambda i: (-abs(gradients[i]), i))[:count]
    new = [i in stay or i in grown for i in range(len(weights))]
    values = [w if (kept[i] and new[i]) else 0.0 for i, w in enumerate(weights)]
    return values, new


def project(v: Vector, kept: int) -> Vector:
    best = sorted(range(len(v)), key=lambda i: (-abs(v[i]), i))[:kept]
    return [x if i in best else 0.0 for i, x in enumerate(v)]


def lc_quadratic(
    a: Vector, curvature: Vector, kept: int, mus: Sequence[float], multipliers: bool = True
) -> tuple[Vector, Vector, Vector]:
    """Carreira-Perpinan and Idelbayev (2018), figure 1, on sum h (w - a)^2 / 2, whose L step is solved exactly.

    Returns the weights, their sparse copy and the multipliers after the last mu.
    """
    w, lam = list(a), [0.0] * len(a)
    theta = project(w, kept)
    for mu in mus:
        w = [(h * x + mu * (t + m / mu)) / (h + mu) for h, x, t, m in zip(curvature, a, theta, lam)]
        theta = project([x - m / mu for x, m in zip(w, lam)], kept)
        if multipliers:
            lam = [m - mu * (x - t) for m, x, t in zip(lam, w, theta)]
    return w, theta, lam
