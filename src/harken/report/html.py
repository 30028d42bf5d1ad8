"""Render the report: one HTML file, no script, nothing loaded, the same bytes each time."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from harken.artifacts import write_text
from harken.report import sections, tables
from harken.report.numbers import moment, number, plural
from harken.report.run_folder import RunFolder, read_run
from harken.report.votes import votes


def write_report(run: Path, out: Path) -> None:
    """Write the report of a run folder as one self-contained HTML file, atomically.

    Stages that have not been run are named as such, so a run under way has a report too.

    Args:
        run: folder written by `harken demo` or `harken run`.
        out: the HTML file to write; its folder is made.

    Raises:
        DataError: if the run folder does not exist or a file in it is damaged.
        StorageError: if the report cannot be written.
    """
    write_text(out, render(read_run(run)))


def render(run: RunFolder) -> str:
    """Return the report as HTML; every text from the run is escaped."""
    environment = Environment(
        loader=PackageLoader("harken.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(moment=moment, number=number, plural=plural)
    return environment.get_template("report.html.jinja").render(
        info=run.info,
        headline=sections.headline(run),
        people=sections.people(run),
        agreement=sections.agreement(run),
        votes=votes(run),
        strengths=tables.strengths(run),
        fine_tuning=sections.fine_tuning(run),
        reward=sections.reward(run),
        ppo=sections.ppo(run),
        samples=sections.samples(run),
        evaluation=sections.evaluation(run),
        cost=sections.cost(run),
        provenance=sections.provenance(run),
    )
