"""Commands for feedback: `harken collect import | export | status | agreement`. None of them loads torch."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_common import (
    BucketsOption,
    FileOptions,
    JsonOption,
    LabelingOption,
    MapOption,
    ScaleOption,
    StoreOption,
    interval,
    open_file,
    reporter,
    show,
    show_json,
    table,
)
from harken.cli_data import AcceptOption, TextsOption, Ties, TiesOption, write_entries
from harken.cli_votes import votes_text

if TYPE_CHECKING:
    from harken.feedback.privacy.redact import Redactor
    from harken.feedback.source import ImportSource
    from harken.feedback.store import FeedbackStore
    from harken.feedback.store.sharing import Sharing
    from harken.feedback.store.store import AddedCounts, Part


def import_feedback(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="File or folder; hub:OWNER/NAME and reviews:movie are fetched."),
    ],
    store: StoreOption,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="ratings, harken (a folder made by export), or one that `harken data check` knows; else found out.",
        ),
    ] = None,
    renamed: MapOption = None,
    scale: ScaleOption = None,
    labeling_config: LabelingOption = None,
    buckets: BucketsOption = None,
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

    Importing the same data again adds nothing. What is odd in the data is said, one line each; rows that cannot be used
    are left out, counted, and named. What --redact finds and what no pattern can find is told in docs/privacy.md.
    """
    from harken.feedback.exchange.find import foreign, read_feedback
    from harken.feedback.exchange.importing import Importing

    say = reporter().say
    redactor = _redactor(regions, presidio) if redact else None
    own = foreign(path, format)
    if own is None:
        importing = Importing(open_file(path, FileOptions(format, renamed, scale, labeling_config, buckets)))
        with reporter().counting("import", "judgments") as tell:
            notes, added = _add(store, importing.parts(tell), importing.source, redactor, license)
    else:
        imported = read_feedback(own, path, say)
        parts = [(imported.prompts, imported.completions, imported.judgments)]
        notes, added = _add(store, parts, lambda: imported.source, redactor, license)
    for note in notes:
        say(f"note: {note}")
    show(
        f"added {added.prompts} prompts, {added.completions} completions, {added.judgments} judgments; "
        f"{added.already_there} records were there already"
    )
    if added.erased:
        say(f"note: {added.erased} judgments are by people who were erased from this store; left out")


def _redactor(regions: str, is_presidio_used: bool) -> "Redactor":
    from harken.feedback.privacy.detect import built_in, chosen_regions
    from harken.feedback.privacy.redact import Redactor

    chosen = chosen_regions(regions)
    if not is_presidio_used:
        return Redactor(built_in(chosen))
    from harken.feedback.privacy.presidio import with_presidio

    return Redactor(with_presidio(chosen))


def _add(
    store: str, parts: "Iterable[Part]", source: "Callable[[], ImportSource]", redactor: "Redactor | None", license: str
) -> "tuple[tuple[str, ...], AddedCounts]":
    """Add parts, redacted where there is a redactor; return what to tell about the import, and what was added."""
    from harken.feedback.source import LICENSE_NOTE
    from harken.feedback.store import FeedbackStore

    @functools.cache
    def stated() -> "ImportSource":
        notes = [f"{LICENSE_NOTE}{license}"] if license else []
        return source().with_notes(*notes, *([redactor.summary()] if redactor else []))

    with FeedbackStore.open(store) as opened:
        added = opened.add_parts(redactor.parts(parts) if redactor else parts, source=stated)
    return stated().notes, added


def export(
    store: StoreOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write (a file with --format); what is there goes.")
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="harken, or one that `harken data convert` writes.")
    ] = "harken",
    texts: TextsOption = False,
    ties: TiesOption = Ties.drop,
    accept_loss: AcceptOption = False,
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="NAME", help="For an export to hand on: whom it is for, such as public."),
    ] = "",
    include_text: Annotated[
        bool, typer.Option("--include-text", help="With --scope: keep rationales and written answers, redacted.")
    ] = False,
) -> None:
    """Write everything in a store as hashed records that `harken preferences` reads, or in another format.

    What another format cannot hold is said before anything is written, and needs --accept-loss.

    With --scope people and judgments get names that no other scope shares, times are cut to days, personal data that is
    found in texts is redacted, and what judges wrote is left out. Judgments of people who withdrew are left out always.
    """
    from harken.errors import UsageError
    from harken.feedback.store import FeedbackStore

    if include_text and not scope:
        raise UsageError("--include-text is for an export to hand on: give --scope too, or leave it out")
    with FeedbackStore.open(store, create=False) as opened:
        if format != "harken":
            if scope:
                raise UsageError(
                    f"--scope writes Harken's own format: leave out --format {format}, and then run: "
                    f"harken data convert {out} --to {format}"
                )
            _export_format(opened, out, format, texts=texts, ties=ties, accept_loss=accept_loss)
            return
        manifest = opened.export(out, _sharing(opened, scope, include_text=include_text) if scope else None)
    counts = ", ".join(f"{count} {name}" for name, count in manifest.info["counts"].items())
    show(f"{out}: {counts}")
    if scope:
        found = manifest.info["sharing"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["personal_data"]["found"].items()) or "none"
        show(f"{found['num_texts_left_out']} texts by judges left out; personal data found and redacted: {kinds}")


def _sharing(opened: "FeedbackStore", scope: str, *, include_text: bool) -> "Sharing":
    from harken.feedback.privacy.detect import built_in
    from harken.feedback.privacy.keys import keys_path, read_keys
    from harken.feedback.privacy.redact import Redactor
    from harken.feedback.store.sharing import Sharing

    keys = read_keys(keys_path(opened.secrets), create=True)
    return Sharing(scope, keys, Redactor(built_in()), include_text)


def _export_format(
    opened: "FeedbackStore", out: Path, format: str, *, texts: bool, ties: Ties, accept_loss: bool
) -> None:
    from harken.artifacts import artifact_digest
    from harken.feedback.exchange.own import entries_of
    from harken.feedback.exchange.write import MIXES_JUDGES

    judgments = list(opened.judgments())
    by_people = [judgment for judgment in judgments if not judgment.judge.is_machine]
    # Models and people would be mixed for good.
    if format in MIXES_JUDGES and 0 < len(by_people) < len(judgments):
        reporter().say(
            f"note: left out: {len(judgments) - len(by_people)} judgments by models, as people have judged too"
        )
        judgments = by_people
    entries = list(entries_of(opened.prompts(), opened.completions(), judgments))
    info = {"source": opened.name}
    write_entries(entries, out, format, texts=texts, ties=ties, accept_loss=accept_loss, info=info)
    opened.remember_export(out, artifact_digest(out), sum(len(entry.judgments) for entry in entries))


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
        typer.Option(
            "--gold", metavar="F", help="Judgments known to be right, as records, in place of the tasks' gold answers."
        ),
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
    from harken.preferences.measure import feedback_report

    given = _read_given(gold, groups, probes)
    with FeedbackStore.open(store, create=False) as opened:
        kinds = opened.status().judgments_by_answer
        try:
            found = feedback_report(opened.judgments, opened.completions, kinds, axis=axis, **given)
        except DataError as error:
            raise DataError(f"{store}: {error}") from error
    if as_json:
        show_json(found)
        return
    if "axis" in found:
        show(_agreement_table(found))
    if "votes" in found:
        show(votes_text(found["votes"]))


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
