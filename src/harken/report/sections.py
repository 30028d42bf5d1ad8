"""What the page shows, section by section: facts, plots and tables from a run folder."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harken.report import facts, plots, stage_facts, tables, votes
from harken.report.facts import Fact
from harken.report.labels import STAGES, curve_label
from harken.report.numbers import (
    count,
    duration,
    number,
    percent,
    plural,
    shorten,
    span,
)
from harken.report.plots import Heading, Plot, Series
from harken.report.run_folder import Bucket, Curve, Evaluation, RunFolder, SamplePair

_PPO_WIDE = ("score_mean", "kl_sequence")
_PPO_SMALL = ("entropy", "length_mean", "clip_fraction", "explained_variance", "stop_fraction")
_NUM_SAMPLES = 8
_NUM_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Tile:
    """One of the few numbers at the top."""

    value: str
    label: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Two completions of one held-out prompt, and where they stand among all."""

    rank: int
    change: str
    pair: SamplePair


def headline(run: RunFolder) -> dict[str, Any]:
    """Return the verdict, the findings and the numbers at the top of the page."""
    findings: list[Fact | None] = []
    if run.agreement is not None:
        findings.append(stage_facts.people(run.agreement))
    if run.votes is not None:
        findings.append(votes.basis(run.votes))
    if run.reward is not None:
        findings.append(stage_facts.reward_accuracy(run.reward))
    if run.evaluation is not None:
        findings.append(facts.comparison(run.evaluation, "reward_score"))
        findings.append(facts.comparison(run.evaluation, "lexicon"))
        findings.append(facts.wins(run.evaluation, "lexicon"))
        findings.append(facts.side_effects(run.evaluation))
        findings.append(facts.hints(run.evaluation))
    elif run.ppo:
        findings.append(stage_facts.ppo(run.ppo))
    return {
        "verdict": facts.verdict(run.evaluation),
        "findings": [fact for fact in findings if fact is not None],
        "tiles": _tiles(run),
    }


def people(run: RunFolder) -> dict[str, Any] | None:
    """Return what people said: the histogram of ratings and the most disputed and agreed texts."""
    if run.agreement is None:
        return None
    found = run.agreement
    heading = Heading("ratings", f"Ratings: {found.axis}", "share of all ratings")
    return {
        "fact": stage_facts.leaning(found),
        "basis": stage_facts.people(found),
        "plot": plots.histogram(heading, found.histogram),
        "pairs": None if run.preferences is None else stage_facts.pairs(run.preferences),
        "strengths": tables.strengths(run),
        "disputed": found.most_disputed[:_NUM_EXAMPLES],
        "agreed": found.most_agreed[:_NUM_EXAMPLES],
    }


def agreement(run: RunFolder) -> dict[str, Any] | None:
    """Return how far people agree."""
    if run.agreement is None:
        return None
    found = run.agreement
    ratings = found.ratings_per_item
    rows = [
        ("Krippendorff's alpha, ordinal", tables.with_interval(found.alpha_ordinal)),
        ("Krippendorff's alpha, interval", tables.with_interval(found.alpha_interval)),
        ("Spread of one text's ratings (standard deviation)", number(found.mean_item_std, 2)),
        (
            "Ratings a text: fewest, mean, most",
            f"{count(ratings.min)}, {number(ratings.mean, 1)}, {count(ratings.max)}",
        ),
    ]
    return {
        "fact": stage_facts.agreement_level(found),
        "means": stage_facts.agreement_of_means(found),
        "table": tables.Table("Agreement between people", ("Measure", "Value"), tuple(rows)),
    }


def fine_tuning(run: RunFolder) -> dict[str, Any] | None:
    """Return how supervised fine-tuning went."""
    if not run.sft:
        return None
    both = [_series(run.sft, key, name) for key, name in (("loss", "train"), ("heldout_loss", "held out"))]
    series = [one for one in both if one.values]
    shown = [plots.curves(Heading("sft-loss", "Loss", "nats a token"), series)] if series else []
    return {
        "fact": stage_facts.fine_tuning(run.sft),
        "plots": shown,
        "more": _small_multiples(run.sft, "sft", {"loss", "heldout_loss"}),
    }


def reward(run: RunFolder) -> dict[str, Any] | None:
    """Return how good the reward model is on held-out pairs."""
    if run.reward is None:
        return None
    found = run.reward
    all_pairs = Bucket(label="all pairs", n=found.num_pairs, accuracy=found.accuracy)
    heading = Heading("reward-accuracy", "Right, by difference of mean ratings", "points")
    shown = [plots.shares(heading, [*found.buckets, all_pairs], by="Difference")]
    if found.calibration is not None and found.calibration.bins:
        heading = Heading("reward-calibration", "Confidence and accuracy", "dashed: equal")
        shown.append(plots.reliability(heading, found.calibration.bins))
    details = [
        stage_facts.reward_buckets(found),
        stage_facts.calibration(found),
        stage_facts.length_bias(found),
    ]
    return {
        "fact": stage_facts.reward_accuracy(found),
        "details": [fact for fact in details if fact is not None],
        "plots": shown,
        "more": _small_multiples(run.reward_curve, "reward", set()),
    }


def ppo(run: RunFolder) -> dict[str, Any] | None:
    """Return how PPO went: score and drift large, the rest small, warnings in words."""
    if not run.ppo:
        return None
    wide = [_curve_plot(run.ppo, "ppo", key, is_wide=True) for key in _PPO_WIDE]
    small = [_curve_plot(run.ppo, "ppo", key, is_wide=False) for key in _PPO_SMALL]
    shown = {*_PPO_WIDE, *_PPO_SMALL}
    return {
        "fact": stage_facts.ppo(run.ppo),
        "warnings": [*stage_facts.stopped(_info(run, "ppo")), *stage_facts.ppo_warnings(run.ppo)],
        "plots": [plot for plot in wide if plot is not None],
        "small": [plot for plot in small if plot is not None],
        "more": _small_multiples(run.ppo, "ppo", shown),
        "samples": _training_samples(run),
    }


def samples(run: RunFolder) -> dict[str, Any] | None:
    """Return completions before and after, taken at evenly spaced ranks of the score difference."""
    if not run.samples:
        return None
    change, judge = _judge_of(run.samples)
    ranked = sorted(run.samples, key=lambda pair: (change(pair), pair.prompt))
    last = len(ranked) - 1
    chosen = min(_NUM_SAMPLES, len(ranked))
    ranks = [round(i * last / max(chosen - 1, 1)) for i in range(chosen)]
    gained = sum(change(pair) > 0 for pair in ranked)
    text = (
        f"The {judge} scores the completion after training higher for "
        f"{count(gained)} of {plural(len(ranked), 'held-out prompt')}."
    )
    shown = [Sample(rank + 1, number(change(ranked[rank]), 2, signed=True), ranked[rank]) for rank in ranks]
    return {"fact": Fact(text), "judge": judge, "samples": shown, "total": len(ranked)}


def _judge_of(pairs: Sequence[SamplePair]) -> tuple[Callable[[SamplePair], float], str]:
    """Return how much a pair's score changed and who says so: the reward model if it was asked."""
    if any(pair.reward_policy is not None for pair in pairs):
        return lambda p: (p.reward_policy or 0.0) - (p.reward_against or 0.0), "reward model"
    return lambda p: (p.lexicon_policy or 0.0) - (p.lexicon_against or 0.0), "independent judge"


def evaluation(run: RunFolder) -> dict[str, Any] | None:
    """Return whether the policy is really better: all metrics with intervals, and win rates."""
    found = run.evaluation
    if found is None:
        return None
    names = {"lexicon": "independent judge", "reward": "reward model"}
    rates = [
        Bucket(label=names.get(judge, judge), n=0, accuracy=rate)
        for judge, rate in found.win_rate.items()
        if rate is not None
    ]
    heading = Heading("win-rate", "Pairs in which the completion after training wins", "ties half")
    lead = facts.comparison(found, "lexicon") or facts.comparison(found, "reward_score")
    details = [
        facts.wins(found, "lexicon"),
        facts.length_control(found, "lexicon"),
        facts.wins(found, "reward"),
        facts.side_effects(found),
        facts.hints(found),
        _endings(found),
    ]
    return {
        "fact": lead or Fact("Nothing was compared."),
        "details": [fact for fact in details if fact is not None],
        "table": tables.metrics(found),
        "plots": [plots.shares(heading, rates, by="Judge")] if rates else [],
        "basis": f"{plural(found.num_prompts, 'held-out prompt')}, "
        f"{plural(found.completions_per_prompt, 'completion')} each",
    }


def cost(run: RunFolder) -> dict[str, Any] | None:
    """Return what the run cost: seconds a stage and speeds."""
    fact = facts.cost(run)
    if fact is None or run.info is None:
        return None
    seconds = run.info.seconds
    longest = max(seconds.values()) or 1.0
    stages = [
        (STAGES.get(stage, stage), duration(value), f"{max(0.0, 100 * value / longest):.1f}")
        for stage, value in seconds.items()
    ]
    return {"fact": fact, "stages": stages, "speeds": tables.speeds(run)}


def provenance(run: RunFolder) -> dict[str, Any]:
    """Return where the run's artifacts came from, its settings, and the files read."""
    files = tables.Table(
        "Files read for this page",
        ("File", "sha256"),
        tuple((name, sha256[:16]) for name, sha256 in sorted(run.sources.items())),
    )
    return {
        "table": tables.artifacts(run),
        "settings": tables.settings(run),
        "files": files,
    }


def _tiles(run: RunFolder) -> list[Tile]:
    tiles: list[Tile] = []
    if run.evaluation is not None and (rate := run.evaluation.win_rate.get("lexicon")) is not None:
        note = span(rate.low, rate.high, as_percent=True)
        tiles.append(Tile(percent(rate.value), "of pairs won, by the independent judge", note))
    if run.reward is not None and run.reward.accuracy is not None:
        found = run.reward.accuracy
        note = span(found.low, found.high, as_percent=True)
        tiles.append(Tile(percent(found.value), "of held-out pairs right, reward model", note))
    kl = None if run.evaluation is None else run.evaluation.policy.get("kl_sequence")
    if kl is not None:
        tiles.append(Tile(number(kl.value, 1), "nats of drift a completion", span(kl.low, kl.high)))
    if run.info is not None and run.info.seconds:
        cores = run.info.machine.get("cores")
        note = f"on {plural(cores, 'CPU core')}" if isinstance(cores, int) else ""
        tiles.append(Tile(duration(sum(run.info.seconds.values())), "for the whole run", note))
    return tiles


def _endings(found: Evaluation) -> Fact | None:
    before = found.finish_reasons.get("against", {}).get("stop")
    after = found.finish_reasons.get("policy", {}).get("stop")
    if before is None or after is None:
        return None
    return Fact(
        f"Completions that end by themselves, not at the length limit: {percent(before)} before, "
        f"{percent(after)} after."
    )


def _series(curve: Curve, key: str, name: str, band: str = "") -> Series:
    rows = [row for row in curve if key in row and (not band or band in row)]
    return Series(
        name=name,
        steps=[row["step"] for row in rows],
        values=[row[key] for row in rows],
        band=[row[band] for row in rows] if band else None,
    )


def _curve_plot(curve: Curve, stage: str, key: str, *, is_wide: bool) -> Plot | None:
    label = curve_label(key)
    band = "score_std" if key == "score_mean" and any("score_std" in row for row in curve) else ""
    series = _series(curve, key, label.title, band)
    if not series.values:
        return None
    # A metric's name may hold anything; an id may not, and must stay unique.
    name = re.sub(r"[^A-Za-z0-9_]", lambda found: f"-{ord(found.group()):x}-", key)
    heading = Heading(f"curve-{stage}-{name}", label.title, label.note)
    return plots.curves(heading, [series], is_wide=is_wide)


def _small_multiples(curve: Curve, stage: str, shown: set[str]) -> list[Plot]:
    keys = sorted({key for row in curve for key in row} - shown - {"step"})
    found = [_curve_plot(curve, stage, key, is_wide=False) for key in keys]
    return [plot for plot in found if plot is not None]


def _info(run: RunFolder, stage: str) -> Mapping[str, Any]:
    manifest = run.manifests.get(f"{stage}/manifest.json")
    return manifest.info if manifest is not None else {}


def _training_samples(run: RunFolder) -> list[tuple[str, str, str, str]]:
    """Return one sample of up to six evenly spaced steps: step, prompt, completion, score."""
    by_step = {sample.step: sample for sample in reversed(run.ppo_samples)}
    steps = sorted(by_step)
    shown = min(6, len(steps))
    picked = [steps[round(i * (len(steps) - 1) / max(shown - 1, 1))] for i in range(shown)]
    return [
        (
            count(step),
            shorten(by_step[step].prompt),
            by_step[step].completion,
            number(by_step[step].score, 2),
        )
        for step in picked
    ]
