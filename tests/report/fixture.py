"""A run folder as `harken demo` leaves it, with realistic numbers and no model behind them."""

import json
import math
import random
from pathlib import Path
from typing import Any

from harken.artifacts import Manifest

PROMPTS = [
    "The acting in this movie",
    "What I liked least about the film was",
    "As a family drama, it",
    "The director seems to",
    "By the second half, the plot",
    "Fans of the book will",
    "The soundtrack is",
    "In the end, this is a film that",
    "The two leads have",
    "For a sequel, this",
    "The script, which took years to finish,",
    "It is hard to say whether the ending",
]
BEFORE = [
    " is flat, and the jokes were old when the script was new.",
    " feels longer than it is; there is little here that one has not seen before.",
    " has its moments, but they are few.",
    " never quite decides what it wants to be.",
]
AFTER = [
    " is a quiet triumph: warm, funny and wonderfully played.",
    " works beautifully, and the last scene is among the best of the year.",
    " is charming from the first minute to the last.",
    " makes good use of a splendid cast.",
]


def interval(value: float, half: float) -> dict[str, float | None]:
    """Return a value with an interval of the given half width."""
    return {"value": value, "low": round(value - half, 4), "high": round(value + half, 4)}


def agreement() -> dict[str, Any]:
    """Return `collect/agreement.json`."""
    shares = {-4: 5, -3: 11, -2: 15, -1: 11, 0: 13, 1: 13, 2: 16, 3: 11, 4: 5}
    return {
        "num_judgments": 44_730,
        "num_items": 2_500,
        "ratings_per_item": {"min": 14, "mean": 17.9, "max": 20},
        "axis": "sentiment",
        "scale": [-4, 4],
        "histogram": {str(value): round(447.3 * share) for value, share in shares.items()},
        "alpha_ordinal": interval(0.561, 0.012),
        "alpha_interval": interval(0.554, 0.012),
        "mean_item_std": 1.31,
        "split_half_correlation": 0.914,
        "most_disputed": [
            {"text": "so bad it is almost a masterpiece .", "mean": 0.2, "std": 2.71, "n": 18},
            {"text": "a film only its director could love .", "mean": -0.9, "std": 2.42, "n": 17},
            {"text": "shocking , in the best sense .", "mean": 0.7, "std": 2.38, "n": 19},
        ],
        "most_agreed": [
            {"text": "one of the year's best films .", "mean": 3.5, "std": 0.5, "n": 20},
            {"text": "a waste of good actors and time .", "mean": -2.9, "std": 0.6, "n": 18},
            {"text": "it runs for ninety minutes .", "mean": 0.0, "std": 0.3, "n": 17},
        ],
    }


def preferences() -> dict[str, Any]:
    """Return `preferences/summary.json`."""
    return {
        "train": 6_400,
        "heldout": 800,
        "by_strength": {
            "train": {"0": 900, "1": 2_500, "2": 1_900, "3": 1_100},
            "heldout": {"0": 110, "1": 310, "2": 240, "3": 140},
        },
        "mean_soft_label": 0.83,
    }


def reward_evaluation() -> dict[str, Any]:
    """Return `reward/evaluation.json`."""
    buckets = [("under 1", 286, 0.601, 0.057), ("1 to 2", 251, 0.741, 0.054)]
    buckets += [("2 to 3", 158, 0.854, 0.055), ("3 or more", 105, 0.933, 0.048)]
    bins = [(0.5, 0.6, 184, 0.551, 0.565), (0.6, 0.7, 171, 0.648, 0.637)]
    bins += [(0.7, 0.8, 158, 0.751, 0.709), (0.8, 0.9, 149, 0.852, 0.826)]
    bins += [(0.9, 1.0, 138, 0.957, 0.928)]
    return {
        "num_pairs": 800,
        "accuracy": interval(0.739, 0.03),
        "accuracy_difference_1_or_more": {**interval(0.815, 0.033), "n": 514},
        "buckets": [{"label": label, "n": n, "accuracy": interval(value, half)} for label, n, value, half in buckets],
        "calibration": {
            "ece": 0.024,
            "brier": 0.176,
            "nll": 0.529,
            "temperature": 1.12,
            "nll_after_temperature": 0.526,
            "bins": [
                {"low": low, "high": high, "n": n, "confidence": confidence, "accuracy": accuracy}
                for low, high, n, confidence, accuracy in bins
            ],
        },
        "length_correlation": -0.07,
    }


def evaluation() -> dict[str, Any]:
    """Return `evaluate/evaluation.json`: a clear gain with a little less variety."""
    metrics = {
        # before, after, half widths of both, difference's half width
        "reward_score": (0.03, 1.34, 0.07, 0.06, 0.09),
        "lexicon": (0.12, 0.58, 0.05, 0.04, 0.06),
        "length_tokens": (22.4, 23.1, 0.8, 0.8, 1.1),
        "distinct_1": (0.231, 0.198, 0.011, 0.012, 0.014),
        "distinct_2": (0.694, 0.612, 0.015, 0.017, 0.02),
        "distinct_3": (0.913, 0.861, 0.01, 0.012, 0.014),
        "repetition": (0.008, 0.011, 0.004, 0.005, 0.006),
    }
    before = {name: interval(row[0], row[2]) for name, row in metrics.items()}
    after = {name: interval(row[1], row[3]) for name, row in metrics.items()}
    difference = {name: interval(round(row[1] - row[0], 4), row[4]) for name, row in metrics.items()}
    after["kl_sequence"] = interval(6.8, 0.5)
    for n in (1, 2, 3):  # over all texts together: no interval
        for side in (before, after):
            side[f"distinct_{n}"] = {**side[f"distinct_{n}"], "low": None, "high": None}
        del difference[f"distinct_{n}"]
    before["perplexity_reference"] = {"value": 31.8, "low": None, "high": None}
    after["perplexity_reference"] = {"value": 34.2, "low": None, "high": None}
    return {
        "num_prompts": 96,
        "completions_per_prompt": 4,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 40},
        "policy": after,
        "against": before,
        "difference": difference,
        "win_rate": {"lexicon": interval(0.74, 0.035), "reward": interval(0.87, 0.025)},
        "win_rate_length_controlled": {"lexicon": interval(0.71, 0.04), "reward": interval(0.85, 0.03)},
        "finish_reasons": {
            "policy": {"stop": 0.91, "length": 0.09},
            "against": {"stop": 0.88, "length": 0.12},
        },
    }


def samples() -> list[dict[str, Any]]:
    """Return `evaluate/samples.jsonl`: 48 held-out prompts before and after."""
    draw = random.Random(3)
    rows: list[dict[str, Any]] = []
    for index in range(48):
        low, high = draw.gauss(0.0, 0.6), draw.gauss(1.3, 0.6)
        rows.append(
            {
                "prompt": PROMPTS[index % len(PROMPTS)],
                "policy": draw.choice(AFTER),
                "against": draw.choice(BEFORE),
                "reward_policy": round(high, 3),
                "reward_against": round(low, 3),
                "lexicon_policy": round(math.tanh(high * 0.6), 3),
                "lexicon_against": round(math.tanh(low * 0.6), 3),
            }
        )
    return rows


def sft_curve(steps: int = 60) -> list[dict[str, float]]:
    """Return `sft/metrics.jsonl`."""
    draw = random.Random(1)
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = 3.55 + 0.75 * math.exp(-step / 12)
        row = {
            "step": step,
            "time_s": 1.1 * step,
            "loss": loss + draw.gauss(0, 0.06),
            "tokens_per_s": draw.gauss(890, 25),
            "grad_norm": draw.gauss(1.4, 0.2),
            "lr": 2e-4 * (1 - step / (steps + 1)),
            "padding_waste": abs(draw.gauss(0.06, 0.02)),
        }
        if step == 1 or step % 10 == 0:
            row["heldout_loss"] = loss + 0.08
        rows.append(row)
    return rows


def reward_curve(steps: int = 100) -> list[dict[str, float]]:
    """Return `reward/metrics.jsonl`."""
    draw = random.Random(2)
    return [
        {
            "step": step,
            "time_s": 0.9 * step,
            "loss": 0.54 + 0.16 * math.exp(-step / 25) + draw.gauss(0, 0.03),
            "accuracy": min(1.0, 0.74 - 0.22 * math.exp(-step / 25) + draw.gauss(0, 0.05)),
            "score_margin": 1.1 * (1 - math.exp(-step / 30)) + draw.gauss(0, 0.1),
            "grad_norm": abs(draw.gauss(2.1, 0.5)),
            "lr": 1e-4 * (1 - step / (steps + 1)),
            "tokens_per_s": draw.gauss(1_450, 40),
        }
        for step in range(1, steps + 1)
    ]


def ppo_curve(steps: int = 50) -> list[dict[str, float]]:
    """Return `ppo/metrics.jsonl`: the score rises, drift rises with it, entropy falls a little."""
    draw = random.Random(4)
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-step / 22)
        rows.append(
            {
                "step": step,
                "time_s": 5.1 * step,
                "score_mean": 0.03 + 1.45 * done + draw.gauss(0, 0.09),
                "score_std": 0.95 - 0.25 * done + draw.gauss(0, 0.04),
                "reward_mean": 0.03 + 1.1 * done + draw.gauss(0, 0.09),
                "kl_sequence": 7.4 * done**1.6 + draw.gauss(0, 0.2),
                "kl_k3": 0.31 * done**1.6 + abs(draw.gauss(0, 0.01)),
                "kl_coef": 0.05,
                "entropy": 2.9 - 0.5 * done + draw.gauss(0, 0.04),
                "length_mean": 22.4 + 0.9 * done + draw.gauss(0, 0.5),
                "stop_fraction": min(1.0, 0.88 + 0.04 * done + draw.gauss(0, 0.02)),
                "policy_loss": draw.gauss(-0.02, 0.006),
                "value_loss": 0.25 + 0.4 * math.exp(-step / 6) + abs(draw.gauss(0, 0.03)),
                "clip_fraction": abs(draw.gauss(0.09, 0.02)),
                "value_clip_fraction": abs(draw.gauss(0.04, 0.01)),
                "approx_kl": abs(draw.gauss(0.006, 0.0015)),
                "explained_variance": 0.62 - 0.9 * math.exp(-step / 7) + draw.gauss(0, 0.04),
                "grad_norm_policy": abs(draw.gauss(0.8, 0.1)),
                "grad_norm_critic": abs(draw.gauss(3.1, 0.7)),
                "lr": 1e-4,
                "tokens_per_s_sample": draw.gauss(610, 15),
                "tokens_per_s_score": draw.gauss(2_300, 60),
                "tokens_per_s_train": draw.gauss(720, 20),
                "padding_waste": abs(draw.gauss(0.11, 0.02)),
                "epochs_run": 2,
            }
        )
    return rows


def training_samples() -> list[dict[str, Any]]:
    """Return `ppo/samples.jsonl`."""
    return [
        {
            "step": step,
            "prompt": PROMPTS[step % len(PROMPTS)],
            "completion": (BEFORE if step < 20 else AFTER)[step % 4],
            "score": round(0.03 * step, 2),
        }
        for step in range(0, 51, 10)
    ]


def run_info() -> dict[str, Any]:
    """Return `run.json`."""
    seconds = {"collect": 4.2, "preferences": 1.1, "sft": 71.8, "reward": 94.3}
    return {
        "recipe": "reviews",
        "title": "Movie-review snippets that people rate high",
        "model": "smollm2",
        "seed": 7,
        "harken_version": "0.1.0",
        "started": "2026-11-20T17:41:03+00:00",
        "seconds": {**seconds, "ppo": 221.4, "evaluate": 39.5},
        "machine": {
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_gb": 7.8,
            "torch": "2.13.0",
            "dtype": "float32",
            "threads": 2,
        },
    }


def manifests() -> dict[str, Manifest]:
    """Return a manifest by stage, each with the digests of its parents."""
    found: dict[str, Manifest] = {}
    parents = {
        "collect": (),
        "preferences": ("collect",),
        "sft": ("collect",),
        "reward": ("preferences", "sft"),
        "ppo": ("reward", "sft"),
        "evaluate": ("ppo", "sft"),
    }
    for stage, inputs in parents.items():
        found[stage] = Manifest(
            kind=stage,
            files={"metrics.jsonl": f"{len(found):064x}"},
            parents={name: found[name].digest() for name in inputs},
            seeds={"train": 7},
        )
    return found


def write_run(run: Path, *, metrics: tuple[str, ...] = ()) -> Path:
    """Write the whole run folder, or only the named metrics of its curves, and return it."""

    def of(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        names = {"step", *metrics}
        return [{k: v for k, v in row.items() if k in names} if metrics else row for row in rows]

    write(run / "run.json", run_info())
    write(run / "collect/agreement.json", agreement())
    write(run / "preferences/summary.json", preferences())
    write(run / "reward/evaluation.json", reward_evaluation())
    write(run / "evaluate/evaluation.json", evaluation())
    write_lines(run / "sft/metrics.jsonl", of(sft_curve()))
    write_lines(run / "reward/metrics.jsonl", of(reward_curve()))
    write_lines(run / "ppo/metrics.jsonl", of(ppo_curve()))
    write_lines(run / "ppo/samples.jsonl", training_samples())
    write_lines(run / "evaluate/samples.jsonl", samples())
    for stage, manifest in manifests().items():
        write(run / stage / "manifest.json", manifest.model_dump(mode="json"))
    return run


def write(path: Path, value: object) -> None:
    """Write one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: list[Any]) -> None:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
