"""The few functions of SciPy that the statistics use, with types (SciPy comes without)."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special, stats  # pyright: ignore[reportMissingTypeStubs]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_optimize: Any = optimize
_sparse: Any = sparse
_special: Any = special
_stats: Any = stats

_MAX_ITERATIONS = 2000


def minimize(function: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    """Return where a smooth function is least, by L-BFGS.

    Args:
        function: parameters (P,) -> (value, gradient (P,)).
        start: (P,), where the search begins.
    """
    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 4 * _MAX_ITERATIONS, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 20}
    found = _optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64)


def count(index: Ints, size: int, weights: Floats | None = None) -> Floats:
    """Return (size,): how often each index occurs, or the sum of its weights."""
    found: Any = np.bincount(index, weights, size)
    return np.asarray(found, dtype=np.float64)


def inverse(matrices: Floats) -> Floats:
    """Return the inverses of (..., n, n) matrices."""
    found: Any = np.linalg.inv(matrices)
    return found


def rows(*columns: Ints) -> list[tuple[int, ...]]:
    """Return arrays of one length as tuples of plain numbers."""
    table: Any = np.stack(columns, axis=1)
    return table.tolist()


def log_sigmoid(x: Floats) -> Floats:
    """Return log(1 / (1 + exp(-x))) without overflow."""
    return _special.log_expit(x)


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return _special.expit(x)


def log_sum_exp(x: Floats, axis: int) -> Floats:
    """Return log(sum(exp(x))) along an axis."""
    return _special.logsumexp(x, axis=axis)


def components(first: Ints, second: Ints, num_nodes: int) -> Ints:
    """Return for each node (num_nodes,) the number of its connected component; edges join first to second."""
    graph = _sparse.coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(num_nodes, num_nodes))
    return np.asarray(_sparse.csgraph.connected_components(graph, directed=False)[1], dtype=np.int64)


def num_strong_components(winner: Ints, loser: Ints, num_nodes: int) -> int:
    """Return the number of strongly connected components of "has won against"."""
    graph = _sparse.coo_array((np.ones(len(winner), dtype=np.int8), (winner, loser)), shape=(num_nodes, num_nodes))
    return int(_sparse.csgraph.connected_components(graph, directed=True, connection="strong")[0])


def beta_interval(successes: Floats, failures: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the ends of the central interval of Beta(successes, failures) distributions."""
    tail = (1 - level) / 2
    ends = [np.asarray(_stats.beta.ppf(q, successes, failures), dtype=np.float64) for q in (tail, 1 - tail)]
    return ends[0], ends[1]


def binomial_p(successes: int, n: int) -> float:
    """Return the two-sided p of the exact test that successes ~ Binomial(n, 1/2); 1 for n = 0."""
    return float(_stats.binomtest(successes, n).pvalue) if n else 1.0


def chi_square_p(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square variable exceeds the statistic."""
    return float(_stats.chi2.sf(statistic, degrees))


def normal_quantile(level: float) -> float:
    """Return z such that a normal variable lies within +-z with probability `level`."""
    return float(_stats.norm.ppf((1 + level) / 2))


def t_quantile(level: float, degrees: float) -> float:
    """Return t such that Student's variable lies within +-t with probability `level`."""
    return float(_stats.t.ppf((1 + level) / 2, degrees))


def normal_p(z: float) -> float:
    """Return the two-sided p of a standard normal statistic."""
    return float(2 * _stats.norm.sf(abs(z)))


def kendall_tau(x: Floats, y: Floats) -> float:
    """Return Kendall's tau-b; NaN where one of them is constant."""
    return float(_stats.kendalltau(x, y).statistic)
