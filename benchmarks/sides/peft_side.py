"""The peer of reward-lora: a plain loop with PEFT and autocast, as a user would write it."""

import torch
from common import emit, now, read_job, versions
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Train on the pairs in the order of the file, padding each batch to its longest text."""
    job, data = read_job()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForSequenceClassification.from_pretrained(data["model"], num_labels=1, dtype=dtype).to(device)
    # A padding token that occurs nowhere: the model's own also ends each text, where the score is read.
    model.config.pad_token_id = data["pad_id"]
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor([data["head"]]))
    adapters = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LAYERS, modules_to_save=["score"])
    model = get_peft_model(model, adapters)
    settings = job["optimizer"]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings["learning_rate"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    model.train()
    rows, batch = data["rows"], job["batch_size"]
    seconds, tokens, losses = [], [], []
    for start in range(0, len(rows), batch):
        chosen_rows = rows[start : start + batch]
        started = now()
        texts = [row["prompt"] + row["chosen"] for row in chosen_rows]
        texts += [row["prompt"] + row["rejected"] for row in chosen_rows]
        ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=data["pad_id"])
        ids = ids.to(device)
        real = ids != data["pad_id"]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = model(input_ids=ids, attention_mask=real.long()).logits.squeeze(-1).float()
        chosen, rejected = scores.chunk(2)
        loss = -nn.functional.logsigmoid(chosen - rejected).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(now() - started)
        tokens.append(int(real.sum()))
    emit(
        "PEFT loop",
        seconds=seconds,
        tokens=tokens,
        proof={f"loss of step {step}": loss for step, loss in enumerate(losses, 1)} if job["check"] else {},
        settings={"base": job["dtype"], "autocast": dtype == torch.bfloat16, "adapters": str(parameters[0].dtype)},
        packages=versions("torch", "transformers", "peft"),
    )


if __name__ == "__main__":
    main()
