"""Published counts: nobody who knows the rule and the total can work out a withheld count below k (check 9)."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harken.errors import UsageError
from harken.feedback.privacy.suppress import GroupTable, group_table, may_replace

NAMES = "abcd"


def _published(table: GroupTable) -> tuple[object, ...]:
    return (table.num_people, table.counts, table.withheld)


def _tables(num_values: int, most_people: int) -> Iterator[dict[str, int]]:
    for cells in itertools.product(range(most_people + 1), repeat=num_values):
        if sum(cells) <= most_people:
            yield dict(zip(NAMES, cells, strict=False))


@pytest.mark.parametrize(
    ("k", "num_values", "most_people"),
    [(2, 3, 12), (2, 4, 10), (3, 3, 20), (3, 4, 16), (5, 2, 40), (5, 3, 30), (5, 4, 24)],
)
def test_no_small_count_can_be_solved_for(k: int, num_values: int, most_people: int) -> None:
    # Every table there is up to a size; those that publish the same (total included) cannot be told apart, even by
    # someone who knows the program.
    alike: dict[tuple[object, ...], list[dict[str, int]]] = defaultdict(list)
    for counts in _tables(num_values, most_people):
        alike[_published(group_table("x", counts, k))].append(counts)
    for same in alike.values():
        for value in NAMES[:num_values]:
            possible = {counts[value] for counts in same}
            assert len(possible) > 1 or min(possible) >= k, (value, same)


def test_a_small_count_takes_the_next_one_with_it() -> None:
    # 4 withheld alone would be 20 - 9 - 7.
    table = group_table("x", {"a": 9, "b": 7, "c": 4}, 5)
    assert table.withheld == ("b", "c")
    assert [(count.value, count.num_people, count.percent) for count in table.counts] == [("a", 9, 45)]


counts_of_people = st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 30), min_size=1)


@given(counts_of_people, st.integers(2, 8))
def test_what_is_published_is_large_and_adds_up(counts: dict[str, int], k: int) -> None:
    table = group_table("x", counts, k)
    assert all(count.num_people >= k for count in table.counts)
    assert {count.value for count in table.counts} | set(table.withheld) == set(counts)
    if table.num_people is None:
        assert sum(counts.values()) < k
        assert not table.counts
    elif table.withheld and table.counts:
        rest = table.num_people - sum(count.num_people for count in table.counts)
        assert rest >= k
        assert len(table.withheld) >= 2


@given(counts_of_people, st.sampled_from("abcdefg"), st.integers(2, 8))
def test_one_person_more_or_less_changes_no_release(counts: dict[str, int], value: str, k: int) -> None:
    more = {**counts, value: counts.get(value, 0) + 1}
    assert not may_replace(counts, more, k)
    assert not may_replace(more, counts, k)


@given(counts_of_people, counts_of_people, st.integers(2, 8))
def test_two_releases_never_differ_by_people_of_one_value_alone(
    old: dict[str, int], new: dict[str, int], k: int
) -> None:
    changes = [new.get(value, 0) - old.get(value, 0) for value in set(old) | set(new)]
    if may_replace(old, new, k):
        assert sum(map(abs, changes)) >= k
        assert sum(change > 0 for change in changes) != 1
        assert sum(change < 0 for change in changes) != 1


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="k is 1; expected 2 or more"):
        group_table("x", {"a": 3}, 1)
    with pytest.raises(UsageError, match="below 0"):
        group_table("x", {"a": -3})


def test_fewer_than_k_people_are_not_counted_at_all() -> None:
    assert group_table("x", {"a": 3, "b": 1}).num_people is None
