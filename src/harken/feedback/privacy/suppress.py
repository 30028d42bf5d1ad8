"""Counts of people that single nobody out: k-anonymity with secondary suppression, and releases that move in steps.

A count below k is withheld. Then further counts are withheld until those withheld cannot be solved for from the total
and the rest. Two releases in a row differ by k people or more, so that comparing them tells nothing about one.
"""

from collections.abc import Mapping

from harken.errors import UsageError
from harken.records import Record

DEFAULT_K = 5


class Count(Record):
    """One published count."""

    value: str
    num_people: int
    percent: int
    """Of all people in the table, rounded to a whole number."""


class GroupTable(Record):
    """What may be said about one attribute."""

    attribute: str
    k: int
    num_people: int | None
    """None where they are fewer than k."""
    counts: tuple[Count, ...] = ()
    withheld: tuple[str, ...] = ()
    """Values whose counts are not told; together they are `num_people` less the published ones."""


def group_table(attribute: str, counts: Mapping[str, int], k: int = DEFAULT_K) -> GroupTable:
    """Return a table that may be published.

    Values of fewer than k people are withheld, those of nobody too: that nobody is there says something of everybody.
    Then the smallest of the other values is withheld too, with all values of the same size: without it the withheld
    counts could be solved for wherever one stands alone, or all of them are as large as they may be (k - 1). Whoever
    knows this rule, the total and all published counts cannot work out any withheld count below k; the test tries all
    tables up to a size.

    Args:
        attribute: what people were asked.
        counts: value -> number of people; everyone is in exactly one.
        k: how many people are enough.

    Raises:
        UsageError: k is below 2, or a count below 0.
    """
    if k < 2:
        raise UsageError(f"k is {k}; expected 2 or more: a group of one is a person")
    if any(count < 0 for count in counts.values()):
        raise UsageError(f"{attribute}: a count is below 0")
    total = sum(counts.values())
    if total < k:
        return GroupTable(attribute=attribute, k=k, num_people=None, withheld=tuple(sorted(counts)))
    # By size, then by name: the same counts give the same table.
    by_size = sorted(counts, key=lambda value: (counts[value], value))
    withheld = [value for value in by_size if counts[value] < k]
    published = by_size[len(withheld) :]
    if withheld and published:
        size = counts[published[0]]
        withheld += [value for value in published if counts[value] == size]
        published = [value for value in published if counts[value] > size]
    return GroupTable(
        attribute=attribute,
        k=k,
        num_people=total,
        counts=tuple(
            Count(value=value, num_people=counts[value], percent=round(100 * counts[value] / total))
            for value in sorted(published, key=lambda value: (-counts[value], value))
        ),
        withheld=tuple(sorted(withheld)),
    )


def may_replace(released: Mapping[str, int], current: Mapping[str, int], k: int = DEFAULT_K) -> bool:
    """Return True when a new release would tell nothing about single people to someone who kept the old one.

    At least k people must have come, gone or changed, and not all of them in one value: if all newcomers are of one
    value, everyone who knows a newcomer knows theirs.
    """
    values = set(released) | set(current)
    changes = [current.get(value, 0) - released.get(value, 0) for value in values]
    came = [change for change in changes if change > 0]
    went = [-change for change in changes if change < 0]
    return all(not side or len(side) > 1 for side in (came, went)) and max(sum(came), sum(went)) >= k
