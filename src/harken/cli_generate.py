"""The command `harken generate`: prompts to completions, one or the best of several."""

import math
from typing import Annotated, Any

import typer

from harken.cli_common import (
    ConfigOption,
    FileOption,
    ModelOption,
    PromptsOption,
    SetOption,
    check_out_file,
    digest,
    model_name,
    reporter,
    reward_inputs,
    settings,
    show,
    table,
)


def generate(
    model: ModelOption,
    prompts: PromptsOption,
    out: FileOption,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", help="Completions of each prompt; the config says 1.")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option("--best-of", metavar="N", help="Draw N for each one kept: the one that --reward likes best."),
    ] = None,
    rewards: Annotated[
        list[str] | None, typer.Option("--reward", metavar="R", help="For --best-of: a reward, as in `harken ppo`.")
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Draw completions of prompts and write them as JSON Lines.

    A model trained by `harken ilql` writes with its Q heads; --set guidance=0 leaves them out.
    """
    from harken.config import BestOfConfig, GenerateConfig
    from harken.datasets import read_prompts

    if (best_of is None) != (not rewards):
        raise typer.BadParameter("--best-of N and --reward R belong together")
    overrides = [*(changes or ()), *([] if n is None else [f"completions_per_prompt={n}"])]
    overrides += [] if best_of is None else [f"best_of={best_of}"]
    asked = settings(GenerateConfig if best_of is None else BestOfConfig, config, overrides)
    records = read_prompts(prompts, reporter().say)
    check_out_file(out)
    from harken.artifacts import write_records
    from harken.generate.best_of_n import best_of_n
    from harken.generate.sampling import generate as draw
    from harken.lm.load import load_model
    from harken.lm.q_heads import read_guide
    from harken.lm.trunk import Trunk
    from harken.reward.functions import load_reward

    progress, name = reporter(), model_name(model)
    judge = load_reward(rewards, compute=asked.compute, notify=progress.say) if rewards else None
    trunk = Trunk(load_model(name, compute=asked.compute, chat=asked.chat, notify=progress.say))
    role = read_guide(trunk, name, asked.guidance)
    info: dict[str, Any] = {"sampling": asked.sampling.model_dump()}
    parents = {"model": digest(name), "prompts": digest(prompts)}
    if judge is not None and isinstance(asked, BestOfConfig):
        found = best_of_n(trunk, records, judge, asked, role=role, reporter=progress)
        completions = found.completions
        info["best_of"] = {"n": asked.best_of, "beta": asked.beta, "score": sum(found.scores) / len(found.scores)}
        info["best_of"] |= {"score_drawn": found.drawn_mean, "expected": found.expected, "kl_bound": found.kl_bound}
        parents |= {key: digest(value) for key, value in reward_inputs(rewards or ()).items()}
    else:
        completions = draw(trunk, records, asked, role=role, reporter=progress)
    write_records(out, completions, kind="completions", parents=parents, seeds={"seed": asked.seed}, info=info)
    show(f"{out}: {len(completions)} completions of {len(records)} prompts")
    if "best_of" in info:
        show(_best_of_table(info["best_of"]))


def _best_of_table(found: dict[str, Any]) -> str:
    """Return what was gained, and what each smaller number of draws would have gained."""
    rows = [["draws", "mean score of the best", "KL at most, nats"]]
    for n, value in found["expected"].items():
        rows.append([str(n), f"{value:.3f}", f"{math.log(n) - (n - 1) / n:.3f}"])
    return f"kept: mean score {found['score']:.3f}; all drawn: {found['score_drawn']:.3f}\n{table(rows)}"
