"""The peer of ppo: TRL 1.12.0's PPOTrainer with four models (policy, reference, reward model, critic)."""

import os
from typing import Any
from unittest import mock

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from common import emit, now, read_job, versions
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

METRICS = {
    "score": "objective/scores",
    "sequence KL": "objective/kl",
    "mean -log p of a completion": "objective/entropy",
    "policy loss": "loss/policy_avg",
    "value loss": "loss/value_avg",
}


class Clock(TrainerCallback):
    """Takes the time of each iteration and the first one's metrics."""

    def __init__(self) -> None:
        """Start empty."""
        self.seconds: list[float] = []
        self.first: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the first iteration."""
        self.last = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End an iteration."""
        self.seconds.append(now() - self.last)
        self.last = now()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Keep what was logged of the first iteration."""
        self.first = self.first or dict(logs)


def main() -> None:
    """Run warm-up and timed iterations, each over all prompts."""
    job, data = read_job()
    trainer, args = make(job, data)
    clock = Clock()
    trainer.add_callback(clock)
    seen = count_tokens()
    if job["check"]:
        with mock.patch.object(ppo_trainer, "batch_generation", given_completions(data, args)):
            trainer.train()
    else:
        trainer.train()
    emit(
        "TRL",
        seconds=clock.seconds,
        tokens=seen,
        proof={name: clock.first[key] for name, key in METRICS.items()} if job["check"] else {},
        settings={
            "weights": str(trainer.policy_model.dtype).removeprefix("torch."),
            "bf16 autocast": args.bf16,
            "recomputation": args.gradient_checkpointing,
            "epochs": args.num_ppo_epochs,
            "microbatch": args.per_device_train_batch_size,
        },
        packages=versions("torch", "transformers", "trl", "accelerate"),
    )


def make(job: dict[str, Any], data: dict[str, Any]) -> tuple[Any, Any]:
    """Return the trainer and its arguments; what is not named here is TRL's default."""
    count, chosen = len(data["rows"]), job["optimizer"]
    micro = min(8, count)
    values: dict[str, Any] = {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": count // micro,
        "total_episodes": count * (job["warmup"] + job["steps"]),
        "num_ppo_epochs": 1 if job["check"] else job["epochs"],
        "response_length": job["new_tokens"],
        "temperature": 1.0,
        "learning_rate": chosen["learning_rate"],
        "lr_scheduler_type": "constant",
        "num_sample_generations": 0,
        "use_cpu": not torch.cuda.is_available(),  # else bf16 is refused where there is no GPU
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        **job["options"],
    }
    if job["dtype"] == "float32":
        values["bf16"] = False
    args = PPOConfig(**values)
    tokenizer = AutoTokenizer.from_pretrained(data["model"], padding_side="left")
    tokenizer.pad_token = data["pad_token"]
    weights = getattr(torch, job["weights"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(data["model"], dtype=weights) for _ in range(2))
    critic, scorer = (scalar_model(data, weights) for _ in range(2))
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=scorer,
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": row["prompt"]} for row in data["rows"]]),
        eval_dataset=Dataset.from_list([{"input_ids": row["prompt"]} for row in data["rows"]]),
    )
    return trainer, args


def scalar_model(data: dict[str, Any], weights: torch.dtype) -> Any:
    """Return the base with a scalar head, the same weights as Harken's."""
    model = AutoModelForSequenceClassification.from_pretrained(data["model"], num_labels=1, dtype=weights)
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor([data["head"]]))
    return model


def count_tokens() -> list[int]:
    """Count prompt and completion tokens of each iteration, where its completions come back from sampling."""
    counts: list[int] = []
    generate = ppo_trainer.batch_generation

    def counted(model: Any, queries: Any, size: int, pad_id: int, config: Any) -> Any:
        found, logits = generate(model, queries, size, pad_id, config)
        prompt_tokens = int((queries != pad_id).sum())
        counts.append(prompt_tokens + found[:, queries.shape[1] :].numel())
        return found, logits

    ppo_trainer.batch_generation = counted
    return counts


def given_completions(data: dict[str, Any], args: Any) -> Any:
    """Return a sampler that gives back the completions of the data file, with the logits the policy has for them."""
    by_prompt = {tuple(row["prompt"]): row["completion"] for row in data["rows"]}

    def sample(model: Any, queries: Any, size: int, pad_id: int, config: Any) -> Any:
        del size, config
        completions = [by_prompt[tuple(row[row != pad_id].tolist())] for row in queries]
        whole = torch.cat([queries, torch.tensor(completions, device=queries.device)], dim=1)
        logits = ppo_trainer.forward(model, whole, pad_id).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / (args.temperature + 1e-7)

    return sample


if __name__ == "__main__":
    main()
