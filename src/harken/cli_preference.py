"""Commands that train a policy on preferences directly: dpo, its kin with other losses, and online-dpo."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_common import (
    ConfigOption,
    FolderOption,
    ModelOption,
    PromptsOption,
    RewardsOption,
    SetOption,
    interval,
    model_name,
    reporter,
    run_folder,
    settings,
    show,
    train_by_reward,
)

if TYPE_CHECKING:
    from harken.config import DpoConfig

PairsOption = Annotated[Path, typer.Option("--data", metavar="F", help="Preference pairs.")]

LOSSES = {
    "dpo": """Train a policy on preference pairs directly, with DPO.

    No reward model is needed: the reward of a completion is its log-probability under the policy, less that under the
    model it started from. Other losses: --set loss.kind=robust, hinge, or the commands ipo, simpo, orpo, cpo, kto.
    """,
    "ipo": """Train a policy on preference pairs with IPO.

    Like dpo, but the chosen side is to lead by a fixed amount, so that certain labels do not drive the policy ever on.
    """,
    "simpo": """Train a policy on preference pairs with SimPO.

    The reward of a completion is its mean log-probability per token; there is no reference.
    """,
    "orpo": """Train a model on preference pairs with ORPO: imitation and preference at once.

    It can start from a base model, without sft before it; there is no reference.
    """,
    "cpo": "Train a policy on preference pairs with CPO: DPO without a reference, plus imitation of the chosen side.",
}
"""Command -> what it does."""


def loss_command(name: str) -> Callable[..., None]:
    """Return the command that runs the loop of DPO with another loss."""

    def command(
        model: ModelOption,
        data: PairsOption,
        out: FolderOption,
        config: ConfigOption = None,
        changes: SetOption = None,
    ) -> None:
        _train(settings(_usual(name), config, changes), model, data, out)

    command.__doc__ = LOSSES[name]
    return command


def _usual(name: str) -> "type[DpoConfig]":
    from harken.config import CpoConfig, DpoConfig, IpoConfig, OrpoConfig, SimpoConfig

    match name:
        case "ipo":
            return IpoConfig
        case "simpo":
            return SimpoConfig
        case "orpo":
            return OrpoConfig
        case "cpo":
            return CpoConfig
        case _:
            return DpoConfig


def kto(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", metavar="F", help="Labeled completions, or preference pairs.")],
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Train a policy on completions that are good or bad each by itself, with KTO.

    A row is {"prompt": ..., "completion": ..., "label": true}. Pairs are taken apart.
    """
    from harken.config import KtoConfig

    _train(settings(KtoConfig, config, changes), model, data, out)


def _train(asked: "DpoConfig", model: str, data: Path, out: Path) -> None:
    from harken.artifacts import read_json
    from harken.datasets import holds_pairs, read_labeled, read_pairs

    can_be_labeled = asked.loss.kind == "kto" and not holds_pairs(data)
    records = read_labeled(data) if can_be_labeled else read_pairs(data, reporter().say)
    from harken.policy.preference import dpo as train

    with run_folder(out):
        name = "completions" if can_be_labeled else "pairs"
        folder = train(model_name(model), records, out, asked, inputs={name: data}, reporter=reporter())
    show_accuracy(read_json(out / "evaluation.json"))
    show(str(folder))


def show_accuracy(found: dict[str, Any]) -> None:
    """Print the accuracy of an `evaluation.json`, if anything was held out."""
    for name in ("pairs", "completions"):
        if found.get(f"num_{name}"):
            show(f"accuracy on {found[f'num_{name}']} held-out {name}: {interval(found['accuracy'])}")


def online_dpo(
    model: ModelOption,
    prompts: PromptsOption,
    rewards: RewardsOption,
    out: FolderOption,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Train a policy on pairs of its own completions, judged by any reward.

    Each step samples two (or more) completions of each prompt, scores them, and learns from the best and the worst as
    dpo does.
    """
    from harken.config import OnlineDpoConfig
    from harken.datasets import read_prompts

    asked = settings(OnlineDpoConfig, config, changes)
    records = read_prompts(prompts, reporter().say)
    from harken.policy.online_dpo import online_dpo as train

    train_by_reward(train, asked, model, records, prompts=prompts, rewards=rewards, out=out, progress=reporter())
