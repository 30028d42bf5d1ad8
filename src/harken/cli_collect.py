"""Commands for feedback: `harken collect import | export | status | agreement`. None of them loads torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from harken.cli_common import JsonOption, interval, reporter, show, show_json, table
from harken.cli_votes import votes_text

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URL", help="Feedback store, such as sqlite:///feedback.db."),
]


class Format(StrEnum):
    """Feedback formats that can be imported."""

    ratings = "ratings"
    harken = "harken"


def import_feedback(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File or folder; reviews:movie and the like are fetched.")
    ],
    store: StoreOption,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="ratings: texts with ratings by people; harken: a folder made by export.",
        ),
    ] = Format.ratings,
) -> None:
    """Add judgments to a store, which is made if it is not there.

    Importing the same data again adds nothing. What is odd in the data is said, one line each.
    """
    from harken.feedback.exchange.find import read_feedback
    from harken.feedback.store import FeedbackStore

    say = reporter().say
    imported = read_feedback(format.value, path, say)
    with FeedbackStore.open(store) as opened:
        added = opened.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
    for note in imported.notes:
        say(f"note: {note}")
    show(
        f"added {added.prompts} prompts, {added.completions} completions, {added.judgments} judgments; "
        f"{added.already_there} records were there already"
    )


def export(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; files in it are replaced.")],
) -> None:
    """Write everything in a store as hashed records that `harken preferences` reads."""
    from harken.feedback.store import FeedbackStore

    with FeedbackStore.open(store, create=False) as opened:
        manifest = opened.export(out)
    counts = ", ".join(f"{count} {name}" for name, count in manifest.info["counts"].items())
    show(f"{out}: {counts}")


def status(store: StoreOption, as_json: JsonOption = False) -> None:
    """Count what a store holds."""
    from harken.feedback.store import FeedbackStore

    with FeedbackStore.open(store, create=False) as opened:
        found = opened.status()
    if as_json:
        show_json(found.model_dump(mode="json"))
        return
    rows = [[name, str(getattr(found, f"num_{name}"))] for name in ("prompts", "completions", "judgments")]
    rows += [["superseded judgments", str(found.num_superseded)], ["judges", str(found.num_judges)]]
    rows += [[f"judgments: {kind}", str(count)] for kind, count in found.judgments_by_answer.items()]
    rows += [[f"judged by: {kind}", str(count)] for kind, count in found.judgments_by_judge.items()]
    spread = f"{found.per_completion_min} / {found.per_completion_mean:.1f} / {found.per_completion_max}"
    rows.append(["judgments per completion, least / mean / most", spread])
    show(table(rows))
    for source in found.last_imports:
        show(f"{source.created_at}  {source.format}  {source.name}: {source.num_judgments} judgments")


def agreement(
    store: StoreOption,
    axis: Annotated[
        str | None, typer.Option("--axis", metavar="NAME", help="Rating axis, where there are several.")
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", metavar="F", help="Judgments known to be right, as records: each judge is measured."),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option("--groups", metavar="F", help='JSON, judge to group, as in {"ann": "students"}: groups of 5 on.'),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option("--probes", metavar="F", help="Pairs with a known right answer (docs/quality.md), as JSON Lines."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far the judges agree, who is unlike the others, and what sways them.

    Krippendorff's alpha is 1 for perfect agreement and 0 for chance. Of comparisons and rankings also: a row for each
    judge, whether the side shown first or the longer text wins, and how the judges do on gold answers and probes. Of
    ratings also: the correlation between the mean ratings of two random halves of the judges.
    """
    from harken.errors import DataError
    from harken.feedback.store import FeedbackStore
    from harken.preferences.quality import agreement_report
    from harken.preferences.votes_report import votes_report

    given = _read_given(gold, groups, probes)
    with FeedbackStore.open(store, create=False) as opened:
        kinds = set(opened.status().judgments_by_answer)
        found: dict[str, Any] = {}
        if "rating" in kinds:
            found = agreement_report(opened.judgments(), opened.completions(), axis=axis)
        if votes := votes_report(opened.judgments(), opened.completions(), **given):
            found["votes"] = votes
    if not found:
        raise DataError(f"{store}: no ratings, comparisons or rankings to measure; found {', '.join(sorted(kinds))}")
    if as_json:
        show_json(found)
        return
    if "axis" in found:
        show(_agreement_table(found))
    if votes:
        show(votes_text(votes))


def _read_given(gold: Path | None, groups: Path | None, probes: Path | None) -> dict[str, Any]:
    """Return what the options of `agreement` name, read and checked."""
    from harken.artifacts import read_json, read_records
    from harken.errors import DataError
    from harken.preferences.probes import Probe
    from harken.records import Judgment

    group_of = None if groups is None else read_json(groups)
    if group_of is not None and not (
        isinstance(group_of, dict) and all(isinstance(value, str) for value in group_of.values())
    ):
        raise DataError(f'{groups}: expected a JSON object of judges to groups, as in {{"ann": "students"}}')
    return {
        "gold": None if gold is None else read_records(gold, Judgment),
        "groups": group_of,
        "probes": None if probes is None else read_records(probes, Probe),
    }


def _agreement_table(found: dict[str, Any]) -> str:
    halves = found["split_half_correlation"]
    per_item = found["ratings_per_item"]
    low, high = found["scale"]
    return table(
        [
            ["axis", f"{found['axis']}, {low:g} to {high:g}"],
            ["ratings", str(found["num_judgments"])],
            ["rated completions", str(found["num_items"])],
            [
                "ratings per completion, least / mean / most",
                f"{per_item['min']} / {per_item['mean']:.1f} / {per_item['max']}",
            ],
            ["alpha, ordinal [95 % interval]", interval(found["alpha_ordinal"])],
            ["alpha, interval [95 % interval]", interval(found["alpha_interval"])],
            ["correlation of two halves of the judges", "-" if halves is None else f"{halves:.3f}"],
            ["mean spread within a completion", f"{found['mean_item_std']:.2f}"],
        ]
    )
