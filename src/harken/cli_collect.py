"""Commands for feedback: `harken collect import | export | status | agreement`. None of them loads torch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_common import JsonOption, interval, reporter, show, show_json, table

if TYPE_CHECKING:
    from harken.feedback.privacy.detect import Detector

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
    redact: Annotated[
        bool, typer.Option("--redact", help="Replace personal data that is found in texts by marks such as [EMAIL].")
    ] = False,
    regions: Annotated[
        str,
        typer.Option("--regions", metavar="A,B", help="With --redact: countries of telephone numbers, such as US,DE."),
    ] = "",
    presidio: Annotated[
        bool, typer.Option("--presidio", help="With --redact: look for what presidio's patterns find too (extra pii).")
    ] = False,
    license: Annotated[
        str, typer.Option("--license", metavar="NAME", help="License of the data; exports and datasheets name it.")
    ] = "",
) -> None:
    """Add judgments to a store, which is made if it is not there.

    Importing the same data again adds nothing. What is odd in the data is said, one line each. What --redact finds and
    what no pattern can find is told in docs/privacy.md.
    """
    from harken.feedback.exchange.find import read_feedback
    from harken.feedback.store import FeedbackStore

    say = reporter().say
    imported = read_feedback(format.value, path, say)
    if license:
        from harken.feedback.source import LICENSE_NOTE

        imported = imported.with_note(f"{LICENSE_NOTE}{license}")
    if redact:
        from harken.feedback.privacy.redact import redact_imported

        imported = redact_imported(imported, _detectors(regions, presidio))
    with FeedbackStore.open(store) as opened:
        added = opened.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
    for note in imported.notes:
        say(f"note: {note}")
    show(
        f"added {added.prompts} prompts, {added.completions} completions, {added.judgments} judgments; "
        f"{added.already_there} records were there already"
    )
    if added.erased:
        say(f"note: {added.erased} judgments are by people who were erased from this store; left out")


def _detectors(regions: str, is_presidio_used: bool) -> "tuple[Detector, ...]":
    from harken.feedback.privacy.detect import built_in, chosen_regions

    chosen = chosen_regions(regions)
    if not is_presidio_used:
        return built_in(chosen)
    from harken.feedback.privacy.presidio import with_presidio

    return with_presidio(chosen)


def export(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; files in it are replaced.")],
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="NAME", help="For an export to hand on: whom it is for, such as public."),
    ] = "",
    include_text: Annotated[
        bool, typer.Option("--include-text", help="With --scope: keep rationales and written answers, redacted.")
    ] = False,
) -> None:
    """Write everything in a store as hashed records that `harken preferences` reads.

    With --scope people and judgments get names that no other scope shares, times are cut to days, personal data that is
    found in texts is redacted, and what judges wrote is left out. Judgments of people who withdrew are left out always.
    """
    from harken.errors import UsageError
    from harken.feedback.store import FeedbackStore

    if include_text and not scope:
        raise UsageError("--include-text is for an export to hand on: give --scope too, or leave it out")
    with FeedbackStore.open(store, create=False) as opened:
        sharing = None
        if scope:
            from harken.feedback.privacy.detect import built_in
            from harken.feedback.privacy.keys import keys_path, read_keys
            from harken.feedback.privacy.redact import Redactor
            from harken.feedback.store.sharing import Sharing

            keys = read_keys(keys_path(opened.path), create=True)
            sharing = Sharing(scope, keys, Redactor(built_in()), include_text)
        manifest = opened.export(out, sharing)
    counts = ", ".join(f"{count} {name}" for name, count in manifest.info["counts"].items())
    show(f"{out}: {counts}")
    if scope:
        found = manifest.info["sharing"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["personal_data"]["found"].items()) or "none"
        show(f"{found['num_texts_left_out']} texts by judges left out; personal data found and redacted: {kinds}")


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
    as_json: JsonOption = False,
) -> None:
    """Measure how far the judges agree in their ratings.

    Krippendorff's alpha is 1 for perfect agreement and 0 for chance. The correlation is between the mean ratings of two
    random halves of the judges.
    """
    from harken.feedback.store import FeedbackStore
    from harken.preferences.quality import agreement_report

    with FeedbackStore.open(store, create=False) as opened:
        found = agreement_report(opened.judgments(), opened.completions(), axis=axis)
    if as_json:
        show_json(found)
        return
    show(_agreement_table(found))


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
