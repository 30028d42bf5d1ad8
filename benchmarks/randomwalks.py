"""RandomWalks: find short ways through a graph, after having seen random ones (trlX's example task).

A graph of 21 nodes with few edges; node `a` is the goal. A small model learns 1,000 random walks of at most 10 nodes by
imitation and then writes walks as bad as those. Each method has to make it write short ones. The score of a walk is its
optimality: 1 for a shortest way to the goal, 0 for one that takes 10 nodes, never arrives, or uses an edge that is not
there. The graph, the walks and the score are those of trlX (its `examples/randomwalks`, seed 1000).

    python benchmarks/randomwalks.py --out out/randomwalks --seeds 0 1 2       every method
    python benchmarks/randomwalks.py --out out/randomwalks --only ilql ppo    some of them

A method that was measured with a seed is not trained again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from walks import LENGTH, NODES, WALKS, Graph, check, letter, make_graph

from harken.config import (
    ChatConfig,
    ComputeConfig,
    FixedKl,
    FullConfig,
    GaeConfig,
    IlqlConfig,
    IlqlLossConfig,
    MaskConfig,
    OptimizerConfig,
    PpoConfig,
    RftConfig,
    SamplingConfig,
    ScoreConfig,
    SftConfig,
)
from harken.core.best_of_n import expected_best_of_n
from harken.lm.batch import shuffled_batches
from harken.lm.load import load_model
from harken.lm.q_heads import add_guided_role
from harken.lm.sample import completion_seeds, sample
from harken.lm.trunk import Trunk
from harken.policy.ilql import IlqlState, prepare, read_scored, train_step
from harken.policy.ppo import ppo
from harken.policy.rft import rft
from harken.policy.sft import sft
from harken.progress import Reporter
from harken.records import SamplingSettings, ScoredDemonstration

CHAT = ChatConfig(template="raw")
COMPUTE = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=8192, chunk_tokens=8192)
BETAS = (0.0, 1.0, 100.0)
METHODS = ["best-of-n", "rft", "ilql", "ppo", "nlpo"]
SAMPLES = 100
"""Walks from each node that a measured optimality is the mean of: its standard error is below 0.01."""


def save_model(folder: Path, seed: int) -> Path:
    """Save a random model of 1.5M parameters (6 layers, width 144) with one token for each node and one for the end."""
    vocab = {letter(node): node for node in range(NODES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<end>", normalized=False)])
    config = LlamaConfig(
        vocab_size=NODES + 1,
        hidden_size=144,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=NODES,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


def measure(graph: Graph, trunk: Trunk, role: str | None = None, count: int = SAMPLES) -> torch.Tensor:
    """Return (starts, count) scores of what a role writes."""
    settings = SamplingSettings(max_new_tokens=LENGTH)
    ids = [trunk.chat.encode_prompt(prompt) for prompt in graph.prompts]
    seeds = completion_seeds(len(ids) * count, "optimality")
    drawn = sample(trunk, role, ids, settings, seeds=seeds, n=count, batch_size=1000)
    texts = [trunk.chat.decode_completion(item.token_ids) for item in drawn]
    starts = [start for start in graph.starts for _ in range(count)]
    scores = [graph.optimality(start + text) for start, text in zip(starts, texts, strict=True)]
    return torch.tensor(scores).reshape(len(ids), count)


def open_trunk(model: Path) -> Trunk:
    """Return a trained model, to be measured."""
    return Trunk(load_model(model, compute=COMPUTE, chat=CHAT))


def rate(peak: float, eps: float = 1e-8) -> OptimizerConfig:
    """Return an optimizer with a short warm-up, whose rate then falls to 0."""
    return OptimizerConfig(learning_rate=peak, warmup_fraction=0.05, eps=eps)


def pretrain(graph: Graph, out: Path, seed: int) -> Path:
    """Train the small model to imitate the walks; return its folder."""
    config = SftConfig(
        epochs=30,
        batch_size=100,
        packing=False,
        save_every=1000,
        tune=FullConfig(),
        optimizer=rate(1e-3),
        chat=CHAT,
        compute=COMPUTE,
        seed=seed,
    )
    model = save_model(out / "start", seed)
    return sft(model, graph.demonstrations, out / "walks", config, reporter=Reporter())


def ppo_config(seed: int, **changes: Any) -> PpoConfig:
    """Return PPO's settings; leaving the imitated walks costs nothing, as in trlX."""
    settings: dict[str, Any] = {
        "steps": 60,
        "prompts_per_step": NODES - 1,
        "completions_per_prompt": 8,
        "epochs": 4,
        "minibatch_size": 40,
        "sampling_batch_size": 160,
        "sampling": SamplingConfig(max_new_tokens=LENGTH),
        "kl": FixedKl(coef=0.0),
        "score": ScoreConfig(stop_penalty="none"),
        # Where nearly all walks are perfect, what is left of the advantages is the critic's noise; standardized, it
        # drove the policy away again.
        "advantage": GaeConfig(whiten=False),
        "save_every": 1000,
        "tune": FullConfig(),
        # At 3e-4, trlX's rate, one update of a nearly perfect policy may move it by more than a nat a token.
        "policy_optimizer": rate(1e-4, eps=1e-5),
        "chat": CHAT,
        "compute": COMPUTE,
        "seed": seed,
    }
    return PpoConfig(**(settings | changes))


def run_ppo(graph: Graph, model: Path, out: Path, config: PpoConfig) -> dict[str, Any]:
    """Train with PPO; return the optimality of what it writes and the curve of its own samples."""
    trained = ppo(model, graph.prompts, graph.reward, out, config, reporter=Reporter())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[row["step"], round(row["score_mean"], 3)] for row in rows]
    return {"optimality": mean(measure(graph, open_trunk(trained))), "curve": curve}


def run_ilql(graph: Graph, model: Path, seed: int) -> dict[str, Any]:
    """Learn from the walks and their scores; return the optimality with each beta, and its curves."""
    walks = [
        ScoredDemonstration(**item.model_dump(), score=graph.optimality(walk))
        for item, walk in zip(graph.demonstrations, graph.walks, strict=True)
    ]
    config = IlqlConfig(
        epochs=60,
        batch_size=100,
        loss=IlqlLossConfig(expectile=0.8),
        tune=FullConfig(),
        optimizer=rate(2e-4),
        head_optimizer=rate(1e-3),
        chat=CHAT,
        compute=COMPUTE,
        seed=seed,
    )
    batches = shuffled_batches(range(WALKS), config.batch_size, epochs=config.epochs, seed=seed)
    state = prepare(model, config, len(batches))
    learned, _ = read_scored(state.trunk, walks, [], config)
    curve: list[list[float]] = []
    for step, rows in enumerate(batches):
        train_step(state, learned.select(rows), config, step=step)
        if (step + 1) % 50 == 0:
            curve.append([step + 1, *guided(graph, state, count=20).values()])
            sys.stderr.write(f"ilql: {curve[-1]}\n")
    return {"optimality": guided(graph, state), "curve": curve}


def guided(graph: Graph, state: IlqlState, count: int = SAMPLES) -> dict[str, float]:
    """Return the optimality of what the policy writes with each beta."""
    return {
        f"beta {beta:g}": mean(
            measure(graph, state.trunk, add_guided_role(state.trunk, "policy", state.targets, beta), count)
        )
        for beta in BETAS
    }


def run_rft(graph: Graph, model: Path, out: Path, seed: int) -> dict[str, Any]:
    """Imitate the best of one's own walks, in rounds; return the optimality and the score drawn in each round."""
    config = RftConfig(
        rounds=3,
        completions_per_prompt=64,
        keep=8,
        sampling_batch_size=640,
        sampling=SamplingConfig(max_new_tokens=LENGTH),
        epochs=10,
        save_every=1000,
        tune=FullConfig(),
        optimizer=rate(1e-3),
        chat=CHAT,
        compute=COMPUTE,
        seed=seed,
    )
    trained = rft(model, graph.prompts, graph.reward, out, config, reporter=Reporter())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[row["step"], round(row["score_mean"], 3)] for row in rows]
    return {"optimality": mean(measure(graph, open_trunk(trained))), "curve": curve}


def run_best_of(graph: Graph, model: Path) -> dict[str, Any]:
    """Draw often and keep the best; return the mean optimality for each number of draws."""
    scores = measure(graph, open_trunk(model))
    return {"optimality": {f"{n} draws": mean(expected_best_of_n(scores, n)) for n in (1, 2, 4, 8, 16)}}


def mean(values: torch.Tensor) -> float:
    """Return a mean with three digits, as many as there are."""
    return round(float(values.mean()), 3)


def run_seed(graph: Graph, out: Path, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """Train and measure with one seed, in seconds of one core; what its results.json has is not done again."""
    out, kept = out / f"seed-{seed}", out / f"seed-{seed}" / "results.json"
    model = out / "walks" / "model"
    methods: dict[str, Callable[[], dict[str, Any]]] = {
        "imitation": lambda: {"optimality": mean(measure(graph, open_trunk(pretrain(graph, out, seed))))},
        "best-of-n": lambda: run_best_of(graph, model),
        "rft": lambda: run_rft(graph, model, out / "rft", seed),
        "ilql": lambda: run_ilql(graph, model, seed),
        "ppo": lambda: run_ppo(graph, model, out / "ppo", ppo_config(seed)),
        "nlpo": lambda: run_ppo(graph, model, out / "nlpo", ppo_config(seed, mask=MaskConfig())),
    }
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in ("imitation", *names):
        if name not in found:
            started = time.process_time()
            found[name] = methods[name]()
            found[name]["seconds"] = round(time.process_time() - started, 1)
            kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
        sys.stdout.write(f"seed {seed}, {name}: {found[name]['optimality']}, {found[name]['seconds']} s\n")
    return found


def plot(by_seed: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Draw the learning curves, a line for each seed."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, found in enumerate(by_seed.values()):
        for axes, name, column, color, title in (
            (left, "ppo", 1, "tab:blue", "PPO"),
            (left, "nlpo", 1, "tab:orange", "NLPO"),
            (right, "ilql", 2, "tab:blue", "ILQL, beta 1"),
            (right, "ilql", 3, "tab:orange", "ILQL, beta 100"),
        ):
            if name in found:
                rows = found[name]["curve"]
                label = title if number == 0 else None
                axes.plot([row[0] for row in rows], [row[column] for row in rows], color=color, lw=1.2, label=label)
    left.set(xlabel="iteration of 160 walks", ylabel="mean optimality", ylim=(0, 1.03))
    right.set(xlabel="optimizer step of 100 walks")
    for axes in (left, right):
        axes.axhline(0.352, color="gray", lw=0.8, ls=":", label="the walks themselves")
        axes.legend(loc="lower right", fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def main(arguments: Sequence[str]) -> None:
    """Train and measure with every seed; print what was found and whether it is what was wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models and results.json")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plot", type=Path, help="picture of the learning curves")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    graph = make_graph()
    walks = round(sum(map(graph.optimality, graph.walks)) / WALKS, 3)
    sys.stdout.write(f"the walks: optimality {walks}\n")
    by_seed = {seed: run_seed(graph, asked.out, seed, asked.only) for seed in asked.seeds}
    for seed, found in by_seed.items():
        for claim, holds in check(found).items():
            sys.stdout.write(f"seed {seed}: {claim}: {'yes' if holds else 'NO'}\n")
    if asked.plot is not None:
        plot(by_seed, asked.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
