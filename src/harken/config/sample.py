"""Settings of `harken collect sample` and `harken collect judge`."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config
from harken.config.evaluate import GenerateConfig
from harken.config.shared import ChatConfig, ComputeConfig, Count, SamplingConfig


class ChooseConfig(Config):
    """Which of all pairs of completions people are asked about."""

    num_tasks: Count = 200
    """Pairs to choose; fewer where there are not so many."""
    random_share: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the pairs that is drawn at random from all. It may not be 0: every pair must have a chance, or no report
    can say anything about all of them."""
    across: Literal["any", "models"] = "any"
    """Pair any two completions of a prompt, or only those of different models."""
    clusters: Annotated[int, Field(ge=0)] = 20
    """Groups of similar prompts, among which the pairs chosen by uncertainty are spread evenly; 0: no groups."""


class SampleConfig(GenerateConfig):
    """`harken collect sample`: completions of models, and from them the pairs that people are asked about."""

    completions_per_prompt: Count = 2
    """Completions of each prompt by each model."""
    choose: ChooseConfig = ChooseConfig()
    """Which pairs become tasks."""
    concurrency: Count = 8
    """Requests under way at the same time, for a model behind an address."""


class JudgeConfig(Config):
    """`harken collect judge`: a model as judge."""

    sampling: SamplingConfig = SamplingConfig(temperature=0.01, max_new_tokens=400)
    """How a language model's verdict is drawn."""
    batch_size: Count = 16
    """Pairs whose judgments are saved together."""
    concurrency: Count = 8
    """Requests under way at the same time, for a model behind an address."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device and precision."""
    seed: int = 0
    """Decides what a language model says, where it can be decided."""
