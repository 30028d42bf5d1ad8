"""One frozen config per stage; an unknown key is an error that names the nearest valid one."""

from harken.config.base import Config, apply_overrides, build, differences, field_paths, load
from harken.config.evaluate import EvaluateConfig, GenerateConfig
from harken.config.policy_loss import (
    CispoLossConfig,
    GspoLossConfig,
    PolicyLoss,
    PpoLossConfig,
    ReinforceLossConfig,
)
from harken.config.ppo import (
    AdaptiveKl,
    FixedKl,
    GaeConfig,
    GroupConfig,
    PpoConfig,
    PtxConfig,
    ReinforceConfig,
    RemaxConfig,
    RlooConfig,
    ScoreConfig,
    ValueConfig,
)
from harken.config.preference import DpoConfig, DpoLossConfig
from harken.config.preferences import PreferencesConfig
from harken.config.presets import load_preset, preset, preset_names
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
    "CispoLossConfig",
    "CollectConfig",
    "ComputeConfig",
    "Config",
    "DpoConfig",
    "DpoLossConfig",
    "EvaluateConfig",
    "FixedKl",
    "FullConfig",
    "GaeConfig",
    "GenerateConfig",
    "GroupConfig",
    "GspoLossConfig",
    "LoraConfig",
    "OptimizerConfig",
    "OwnSamplerConfig",
    "PolicyLoss",
    "PpoConfig",
    "PpoLossConfig",
    "PreferencesConfig",
    "PtxConfig",
    "RecipeConfig",
    "ReinforceConfig",
    "ReinforceLossConfig",
    "RemaxConfig",
    "RewardConfig",
    "RlooConfig",
    "SamplerConfig",
    "SamplingConfig",
    "ScoreConfig",
    "SftConfig",
    "Tune",
    "ValueConfig",
    "VllmConfig",
    "VllmServerConfig",
    "apply_overrides",
    "build",
    "differences",
    "field_paths",
    "load",
    "load_preset",
    "load_recipe",
    "preset",
    "preset_names",
]
