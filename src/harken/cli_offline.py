"""Commands that learn without updating on the fly: ilql and rft."""

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
    run_folder,
    settings,
    show,
    train_by_reward,
)


def ilql(
    model: ModelOption,
    data: Annotated[
        Path, typer.Option("--data", metavar="F", help="Scored completions, rated completions, or preference pairs.")
    ],
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Train a policy on scored completions that others wrote, with ILQL.

    Nothing is sampled. Beside the policy, heads learn what each token is worth; `harken generate` and `harken evaluate`
    let the trained model write with both.
    """
    from harken.config import IlqlConfig
    from harken.datasets import read_scored

    asked = settings(IlqlConfig, config, changes)
    completions = read_scored(data, reporter().say)
    from harken.policy.ilql import ilql as train

    with run_folder(out):
        folder = train(model_name(model), completions, out, asked, inputs={"completions": data}, reporter=reporter())
    show(str(folder))


def rft(
    model: ModelOption,
    prompts: PromptsOption,
    rewards: RewardsOption,
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Train a model to imitate the best of its own completions.

    Rejection-sampling fine-tuning: draw many completions of each prompt, keep those that the reward likes best, and
    train on them as on demonstrations.
    """
    from harken.config import RftConfig
    from harken.datasets import read_prompts

    asked = settings(RftConfig, config, changes)
    records = read_prompts(prompts, reporter().say)
    from harken.policy.rft import rft as train

    train_by_reward(train, asked, model, records, prompts=prompts, rewards=rewards, out=out, progress=reporter())
