"""Ways to make one model better by one reward, side by side: PPO, RLOO, GRPO, DPO, KTO, ILQL, best of 16.

All start from the SFT model of one finished run of a recipe and are measured on its held-out prompts, by its lexicon
and its reward model. PPO, RLOO and GRPO learn from that reward model, DPO, KTO and ILQL from the pairs that it was
trained on, and best of 16 draws 16 completions of each prompt and keeps the one that the reward model likes best.

    python benchmarks/seeds.py reviews --seeds 0 --out out/seeds         the run
    python benchmarks/methods.py --run out/seeds/reviews-0 --out out/methods --seeds 0 1 2
    python benchmarks/methods.py --run ... --out ... --only dpo kto --set dpo.loss.beta=0.3

A stopped command goes on where it was; what is finished is only read. Settings of PPO and of the evaluation are the
recipe's. RLOO and GRPO draw as many completions as it does. Other settings of a method need another --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from harken.artifacts import read_json, read_records, write_json
from harken.config import (
    BestOfConfig,
    Config,
    DpoConfig,
    EvaluateConfig,
    IlqlConfig,
    KtoConfig,
    PpoConfig,
    apply_overrides,
    build,
    preset,
)
from harken.core.best_of_n import best_of_n_kl
from harken.datasets import read_scored
from harken.evaluate.evaluate import evaluate
from harken.evaluate.text import distinct_n
from harken.generate.best_of_n import best_of_n
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from harken.policy.ilql import ilql
from harken.policy.ppo import ppo
from harken.policy.preference import dpo, kto
from harken.progress import Reporter
from harken.protocols import checked_scores
from harken.records import PreferencePair, Prompt
from harken.reward.functions import Lexicon, load_reward

BEST_OF = 16
METHODS = ("ppo", "rloo", "grpo", "dpo", "kto", "ilql", f"best-of-{BEST_OF}")
COLUMNS = ("method", "lexicon", "reward model", "sequence KL, nats", "distinct-2 / SFT", "tokens", "seconds")


@dataclass(frozen=True)
class Material:
    """What all methods share: a finished run of a recipe."""

    run: Path
    max_prompts: int | None = None
    """Held-out prompts to measure on; None is as many as the recipe does."""

    @property
    def evaluation(self) -> EvaluateConfig:
        """How models are measured."""
        found: EvaluateConfig = self.settings("evaluate", EvaluateConfig)
        return found if self.max_prompts is None else found.model_copy(update={"max_prompts": self.max_prompts})

    @property
    def base(self) -> Path:
        """The SFT model."""
        return self.run / "sft" / "model"

    @property
    def reward(self) -> str:
        """The reward model's run."""
        return str(self.run / "reward")

    def records(self, name: str, kind: Any) -> Any:
        """Return the records of one of the run's files."""
        return read_records(self.run / "preferences" / f"{name}.jsonl", kind)

    def settings(self, stage: str, kind: type[Config]) -> Any:
        """Return a stage's settings."""
        path = self.run / stage / "config.json"
        return build(kind, read_json(path)["config"], where=str(path))


def settings_of(name: str, shared: Material, seed: int, changes: Sequence[str]) -> Config:
    """Return a method's settings: the recipe's where it has them, with `changes` (`dpo.loss.beta=0.3`) of its name."""
    recipe: PpoConfig = shared.settings("ppo", PpoConfig)
    same: dict[str, Any] = {"tune": recipe.tune, "chat": recipe.chat, "compute": recipe.compute, "seed": seed}
    match name:
        case "ppo":
            config: Config = recipe.model_copy(update={"seed": seed})
        case "rloo" | "grpo":
            config = critic_free(name, recipe, same)
        case "dpo":
            config = DpoConfig(**same)
        case "kto":
            config = KtoConfig(**same)
        case "ilql":
            # Heads as wide as trlX's would be larger than the model.
            config = IlqlConfig(**same, head_width=128)
        case _:
            names = BestOfConfig.model_fields.keys() & EvaluateConfig.model_fields.keys()
            found: dict[str, Any] = {key: getattr(shared.evaluation, key) for key in names}
            found |= {"seed": seed, "best_of": BEST_OF}
            config = BestOfConfig(**found)
    own = [change.removeprefix(f"{name}.") for change in changes if change.startswith(f"{name}.")]
    return build(type(config), apply_overrides(config.model_dump(mode="json"), own), where=f"--set {name}")


def critic_free(name: str, recipe: PpoConfig, same: dict[str, Any]) -> PpoConfig:
    """Return the preset of RLOO or GRPO with as many completions and optimizer steps as the loss allows."""
    group = preset(name).completions_per_prompt
    is_reinforce = preset(name).loss.kind == "reinforce"
    optimizer = recipe.policy_optimizer
    if is_reinforce:
        # One optimizer step an iteration: an average over many of them would lag far behind.
        optimizer = optimizer.model_copy(update={"ema_decay": None})
    kl = {"budget": recipe.kl.budget} | ({"coef": recipe.kl.coef} if is_reinforce else {})
    return preset(
        name,
        **same,
        steps=recipe.steps,
        prompts_per_step=max(1, recipe.rollouts // group),
        completions_per_prompt=group,
        epochs=1 if is_reinforce else recipe.epochs,
        minibatch_size=recipe.rollouts if is_reinforce else recipe.minibatch_size,
        approx_kl_limit=recipe.approx_kl_limit,
        sampling=recipe.sampling,
        score=recipe.score,
        policy_optimizer=optimizer,
        kl=kl,
    )


def train(name: str, shared: Material, out: Path, config: Any) -> Path:
    """Train with one method and return its model's folder."""
    options: dict[str, Any] = {"reporter": Reporter()}
    if isinstance(config, PpoConfig):
        judge = load_reward(shared.reward, compute=config.compute)
        return ppo(shared.base, shared.records("train_prompts", Prompt), judge, out, config, **options)
    if name == "ilql":
        return ilql(shared.base, read_scored(shared.run / "preferences" / "pairs.jsonl"), out, config, **options)
    stage: Callable[..., Path] = dpo if name == "dpo" else kto
    return stage(shared.base, shared.records("pairs", PreferencePair), out, config, **options)


def measure(shared: Material, model: Path, out: Path) -> dict[str, float]:
    """Compare a trained model with the SFT model on the held-out prompts."""
    config = shared.evaluation
    judges = {"reward": load_reward(shared.reward, compute=config.compute), "lexicon": Lexicon()}
    prompts = shared.records("heldout_prompts", Prompt)
    found = evaluate(model, shared.base, prompts, judges, out, config, reporter=Reporter())
    policy, before = found["policy"], found["against"]
    return {
        "lexicon": policy["lexicon"]["value"],
        "reward": policy["reward_score"]["value"],
        "kl": policy["kl_sequence"]["value"],
        "distinct": policy["distinct_2"]["value"] / before["distinct_2"]["value"],
        "tokens": policy["length_tokens"]["value"],
        "lexicon_sft": before["lexicon"]["value"],
        "reward_sft": before["reward_score"]["value"],
        "distinct_sft": before["distinct_2"]["value"],
        "tokens_sft": before["length_tokens"]["value"],
    }


def measure_best_of(shared: Material, config: BestOfConfig, sft: dict[str, float]) -> dict[str, float]:
    """Keep the best of some draws for each held-out prompt; the KL is the exact one of a reward without ties."""
    prompts: list[Prompt] = shared.records("heldout_prompts", Prompt)[: shared.evaluation.max_prompts]
    judge = load_reward(shared.reward, compute=config.compute)
    trunk = Trunk(load_model(shared.base, compute=config.compute, chat=config.chat))
    kept = best_of_n(trunk, prompts, judge, config, reporter=Reporter())
    asked = [prompt for prompt in prompts for _ in range(config.completions_per_prompt)]
    return {
        "lexicon": mean(checked_scores(Lexicon(), asked, kept.completions)),
        "reward": mean(kept.scores),
        "kl": best_of_n_kl(config.best_of),
        "distinct": distinct_n([item.message.content for item in kept.completions], 2) / sft["distinct_sft"],
        "tokens": mean(item.num_tokens or 0 for item in kept.completions),
    }


def row_of(name: str, shared: Material, out: Path, seed: int, changes: Sequence[str]) -> dict[str, float]:
    """Train and measure one method with one seed, or read what was found before."""
    config, folder = settings_of(name, shared, seed, changes), out / f"{name}-{seed}"
    asked = {"run": str(shared.run), "prompts": shared.evaluation.max_prompts, "config": config.model_dump(mode="json")}
    if (folder / "row.json").is_file():
        found = read_json(folder / "row.json")
        if found["asked"] != asked:
            sys.exit(f"{folder}: was measured with other settings or another run; choose another --out")
        return found["row"]
    if isinstance(config, BestOfConfig):
        sft = measure(shared, shared.base, out / "sft")
        started = time.perf_counter()
        row = measure_best_of(shared, config, sft)
        row["seconds"] = time.perf_counter() - started
    else:
        row = measure(shared, train(name, shared, folder / "run", config), folder / "evaluate")
        row["seconds"] = sum(seconds_of_steps(folder / "run" / "metrics.jsonl"))
    write_json(folder / "row.json", {"asked": asked, "row": row})
    return row


def seconds_of_steps(path: Path) -> list[float]:
    """Return what each step took; unlike a clock beside the command it survives a stop."""
    return [json.loads(line)["time_s"] for line in path.read_text(encoding="utf-8").splitlines()]


def table_row(name: str, rows: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """Return a line of the table: the mean over seeds, with the least and the greatest."""

    def cell(key: str, form: str) -> str:
        values = [row[key] for row in rows]
        spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
        return f"{mean(values):{form}}{spread}"

    forms = (("lexicon", ".3f"), ("reward", ".2f"), ("kl", ".1f"), ("distinct", ".2f"), ("tokens", ".1f"))
    return (name, *(cell(key, form) for key, form in forms), cell("seconds", ".0f"))


def main(arguments: Sequence[str]) -> None:
    """Train and measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of a recipe")
    parser.add_argument("--out", type=Path, default=Path("out/methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--prompts", type=int, help="held-out prompts to measure on, instead of the recipe's number")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="METHOD.KEY=VALUE")
    asked = parser.parse_args(arguments)
    shared = Material(asked.run, asked.prompts)
    if unknown := [change for change in asked.changes if change.split(".")[0] not in METHODS]:
        parser.error(f"--set {unknown[0]}: begins with no method; expected one of {', '.join(METHODS)}, a dot, a key")
    found = {
        name: [row_of(name, shared, asked.out, seed, asked.changes) for seed in asked.seeds] for name in asked.only
    }
    sft = measure(shared, shared.base, asked.out / "sft") | {"seconds": 0.0}
    lines = [("SFT", *table_row("", [sft])[1:]), *(table_row(*item) for item in found.items())]
    for line in (COLUMNS, ("---",) * len(COLUMNS), *lines):
        sys.stdout.write(f"| {' | '.join(line)} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
