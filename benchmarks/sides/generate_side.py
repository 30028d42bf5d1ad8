"""The peer of sampling: Hugging Face `generate`, nothing stopping early."""

import torch
from common import emit, now, read_job, versions
from transformers import AutoModelForCausalLM


def main() -> None:
    """Warm up on the same shapes, then draw."""
    job, data = read_job()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(data["model"], dtype=getattr(torch, job["dtype"])).to(device).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor(data["rows"], device=device)
    drawing = (
        {"do_sample": False} if job["check"] else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    )
    torch.manual_seed(0)
    seconds, tokens, drawn = [], [], ids
    for length in [4] * job["warmup"] + [job["new_tokens"]] * job["steps"]:
        started = now()
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, pad_token_id=0, use_cache=True, **drawing
        )[:, ids.shape[1] :]
        seconds.append(now() - started)
        tokens.append(drawn.numel())
    emit(
        "transformers generate",
        seconds=seconds,
        tokens=tokens,
        proof={"greedy": drawn.tolist()} if job["check"] else {},
        settings={"dtype": job["dtype"], "attention": model.config._attn_implementation},
        packages=versions("torch", "transformers"),
    )


if __name__ == "__main__":
    main()
