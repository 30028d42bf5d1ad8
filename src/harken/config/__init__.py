"""One frozen config per stage; an unknown key is an error that names the nearest valid one."""

from harken.config.base import Config, apply_overrides, build, differences, field_paths, load
from harken.config.disclosure import DisclosureConfig, PayConfig
from harken.config.evaluate import EvaluateConfig, GenerateConfig
from harken.config.ppo import AdaptiveKl, FixedKl, PpoConfig, PpoLossConfig, ScoreConfig
from harken.config.preference import DpoConfig, DpoLossConfig
from harken.config.preferences import PreferencesConfig
from harken.config.recipe import (
    RECIPES,
    CollectConfig,
    RecipeConfig,
    load_recipe,
)
from harken.config.reward import RewardConfig
from harken.config.sampler import OwnSamplerConfig, SamplerConfig, VllmConfig, VllmServerConfig
from harken.config.sft import SftConfig
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    FullConfig,
    LoraConfig,
    OptimizerConfig,
    SamplingConfig,
    Tune,
)

__all__ = [
    "RECIPES",
    "AdaptiveKl",
    "ChatConfig",
    "CollectConfig",
    "ComputeConfig",
    "Config",
    "DisclosureConfig",
    "DpoConfig",
    "DpoLossConfig",
    "EvaluateConfig",
    "FixedKl",
    "FullConfig",
    "GenerateConfig",
    "LoraConfig",
    "OptimizerConfig",
    "OwnSamplerConfig",
    "PayConfig",
    "PpoConfig",
    "PpoLossConfig",
    "PreferencesConfig",
    "RecipeConfig",
    "RewardConfig",
    "SamplerConfig",
    "SamplingConfig",
    "ScoreConfig",
    "SftConfig",
    "Tune",
    "VllmConfig",
    "VllmServerConfig",
    "apply_overrides",
    "build",
    "differences",
    "field_paths",
    "load",
    "load_recipe",
]
