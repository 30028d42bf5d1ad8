"""Harken's side of every phase."""

from typing import Any

from common import emit, now, read_job, versions
from harken_ppo import online
from harken_training import fine_tune, preference, reward

from harken.config import ComputeConfig
from harken.lm.load import load_model
from harken.lm.sample import completion_seeds, sample
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings


def main() -> None:
    """Do the job's phase."""
    job, data = read_job()
    match job["phase"]:
        case "sampling":
            found = sampling(job, data)
        case "sft":
            found = fine_tune(job, data)
        case "reward" | "reward-lora":
            found = reward(job, data)
        case "dpo":
            found = preference(job, data)
        case _:
            found = online(job, data)
    emit("harken", **found, packages=versions("harken", "torch", "transformers"))


def sampling(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Draw with `harken.lm.sample.sample`, nothing stopping early."""
    loaded = load_model("smollm2", compute=ComputeConfig(dtype=job["dtype"]))
    trunk = Trunk(loaded)
    # No token ends a completion, on any side, so all draw the same number of tokens.
    trunk.chat.stop_ids = frozenset({-1})
    prompts = data["rows"]
    # Warm-up on the same shapes, a few tokens long; then as many timed calls as asked for.
    lengths = [4] * job["warmup"] + [job["new_tokens"]] * job["steps"]
    temperature = 1e-6 if job["check"] else 1.0
    seconds, tokens, drawn = [], [], []
    for call, length in enumerate(lengths):
        settings = SamplingSettings(temperature=temperature, max_new_tokens=length)
        seeds = completion_seeds(len(prompts), "benchmark", call)
        started = now()
        drawn = sample(trunk, None, prompts, settings, seeds=seeds, batch_size=len(prompts))
        seconds.append(now() - started)
        tokens.append(sum(len(row.token_ids) for row in drawn))
    proof = {"greedy": [row.token_ids for row in drawn]} if job["check"] else {}
    dtype = str(trunk.dtype).removeprefix("torch.")
    return {"seconds": seconds, "tokens": tokens, "proof": proof, "settings": {"dtype": dtype}}


if __name__ == "__main__":
    main()
