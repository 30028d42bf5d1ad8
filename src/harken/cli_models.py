"""`harken collect sample` and `harken collect judge`: models that write what people judge, and models that judge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from harken.cli_common import (
    ConfigOption,
    JsonOption,
    PromptsOption,
    SetOption,
    StoreOption,
    model_name,
    reporter,
    settings,
    show,
    show_json,
    table,
)


def sample(
    store: StoreOption,
    project: Annotated[str, typer.Option("--project", metavar="NAME", help="Project; made if it is not there.")],
    models: Annotated[
        list[str],
        typer.Option(
            "--model", metavar="M", help="As for `harken generate`, or ADDRESS#MODEL of a service; may be given again."
        ),
    ],
    prompts: PromptsOption,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward", metavar="R", help="Reward model, as for `harken ppo`; several: their disagreement chooses."
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", metavar="N", help="Completions of each prompt by each model.")] = None,
    num_tasks: Annotated[int | None, typer.Option("--tasks", metavar="N", help="Pairs to choose.")] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw completions of models, choose pairs of them, and add these to a project for people to compare.

    Pairs about which the reward models disagree are chosen more often, spread over the prompts; a share is drawn at
    random. The chance that each pair had is stored with its task, so that `harken collect agreement` can tell what
    holds for all pairs. The same command again goes on where it was stopped and adds no task twice.
    """
    from harken.config import ProjectConfig, SampleConfig
    from harken.datasets import read_prompts

    overrides = [*(changes or ()), *([] if n is None else [f"completions_per_prompt={n}"])]
    overrides += [] if num_tasks is None else [f"choose.num_tasks={num_tasks}"]
    asked = settings(SampleConfig, config, overrides)
    records = read_prompts(prompts, reporter().say)
    from harken.collecting import sample_tasks
    from harken.feedback.store import FeedbackStore, Projects

    with FeedbackStore.open(store) as opened:
        projects = Projects(opened.database)
        found = projects.named(project) or projects.make(project, ProjectConfig())
        named = [model_name(model) for model in models]
        done = sample_tasks(opened, found, named, records, rewards or (), asked, reporter=reporter())
    if as_json:
        show_json(vars(done))
        return
    show(f"completions: {done.num_drawn} drawn, {done.num_kept} there already; {done.num_candidates} pairs of them")
    show(f"project {found.name}: added {done.num_new} tasks; {done.num_known} were there already")
    show(f"{done.num_random} of {done.num_new + done.num_known} chosen at random")


def judge(
    store: StoreOption,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="J",
            help="Language model (as for `harken generate`, or ADDRESS#MODEL of a service), reward model folder, "
            "lexicon, or file.py:function.",
        ),
    ],
    project: Annotated[
        str | None, typer.Option("--project", metavar="NAME", help="Only its tasks; else all that was to be compared.")
    ] = None,
    criteria: Annotated[
        Path | None,
        typer.Option("--criteria", metavar="F", help="By what to judge, as text; else the guideline of --project."),
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model judge the pairs that people are asked about, each in both orders.

    Where the two orders disagree the judgment is a tie. Judgments of models stand beside those of people and are not
    counted with them: `harken preferences` leaves them out unless --set judges=models or all, and `harken collect
    agreement` tells how far they agree with people, beside how far people agree with each other. The same command again
    asks only about new pairs.
    """
    from harken.artifacts import read_text
    from harken.config import JudgeConfig

    asked = settings(JudgeConfig, config, changes)
    text = read_text(criteria) if criteria else ""
    from harken.collecting import open_judge
    from harken.errors import UsageError
    from harken.feedback.judge import judge_pairs
    from harken.feedback.store import FeedbackStore, Projects
    from harken.feedback.store.machine import asked_pairs

    with FeedbackStore.open(store, create=False) as opened:
        found = Projects(opened.database).named(project) if project else None
        if project and found is None:
            raise UsageError(f"--project {project}: there is none of this name in {opened.name}")
        pairs = asked_pairs(opened.database, found.id if found else None)
        if not pairs:
            raise UsageError(f"{opened.name}: nothing to compare; add tasks first (harken collect sample)")
        by = open_judge(model_name(judge), asked, criteria=text or _guideline(found), notify=reporter().say)
        counts = judge_pairs(opened.database, pairs, by, batch_size=asked.batch_size, reporter=reporter())
    told: dict[str, Any] = {"judge": by.record.id, "version": by.version, "outcomes": counts.outcomes}
    told |= {"orders_disagreed": counts.num_flipped, "judged_before": counts.num_known}
    if as_json:
        show_json(told)
        return
    rows = [["judge", by.record.id], ["judged by", by.version]]
    rows += [[f"judgments: {outcome}", str(count)] for outcome, count in counts.outcomes.items()]
    rows += [["ties because the orders disagreed", str(counts.num_flipped)]]
    show(table([*rows, ["judged before", str(counts.num_known)]]))


def _guideline(project: Any) -> str:
    return project.guideline_text if project else ""
