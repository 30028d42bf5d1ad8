"""A recipe: one turn of the loop in one TOML file."""

from pathlib import Path
from typing import Any, cast

from harken.config.base import Config, apply_overrides, build, read_toml
from harken.config.collect import CollectConfig
from harken.config.evaluate import EvaluateConfig
from harken.config.ppo import PpoConfig
from harken.config.preferences import PreferencesConfig
from harken.config.reward import RewardConfig
from harken.config.sft import SftConfig
from harken.config.shared import ChatConfig, ComputeConfig
from harken.errors import ConfigError

RECIPES = Path(__file__).parent.parent / "recipes"


class RecipeConfig(Config):
    """Everything that decides a run; the same recipe and seed give the same run on the same machine."""

    name: str
    """Short name, shown in the report."""
    title: str = ""
    """One line for people."""
    model: str = "smollm2"
    """Base model: folder, Hugging Face id, GGUF file, or `smollm2`."""
    seed: int = 0
    """Every stage's seed unless the stage sets its own."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text, in every stage."""
    compute: ComputeConfig = ComputeConfig()
    """Device and precision of every stage."""
    collect: CollectConfig = CollectConfig()
    """Where the judgments come from."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Judgments to pairs, demonstrations and prompts."""
    sft: SftConfig = SftConfig()
    """Base model to SFT model."""
    reward: RewardConfig = RewardConfig()
    """Pairs to reward model."""
    ppo: PpoConfig = PpoConfig()
    """Reward model to policy."""
    judge: str = ""
    """A reward, as of `--reward`, that PPO learns nothing from: where scores rise while its own fall, PPO ends and
    gives out the best policy it had; empty: none."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Policy against SFT model."""


STAGES = ("preferences", "sft", "reward", "ppo", "evaluate")


def load_recipe(name: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> RecipeConfig:
    """Load a recipe by the name of one that ships with Harken, or by path.

    The recipe's `seed`, `chat` and `compute` go to every stage that does not set its own.
    """
    path = Path(name)
    if not path.suffix and not path.is_file():
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise ConfigError(f"recipe {str(name)!r}: no such file, and no recipe of that name ({known})")
    values = apply_overrides(read_toml(path), overrides)
    shared = {key: values[key] for key in ("seed", "chat", "compute") if key in values}
    for stage in STAGES:
        section: Any = values.setdefault(stage, {})
        if not isinstance(section, dict):
            continue  # the validation below says so, with the key
        section = cast("dict[str, Any]", section)
        for key, value in shared.items():
            if stage != "preferences" or key == "seed":
                section.setdefault(key, value)
    return build(RecipeConfig, values, where=str(path))
