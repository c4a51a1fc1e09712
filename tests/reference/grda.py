"""gRDA written entry by entry from the paper's recursion (arXiv 2006.09358, Algorithms 1 and 2), in float64.

Slow on purpose: no vector operation, no shortcut. `gradient` is called with the current weights.
"""

from collections.abc import Callable, Sequence

Vector = list[float]
Gradient = Callable[[int, Vector], Vector]


def soft(v: float, g: float) -> float:
    if v > g:
        return v - g
    if v < -g:
        return v + g
    return 0.0


def algorithm_1(w0: Vector, gradient: Gradient, rate: float, steps: int, c: float, mu: float) -> list[Vector]:
    """Constant rate: g(n) = c rate^(1/2) (n rate)^mu."""
    v, w, path = list(w0), list(w0), []
    for n in range(1, steps + 1):
        grad = gradient(n, w)
        g = c * rate**0.5 * (n * rate) ** mu
        for j in range(len(v)):
            v[j] = v[j] - rate * grad[j]
            w[j] = soft(v[j], g)
        path.append(list(w))
    return path


def algorithm_2(w0: Vector, gradient: Gradient, rates: Sequence[float], c: float, mu: float) -> list[Vector]:
    """Piecewise constant rates: g grows by c rate_n^(mu + 1/2) (n^mu - (n-1)^mu)."""
    v, w, path, g = list(w0), list(w0), [], 0.0
    for n, rate in enumerate(rates, start=1):
        grad = gradient(n, w)
        g = g + c * rate ** (mu + 0.5) * (float(n) ** mu - float(n - 1) ** mu)
        for j in range(len(v)):
            v[j] = v[j] - rate * grad[j]
            w[j] = soft(v[j], g)
        path.append(list(w))
    return path
