"""`harken collect tasks`: questions for people, from files into a store."""

from pathlib import Path
from typing import Annotated

import typer

from harken.cli_common import ConfigOption, SetOption, StoreOption, settings, show


def tasks(
    path: Annotated[
        Path,
        typer.Argument(metavar="F", help="Tasks as JSON Lines, or, with --prompts, completions by `harken generate`."),
    ],
    store: StoreOption,
    project: Annotated[str, typer.Option("--project", metavar="NAME", help="Project; made if it is not there.")],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="F", help="The prompts that the completions were made from.")
    ] = None,
    guideline: Annotated[
        Path | None, typer.Option("--guideline", metavar="F", help="Guideline of a new project, in Markdown.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Add tasks to a project, for people to work on in `harken ui`.

    The settings say what is asked, by how many people and for how long; they are those of a new project and cannot
    change later. The same task again adds nothing.
    """
    from harken.artifacts import read_text, sha256_file
    from harken.config import ProjectConfig
    from harken.datasets import read_completions, read_prompts
    from harken.errors import UsageError
    from harken.feedback.source import ImportSource
    from harken.feedback.store import FeedbackStore, Projects
    from harken.feedback.tasks import check_task, read_tasks, tasks_from_completions

    with FeedbackStore.open(store) as opened:
        projects = Projects(opened.database)
        found = projects.named(project)
        if found and (config or overrides or guideline):
            raise UsageError(
                f"--project {project}: there already, and its settings stay as they are; leave out --config, --set and "
                "--guideline, or give another name"
            )
        wanted = found.config if found else settings(ProjectConfig, config, overrides)
        if prompts:
            pairs = read_completions(path, read_prompts(prompts))
            lines = list(tasks_from_completions(pairs, wanted.task, name=str(path)))
            for line in lines:
                check_task(line, wanted.task, str(path))
        else:
            lines = read_tasks(path, wanted.task)
        text = read_text(guideline) if guideline else ""
        found = found or projects.make(project, wanted, guideline=text)
        source = ImportSource("tasks", path.name, sha256_file(path))
        new, known = projects.add_tasks(found.id, lines, source)
    show(f"project {found.name}: added {new} tasks; {known} were there already")
