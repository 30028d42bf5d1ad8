"""Training runs whose end is known exactly: the settings that take each method there, and a table of where they end.

    python -m tests.invariants.exact_runs --out out/exact --seeds 0 1 2 3 4

A stopped command goes on; runs that are done are only read. The tests beside it use the same settings.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from harken.config import (
    ChatConfig,
    ComputeConfig,
    DpoConfig,
    DpoLossConfig,
    FixedKl,
    FullConfig,
    GroupConfig,
    IpoLossConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    PpoConfig,
    PpoLossConfig,
    ReinforceConfig,
    ReinforceLossConfig,
    RemaxConfig,
    RlooConfig,
    SamplingConfig,
    ScoreConfig,
    ValueConfig,
)
from harken.core.best_of_n import best_of_n_logprobs
from harken.lm.batch import Tokens
from harken.lm.load import load_model
from harken.lm.optim import Optimizer
from harken.lm.trunk import Trunk
from harken.policy import online_dpo
from harken.policy.ppo import prepare
from harken.policy.preference_step import Examples, train_step
from harken.policy.rollout import POLICY, rollout, score, score_greedy
from harken.policy.sft import ROLE
from harken.policy.update import update
from tests.invariants.toy import START, Optimum, World, group_fixed_point, kl_loss_fixed_point

SMALL, LARGE = World(num_tokens=4, length=3), World(num_tokens=6, length=4)
COMPUTE = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=65536, chunk_tokens=65536)
BETAS = (0.5, 0.2)

Found = tuple[Optimum, Tensor]
"""The optimum, and the log-probabilities of all sequences under the trained policy."""


@dataclass(frozen=True)
class Kin:
    """A method that learns from its own samples: steps, and what differs from PPO."""

    steps: int
    changes: dict[str, Any] = field(default_factory=dict)
    episodes: int = 256
    estimator: str = "k1"
    """Of the KL; others than k1 are a loss."""


def _rate(peak: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=peak, eps=1e-5, warmup_fraction=0.0)


MEAN = GroupConfig(divide_by_std=False)
KIN = {
    "ppo": Kin(100),
    "ppo-own": Kin(60, {"value": ValueConfig(critic="own"), "critic_optimizer": _rate(4e-3)}),
    "rloo": Kin(120, {"advantage": RlooConfig(), "loss": ReinforceLossConfig(), "epochs": 1}),
    "dr-grpo": Kin(60, {"advantage": MEAN, "loss": PpoLossConfig(aggregation="constant")}),
    "reinforce-pp": Kin(300, {"advantage": ReinforceConfig(), "epochs": 1}),
    "remax": Kin(300, {"advantage": RemaxConfig(), "loss": ReinforceLossConfig(), "epochs": 1}),
}
"""With the KL in the reward all end at the optimum."""

KL_LOSSES = {
    "mean-k2": Kin(300, {"advantage": MEAN, "epochs": 1}, estimator="k2"),
    "mean-k3": Kin(300, {"advantage": MEAN, "epochs": 1}, estimator="k3"),
    "mean-full": Kin(300, {"advantage": MEAN, "epochs": 1}, estimator="full"),
    "grpo": Kin(
        300,
        {"advantage": GroupConfig(), "epochs": 1, "loss": PpoLossConfig(aggregation="sequence_mean")},
        estimator="k3",
    ),
}
"""With the KL as a loss each has a fixed point of its own."""


def on_policy_config(world: World, kin: Kin, beta: float, seed: int) -> PpoConfig:
    """Return the settings of a method that learns from its own samples; all of a step are one minibatch."""
    kl: dict[str, Any] = {"estimator": kin.estimator, "place": "reward" if kin.estimator == "k1" else "loss"}
    settings: dict[str, Any] = {
        "steps": kin.steps,
        "prompts_per_step": 1,
        "completions_per_prompt": kin.episodes,
        "epochs": 4,
        "minibatch_size": kin.episodes,
        "sampling_batch_size": kin.episodes,
        "approx_kl_limit": None,
        "sampling": SamplingConfig(max_new_tokens=world.length),
        "kl": FixedKl(coef=beta, **kl),
        "score": ScoreConfig(stop_penalty="none"),
        "tune": FullConfig(),
        "policy_optimizer": _rate(1e-3),
        "chat": ChatConfig(template="raw"),
        "compute": COMPUTE,
        "seed": seed,
    }
    return PpoConfig(**(settings | kin.changes))


def learn_on_policy(world: World, config: PpoConfig, folder: Path) -> Found:
    """Train by a method that learns from its own samples."""
    state = prepare(world.save_model(folder, config.seed), world.reward, config)
    exact = Optimum.of(world, world.logprobs(state.trunk.network(None)), config.kl.coef)
    for step in range(config.steps):
        experience = rollout(state.trunk, [world.prompt], config, step=step)
        baseline = score_greedy(experience, world.reward)
        update(state, experience, score(experience, world.reward), config, step=step, baseline=baseline)
    return exact, world.logprobs(state.trunk.network(POLICY))


def shared_settings(peak: float, seed: int) -> dict[str, Any]:
    """Return what the losses on preferences have in common."""
    return {
        "tune": FullConfig(),
        "optimizer": OptimizerConfig(learning_rate=peak, warmup_fraction=0.05, schedule="cosine"),
        "chat": ChatConfig(template="raw"),
        "compute": COMPUTE,
        "seed": seed,
    }


def learn_from_pairs(world: World, config: DpoConfig, folder: Path, *, steps: int, pairs: int) -> Found:
    """Learn from pairs of uniform completions; return the optimum and the policy."""
    folder = world.save_model(folder, config.seed)
    trunk = Trunk(load_model(folder, compute=config.compute, chat=config.chat))
    trunk.add_role(ROLE, config.tune, seed=0)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, steps)
    exact = Optimum.of(world, world.logprobs(trunk.network(None)), config.loss.beta)  # pyright: ignore[reportAttributeAccessIssue]
    chances = torch.sigmoid(exact.values[:, None] - exact.values[None, :])
    sequences = world.sequences()
    rng = random.Random(config.seed)
    for _ in range(steps):
        drawn = [(rng.randrange(len(sequences)), rng.randrange(len(sequences))) for _ in range(pairs)]
        groups = [tuple(Tokens([START], list(sequences[row])) for row in pair) for pair in drawn]
        labels = torch.tensor([chances[one, other] for one, other in drawn], dtype=torch.float32)
        reference = exact.reference[torch.tensor(drawn)].float()
        train_step(trunk, optimizer, Examples(groups, reference, labels, torch.ones(pairs), False), config)
    if isinstance(config.loss, IpoLossConfig):
        # The tilt is the chance to beat a uniform completion, over tau.
        exact = Optimum(chances.mean(1), exact.reference, config.loss.beta)
    return exact, world.logprobs(trunk.network(ROLE))


def learn_online(world: World, config: OnlineDpoConfig, folder: Path) -> Found:
    """Train by online DPO with the exact values as judge."""
    state = online_dpo.prepare(world.save_model(folder, config.seed), [world.prompt], world.reward, config)
    exact = Optimum.of(world, world.logprobs(state.trunk.network(None)), config.loss.beta)  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(config.steps):
        drawn = online_dpo.draw(state, [world.prompt] * config.prompts_per_step, config, step=step)
        examples, _ = online_dpo.judged(drawn, world.reward, config, shared=state.shared)
        online_dpo.learn(state, examples, config, step=step)
    return exact, world.logprobs(state.trunk.network(ROLE))


def online_config(world: World, beta: float, seed: int, *, steps: int, pairs: int) -> OnlineDpoConfig:
    """Return the settings of online DPO."""
    return OnlineDpoConfig(
        steps=steps,
        prompts_per_step=pairs,
        epochs=2,
        minibatch_size=pairs,
        sampling_batch_size=2 * pairs,
        sampling=SamplingConfig(max_new_tokens=world.length),
        loss=DpoLossConfig(beta=beta),
        **shared_settings(2e-3, seed),
    )


def _point(name: str, beta: float, seed: int, folder: Path) -> tuple[Found, Tensor | None]:
    """Run a method; return what was found, and its own fixed point where that is another than the optimum."""
    if name in KIN:
        return learn_on_policy(SMALL, on_policy_config(SMALL, KIN[name], beta, seed), folder), None
    if name in KL_LOSSES:
        kin = KL_LOSSES[name]
        found = learn_on_policy(SMALL, on_policy_config(SMALL, kin, beta, seed), folder)
        if name == "grpo":
            return found, group_fixed_point(SMALL, found[0], kin.estimator)
        return found, kl_loss_fixed_point(SMALL, found[0], beta, kin.estimator)
    if name == "online-dpo":
        return learn_online(LARGE, online_config(LARGE, beta, seed, steps=120, pairs=256), folder), None
    loss = DpoLossConfig(beta=beta) if name == "dpo" else IpoLossConfig(beta=beta)
    config = DpoConfig(loss=loss, **shared_settings(2e-3, seed))
    return learn_from_pairs(LARGE, config, folder, steps=400, pairs=256), None


METHODS = (*KIN, *KL_LOSSES, "dpo", "ipo", "online-dpo")


def run(name: str, beta: float, seed: int, folder: Path) -> dict[str, float]:
    """Run a method and return where it ended.

    Returns: `kl`, KL(policy || its fixed point); `gap`, what the objective at the fixed point is above the policy's;
    `start`, KL(reference || optimum); `drift`, KL(policy || reference); `value`; `below`, how far that lies below the
    best at such a drift; and of a fixed point `point_kl`, KL(point || optimum), and `point_gap`, what it loses there.
    """
    (exact, policy), point = _point(name, beta, seed, folder)
    return placed(exact, policy) | (fixed(exact, policy, point) if point is not None else {})


def placed(exact: Optimum, policy: Tensor) -> dict[str, float]:
    """Return where a policy stands: against the optimum, and against the frontier of value and KL."""
    drift = float((policy.exp() * (policy - exact.reference)).sum())
    return {
        "start": exact.divergence(exact.reference),
        "kl": exact.divergence(policy),
        "gap": exact.best - exact.objective(policy),
        "drift": drift,
        "value": float((policy.exp() * exact.values).sum()),
        "below": exact.frontier(drift) - float((policy.exp() * exact.values).sum()),
    }


def fixed(exact: Optimum, policy: Tensor, point: Tensor) -> dict[str, float]:
    """Return where a policy stands against its own fixed point, and that point against the optimum."""
    return {
        "kl": float((policy.exp() * (policy - point)).sum()),
        "gap": exact.objective(point) - exact.objective(policy),
        "point_kl": exact.divergence(point),
        "point_gap": exact.best - exact.objective(point),
    }


def best_of_n_rows(seed: int) -> dict[str, dict[str, float]]:
    """Return where the exact distribution of best of n stands, by n; nothing is trained."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(SMALL.save_model(Path(folder), seed), compute=COMPUTE, chat=ChatConfig(template="raw"))
        reference = SMALL.logprobs(model.model)
    exact = Optimum.of(SMALL, reference, 0.5)
    return {
        f"best-of-{n}": placed(exact, best_of_n_logprobs(reference, exact.values, n).clamp(min=-700))
        for n in (2, 4, 8, 16)
    }


def row_of(name: str, beta: float, rows: Sequence[dict[str, float]]) -> str:
    """Return a line of the table: means over seeds, of the first two the greatest too."""

    def worst(key: str) -> str:
        values = [row[key] for row in rows]
        return f"{mean(values):.4f} (at most {max(values):.4f})"

    def average(key: str) -> str:
        return f"{mean(row[key] for row in rows):.3f}" if key in rows[0] else ""

    cells = (worst("kl"), worst("gap"), *(average(key) for key in ("drift", "value", "below", "point_kl", "point_gap")))
    return f"| {name} | {beta:g} | {len(rows)} | {' | '.join(cells)} | {average('seconds')} |"


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and print the table of all that was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/exact"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for name in asked.only:
            for beta in asked.betas:
                path = asked.out / f"{name} {beta:g} {seed}.json"
                if not path.exists():
                    started = time.process_time()
                    with tempfile.TemporaryDirectory() as folder:
                        found = run(name, beta, seed, Path(folder) / "model")
                    found["seconds"] = time.process_time() - started
                    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
                    sys.stderr.write(f"{path.stem}: {found}\n")
    names = "method | beta | seeds | KL to its end | objective short of it | KL to reference | value | below frontier"
    sys.stdout.write(f"| {names} | KL of its end to the optimum | lost there | seconds |\n{'| --- ' * 11}|\n")
    for name in METHODS:
        for beta in BETAS:
            rows = [json.loads(path.read_text()) for path in sorted(asked.out.glob(f"{name} {beta:g} [0-9]*.json"))]
            if rows:
                sys.stdout.write(row_of(name, beta, rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
