"""A datasheet as Markdown, HTML and Croissant: three files that say the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from harken.artifacts import read_manifest, write_json, write_text
from harken.config import DisclosureConfig
from harken.feedback.privacy.suppress import GroupTable
from harken.feedback.store import FeedbackStore
from harken.feedback.store.releases import Release
from harken.report.croissant import croissant
from harken.report.disclosure import Agreement, Datasheet, Share, read_datasheet
from harken.report.numbers import moment, visible

_NOT_TOLD = "not told"


@dataclass(frozen=True)
class Row:
    """One line of a section."""

    label: str
    text: str


def write_datasheet(store: FeedbackStore, about: DisclosureConfig, out: Path, export: Path | None = None) -> Datasheet:
    """Write `datasheet.md`, `datasheet.html`, `croissant.json` and `datasheet.json` and return what they state.

    Args:
        store: what was collected.
        about: what only its collectors know.
        out: folder to write.
        export: the exported folder that is handed on, whose files the Croissant description names.

    Raises:
        DataError: the store has no judgments.
        StorageError: a file cannot be written.
    """
    sheet = read_datasheet(store, about)
    manifest = None if export is None else read_manifest(export)
    write_text(out / "datasheet.md", render(sheet, "datasheet.md.jinja"))
    write_text(out / "datasheet.html", render(sheet, "datasheet.html.jinja"))
    write_json(out / "croissant.json", croissant(sheet, manifest.files if manifest else {}))
    write_json(out / "datasheet.json", sheet.model_dump(mode="json"))
    return sheet


def render(sheet: Datasheet, template: str) -> str:
    """Return a datasheet in the form of a template; every text from the store is escaped for it."""
    is_html = template.endswith(".html.jinja")
    environment = Environment(
        loader=PackageLoader("harken.report"),
        # In Markdown every text goes through `finalize`, which disarms what would become markup.
        autoescape=is_html,
        finalize=visible_text if is_html else markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(moment=moment)
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    return environment.get_template(template).render(sheet=sheet, sections=sections(sheet), tables=tables(sheet))


def visible_text(value: object) -> object:
    """Return a text with invisible characters shown, anything else as it is."""
    return visible(value) if type(value) is str else value


def markdown_text(value: object) -> object:
    """Return a text in which nothing is markup: one line, no HTML, no links."""
    if not isinstance(value, str):
        return value
    line = " ".join(visible(value).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[").replace("`", "'")


def tables(sheet: Datasheet) -> list[tuple[str, GroupTable, list[str]]]:
    """Return the tables about groups with their headings, and what is said of the groups below each."""
    found = [
        (f"{one.table.attribute}, as of {one.released_at[:10]}", one.table, list(group_lines(one)))
        for one in sheet.demographics
    ]
    if sheet.consent_versions is not None:
        found.append(("Version of the consent text agreed to", sheet.consent_versions, []))
    return found


def group_lines(release: Release) -> Iterator[str]:
    """Yield what is told of how far the groups of an attribute agree, a sentence each."""
    found = release.agreement
    if found is None:
        yield "How far these groups agree is not told: it takes two groups of enough people who compared completions."
        return
    if found.within is not None and found.between is not None:
        yield (
            f"Two people of one group agreed in {found.within}% of their votes on the same pair, of two groups in "
            f"{found.between}%; that groups make no difference has {_p(found.p)} (permutation test)."
        )
    for group in found.groups:
        among = "never met" if group.agreement is None else f"agreed in {group.agreement}%"
        line = f"{group.value}: among themselves they {among}"
        if group.shift is not None:
            line += (
                f"; they weigh the differences between completions {1 + group.shift:.2f} times as much as the "
                f"others (95% interval {1 + (group.low or 0):.2f} to {1 + (group.high or 0):.2f}, {_p(group.q, 'q')})"
            )
        yield f"{line}."


def _p(value: float | None, name: str = "p") -> str:
    return f"no {name}" if value is None else f"{name} < 0.01" if value < 0.01 else f"{name} = {value:.2f}"


def sections(sheet: Datasheet) -> list[tuple[str, list[Row]]]:
    """Return headings and lines of everything that is not a table."""
    about, pay = sheet.about, sheet.pay
    people = str(sheet.num_people) if sheet.num_people else "not known: the data do not say who gave which judgment"
    return [
        (
            "What was collected",
            [
                Row(
                    "Amount",
                    f"{sheet.num_prompts:,} prompts; {sheet.num_completions:,} completions; "
                    f"{sheet.num_judgments:,} judgments",
                ),
                Row("Forms of feedback", _counted(sheet.judgments_by_answer)),
                Row("Judged by", _counted(sheet.judgments_by_judge)),
                Row("Judgments a completion", f"{sheet.per_completion_mean:.1f} on average"),
                Row("Intended use", about.intended_use or _NOT_TOLD),
                Row("License", about.license or f"{_NOT_TOLD}; those of the sources stand below"),
                Row("Publisher", about.publisher or _NOT_TOLD),
                Row("Contact, also for erasure", about.contact or _NOT_TOLD),
            ],
        ),
        (
            "Who was asked, and how",
            [
                Row("People", people),
                Row("Recruitment", about.recruitment or _NOT_TOLD),
                Row("Pay", about.pay.basis or _NOT_TOLD),
                Row("Median time of a judgment", _seconds(pay.median_active_s, pay.num_timed)),
                Row("Pay in an hour at that time", _hourly(sheet)),
                Row("Instructions", about.instructions or _NOT_TOLD),
                Row("Guideline versions (judgments)", _counted(sheet.guideline_versions)),
                Row(
                    "Consent texts",
                    "; ".join(
                        f"{one.purpose} {one.version} ({one.locale}) sha256 {one.sha256[:16]}"
                        for one in sheet.consent_texts
                    )
                    or "none in this store",
                ),
            ],
        ),
        (
            "How far people agree, and biases found",
            [
                *(Row(f"Agreement, {one.of}", _alpha(one)) for one in sheet.agreement),
                Row("What was shown first won", _share(sheet.shown_first_wins)),
                Row("The longer completion won", _share(sheet.longer_wins)),
            ],
        ),
    ]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _seconds(median: float | None, count: int) -> str:
    return "not measured" if median is None else f"{median:.0f} s ({count:,} timed)"


def _hourly(sheet: Datasheet) -> str:
    pay = sheet.pay
    if pay.per_hour is None:
        return "not measured"
    return f"{pay.per_hour:.2f} {sheet.about.pay.currency}" + (f". Warning: {pay.warning}" if pay.warning else "")


def _alpha(one: Agreement) -> str:
    if one.value is None:
        return one.note
    return f"alpha {one.value:.3f}, 95% interval {one.low:.3f} to {one.high:.3f}, over {one.num_items:,} items"


def _share(share: Share) -> str:
    if not share.num_decided or share.p_value is None:
        return "not measured: no decided comparison of two"
    part = share.num_yes / share.num_decided
    p = "p < 0.0001" if share.p_value < 1e-4 else f"p = {share.p_value:.2g}"
    return f"{share.num_yes:,} of {share.num_decided:,} times ({part:.1%}); {p} against a half"
