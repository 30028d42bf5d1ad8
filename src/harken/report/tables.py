"""The report's tables: metrics with intervals, strengths, speeds, settings, provenance."""

import dataclasses
import re
import statistics
from collections.abc import Mapping

from harken.artifacts import Manifest
from harken.report import facts
from harken.report.labels import EVALUATION, STAGES
from harken.report.numbers import count, decimals, moment, number, span, visible
from harken.report.run_folder import Curve, Evaluation, Interval, RunFolder


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column heads the rows, and `verdicts` color the last."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    verdicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Small print under each row's head."""


def artifacts(run: RunFolder) -> Table:
    """Return every artifact of the run with its digest and what it was made from."""
    names = {manifest.digest(): _artifact(name) for name, manifest in run.manifests.items()}
    rows = [
        (
            _artifact(name),
            visible(manifest.kind),
            manifest.digest()[:12],
            "; ".join(_parent(*one, names) for one in manifest.parents.items()),
        )
        for name, manifest in sorted(run.manifests.items(), key=_stage_order)
    ]
    header = ("Artifact", "Kind", "Digest", "Made from")
    return Table("Artifacts and what they were made from", header, tuple(rows))


def _artifact(name: str) -> str:
    return name.removesuffix("manifest.json").rstrip("/.")


def _parent(name: str, digest: str, names: Mapping[str, str]) -> str:
    shown = digest[:12] if re.fullmatch(r"[0-9a-f]{64}", digest) else visible(digest)
    if digest not in names:
        return f"{visible(name)} {shown} (from elsewhere)"
    here = names[digest]
    return f"{visible(name)} {shown}" if here == name else f"{visible(name)} {shown} ({here})"


def _stage_order(entry: tuple[str, Manifest]) -> tuple[int, str]:
    stages = list(STAGES)
    stage = entry[0].split("/")[0]
    return stages.index(stage) if stage in stages else len(stages), entry[0]


def strengths(run: RunFolder) -> Table | None:
    """Return the preference pairs by how clearly people preferred one text; None if not known."""
    if run.preferences is None or not run.preferences.by_strength:
        return None
    splits = run.preferences.by_strength
    names = {"0": "negligibly", "1": "slightly", "2": "clearly", "3": "significantly"}
    keys = sorted({strength for by in splits.values() for strength in by})
    titles = {"train": "Training", "heldout": "Held out"}
    rows = tuple((names.get(key, key), *(count(by.get(key, 0)) for by in splits.values())) for key in keys)
    header = ("Preferred", *(titles.get(split, split) for split in splits))
    return Table("Preference pairs by strength", header, rows)


def metrics(found: Evaluation) -> Table:
    """Return every metric before and after training, the difference and what it means."""
    rows: list[tuple[str, ...]] = []
    verdicts: list[str] = []
    notes: list[str] = []
    for key in [*EVALUATION, *(key for key in found.policy if key not in EVALUATION)]:
        before, after = found.against.get(key), found.policy.get(key)
        if before is None and after is None:
            continue
        label = EVALUATION.get(key)
        fact = facts.reading(found.difference.get(key), label.better if label else None)
        places = decimals([one.value for one in (before, after) if one is not None])
        rows.append(
            (
                label.title if label else key,
                number(before.value, places) if before else "",
                number(after.value, places) if after else "",
                _difference(found.difference.get(key), before, after, places),
                fact.text if before and after else "",
            )
        )
        verdicts.append(fact.verdict)
        notes.append(label.note if label else "")
    header = ("Metric", "Before", "After", "Difference (95% interval)", "Reading")
    caption = "Before and after training, means over prompts"
    return Table(caption, header, tuple(rows), tuple(verdicts), tuple(notes))


def _difference(difference: Interval | None, before: Interval | None, after: Interval | None, places: int) -> str:
    if difference is None:
        if before is None or after is None:
            return ""
        return number(after.value - before.value, places, signed=True)
    text = number(difference.value, places, signed=True)
    if difference.low is None or difference.high is None:
        return text
    return f"{text} ({number(difference.low, places)} to {number(difference.high, places)})"


def with_interval(interval: Interval | None) -> str:
    """Return a value with its interval in parentheses."""
    if interval is None:
        return "not defined"
    words = span(interval.low, interval.high, places=2)
    return f"{number(interval.value, 2)} ({words})" if words else number(interval.value, 2)


def speeds(run: RunFolder) -> Table | None:
    """Return tokens per second by phase; None if nothing was measured."""
    names = {
        ("sft", "tokens_per_s"): "Fine-tuning",
        ("reward", "tokens_per_s"): "Reward model training",
        ("ppo", "tokens_per_s_sample"): "PPO: sampling",
        ("ppo", "tokens_per_s_score"): "PPO: scoring",
        ("ppo", "tokens_per_s_train"): "PPO: training",
    }
    curves: Mapping[str, Curve] = {"sft": run.sft, "reward": run.reward_curve, "ppo": run.ppo}
    rows: list[tuple[str, ...]] = []
    for (stage, key), name in names.items():
        values = [row[key] for row in curves[stage] if key in row]
        if values:
            rows.append((name, count(statistics.median(values))))
    if not rows:
        return None
    return Table("Speed, median over steps", ("Phase", "Tokens/s"), tuple(rows))


def settings(run: RunFolder) -> Table:
    """Return what the run was given: recipe, seeds, machine, sampling."""
    rows: list[tuple[str, str]] = []
    if run.info is not None:
        info = run.info
        seed = "" if info.seed is None else str(info.seed)
        rows += [("Recipe", info.recipe), ("Seed", seed), ("Harken", info.harken_version)]
        rows += [("Model", info.model)]
        rows += [("Started", moment(info.started))]
        rows += [(f"Machine: {key}", str(value)) for key, value in info.machine.items()]
    if run.evaluation is not None:
        sampling = run.evaluation.sampling.items()
        rows += [(f"Evaluation sampling: {key}", str(value)) for key, value in sampling]
    seeds = {
        f"Seed of {_artifact(name)}: {key}": seed for name, m in run.manifests.items() for key, seed in m.seeds.items()
    }
    rows += [(visible(key), str(seed)) for key, seed in seeds.items()]
    known = tuple((key, value) for key, value in rows if value)
    return Table("Settings", ("Setting", "Value"), known)
