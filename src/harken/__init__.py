"""Harken turns what people say about a language model's completions into a better model.

The Python API has the stages under the names that the command line has (`harken.sft`, `harken.ppo`, ...), and the nouns
they pass on. Everything is imported on first use, so that `import harken` is quick and does not load torch.

Two functions, `harken.generate` and `harken.evaluate`, bear the name of the package they live in. As attributes of
`harken` these names always mean the functions; the packages are reached by from-imports, such as
`from harken.evaluate.text import distinct_n`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harken.config import (
        BestOfConfig,
        ChatConfig,
        ComputeConfig,
        CpoConfig,
        DpoConfig,
        EvaluateConfig,
        FullConfig,
        GenerateConfig,
        IlqlConfig,
        IpoConfig,
        KtoConfig,
        LoraConfig,
        MaskConfig,
        OnlineDpoConfig,
        OptimizerConfig,
        OrpoConfig,
        PpoConfig,
        PreferencesConfig,
        RecipeConfig,
        RewardConfig,
        RftConfig,
        SamplingConfig,
        SftConfig,
        SimpoConfig,
        load_recipe,
        preset,
    )
    from harken.datasets import (
        read_completions,
        read_demonstrations,
        read_labeled,
        read_pairs,
        read_prompts,
        read_scored,
    )
    from harken.errors import HarkenError
    from harken.evaluate.evaluate import evaluate
    from harken.feedback.store import FeedbackStore
    from harken.generate.best_of_n import best_of_n
    from harken.generate.sampling import generate
    from harken.lm.export import export_model
    from harken.lm.load import load_model
    from harken.lm.trunk import Trunk
    from harken.pipeline import run_recipe
    from harken.policy.ilql import ilql
    from harken.policy.kin import cispo, dapo, dr_grpo, grpo, gspo, reinforce_pp, remax, rloo
    from harken.policy.online_dpo import online_dpo
    from harken.policy.ppo import ppo
    from harken.policy.ppo import prepare as prepare_ppo
    from harken.policy.preference import cpo, dpo, ipo, kto, orpo, simpo
    from harken.policy.rft import rft
    from harken.policy.rollout import Rollout, rollout, score, score_greedy
    from harken.policy.sft import sft
    from harken.policy.update import PpoState, update
    from harken.preferences.pairs import preferences_from_export
    from harken.progress import Reporter
    from harken.protocols import PairwiseJudge, Reward
    from harken.records import (
        Completion,
        Demonstration,
        Judgment,
        LabeledCompletion,
        Message,
        PreferencePair,
        Prompt,
        ScoredDemonstration,
    )
    from harken.report.html import write_report
    from harken.reward.functions import load_reward
    from harken.reward.model import RewardModel
    from harken.reward.train import train_reward

_HOMES = {
    "harken.config": (
        "BestOfConfig ChatConfig ComputeConfig CpoConfig DpoConfig EvaluateConfig FullConfig GenerateConfig IlqlConfig "
        "IpoConfig KtoConfig LoraConfig MaskConfig OnlineDpoConfig OptimizerConfig OrpoConfig PpoConfig "
        "PreferencesConfig RecipeConfig RewardConfig RftConfig SamplingConfig SftConfig SimpoConfig load_recipe preset"
    ),
    "harken.datasets": "read_completions read_demonstrations read_labeled read_pairs read_prompts read_scored",
    "harken.errors": "HarkenError",
    "harken.evaluate.evaluate": "evaluate",
    "harken.feedback.store": "FeedbackStore",
    "harken.generate.best_of_n": "best_of_n",
    "harken.generate.sampling": "generate",
    "harken.lm.export": "export_model",
    "harken.lm.load": "load_model",
    "harken.lm.trunk": "Trunk",
    "harken.pipeline": "run_recipe",
    "harken.policy.ilql": "ilql",
    "harken.policy.kin": "cispo dapo dr_grpo grpo gspo reinforce_pp remax rloo",
    "harken.policy.online_dpo": "online_dpo",
    "harken.policy.ppo": "ppo prepare_ppo",
    "harken.policy.preference": "cpo dpo ipo kto orpo simpo",
    "harken.policy.rft": "rft",
    "harken.policy.rollout": "Rollout rollout score score_greedy",
    "harken.policy.sft": "sft",
    "harken.policy.update": "PpoState update",
    "harken.preferences.pairs": "preferences_from_export",
    "harken.progress": "Reporter",
    "harken.protocols": "PairwiseJudge Reward",
    "harken.records": (
        "Completion Demonstration Judgment LabeledCompletion Message PreferencePair Prompt ScoredDemonstration"
    ),
    "harken.report.html": "write_report",
    "harken.reward.functions": "load_reward",
    "harken.reward.model": "RewardModel",
    "harken.reward.train": "train_reward",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_NAME_AT_HOME = {"prepare_ppo": "prepare"}

__all__ = [
    "BestOfConfig",
    "ChatConfig",
    "Completion",
    "ComputeConfig",
    "CpoConfig",
    "Demonstration",
    "DpoConfig",
    "EvaluateConfig",
    "FeedbackStore",
    "FullConfig",
    "GenerateConfig",
    "HarkenError",
    "IlqlConfig",
    "IpoConfig",
    "Judgment",
    "KtoConfig",
    "LabeledCompletion",
    "LoraConfig",
    "MaskConfig",
    "Message",
    "OnlineDpoConfig",
    "OptimizerConfig",
    "OrpoConfig",
    "PairwiseJudge",
    "PpoConfig",
    "PpoState",
    "PreferencePair",
    "PreferencesConfig",
    "Prompt",
    "RecipeConfig",
    "Reporter",
    "Reward",
    "RewardConfig",
    "RewardModel",
    "RftConfig",
    "Rollout",
    "SamplingConfig",
    "ScoredDemonstration",
    "SftConfig",
    "SimpoConfig",
    "Trunk",
    "best_of_n",
    "cispo",
    "cpo",
    "dapo",
    "dpo",
    "dr_grpo",
    "evaluate",
    "export_model",
    "generate",
    "grpo",
    "gspo",
    "ilql",
    "ipo",
    "kto",
    "load_model",
    "load_recipe",
    "load_reward",
    "online_dpo",
    "orpo",
    "ppo",
    "preferences_from_export",
    "prepare_ppo",
    "preset",
    "read_completions",
    "read_demonstrations",
    "read_labeled",
    "read_pairs",
    "read_prompts",
    "read_scored",
    "reinforce_pp",
    "remax",
    "rft",
    "rloo",
    "rollout",
    "run_recipe",
    "score",
    "score_greedy",
    "sft",
    "simpo",
    "train_reward",
    "update",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for the first time it is asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'harken' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), _NAME_AT_HOME.get(name, name))


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The type of `harken` itself: its functions keep their names when a package of the same name is imported.

    Python binds every imported submodule as an attribute of its parent, so `import harken.evaluate.text` would turn
    `harken.evaluate` from the function into the package, depending on who imported what first.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Bind an attribute, unless it is a submodule with the name of a function."""
        if not (isinstance(value, ModuleType) and name in _HOME_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
