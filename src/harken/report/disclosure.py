"""What a datasheet states: who was asked, how, what they said, how far they agree, and what is missing."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from scipy.stats import binomtest

from harken.artifacts import HARKEN_VERSION
from harken.config import DisclosureConfig
from harken.errors import DataError
from harken.feedback.privacy.keys import stored_demographics_key
from harken.feedback.privacy.suppress import GroupTable
from harken.feedback.source import LICENSE_NOTE
from harken.feedback.store import FeedbackStore, ImportSummary
from harken.feedback.store.releases import (
    GroupAgreement,
    GroupOpinion,
    PublishedConsent,
    Release,
    consent_versions,
    release_demographics,
)
from harken.preferences.judges import agreement_by_group, meetings
from harken.preferences.quality import alpha_interval
from harken.preferences.subgroups import preference_shift
from harken.preferences.votes import read_votes
from harken.records import Comparison, Judgment, Rating, Record

DATASHEET_SCHEMA = 1


class Agreement(Record):
    """Krippendorff's alpha of one kind of answer, with a 95% interval; without a value the note says why."""

    of: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_items: int = 0
    note: str = ""


class Share(Record):
    """A share of decided comparisons, and how probable one so far from a half is by chance (exact, two-sided)."""

    num_yes: int
    num_decided: int
    p_value: float | None


class Pay(Record):
    """Time and pay as measured."""

    median_active_s: float | None = None
    num_timed: int = 0
    per_hour: float | None = None
    """What `per_judgment` makes in an hour at the median time."""
    warning: str = ""


class Source(Record):
    """Data that came from elsewhere, once each."""

    name: str
    format: str
    sha256: str
    license: str = ""
    notes: tuple[str, ...] = ()


class Datasheet(Record):
    """Everything a datasheet states."""

    schema_version: int = DATASHEET_SCHEMA
    harken_version: str = HARKEN_VERSION
    made_at: str
    about: DisclosureConfig
    num_prompts: int
    num_completions: int
    num_judgments: int
    num_people: int
    """Different judges of the kind `person`; 0 where imports do not say who is who."""
    judgments_by_answer: dict[str, int]
    judgments_by_judge: dict[str, int]
    per_completion_mean: float
    guideline_versions: dict[str, int]
    """Version -> judgments."""
    consent_texts: tuple[PublishedConsent, ...]
    consent_versions: GroupTable | None
    demographics: tuple[Release, ...]
    missing: dict[str, float]
    """What -> share of judgments without it."""
    agreement: tuple[Agreement, ...]
    shown_first_wins: Share
    longer_wins: Share
    pay: Pay
    sources: tuple[Source, ...]
    known_gaps: tuple[str, ...]


def read_datasheet(store: FeedbackStore, about: DisclosureConfig) -> Datasheet:
    """Gather what a datasheet states about a store.

    Counts of groups are remembered in the store, so that two datasheets never differ by single people.

    Raises:
        DataError: the store has no judgments.
        StorageError: it cannot be written.
    """
    status = store.status()
    judgments = list(store.judgments())
    if not judgments:
        raise DataError(f"{store.name}: no judgments; there is nothing to make a datasheet of")
    with store.database.writing() as connection:
        key, k = stored_demographics_key(store.secrets), about.least_group
        releases = release_demographics(connection, k, key, lambda groups: group_agreement(judgments, groups, k))
        texts, versions = consent_versions(connection, about.least_group)
    by_person = Counter(one.judge.id for one in judgments if one.judge.kind == "person")
    # Where every judgment has a judge of its own, the import did not know who is who.
    num_people = len(by_person) if by_person and max(by_person.values()) > 1 else 0
    lengths = {one.id: len(one.message.content) for one in store.completions()}
    sources = tuple(_sources(store.imports()))
    pay = measured_pay(judgments, about)
    sheet = Datasheet(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        about=about,
        num_prompts=status.num_prompts,
        num_completions=status.num_completions,
        num_judgments=len(judgments),
        num_people=num_people,
        judgments_by_answer=dict(sorted(Counter(one.answer.type for one in judgments).items())),
        judgments_by_judge=dict(sorted(Counter(one.judge.kind for one in judgments).items())),
        per_completion_mean=status.per_completion_mean,
        guideline_versions=dict(sorted(Counter(one.guideline or "not stated" for one in judgments).items())),
        consent_texts=tuple(texts),
        consent_versions=versions,
        demographics=tuple(releases),
        missing=_missing(judgments),
        agreement=tuple(agreements(judgments)),
        shown_first_wins=_share(judgments, {}),
        longer_wins=_share(judgments, lengths),
        pay=pay,
        sources=sources,
        known_gaps=(),
    )
    return sheet.model_copy(update={"known_gaps": tuple(gaps(sheet))})


def measured_pay(judgments: Iterable[Judgment], about: DisclosureConfig) -> Pay:
    """Return the median active time and what it makes of the pay, with a warning below the floor."""
    times = [one.timing.active_s for one in judgments if one.timing.active_s]
    if not times:
        return Pay()
    median, pay = statistics.median(times), about.pay
    per_hour = pay.per_judgment * 3600 / median if pay.per_judgment else None
    warning = ""
    if per_hour is not None and per_hour < pay.least_per_hour:
        warning = (
            f"a judgment takes {median:.0f} s at the median, which pays {per_hour:.2f} {pay.currency} an hour; "
            f"the floor is {pay.least_per_hour:.2f}"
        )
    return Pay(median_active_s=median, num_timed=len(times), per_hour=per_hour, warning=warning)


def group_agreement(judgments: Iterable[Judgment], group_of: Mapping[str, str], k: int) -> GroupAgreement | None:
    """Return how far groups of judges agree on comparisons and rankings, rounded; None without two groups of k judges.

    Args:
        judgments: of anyone; those by judges of no group do not count.
        group_of: judge -> group.
        k: judges a group must have.
    """
    votes = read_votes(one for one in judgments if one.judge.id in group_of)
    if len(votes) == 0:
        return None
    found = agreement_by_group(meetings(votes), group_of, votes.judges, min_judges=k)
    if len(found["groups"]) < 2:
        return None
    shifts = preference_shift(votes, group_of, min_judges=k)
    opinions = [
        _opinion(name, group["agreement"], None if shifts is None else shifts[name])
        for name, group in found["groups"].items()
    ]
    within, between, p = (found[name] for name in ("within", "between", "p"))
    return GroupAgreement(within=_percent(within), between=_percent(between), p=_rounded(p), groups=tuple(opinions))


def _opinion(value: str, agreement: float | None, shift: Mapping[str, Any] | None) -> GroupOpinion:
    if shift is None:
        return GroupOpinion(value=value, agreement=_percent(agreement))
    ends = {"shift": shift["shift"]["value"], "low": shift["shift"]["low"], "high": shift["shift"]["high"]}
    rounded = {name: _rounded(number) for name, number in (ends | {"q": shift["q"]}).items()}
    return GroupOpinion(value=value, agreement=_percent(agreement), **rounded)


def _percent(part: float | None) -> int | None:
    return None if part is None else round(100 * part)


def _rounded(number: float | None) -> float | None:
    """Return a number with two digits behind the point: more would tell of single votes."""
    return None if number is None else round(number, 2)


def agreements(judgments: Iterable[Judgment]) -> Iterable[Agreement]:
    """Yield alpha of comparisons and of every axis of ratings, over items with two judges or more."""
    votes: dict[tuple[str, ...], list[float]] = {}
    ratings: dict[str, dict[str, list[float]]] = {}
    for one in judgments:
        match one.answer:
            case Comparison(outcome="win" | "tie" as outcome) as answer:
                # The winner's place in an order that does not depend on what was shown first.
                item = tuple(sorted(one.shown))
                votes.setdefault(item, []).append(-1 if outcome == "tie" else item.index(answer.winner or ""))
            case Rating() as answer if len(one.shown) == 1:
                for axis, rated in answer.axes.items():
                    ratings.setdefault(axis, {}).setdefault(one.shown[0], []).append(rated.value)
            case _:
                pass
    if votes:
        yield _alpha("comparisons (win, tie), nominal", list(votes.values()), "nominal")
    for axis, units in sorted(ratings.items()):
        yield _alpha(f"rating {axis}, interval", list(units.values()), "interval")


def _alpha(name: str, units: list[list[float]], metric: str) -> Agreement:
    num_items = sum(len(unit) > 1 for unit in units)
    found = alpha_interval(units, "nominal" if metric == "nominal" else "interval")
    if found is None:
        note = "undefined: all answers are equal" if num_items else "not measured: no item has two judges"
        return Agreement(of=name, num_items=num_items, note=note)
    return Agreement(of=name, value=found.value, low=found.low, high=found.high, num_items=num_items)


def _share(judgments: Iterable[Judgment], lengths: dict[str, int]) -> Share:
    """Count wins of what was shown first, or with `lengths` of the longer one (equal lengths do not count)."""
    num_yes = num_decided = 0
    for one in judgments:
        answer = one.answer
        if not isinstance(answer, Comparison) or answer.winner is None or len(one.shown) != 2:
            continue
        expected: str | None = one.shown[0]
        if lengths:
            first, second = one.shown
            order = lengths[first] - lengths[second]
            expected = None if order == 0 else first if order > 0 else second
        if expected is not None:
            num_decided += 1
            num_yes += answer.winner == expected
    p_value = float(binomtest(num_yes, num_decided).pvalue) if num_decided else None
    return Share(num_yes=num_yes, num_decided=num_decided, p_value=p_value)


def _missing(judgments: list[Judgment]) -> dict[str, float]:
    total = len(judgments)
    return {
        "rationale": sum(not one.rationale for one in judgments) / total,
        "time": sum(one.timing.active_s is None for one in judgments) / total,
        "guideline version": sum(not one.guideline for one in judgments) / total,
    }


def _sources(imports: Iterable[ImportSummary]) -> Iterable[Source]:
    seen: set[tuple[str, str]] = set()
    for one in imports:
        if (one.name, one.sha256) not in seen:
            seen.add((one.name, one.sha256))
            licenses = [note.removeprefix(LICENSE_NOTE) for note in one.notes if note.startswith(LICENSE_NOTE)]
            notes = tuple(note for note in one.notes if not note.startswith(LICENSE_NOTE))
            name = ", ".join(licenses)
            yield Source(name=one.name, format=one.format, sha256=one.sha256, license=name, notes=notes)


def gaps(sheet: Datasheet) -> Iterable[str]:
    """Yield what is not known, one sentence each: what was not told, and what the numbers leave open."""
    about = sheet.about
    told = {
        "how the people were found": about.recruitment,
        "how they were paid": about.pay.basis,
        "what they were asked to do": about.instructions,
        "what the data are for": about.intended_use,
        "under which license the judgments as a whole stand": about.license,
        "whom to ask for erasure": about.contact,
    }
    yield from (f"Not told: {what}." for what, text in told.items() if not text.strip())
    if about.known_gaps.strip():
        yield about.known_gaps.strip()
    if not sheet.num_people and sheet.judgments_by_judge.get("person"):
        yield "The data do not say which person gave which judgment, so nothing can be said about single judges."
    if not sheet.demographics:
        yield "Nothing is known about the people: age, gender, country and the like were not asked or not recorded."
    if sheet.consent_versions is None:
        yield "No consent is recorded in this store."
    yield from (f"No license is recorded for {one.name}." for one in sheet.sources if not one.license)
    yield from (f"{share:.0%} of the judgments have no {what}." for what, share in sheet.missing.items() if share)
    yield from (f"Agreement of {one.of}: {one.note}." for one in sheet.agreement if one.note)
