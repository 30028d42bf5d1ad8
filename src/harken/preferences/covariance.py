"""Standard errors of scores: the inverse of a Hessian whose score part falls into connected components."""

from copy import copy

import numpy as np

from harken.errors import DataError
from harken.preferences.numeric import Floats, Ints, inverse

MAX_BLOCK = 2000
"""Completions in one connected component up to which its block is inverted (n^3 operations)."""
_MAX_CROSS = 20_000_000
"""Scores times other parameters up to which they are treated jointly: 160 MB."""
FLAT = 1e-6
"""Share of its scale below which a curvature is taken for rounding, which was measured to be up to 1e-8 of it."""


class UndeterminedError(DataError):
    """The votes do not determine the parameters beside the scores: too few, or one of them decides every vote."""


class Covariance:
    """Covariance of K scores, whose mean in each component is fixed, and of E other parameters.

    The Hessian of the scores is a weighted graph Laplacian plus `ridge` times the identity, so it is inverted component
    by component, and the other parameters are joined to it by their Schur complement. That is exact, unless a component
    is larger than `MAX_BLOCK` (its errors are NaN) or there are very many other parameters (then `joint` is False, and
    the errors of each side are those given the other).

    Source: block matrix inversion, Boyd and Vandenberghe 2004, appendix A.5.5.
    """

    def __init__(
        self,
        edges: tuple[Ints, Ints, Floats],
        component: Ints,
        *,
        ridge: float,
        cross: Floats | None = None,
        other: Floats | None = None,
    ) -> None:
        """Invert.

        Args:
            edges: (first, second, curvature), each (V,): the Hessian is the sum of curvature x x' with x = e_first -
                e_second.
            component: (K,) number of each score's component.
            ridge: added to the Hessian's diagonal of the scores; at least 0.
            cross: (K, E) second derivatives of score and other parameter; None for none, or where K E is too large.
            other: (E, E) second derivatives of the other parameters.

        Raises:
            UndeterminedError: the Hessian has no inverse, or one that is no covariance.
        """
        self.num_scores = len(component)
        sizes = np.bincount(component)
        self._size = sizes[component]
        order = np.argsort(component, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._position = np.empty(self.num_scores, dtype=np.int64)
        self._position[order] = np.arange(self.num_scores) - np.repeat(starts, sizes)
        self._block = np.empty(self.num_scores, dtype=np.int64)
        self._inverse: dict[int, Floats] = {}
        self._members: dict[int, Ints] = {}
        for size in np.unique(sizes).tolist():
            chosen = np.flatnonzero(sizes == size)
            members = order[starts[chosen][:, None] + np.arange(size)]
            self._block[members] = np.arange(len(chosen))[:, None]
            if size <= MAX_BLOCK:
                self._members[size] = members
                self._inverse[size] = self._inverted(size, len(chosen), edges, ridge)
        self.joint = cross is not None and other is not None
        self._solved: Floats = np.zeros((self.num_scores, 0))
        self.other: Floats = np.zeros((0, 0))
        if cross is not None and other is not None:
            self._solved = self._solve(cross)
            self.other = _covariance(other - cross.T @ self._solved, np.abs(other).max(initial=0.0))

    def _inverted(self, size: int, count: int, edges: tuple[Ints, Ints, Floats], ridge: float) -> Floats:
        chosen = self._size[edges[0]] == size
        first, second, curvature = edges[0][chosen], edges[1][chosen], edges[2][chosen]
        block, one, other = self._block[first], self._position[first], self._position[second]
        laplacian = np.zeros(count * size * size)
        for row, column, sign in ((one, one, 1), (other, other, 1), (one, other, -1), (other, one, -1)):
            cells = (block * size + row) * size + column
            laplacian += np.bincount(cells, weights=sign * curvature, minlength=len(laplacian))
        # The mean of a component is no matter of the data: it gets curvature 1 here, and its variance is taken away.
        matrix = laplacian.reshape(count, size, size) + ridge * np.eye(size) + 1 / size
        return inverse(matrix) - 1 / (size * (1 + ridge))

    def _solve(self, right: Floats) -> Floats:
        solved = np.full_like(right, np.nan)
        for size, members in self._members.items():
            solved[members] = self._inverse[size] @ right[members]
        return np.nan_to_num(solved, nan=0.0)

    def scaled(self, factor: float) -> "Covariance":
        """Return the covariance of `factor` times the scores, beside the same other parameters."""
        found = copy(self)
        found._inverse = {size: factor**2 * blocks for size, blocks in self._inverse.items()}
        found._solved = factor * self._solved
        return found

    def errors(self) -> Floats:
        """Return the standard errors (K,) of the scores; NaN in components that are too large."""
        variance = np.full(self.num_scores, np.nan)
        for size, members in self._members.items():
            variance[members] = np.diagonal(self._inverse[size], axis1=1, axis2=2)
        return np.sqrt(variance + np.einsum("ke,ef,kf->k", self._solved, self.other, self._solved))

    def variance_of_difference(self, first: Ints, second: Ints) -> Floats:
        """Return the variances (N,) of score[first] - score[second]; each two must share a component."""
        variance = np.full(len(first), np.nan)
        for size, blocks in self._inverse.items():
            chosen = np.flatnonzero(self._size[first] == size)
            block, one, other = (
                self._block[first[chosen]],
                self._position[first[chosen]],
                self._position[second[chosen]],
            )
            variance[chosen] = blocks[block, one, one] + blocks[block, other, other] - 2 * blocks[block, one, other]
        change = self._solved[first] - self._solved[second]
        return variance + np.einsum("ne,ef,nf->n", change, self.other, change)


def fits_jointly(num_scores: int, num_others: int) -> bool:
    """Say whether scores and other parameters are few enough for a joint covariance."""
    return num_others <= MAX_BLOCK and num_scores * num_others <= _MAX_CROSS


def _covariance(hessian: Floats, scale: float) -> Floats:
    """Return the inverse of a Hessian of other parameters, less what the scores explain of it.

    Where they explain all of it, rounding is left, whose inverse is anything, below 0 too.

    Args:
        hessian: (E, E), symmetric.
        scale: of what it was before.
    """
    problem = f"the votes do not determine {len(hessian)} parameters beside the scores; give more votes"
    try:
        found = inverse(hessian)
        # Both sides: rounding may have left a Hessian that is not quite symmetric.
        is_sound = all((np.linalg.eigvalsh(matrix) > FLAT * scale).all() for matrix in (hessian, hessian.T))
        is_covariance = all((np.linalg.eigvalsh(matrix) > 0).all() for matrix in (found, found.T))
    except np.linalg.LinAlgError as error:
        raise UndeterminedError(problem) from error
    if not (is_sound and is_covariance):
        raise UndeterminedError(problem)
    return found
