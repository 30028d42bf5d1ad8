"""The peer of sampling: vLLM's engine in this process, nothing stopping early."""

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that the peak memory is this process's
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; 64 rows of 128 tokens need 0.4
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from common import emit, now, read_job, versions
from vllm import LLM, SamplingParams


def main() -> None:
    """Warm up on the same shapes, then draw."""
    job, data = read_job()
    rows = data["rows"]
    longest = max(map(len, rows)) + job["new_tokens"]
    engine = LLM(
        model=data["model"],
        dtype=job["dtype"],
        max_model_len=longest,
        max_num_seqs=len(rows),
        # The warm-up has the same prompts: with the prefix cache the timed run would not read them at all.
        enable_prefix_caching=False,
        seed=0,
    )
    prompts = [{"prompt_token_ids": row} for row in rows]
    seconds, tokens, drawn = [], [], []
    for length in [4] * job["warmup"] + [job["new_tokens"]] * job["steps"]:
        settings = SamplingParams(
            temperature=0.0 if job["check"] else 1.0, max_tokens=length, ignore_eos=True, detokenize=False
        )
        started = now()
        outputs = engine.generate(prompts, settings, use_tqdm=False)
        seconds.append(now() - started)
        drawn = [list(output.outputs[0].token_ids) for output in outputs]
        tokens.append(sum(map(len, drawn)))
    emit(
        "vllm",
        seconds=seconds,
        tokens=tokens,
        proof={"greedy": drawn} if job["check"] else {},
        settings={"dtype": job["dtype"], "prefix caching": False},
        packages=versions("vllm", "vllm-cpu", "torch", "transformers"),
    )


if __name__ == "__main__":
    main()
