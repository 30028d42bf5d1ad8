"""The peer of sft, reward, dpo, grpo, rloo: TRL's trainers, with its defaults but for what makes the work equal."""

from typing import Any

import torch
from common import emit, group_of, now, read_job, token_reward, versions
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

ONLINE: dict[str, tuple[Any, Any]] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


class Clock(TrainerCallback):
    """Takes the time from the end of one step to the end of the next, reading the batch included, and the losses."""

    def __init__(self) -> None:
        """Start empty."""
        self.seconds: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the first step."""
        self.last = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step."""
        self.seconds.append(now() - self.last)
        self.last = now()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Keep what is logged of a step."""
        if "loss" in logs:
            self.logs.append(logs)


def main() -> None:
    """Train on the rows in the order of the file."""
    job, data = read_job()
    is_online = job["phase"] in ONLINE
    make = online if is_online else {"sft": sft, "reward": reward, "dpo": dpo}[job["phase"]]
    trainer = make(job, data)
    clock = Clock()
    trainer.add_callback(clock)
    counts = count_drawn(trainer) if is_online else count_tokens(trainer)
    trainer.train()
    tokens = counts[: len(clock.seconds)]
    proof = {}
    if job["check"] and is_online:
        proof = {"score": clock.logs[0]["reward"], "gradient norm": clock.logs[0]["grad_norm"]}
    elif job["check"]:
        proof = {f"loss of step {step}": row["loss"] for step, row in enumerate(clock.logs, 1)}
        proof["gradient norm of step 1"] = clock.logs[0]["grad_norm"]
        if job["phase"] == "dpo":
            proof |= {f"log p of {side}": clock.logs[0][f"logps/{side}"] for side in ("chosen", "rejected")}
    args = trainer.args
    emit(
        "TRL",
        seconds=clock.seconds,
        tokens=tokens,
        proof=proof,
        settings={
            "weights": str(trainer.model.dtype).removeprefix("torch."),
            "bf16 autocast": args.bf16,
            "recomputation": args.gradient_checkpointing,
            "optimizer": args.optim.value,
        },
        packages=versions("torch", "transformers", "trl", "accelerate"),
    )


def arguments(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return what all three configs share; what is not named here is TRL's default."""
    chosen = job["optimizer"]
    values: dict[str, Any] = {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": job["batch_size"],
        "num_train_epochs": 1,
        "max_length": job["max_length"],
        "learning_rate": chosen["learning_rate"],
        "adam_beta1": chosen["betas"][0],
        "adam_beta2": chosen["betas"][1],
        "adam_epsilon": chosen["eps"],
        "weight_decay": chosen["weight_decay"],
        "max_grad_norm": chosen["max_grad_norm"],
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "use_cpu": not torch.cuda.is_available(),  # else bf16 is refused where there is no GPU
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        # The model's own padding token also ends each text: a reward model would read its score one token early.
        "pad_token": data["pad_token"],
        **job["options"],
    }
    if job["dtype"] == "float32":
        values |= {"bf16": False, "model_init_kwargs": {"dtype": "float32"}}
    return values


def sft(job: dict[str, Any], data: dict[str, Any]) -> Any:
    """Return the trainer on tokens, with the prompt's labels switched off."""
    rows = [
        {
            "input_ids": row["prompt"] + row["chosen"],
            "labels": [-100] * len(row["prompt"]) + row["chosen"],
        }
        for row in data["rows"]
    ]
    return SFTTrainer(
        model=data["model"], args=SFTConfig(**arguments(job, data)), train_dataset=Dataset.from_list(rows)
    )


def reward(job: dict[str, Any], data: dict[str, Any]) -> Any:
    """Return the trainer on tokens, its head set to Harken's."""
    rows = [
        {"chosen_ids": row["prompt"] + row["chosen"], "rejected_ids": row["prompt"] + row["rejected"]}
        for row in data["rows"]
    ]
    args = RewardConfig(**arguments(job, data))
    trainer: Any = RewardTrainer(model=data["model"], args=args, train_dataset=Dataset.from_list(rows))
    with torch.no_grad():
        trainer.model.score.weight.copy_(torch.tensor([data["head"]]))
    return trainer


def dpo(job: dict[str, Any], data: dict[str, Any]) -> Any:
    """Return the trainer; it takes texts only, so the tokens are put in afterwards, in its own format."""
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    args = DPOConfig(beta=0.1, **arguments(job, data))
    tokenizer = AutoTokenizer.from_pretrained(data["model"])
    trainer: Any = DPOTrainer(model=data["model"], args=args, train_dataset=text, processing_class=tokenizer)
    rows = [
        {"prompt_ids": row["prompt"], "chosen_ids": row["chosen"], "rejected_ids": row["rejected"]}
        for row in data["rows"]
    ]
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def online(job: dict[str, Any], data: dict[str, Any]) -> Any:
    """Return the trainer of groups; prompts are numbers in its data set, and tokens where it would encode them."""
    config, kind = ONLINE[job["phase"]]
    values = arguments(job, data)
    for name in ("max_length", "pad_token", "train_sampling_strategy"):
        del values[name]
    micro = min(8, job["batch_size"] * job["group"])
    values |= {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job["batch_size"] * job["group"] // micro,
        "num_generations": job["group"],
        "max_completion_length": job["new_tokens"],
        "generation_kwargs": {"min_new_tokens": job["new_tokens"]},
        "max_steps": job["warmup"] + job["steps"],
        "shuffle_dataset": False,
        "beta": 0.04 if job["phase"] == "grpo" else 0.05,
    }
    if job["phase"] == "grpo":
        values["loss_type"] = "grpo"
    tokenizer = AutoTokenizer.from_pretrained(data["model"], padding_side="left")
    tokenizer.pad_token = data["pad_token"]
    rows = [{"prompt": str(number)} for number in range(len(data["rows"]))]
    trainer: Any = kind(
        model=data["model"],
        args=config(**values),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **_: [token_reward(ids) for ids in completion_ids],
    )
    trainer._tokenize_prompts = lambda prompts: ([data["rows"][int(number)]["prompt"] for number in prompts], None, {})
    if job["check"]:
        given = {tuple(row["prompt"]): group_of(row["completion"], job["group"]) for row in data["rows"]}

        def drawn(prompts: list[list[int]], *_: Any) -> Any:
            found = [given[tuple(prompt)][place % job["group"]] for place, prompt in enumerate(prompts)]
            return (found, None) if job["phase"] == "grpo" else found

        trainer._generate_single_turn = drawn
    return trainer


def count_drawn(trainer: Any) -> list[int]:
    """Count the tokens of each batch of completions with their prompts, where it comes back from sampling."""
    counts: list[int] = []
    generate = trainer._generate_single_turn

    def counted(prompts: list[list[int]], *rest: Any) -> Any:
        found = generate(prompts, *rest)
        completions = found[0] if isinstance(found, tuple) else found
        counts.append(sum(map(len, prompts)) + sum(map(len, completions)))
        return found

    trainer._generate_single_turn = counted
    return counts


def count_tokens(trainer: Any) -> list[int]:
    """Count the real tokens of each batch where it is put together, behind any cutting."""
    counts: list[int] = []
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        counts.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counted
    return counts


if __name__ == "__main__":
    main()
