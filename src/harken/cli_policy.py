"""Commands that train a policy to earn reward: ppo, and its kin rloo, grpo, dr-grpo, ..."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from harken.cli_common import (
    ConfigOption,
    FolderOption,
    ModelOption,
    PromptsOption,
    RewardsOption,
    SetOption,
    model_name,
    reporter,
    settings,
    train_by_reward,
)
from harken.cli_fit import FitOption, fitted

JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="R",
        help="A reward that nothing is learned from: where scores rise while its own fall, the run stops and gives out "
        "the best policy it had.",
    ),
]

KIN = {
    "rloo": "Train a policy with RLOO: each completion against the mean of the others of its prompt.",
    "grpo": "Train a policy with GRPO: each completion against its group, in units of the group's spread.",
    "dr-grpo": "Train a policy with GRPO without its divisions by spread and length (arXiv:2503.20783).",
    "reinforce-pp": "Train a policy with REINFORCE++: sums of the rewards to come, standardized over the batch.",
    "remax": "Train a policy with ReMax: each completion against the greedy one.",
    "gspo": "Train a policy with GSPO: GRPO with one ratio for each completion.",
    "cispo": "Train a policy with CISPO: GRPO with the clipped ratio as a weight.",
    "dapo": "Train a policy with DAPO: GRPO with an asymmetric clip, dynamic sampling and an overlong penalty.",
}
"""Command, which is the name of its preset too -> what it does."""


def ppo(
    model: ModelOption,
    prompts: PromptsOption,
    rewards: RewardsOption,
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Start from named settings: openai-2019, n-details, instructgpt, llama-2, or one of PPO's kin.",
        ),
    ] = None,
    judge: JudgeOption = None,
    fit: FitOption = False,
) -> None:
    """Train a policy to earn reward, with PPO.

    Leaving the model it starts from costs reward: the KL divergence times kl.coef.
    """
    _train(preset, model, prompts, rewards, out, config, changes, judge, fit)


def kin_command(name: str) -> Callable[..., None]:
    """Return the command that runs the loop of PPO with the preset of the same name."""

    def command(
        model: ModelOption,
        prompts: PromptsOption,
        rewards: RewardsOption,
        out: FolderOption,
        config: ConfigOption = None,
        changes: SetOption = None,
        judge: JudgeOption = None,
        fit: FitOption = False,
    ) -> None:
        _train(name, model, prompts, rewards, out, config, changes, judge, fit)

    command.__doc__ = (
        f"{KIN[name]}\n\nThe same as `harken ppo --preset {name}`; --config and --set change its settings."
    )
    return command


def _train(
    preset: str | None,
    model: str,
    prompts: Path,
    rewards: list[str],
    out: Path,
    config: Path | None,
    changes: list[str] | None,
    judge: str | None,
    fit: bool,
) -> None:
    from harken.config import PpoConfig, load_preset
    from harken.datasets import read_prompts

    asked = settings(PpoConfig, config, changes) if preset is None else load_preset(preset, config, changes or ())
    records = read_prompts(prompts, reporter().say)
    from harken.policy.ppo import ppo as train

    name = model_name(model)
    asked, progress = fitted(asked, out, name, records) if fit else (asked, reporter())
    train_by_reward(
        train, asked, name, records, prompts=prompts, rewards=rewards, out=out, progress=progress, judge=judge
    )
