"""What ends a run whose scores can no longer be believed: empty completions, or a judge who likes them ever less.

The reward is what the policy learns to earn, so it cannot tell whether the policy got better. What can is a judge that
has no part in training: the pattern that separates is that the score rises while the judge's mean falls. Other signals
of the run itself gave false alarms where others tried them; the report names those, and nothing is stopped by them.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from torch import Tensor

from harken.config import PpoConfig
from harken.config.guard import GuardConfig
from harken.errors import ConfigError
from harken.lm.trunk import Trunk
from harken.policy.best import best_so_far, go_back_to_best, keep_policy
from harken.policy.rollout import POLICY, Rollout
from harken.progress import Reporter
from harken.protocols import Reward, SharesBase, checked_scores
from harken.runs import Run


@dataclass(frozen=True)
class Window:
    """Some iterations together."""

    judge: float
    """Mean of the judge's scores."""
    error: float
    """Its standard error."""
    score: float
    """Mean of the reward's scores."""


class Guard:
    """Looks at each rollout before it is learned from, and keeps the best policy."""

    def __init__(self, run: Run, trunk: Trunk, config: PpoConfig, judge: Reward | None) -> None:
        """Remember what was seen before a run was stopped.

        Args:
            run: whose metrics tell what was seen.
            trunk: holds the policy.
            config: of PPO.
            judge: scores completions as a reward does; None = only empty and short completions are looked for.

        Raises:
            ConfigError: an iteration has one completion, so that a judge's mean has no error.
        """
        if judge is not None and config.rollouts < 2:
            raise ConfigError("a judge needs at least 2 completions an iteration; set prompts_per_step to 2 or more")
        self.run, self.trunk, self.config, self.judge = run, trunk, config, judge
        if isinstance(judge, SharesBase):
            judge.attach(trunk)
        self.settings = config.score.guard
        self.rows: list[dict[str, float]] = run.rows()

    def look(self, experience: Rollout, scores: Tensor, step: int) -> dict[str, float]:
        """Return a rollout's metrics, and keep the policy that drew it if it is the best so far.

        Args:
            experience: drawn by the policy after `step` iterations.
            scores: (B,) or (B, S), of the reward.
            step: iterations before this one.
        """
        mask = experience.batch.completion_mask
        totals = scores if scores.ndim == 1 else (scores * mask).sum(dim=1)
        empty = [not item.message.content.strip() for item in experience.completions]
        row = {"empty_fraction": sum(empty) / len(empty)}
        if self.judge is not None:
            given = checked_scores(self.judge, experience.prompts, experience.completions)
            row["judge_mean"], row["judge_error"] = mean_and_error(given, self.config.completions_per_prompt)
        self.rows = [*self.rows[:step], {"score_mean": float(totals.mean()), **row}]
        self.rows[-1]["length_mean"] = float(mask.sum(1).float().mean())
        self._keep_if_best(step)
        return row

    def trouble(self) -> str | None:
        """Say why the newest rollout is a reason to stop; None where it is none."""
        steps = self.config.steps
        found = collapsed(self.rows, self.settings)
        return found or (over_optimized(self.rows, self.settings, steps) if self.judge is not None else None)

    def go_back(self, reporter: Reporter, why: str) -> dict[str, str | int]:
        """Set the policy to the best one kept, say so, and return what the manifest is to hold of it."""
        step, _ = go_back_to_best(self.run, self.trunk, POLICY)
        reporter.say(f"stopped in iteration {len(self.rows)}: {why}; the policy given out is that of iteration {step}")
        return {"stopped": why, "best_step": step}

    def _keep_if_best(self, step: int) -> None:
        """With a judge the best is the end of the window it liked best, else the newest that is far from the limits."""
        kept = best_so_far(self.run, -math.inf)
        if self.judge is not None:
            # Until a window is whole, the policy that drew the first rollout.
            is_whole = len(self.rows) % self.settings.window == 0
            found = windows_of(self.rows, self.settings.window)[-1].judge if is_whole else -sys.float_info.max
        elif self.settings.empty_limit is None and self.settings.length_limit is None:
            return
        else:
            is_due = kept == -math.inf or step % self.config.save_every == 0
            found = float(step) if is_due and is_healthy(self.rows[-1], self.settings) else -math.inf
        if found > kept:
            keep_policy(self.run, self.trunk, POLICY, step, found)


def is_healthy(row: Mapping[str, float], settings: GuardConfig) -> bool:
    """Say whether a rollout is far from the limits: by a factor of two."""
    limit, least = settings.empty_limit, settings.length_limit
    has_text = limit is None or row["empty_fraction"] <= limit / 2
    return has_text and (least is None or row["length_mean"] >= 2 * least)


def collapsed(rows: Sequence[Mapping[str, float]], settings: GuardConfig) -> str | None:
    """Say what is beyond a limit in the newest rollout, if an earlier one was far from the limits; else None."""
    newest, limit, least = rows[-1], settings.empty_limit, settings.length_limit
    if not any(is_healthy(row, settings) for row in rows[:-1]):
        return None
    if limit is not None and newest["empty_fraction"] > limit:
        share = newest["empty_fraction"]
        return f"{share:.0%} of the completions hold no text (score.guard.empty_limit is {limit:.0%})"
    if least is not None and newest["length_mean"] < least:
        length = newest["length_mean"]
        return f"the mean completion has {length:.1f} tokens (score.guard.length_limit is {least:g})"
    return None


def over_optimized(rows: Sequence[Mapping[str, float]], settings: GuardConfig, steps: int) -> str | None:
    """Say how far the judge's mean fell while the score rose, if that is no accident; else None.

    Args:
        rows: of all iterations so far; asked at the end of a window.
        settings: how long a window is, and how often an accident may be taken for a fall.
        steps: iterations that the whole run is to have.
    """
    windows = windows_of(rows, settings.window)
    if len(windows) < 2 or len(rows) % settings.window:
        return None
    best, newest = max(windows[:-1], key=lambda window: window.judge), windows[-1]
    error = math.hypot(best.error, newest.error)
    fell = best.judge - newest.judge > critical_value(settings, steps) * error
    if not fell or newest.score <= best.score:
        return None
    return (
        f"the judge's mean fell from {best.judge:.3g} to {newest.judge:.3g} (standard error {error:.2g}) while the "
        f"score rose from {best.score:.3g} to {newest.score:.3g}: the policy earns reward by what the judge does not "
        "like"
    )


def windows_of(rows: Sequence[Mapping[str, float]], size: int) -> list[Window]:
    """Return the whole windows of `size` rows each; what is left at the end is not one yet."""
    found: list[Window] = []
    for end in range(size, len(rows) + 1, size):
        part = rows[end - size : end]
        error = math.hypot(*(row["judge_error"] for row in part)) / size
        found.append(Window(fmean(row["judge_mean"] for row in part), error, fmean(row["score_mean"] for row in part)))
    return found


def mean_and_error(scores: Sequence[float], per_prompt: int) -> tuple[float, float]:
    """Return the mean of scores and its standard error; completions of one prompt resemble each other, so prompts vary.

    Args:
        scores: of at least two completions, those of a prompt side by side.
        per_prompt: completions of a prompt; where there is one prompt only, its completions are what varies.
    """
    groups = [fmean(scores[start : start + per_prompt]) for start in range(0, len(scores), per_prompt)]
    units = groups if len(groups) > 1 else scores
    mean = fmean(units)
    variance = math.fsum((value - mean) ** 2 for value in units) / (len(units) - 1)
    return mean, math.sqrt(variance / len(units))


def critical_value(settings: GuardConfig, steps: int) -> float:
    """Return the standard errors that a window's mean must lie below an earlier one's.

    Each of W windows is compared with the best of those before, so with at most W (W - 1) / 2 pairs in a run; by
    Bonferroni's inequality the chance that any of them is that far apart by accident is at most `alarm`.
    """
    windows = steps // settings.window
    return NormalDist().inv_cdf(1 - settings.alarm / max(1, windows * (windows - 1) // 2))
