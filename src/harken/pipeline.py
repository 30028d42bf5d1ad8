"""One turn of the loop on one screen: judgments -> pairs -> reward model -> policy -> is it better? -> report.

Each stage writes a folder and marks it finished; running the same recipe again skips what is finished and goes on with
what is not.
"""

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from harken.artifacts import HARKEN_VERSION, read_json, read_records, write_json
from harken.config import CollectConfig, PreferencesConfig, RecipeConfig
from harken.evaluate.evaluate import evaluate
from harken.feedback.exchange.entry import Reading
from harken.feedback.exchange.find import foreign, read_feedback
from harken.feedback.exchange.importing import Importing
from harken.feedback.exchange.read import open_data
from harken.feedback.store import FeedbackStore
from harken.policy.ppo import ppo
from harken.policy.sft import sft
from harken.preferences.derive import write_training_data
from harken.preferences.measure import feedback_report
from harken.preferences.pairs import resolve_export
from harken.progress import QUIET, Reporter
from harken.records import Demonstration, PreferencePair, Prompt
from harken.report.html import write_report
from harken.reward.functions import Lexicon, load_reward
from harken.reward.train import train_reward
from harken.runs import Run

T = TypeVar("T")


def run_recipe(recipe: RecipeConfig, out: Path, reporter: Reporter = QUIET) -> Path:
    """Run all stages of a recipe and return the report's path; a stopped run goes on where it stopped."""
    clock = Clock(recipe, out, reporter)
    export = clock.stage("collect", lambda: collect(recipe.collect, out / "collect", reporter))
    data = clock.stage("preferences", lambda: prepare(recipe.preferences, export, out / "preferences"))
    demonstrations = read_records(data["demonstrations"], Demonstration)
    pairs = read_records(data["pairs"], PreferencePair)
    prompts = read_records(data["train_prompts"], Prompt)
    heldout = read_records(data["heldout_prompts"], Prompt)

    def train_sft() -> Path:
        inputs = {"demonstrations": data["demonstrations"]}
        return sft(recipe.model, demonstrations, out / "sft", recipe.sft, inputs=inputs, reporter=reporter)

    base = clock.stage("sft", train_sft)

    def train_reward_model() -> Path:
        inputs = {"pairs": data["pairs"], "prompts": data["train_prompts"]}
        settings = recipe.reward
        return train_reward(base, pairs, out / "reward", settings, prompts=prompts, inputs=inputs, reporter=reporter)

    reward = clock.stage("reward", train_reward_model)

    def train_policy() -> Path:
        inputs: dict[str, Path | str] = {"prompts": data["train_prompts"], "reward": reward}
        scorer = load_reward(str(reward), compute=recipe.ppo.compute)
        judge = load_reward(recipe.judge, compute=recipe.ppo.compute) if recipe.judge else None
        if judge is not None:
            inputs["judge"] = recipe.judge
        options: Any = {"judge": judge, "inputs": inputs, "reporter": reporter}
        return ppo(base, prompts, scorer, out / "ppo", recipe.ppo, **options)

    policy = clock.stage("ppo", train_policy)

    def compare() -> None:
        judges = {"reward": load_reward(str(reward), compute=recipe.evaluate.compute), "lexicon": Lexicon()}
        inputs = {"prompts": data["heldout_prompts"], "reward": reward}
        evaluate(policy, base, heldout, judges, out / "evaluate", recipe.evaluate, inputs=inputs, reporter=reporter)

    clock.stage("evaluate", compare)
    write_report(out, out / "report.html")
    return out / "report.html"


def collect(config: CollectConfig, out: Path, reporter: Reporter = QUIET) -> Path:
    """Import judgments into a store, export them, and measure how far people agree; return the export's folder."""
    run = Run(out, "collect", config, {})
    if run.finished:
        return out / "export"
    add = _opened(config, reporter)
    with FeedbackStore.open(f"sqlite:///{out / 'feedback.db'}") as store:
        notes = add(store)
        store.export(out / "export")
        report = feedback_report(store.judgments, store.completions, store.status().judgments_by_answer)
    write_json(out / "agreement.json", report)
    run.finish({"notes": list(notes)})
    return out / "export"


def _opened(config: CollectConfig, reporter: Reporter) -> Callable[[FeedbackStore], tuple[str, ...]]:
    """Open what a recipe names and return what adds it to a store and says what is odd in it.

    It is opened before there is a store, so that a wrong path leaves nothing behind. Rows that cannot be used are
    counted.
    """
    named = None if config.format == "auto" else config.format
    own = foreign(config.path, named)
    if own is not None:
        imported = read_feedback(own, config.path, reporter.say)

        def add_records(store: FeedbackStore) -> tuple[str, ...]:
            store.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
            return imported.source.notes

        return add_records
    labeling = Path(config.labeling_config) if config.labeling_config else None
    reading = Reading(Path(config.path), config.columns, config.scales, labeling, config.buckets)
    importing = Importing(open_data(reading, None if named == "ratings" else named))

    def add_rows(store: FeedbackStore) -> tuple[str, ...]:
        store.add_parts(importing.parts(), source=importing.source)
        for note in importing.notes():
            reporter.say(f"note: {note}")
        return importing.notes()

    return add_rows


def prepare(config: PreferencesConfig, export: Path, out: Path) -> dict[str, Path]:
    """Make pairs, demonstrations and prompts from an export; return their files by name."""
    names = ("pairs", "demonstrations", "train_prompts", "heldout_prompts")
    files = {name: out / f"{name}.jsonl" for name in names}
    run = Run(out, "preferences", config, {"export": export})
    if run.finished:
        return files
    found = resolve_export(export, config)
    write_training_data(found.pairs, found.rated, files, config, parents=run.inputs, info=found.facts)
    resolved = {"votes": found.facts, "notes": list(found.notes)} if found.facts else {}
    write_json(out / "summary.json", summarize(found.pairs) | resolved)
    run.finish()
    return files


def summarize(pairs: list[PreferencePair]) -> dict[str, Any]:
    """Return counts of pairs by split and strength."""
    splits = ("train", "heldout")
    return {
        **{split: sum(pair.split == split for pair in pairs) for split in splits},
        "by_strength": {
            split: {
                str(strength): sum(pair.split == split and pair.strength == strength for pair in pairs)
                for strength in range(4)
            }
            for split in splits
        },
        "mean_soft_label": sum(pair.soft_label for pair in pairs) / len(pairs) if pairs else None,
    }


class Clock:
    """Times the stages, says what comes next, and keeps `run.json` for the report."""

    def __init__(self, recipe: RecipeConfig, out: Path, reporter: Reporter) -> None:
        """Start or go on with a run folder."""
        self._path = out / "run.json"
        self._reporter = reporter
        self._facts: dict[str, Any] = {
            "recipe": recipe.name,
            "title": recipe.title,
            "model": recipe.model,
            "seed": recipe.seed,
            "harken_version": HARKEN_VERSION,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {},
            "machine": machine(),
        }
        if self._path.exists():
            self._facts |= {key: read_json(self._path)[key] for key in ("started", "seconds")}

    def stage(self, name: str, work: Callable[[], T]) -> T:
        """Run one stage and add its seconds to those it took before."""
        self._reporter.say(f"-- {name}")
        started = time.perf_counter()
        result = work()
        seconds = self._facts["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 1)
        write_json(self._path, self._facts)
        return result


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": None if memory is None else round(memory, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
