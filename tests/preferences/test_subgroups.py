"""The mixed model of groups: simulated groups of known taste, and groups that differ in nothing."""

import numpy as np
import pytest

from harken.preferences.numeric import Floats
from harken.preferences.subgroups import preference_shift
from tests.preferences.crowd import Crowd, simulated

GROUPS = np.where(np.arange(40) < 26, "many", np.where(np.arange(40) < 33, "few", "some"))
GROUP_OF = {f"j{number:04}": str(name) for number, name in enumerate(GROUPS)}


def _crowd(seed: int, *, few: float, num_pairs: int = 250) -> Crowd:
    """Judges whose factors are spread around 1, those of the group "few" around another."""
    rng = np.random.default_rng(seed)
    reliability = np.where(GROUPS == "few", few, 1.0) + 0.3 * rng.normal(size=40)
    return simulated(num_pairs, 10, reliability, 0.5 * rng.normal(size=40), seed=seed)


@pytest.mark.parametrize(("few", "seed"), [(0.0, 1), (-1.0, 1), (-1.0, 2)])
def test_a_group_of_another_taste_is_found_and_measured(few: float, seed: int) -> None:
    found = preference_shift(_crowd(seed, few=few).votes, GROUP_OF)
    assert found is not None
    # The others' factors have mean 1.
    shift = found["few"]["shift"]
    assert shift["value"] == pytest.approx(few - 1, abs=0.4)  # two standard errors: 7 judges spread by 0.3
    assert shift["high"] < 0
    assert found["few"]["q"] < 0.01


def _p_values(seeds: range) -> Floats:
    """The p values of three groups, of unequal sizes, that differ in nothing but their judges."""
    found = [preference_shift(_crowd(seed, few=1.0, num_pairs=120).votes, GROUP_OF) for seed in seeds]
    return np.array([[group["p"] for group in one.values()] for one in found if one is not None])


def test_groups_that_do_not_differ_are_rarely_told_apart() -> None:
    # Of 30 tests 1.5 are below 0.05 by chance; 6 or more in 1 of 300 cases.
    p = _p_values(range(10))
    assert p.shape == (10, 3)
    assert (p < 0.05).sum() < 6


@pytest.mark.slow
def test_p_values_of_groups_that_do_not_differ_are_uniform() -> None:
    # Each group: 200 p values. 5 % expected, standard error 1.5 %.
    p = _p_values(range(100, 300))
    assert ((p < 0.05).mean(0) < 0.10).all()
    assert ((p < 0.5).mean(0) > 0.35).all()


def test_small_groups_and_judges_of_none_are_left_out() -> None:
    votes = _crowd(3, few=1.0, num_pairs=60).votes
    four = {name: ("a" if number < 4 else "b") for number, name in enumerate(votes.judges)}
    assert preference_shift(votes, four) is None
    assert preference_shift(votes, {}) is None
    some = {name: group for name, group in GROUP_OF.items() if group != "some"}
    found = preference_shift(votes, some)
    assert found is not None
    assert set(found) == {"many", "few"}
    # Of two groups each is the other's "others".
    assert found["few"]["p"] == found["many"]["p"]
