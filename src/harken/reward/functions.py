"""Rewards that are not models: Python functions, HTTP services, the lexicon, and weighted sums of any."""

import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harken.config import ComputeConfig
from harken.errors import RewardError, UsageError
from harken.lm.load import Notify, ignore
from harken.protocols import Examined, Reward, SharesBase, checked_scores
from harken.records import Completion, Prompt
from harken.reward.model import StoredRewardModel

HTTP_TIMEOUT_S = 60.0


class Lexicon:
    """VADER's sentiment lexicon as a judge: compound score in [-1, 1] of a completion.

    Independent of any reward model: words rated by people, and rules. C.J. Hutto and E. Gilbert, ICWSM 2014.
    """

    def __init__(self) -> None:
        """Load the lexicon.

        Raises:
            UsageError: the package is not installed.
        """
        if importlib.util.find_spec("vaderSentiment") is None:
            raise UsageError("reward 'lexicon' needs the package vaderSentiment: pip install 'harken[demo]'")
        module: Any = importlib.import_module("vaderSentiment.vaderSentiment")
        self._analyzer = module.SentimentIntensityAnalyzer()

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return compound scores of the completions alone: the prompt is not the model's doing."""
        assert len(prompts) == len(completions), "one prompt for each completion"
        return [self._analyzer.polarity_scores(completion.message.content)["compound"] for completion in completions]


class HttpReward:
    """A service: POST {"prompts": [...], "completions": [...]} (records as JSON), answer {"scores": [...]}."""

    def __init__(self, url: str) -> None:
        """Remember the address; nothing is sent yet."""
        self.url = url

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Ask the service.

        Raises:
            RewardError: no answer, or not the JSON expected; the address's password is not shown.
        """
        body = {
            "prompts": [prompt.model_dump(mode="json") for prompt in prompts],
            "completions": [completion.model_dump(mode="json") for completion in completions],
        }
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:
                return list(json.load(answer)["scores"])
        except (urllib.error.URLError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise RewardError(f"the reward service gave no scores: {type(error).__name__}: {error}") from error


class WeightedSum:
    """Several rewards added up."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        """Take (weight, reward) pairs."""
        self.parts = parts

    def attach(self, trunk: Any) -> None:
        """Offer a base in memory to each part."""
        for _, reward in self.parts:
            if isinstance(reward, SharesBase):
                reward.attach(trunk)

    def doubt(self) -> str | None:
        """Say what speaks against the first part that may be no better than chance."""
        doubts = (reward.doubt() for _, reward in self.parts if isinstance(reward, Examined))
        return next((doubt for doubt in doubts if doubt), None)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return the weighted sum of the parts' scores."""
        totals = [0.0] * len(completions)
        for weight, reward in self.parts:
            for index, score in enumerate(checked_scores(reward, prompts, completions)):
                totals[index] += weight * score
        return totals


def load_reward(
    specs: str | Sequence[str],
    *,
    compute: ComputeConfig | None = None,
    notify: Notify = ignore,
) -> Reward:
    """Return the reward that a command line names.

    Args:
        specs: a reward model folder, `file.py:function`, `lexicon`, or an http(s) address; several are added up, each
            with a weight in front: `0.7*out/reward/model`.
        compute: device and precision for a base that has to be loaded.
        notify: told in one line what was assumed.

    Raises:
        UsageError: none of these.
    """
    names = [specs] if isinstance(specs, str) else list(specs)
    parts: list[tuple[float, Reward]] = []
    for name in names:
        weight, star, rest = name.partition("*")
        try:
            factor, spec = (float(weight), rest) if star else (1.0, name)
        except ValueError as error:
            raise UsageError(f"--reward {name}: expected WEIGHT*REWARD, for example 0.5*lexicon") from error
        parts.append((factor, _load_one(spec, compute, notify)))
    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]
    return WeightedSum(parts)


def _load_one(spec: str, compute: ComputeConfig | None, notify: Notify) -> Reward:
    if spec == "lexicon":
        return Lexicon()
    if spec.startswith(("http://", "https://")):
        return HttpReward(spec)
    path, colon, function = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return load_function(Path(path), function)
    folder = Path(spec)
    if folder.is_dir():
        inner = folder / "model"
        found = folder if (folder / "reward.json").exists() else inner
        return StoredRewardModel(found, compute=compute, notify=notify)
    raise UsageError(
        f"--reward {spec}: no such folder; give a reward model folder, file.py:function, lexicon, or an http(s) address"
    )


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """Return a function of a user's own Python file.

    Raises:
        UsageError: no such file or function, or the file cannot be imported.
    """
    if not path.is_file():
        raise UsageError(f"--reward {path}:{name}: no such file")
    spec = importlib.util.spec_from_file_location(f"harken_user_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path}: could not be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"{path}: has no function {name!r}")
    return found
