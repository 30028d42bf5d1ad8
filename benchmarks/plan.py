"""Check the memory that `harken plan` predicts against measured runs, and print the table of docs/performance.md.

    python benchmarks/plan.py              all cases, each in a process of its own
    python benchmarks/plan.py --case 3     one of them, as JSON

Measured is the peak of the resident set in a phase, less what the process had after importing Harken, on the CPU. The C
library is told to give freed memory back at once (MALLOC_MMAP_THRESHOLD_); as it is, it keeps up to a half more.
"""

import argparse
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harken.config import ComputeConfig, FullConfig, LoraConfig, SftConfig
from harken.lm.attention import use_short_attention
from harken.lm.batch import Tokens, pad
from harken.lm.fit import cpu_settings
from harken.lm.forward import by_microbatch, completion_logprobs
from harken.lm.load import LoadedModel, load_model
from harken.lm.machine import memory_in_use, peak_memory, reset_peak_memory
from harken.lm.optim import Optimizer
from harken.lm.sample import sample
from harken.lm.trunk import Trunk
from harken.plan import PHASES, Job, Phase, peak_bytes
from harken.policy.sft import ROLE, train_step
from harken.records import SamplingSettings
from harken.shapes import SIZES, ModelShape

CPU = torch.device("cpu")
WIDE = ModelShape(1024, 2816, 6, 16, 16, 64, 32000)
DEEP = ModelShape(256, 1024, 16, 8, 2, 32, 8000, is_tied=True)
MODELS: dict[str, ModelShape] = {"smollm2": SIZES["smollm2"], "wide": WIDE, "deep": DEEP}


def _job(tune: str, weight_bytes: int, batch: int, prompt: int, new: int, microbatch: int) -> Job:
    return Job(
        tune="full" if tune == "full" else "lora",
        weight_bytes=weight_bytes,
        trained_roles=1,
        batch=batch,
        prompt_tokens=prompt,
        new_tokens=new,
        sampling_rows=batch,
        microbatch_tokens=microbatch,
        **cpu_settings(weight_bytes),
    )


CASES: list[tuple[str, Job]] = [
    ("smollm2", _job("lora", 2, 8, 32, 32, 2048)),
    ("smollm2", _job("lora", 4, 8, 32, 32, 2048)),
    ("smollm2", _job("lora", 2, 6, 128, 64, 512)),
    ("smollm2", _job("full", 2, 4, 64, 64, 2048)),
    ("smollm2", _job("full", 4, 4, 32, 32, 128)),
    ("wide", _job("lora", 4, 8, 96, 32, 2048)),
    ("wide", _job("full", 2, 8, 64, 64, 512)),
    ("deep", _job("lora", 2, 32, 64, 64, 4096)),
    ("deep", _job("full", 4, 16, 96, 32, 2048)),
]


def make_trunk(model: str, dtype: str) -> Trunk:
    """Return a trunk on `smollm2`, or on a random llama of a given shape."""
    if model == "smollm2":
        trunk = Trunk(load_model(model, compute=ComputeConfig(device="cpu", dtype=dtype)))
        # Out of the mapped file: its pages would count although the system may take them back at any time.
        for value in trunk.model.parameters():
            value.data = value.data.clone()
        return trunk
    shape = MODELS[model]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.is_tied,
    )
    network: Any = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    use_short_attention(network.eval())
    chat: Any = SimpleNamespace(stop_ids=())
    return Trunk(LoadedModel(network, chat, model))


def measure(model: str, job: Job) -> dict[Phase, int]:
    """Run two optimizer steps, then sampling and scoring, and return the peak of each in bytes."""
    baseline = memory_in_use(CPU)
    tune = LoraConfig(rank=job.rank) if job.tune == "lora" else FullConfig()
    trunk = make_trunk(model, "bfloat16" if job.weight_bytes == 2 else "float32")
    trunk.add_role(ROLE, tune, seed=0)
    compute = ComputeConfig(microbatch_tokens=job.microbatch_tokens, chunk_tokens=job.chunk_tokens)
    config = SftConfig(tune=tune, compute=compute, packing=False)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, 10)
    generator = torch.Generator().manual_seed(0)
    sizes = (job.batch, job.row_tokens)
    rows = torch.randint(0, MODELS[model].vocabulary, sizes, generator=generator).tolist()
    sequences = [Tokens(row[: job.prompt_tokens], row[job.prompt_tokens :]) for row in rows]
    found: dict[Phase, int] = {}
    train_step(trunk, optimizer, sequences, config)
    reset_peak_memory(CPU)
    train_step(trunk, optimizer, sequences, config)
    found["training"] = peak_memory(CPU) - baseline
    reset_peak_memory(CPU)
    settings = SamplingSettings(max_new_tokens=job.new_tokens)
    prompts = [item.prompt for item in sequences]
    sample(trunk, ROLE, prompts, settings, seeds=range(job.batch), batch_size=job.sampling_rows)
    found["sampling"] = peak_memory(CPU) - baseline
    reset_peak_memory(CPU)

    def read(part: Any) -> torch.Tensor:
        return completion_logprobs(trunk, ROLE, part, chunk_tokens=job.chunk_tokens, with_entropy=True).logprobs

    by_microbatch(pad(sequences), read, max_tokens=job.scoring_tokens)
    found["scoring"] = peak_memory(CPU) - baseline
    return found


def main() -> None:
    """Run the cases one after another and print the table; exit with 1 where a prediction is 15 % off or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int)
    arguments = parser.parse_args()
    if arguments.case is not None:
        sys.stdout.write(json.dumps(measure(*CASES[arguments.case])) + "\n")
        return
    worst = 0.0
    sys.stdout.write("| model | tuning | precision | rows x tokens | phase | predicted, GB | measured, GB | error |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
    for number, (model, job) in enumerate(CASES):
        command = [sys.executable, __file__, "--case", str(number)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        measured = json.loads(ended.stdout.splitlines()[-1])
        for phase in PHASES:
            predicted = peak_bytes(MODELS[model], job, phase)
            error = predicted / measured[phase] - 1
            worst = max(worst, abs(error))
            precision = "bfloat16" if job.weight_bytes == 2 else "float32"
            cells = (model, job.tune, precision, f"{job.batch} x {job.row_tokens}", phase)
            figures = (f"{predicted / 1e9:.2f}", f"{measured[phase] / 1e9:.2f}", f"{error:+.1%}")
            sys.stdout.write(f"| {' | '.join((*cells, *figures))} |\n")
            sys.stdout.flush()
    sys.stdout.write(f"\nworst error: {worst:.1%}\n")
    sys.exit(worst >= 0.15)


if __name__ == "__main__":
    main()
