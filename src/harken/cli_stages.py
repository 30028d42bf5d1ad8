"""Commands for single stages: preferences, sft, reward, score, evaluate."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_common import (
    ConfigOption,
    FileOption,
    FolderOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    RewardsOption,
    SetOption,
    check_out_file,
    digest,
    interval,
    model_name,
    reporter,
    reward_inputs,
    run_folder,
    settings,
    show,
    show_json,
    table,
)
from harken.cli_fit import FitOption, fitted
from harken.cli_preference import show_accuracy

if TYPE_CHECKING:
    from harken.evaluate.evaluate import Judges

SCORE_BATCH = 256
"""Completions scored between two steps of the progress bar."""


def preferences(
    judgments: Annotated[Path, typer.Argument(metavar="JUDGMENTS", help="Folder written by `harken collect export`.")],
    out: FileOption,
    demonstrations: Annotated[
        Path | None,
        typer.Option("--demonstrations", metavar="F", help="Also write every rated text as a demonstration, for sft."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="F", help="Also write the texts' first words as prompts, for ppo."),
    ] = None,
    heldout_prompts: Annotated[
        Path | None,
        typer.Option("--heldout-prompts", metavar="F", help="The same of the held-out texts, for evaluate."),
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Make preference pairs from judgments: comparisons, rankings and ratings.

    Each pair has a strength, a soft label, a weight, and a split into training and held-out. `--set resolve.kind=...`
    says how the votes on a pair become one outcome: majority, dawid_skene, mace, bradley_terry, reliability,
    ordered_logit or plackett_luce.
    """
    from harken.config import PreferencesConfig
    from harken.errors import DataError
    from harken.preferences.derive import write_training_data
    from harken.preferences.pairs import resolve_export

    asked = settings(PreferencesConfig, config, changes)
    files = {
        "pairs": out,
        "demonstrations": demonstrations,
        "train_prompts": prompts,
        "heldout_prompts": heldout_prompts,
    }
    wanted = {name: path for name, path in files.items() if path is not None}
    for path in wanted.values():
        check_out_file(path)
    found = resolve_export(judgments, asked)
    say = reporter().say
    for note in found.notes:
        say(f"note: {note}")
    pairs = found.pairs
    if not pairs and found.facts:
        raise DataError(f"{judgments}: no pair is left of {found.facts['judgments']} judgments; the notes say why")
    if not pairs:
        raise DataError(
            f"{judgments}: {len(found.rated)} rated completions, but no two of one prompt whose mean ratings differ by "
            f"min_difference = {asked.min_difference:g}; lower it with --set, or collect more ratings"
        )
    parents = {"judgments": digest(judgments)}
    write_training_data(pairs, found.rated, wanted, asked, parents=parents, info=found.facts)
    num_train = sum(pair.split == "train" for pair in pairs)
    show(f"{out}: {num_train} pairs to train on, {len(pairs) - num_train} held out")


def sft(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", metavar="F", help="Demonstrations: prompts with completions.")],
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
    fit: FitOption = False,
) -> None:
    """Train a model to imitate demonstrations."""
    from harken.config import SftConfig
    from harken.datasets import read_demonstrations

    asked = settings(SftConfig, config, changes)
    demonstrations = read_demonstrations(data, reporter().say)
    from harken.policy.sft import sft as train

    name = model_name(model)
    asked, progress = fitted(asked, out, name, demonstrations) if fit else (asked, reporter())
    with run_folder(out):
        folder = train(name, demonstrations, out, asked, inputs={"demonstrations": data}, reporter=progress)
    show(str(folder))


def reward(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", metavar="F", help="Preference pairs.")],
    out: FolderOption,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="F", help="Prompts that fix the score's zero and unit; else the pairs'."),
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    fit: FitOption = False,
) -> None:
    """Train a reward model on preference pairs.

    It is measured on the held-out pairs: accuracy, calibration, and whether it only counts words.
    """
    from harken.artifacts import read_json
    from harken.config import RewardConfig
    from harken.datasets import read_pairs, read_prompts

    asked = settings(RewardConfig, config, changes)
    pairs = read_pairs(data, reporter().say)
    records = [] if prompts is None else read_prompts(prompts, reporter().say)
    from harken.reward.train import train_reward

    name = model_name(model)
    asked, progress = fitted(asked, out, name, pairs) if fit else (asked, reporter())
    with run_folder(out):
        inputs = {"pairs": data, **({} if prompts is None else {"prompts": prompts})}
        folder = train_reward(name, pairs, out, asked, prompts=records, inputs=inputs, reporter=progress)
    show_accuracy(read_json(out / "evaluation.json"))
    show(str(folder))


def score(
    rewards: RewardsOption,
    prompts: PromptsOption,
    completions: Annotated[Path, typer.Option("--in", metavar="F", help="Completions to score.")],
    out: FileOption,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of ComputeConfig, as in dtype=float32."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score completions with any reward.

    Writes one score for each, in order. The prompts are those that the completions were made from.
    """
    from harken.artifacts import write_records
    from harken.config import ComputeConfig
    from harken.datasets import read_completions, read_prompts
    from harken.records import ScoredCompletion

    compute = settings(ComputeConfig, None, changes)
    pairs = read_completions(completions, read_prompts(prompts))
    check_out_file(out)
    from harken.protocols import checked_scores
    from harken.reward.functions import load_reward

    progress = reporter()
    judge = load_reward(rewards, compute=compute, notify=progress.say)
    values: list[float] = []
    starts = range(0, len(pairs), SCORE_BATCH)
    for start in progress.track(starts, "score", total=len(starts)):
        some = pairs[start : start + SCORE_BATCH]
        values += checked_scores(judge, [prompt for prompt, _ in some], [completion for _, completion in some])
    name = " + ".join(rewards)
    records = [
        ScoredCompletion(prompt_id=prompt.id, completion_id=completion.id, reward=name, score=value)
        for (prompt, completion), value in zip(pairs, values, strict=True)
    ]
    parents = {"prompts": digest(prompts), "completions": digest(completions)}
    parents |= {key: digest(value) for key, value in reward_inputs(rewards).items()}
    write_records(out, records, kind="scores", parents=parents)
    _show_scores(out, name, values, as_json)


def _show_scores(out: Path, name: str, values: list[float], as_json: bool) -> None:
    import statistics

    found = {
        "num_completions": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
    }
    if as_json:
        show_json({"reward": name, "out": str(out), **found})
    else:
        spread = f"mean {found['mean']:.3f}, spread {found['std']:.3f}, {found['min']:.3f} to {found['max']:.3f}"
        show(f"{out}: {len(values)} scores, {spread}")


def evaluate(
    model: ModelOption,
    prompts: PromptsOption,
    out: FolderOption,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="M0", help="Model to compare with; else the one that --model started from."),
    ] = None,
    rewards: Annotated[
        list[str] | None, typer.Option("--reward", metavar="R", help="A judge, as in `harken ppo`; each on its own.")
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on held-out prompts.

    Measures scores, win rates, KL, length and diversity. Judges are the lexicon (where vaderSentiment is installed) and
    each --reward. Intervals are at 95 %, over prompts.
    """
    from harken.config import EvaluateConfig
    from harken.datasets import read_prompts

    asked = settings(EvaluateConfig, config, changes)
    records = read_prompts(prompts, reporter().say)
    progress, name = reporter(), model_name(model)
    other = model_name(against) if against is not None else _started_from(name)
    progress.say(f"comparing {name} with {other}")
    from harken.evaluate.evaluate import evaluate as compare
    from harken.reward.functions import load_reward

    judges: Judges = {}
    for number, spec in enumerate(rewards or ()):
        judge = "reward" if number == 0 else f"reward_{number + 1}"
        judges[judge] = load_reward(spec, compute=asked.compute, notify=progress.say)
    if importlib.util.find_spec("vaderSentiment") is not None:
        judges["lexicon"] = load_reward("lexicon")
    with run_folder(out):
        inputs = {"prompts": prompts, **reward_inputs(rewards or ())}
        found = compare(name, other, records, judges, out, asked, inputs=inputs, reporter=progress)
    if as_json:
        show_json(found)
    else:
        show(_comparison_table(found))


def _started_from(name: str) -> str:
    """Return the model that a trained model started from, as the adapter beside it says."""
    from harken.artifacts import read_json
    from harken.errors import UsageError

    settings_file = Path(name).parent / "adapter" / "adapter_config.json"
    if not settings_file.is_file():
        raise UsageError(f"--model {name}: does not say which model it started from; name one with --against")
    return str(read_json(settings_file)["base_model_name_or_path"])


def _comparison_table(found: dict[str, Any]) -> str:
    rows = [["95 % intervals", "model", "against", "difference"]]
    for metric, value in found["policy"].items():
        sides = [value, found["against"].get(metric), found["difference"].get(metric)]
        rows.append([metric, *(interval(side) for side in sides)])
    for kind, title in (("win_rate", "win rate"), ("win_rate_length_controlled", "win rate at equal lengths")):
        rows += [[f"{title}, {judge}", interval(value), "", ""] for judge, value in found[kind].items()]
    return table(rows)
