"""Read a run folder: every part that is there, checked; None for what has not been run yet."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from harken.artifacts import Manifest, first_problem, read_bytes
from harken.errors import DataError
from harken.report.numbers import visible


class Part(BaseModel):
    """Base of what is read: frozen, finite numbers only; fields we do not show are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


PartT = TypeVar("PartT", bound=Part)


class Interval(Part):
    """A value with its 95% interval; the ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


def _none_without_value(value: Any) -> Any:
    # A mean over no pairs or prompts is written as {"value": null, ...}.
    return None if isinstance(value, dict) and value.get("value", 0) is None else value


Measured = Annotated[Interval | None, BeforeValidator(_none_without_value)]
"""A value with its interval, or None where there was nothing to measure."""


class RunInfo(Part):
    """`run.json`: which recipe, when, on what machine, and the seconds of each stage."""

    recipe: str = ""
    title: str = ""
    model: str = ""
    seed: int | None = None
    harken_version: str = ""
    started: str = ""
    seconds: dict[str, float] = {}
    machine: dict[str, Any] = {}


class RatedText(Part):
    """A text with the mean and standard deviation of its n ratings."""

    text: str
    mean: float
    std: float
    n: int


class RatingsPerItem(Part):
    """How many ratings the texts have."""

    min: float
    mean: float
    max: float


class Agreement(Part):
    """`collect/agreement.json`: what people said and how far they agree."""

    num_judgments: int
    num_items: int
    ratings_per_item: RatingsPerItem
    axis: str
    scale: tuple[float, float]
    histogram: dict[float, int]
    alpha_ordinal: Measured = None
    alpha_interval: Measured = None
    split_half_correlation: float | None = None
    mean_item_std: float | None = None
    most_disputed: list[RatedText] = []
    most_agreed: list[RatedText] = []


class Position(Part):
    """Whether the side on which a completion was shown sways votes."""

    shown_first_wins: Measured = None
    p: float | None = None
    logits: Measured = None


class Length(Part):
    """Whether length sways votes."""

    longer_wins: Measured = None


class Votes(Part):
    """`votes` of `collect/agreement.json`: comparisons and rankings, how far they agree, and what sways them."""

    num_votes: int
    num_pairs: int
    num_judges: int
    outcomes: dict[str, int] = {}
    alpha_nominal: Measured = None
    raw_agreement: float | None = None
    kendall_tau: float | None = None
    position: Position = Position()
    length: Length = Length()


class Resolved(Part):
    """`votes` of `preferences/summary.json`: how votes became pairs."""

    resolve: str
    pairs: dict[str, int] = {}
    side: Measured = None
    accuracy_of_judges: dict[str, float] = {}
    reversed_judges: int | None = None


class PreferenceSummary(Part):
    """`preferences/summary.json`: the pairs made from the judgments."""

    train: int
    heldout: int
    by_strength: dict[str, dict[str, int]] = {}
    mean_soft_label: float | None = None
    votes: Resolved | None = None
    notes: list[str] = []


class Bucket(Part):
    """Reward accuracy on the pairs whose raters differed by about as much."""

    label: str
    n: int
    accuracy: Measured = None


class CalibrationBin(Part):
    """Pairs to which the reward model gave about the same confidence."""

    low: float
    high: float
    n: int
    confidence: float | None = None
    accuracy: float | None = None


class Calibration(Part):
    """Whether the reward model's probabilities can be taken at their word."""

    ece: float
    brier: float | None = None
    nll: float | None = None
    temperature: float | None = None
    nll_after_temperature: float | None = None
    bins: list[CalibrationBin] = []


class RewardEvaluation(Part):
    """`reward/evaluation.json`: the reward model on held-out pairs."""

    num_pairs: int
    accuracy: Measured
    accuracy_difference_1_or_more: Measured = None
    buckets: list[Bucket] = []
    calibration: Calibration | None = None
    length_correlation: float | None = None


class Evaluation(Part):
    """`evaluate/evaluation.json`: the policy against the model it started from."""

    num_prompts: int
    completions_per_prompt: int
    sampling: dict[str, Any] = {}
    policy: dict[str, Measured]
    against: dict[str, Measured]
    difference: dict[str, Measured] = {}
    win_rate: dict[str, Measured] = {}
    win_rate_length_controlled: dict[str, Measured] = {}
    finish_reasons: dict[str, dict[str, float]] = {}


class TrainingSample(Part):
    """`ppo/samples.jsonl`: a completion drawn while training."""

    step: int
    prompt: str
    completion: str
    score: float | None = None


class SamplePair(Part):
    """`evaluate/samples.jsonl`: completions of one held-out prompt before and after."""

    prompt: str
    policy: str
    against: str
    reward_policy: float | None = None
    reward_against: float | None = None
    lexicon_policy: float | None = None
    lexicon_against: float | None = None


Curve = list[dict[str, float]]
"""Rows of a metrics file: the step and every numeric metric; what is not finite is left out."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Everything a report is made of."""

    info: RunInfo | None
    agreement: Agreement | None
    votes: Votes | None
    preferences: PreferenceSummary | None
    sft: Curve
    reward_curve: Curve
    reward: RewardEvaluation | None
    ppo: Curve
    ppo_samples: list[TrainingSample]
    evaluation: Evaluation | None
    samples: list[SamplePair]
    manifests: dict[str, Manifest]
    """Path relative to the run folder -> manifest."""
    sources: dict[str, str]
    """Every file that was read -> sha256."""


class _Reader:
    """Reads files of one run folder and remembers the hash of each."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.sources: dict[str, str] = {}

    def content(self, name: str) -> bytes | None:
        path = self.run / name
        if not path.is_file():
            return None
        content = read_bytes(path)
        self.sources[visible(name)] = hashlib.sha256(content).hexdigest()
        return content

    def part(self, name: str, model: type[PartT], *, when: str = "", inside: str = "") -> PartT | None:
        """Return a file, if it has the key `when`, or what stands in it under the key `inside`."""
        content = self.content(name)
        if content is None:
            return None
        row = _parse(self.run / name, 1, content)
        if isinstance(row, dict) and (when or inside):
            if inside and inside not in row:
                return None
            # Without ratings the file holds the votes alone.
            if when and when not in row and "votes" in row:
                return None
            row = row[inside] if inside else row
        return _validate(self.run / name, row, model)

    def lines(self, name: str) -> list[tuple[int, Any]]:
        content = self.content(name)
        if content is None:
            return []
        path = self.run / name
        *whole, last = content.split(b"\n")
        rows = [(i, _parse(path, i, line)) for i, line in enumerate(whole, 1) if line.strip()]
        if last.strip():
            # Without a newline at its end a line may still be on its way: a run under way, or
            # killed.
            try:
                rows.append((len(whole) + 1, _parse(path, len(whole) + 1, last)))
            except DataError:
                return rows
        return rows

    def parts(self, name: str, model: type[PartT]) -> list[PartT]:
        path = self.run / name
        return [_validate(path.with_name(f"{path.name}:{number}"), row, model) for number, row in self.lines(name)]

    def curve(self, name: str) -> Curve:
        rows: Curve = []
        for number, row in self.lines(name):
            if not isinstance(row, dict) or not _is_number(row.get("step")):
                raise DataError(
                    f"{self.run / name}:{number}: not a row of metrics; "
                    'expected an object with a number "step"; mend or delete the line'
                )
            rows.append({visible(k): float(value) for k, value in row.items() if _is_number(value)})
        return rows


def read_run(run: Path) -> RunFolder:
    """Read a run folder as `harken demo` and `harken run` write it.

    Args:
        run: the run folder; any of its files may be missing.

    Returns:
        The parts that are there, their texts with invisible characters made visible.

    Raises:
        DataError: if the folder does not exist, or a file in it is damaged; the message names it.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder; give the folder that a run wrote (--out)")
    reader = _Reader(run)
    return RunFolder(
        info=reader.part("run.json", RunInfo),
        agreement=reader.part("collect/agreement.json", Agreement, when="axis"),
        votes=reader.part("collect/agreement.json", Votes, inside="votes"),
        preferences=reader.part("preferences/summary.json", PreferenceSummary),
        sft=reader.curve("sft/metrics.jsonl"),
        reward_curve=reader.curve("reward/metrics.jsonl"),
        reward=reader.part("reward/evaluation.json", RewardEvaluation),
        ppo=reader.curve("ppo/metrics.jsonl"),
        ppo_samples=reader.parts("ppo/samples.jsonl", TrainingSample),
        evaluation=reader.part("evaluate/evaluation.json", Evaluation),
        samples=reader.parts("evaluate/samples.jsonl", SamplePair),
        manifests=_manifests(reader),
        sources=reader.sources,
    )


def _manifests(reader: _Reader) -> dict[str, Manifest]:
    manifests: dict[str, Manifest] = {}
    for path in sorted(reader.run.rglob("*manifest.json")):
        inside = path.relative_to(reader.run)
        # Checkpoints and half-written folders are no artifacts that anything is made from.
        if any(part == "checkpoints" or part.startswith(".") for part in inside.parts):
            continue
        name = inside.as_posix()
        row = _parse(path, 1, reader.content(name) or b"")
        try:
            # Digests are taken over the manifest as written, so its texts are not touched here.
            manifests[visible(name)] = Manifest.model_validate(row)
        except ValidationError as error:
            raise DataError(f"{path}: not a manifest: {first_problem(error)}") from error
    return manifests


def _parse(path: Path, line: int, content: bytes) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{line + error.lineno - 1}: bad JSON: {error.msg}; run the stage again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{line}: not UTF-8 text; run the stage again") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}:{line}: JSON nested too deeply or a number too long") from error


def _validate(path: Path, row: Any, model: type[PartT]) -> PartT:
    try:
        return model.model_validate(_visible_values(row))
    except ValidationError as error:
        problem = visible(first_problem(error))
        raise DataError(f"{path}: {problem}; run the stage again") from error


def _visible_values(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible_values(entry) for entry in value]
    if isinstance(value, dict):
        return {visible(str(key)): _visible_values(entry) for key, entry in value.items()}
    return value


def _is_number(value: Any) -> bool:
    # A comparison, unlike math.isfinite, takes integers of any length; NaN fails it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
