"""Rejection-sampling fine-tuning: draw many completions, keep the best by a reward, imitate them (arXiv:2307.09288).

Each round is a folder: what was kept, and a run of `sft` on it that begins at the model of the round before. A stopped
run goes on inside the round in which it stopped.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from harken.artifacts import read_json, read_records, storage_errors, write_folder_manifest, write_json, write_records
from harken.config import RftConfig, SftConfig
from harken.errors import DataError
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.sample import completion_seeds, to_completion
from harken.lm.samplers import OwnSampler
from harken.lm.trunk import Trunk
from harken.policy.sft import sft
from harken.progress import QUIET, Reporter
from harken.protocols import Reward, SharesBase, checked_scores
from harken.records import Completion, Demonstration, Prompt, SamplingSettings, content_id
from harken.runs import Run

KEPT_FILE, DRAWN_FILE = "kept.jsonl", "drawn.json"


def rft(
    model: str | Path,
    prompts: Sequence[Prompt],
    reward: Reward,
    out: Path,
    config: RftConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a model to imitate the best of its own completions and return the folder of the trained model.

    Args:
        model: who draws in the first round, and where training begins: folder, Hugging Face id, or `smollm2`.
        prompts: each gets `completions_per_prompt` completions in each round.
        reward: decides what is kept.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of prompts and reward, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no prompts, one too long, or no completion scores `min_score`.
        RewardError: the reward failed; the message names the prompt.
        ResumeError: `out` was started with other settings.
    """
    config = config or RftConfig()
    run = Run(out, "rft", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    if not prompts:
        raise DataError("no prompts; give at least one")
    config = with_settled_dtype(config, run)
    current: str | Path = model
    kept: list[Demonstration] = []
    for number in range(1, config.rounds + 1):
        folder = out / f"round-{number}"
        if not (folder / KEPT_FILE).is_file():
            draw_round(current, prompts, reward, folder, config, number=number, reporter=reporter)
        fresh = read_records(folder / KEPT_FILE, Demonstration)
        kept = [*kept, *fresh] if config.earlier_rounds else fresh
        current = sft(current, kept, folder / "sft", imitation(config, number), reporter=reporter)
        if number > run.step:
            log_round(run, folder, number, len(kept), config)
    publish_model(current, out / "model", run)
    run.finish({"rounds": config.rounds, "completions": config.rounds * len(prompts) * config.completions_per_prompt})
    return out / "model"


def draw_round(
    model: str | Path,
    prompts: Sequence[Prompt],
    reward: Reward,
    folder: Path,
    config: RftConfig,
    *,
    number: int,
    reporter: Reporter = QUIET,
) -> None:
    """Draw and score completions of every prompt and write the best into `kept.jsonl`; it is there whole or not at all.

    Args:
        model: who draws.
        prompts: what is asked.
        reward: scores.
        folder: of the round.
        config: how many are drawn and kept.
        number: of the round, from 1; decides the draws together with the seed.
        reporter: shows progress.
    """
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    if isinstance(reward, SharesBase):
        reward.attach(trunk)
    n = config.completions_per_prompt
    settings = SamplingSettings(**config.sampling.model_dump())
    limit = min(config.max_length, trunk.context_length) - settings.max_new_tokens
    ids = [trunk.chat.encode_prompt(prompt, max_length=limit) for prompt in prompts]
    sampler = OwnSampler(trunk, config.sampling_batch_size)
    seeds = completion_seeds(len(prompts) * n, config.seed, "rft", number)
    per_batch = max(1, config.sampling_batch_size // n)
    starts = range(0, len(prompts), per_batch)
    found: list[tuple[Completion, float]] = []
    for start in reporter.track(starts, f"round {number}", total=len(starts)):
        some = prompts[start : start + per_batch]
        these = seeds[start * n : (start + len(some)) * n]
        drawn = sampler(None, ids[start : start + per_batch], settings, seeds=these, n=n)
        asked = [prompt for prompt in some for _ in range(n)]
        completions = [
            to_completion(trunk.chat, prompt, item, settings, seed=seed, model=f"{trunk.source}+rft@{number}")
            for prompt, item, seed in zip(asked, drawn, these, strict=True)
        ]
        found += zip(completions, checked_scores(reward, asked, completions), strict=True)
    kept = select(trunk, prompts, ids, found, config)
    if not kept:
        raise DataError(
            f"round {number}: none of {len(found)} completions ended by itself, has text of at most max_length and "
            f"scores at least min_score = {config.min_score}; lower min_score, raise sampling.max_new_tokens, or draw "
            "more"
        )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DRAWN_FILE, drawn_facts(found, kept))
    write_records(folder / KEPT_FILE, [item for item, _ in kept], kind="demonstrations", parents={})


def select(
    trunk: Trunk,
    prompts: Sequence[Prompt],
    ids: Sequence[list[int]],
    found: Sequence[tuple[Completion, float]],
    config: RftConfig,
) -> list[tuple[Demonstration, float]]:
    """Return what is kept of every prompt's completions, prompt by prompt.

    Args:
        trunk: its tokenizer reads the texts again: they are what is learned, and may take more tokens than were drawn.
        prompts: what was asked.
        ids: their tokens.
        found: completions with their scores, `completions_per_prompt` of each prompt.
        config: how many are kept, and how long they may be.
    """
    room, n = min(config.max_length, trunk.context_length), config.completions_per_prompt
    kept: list[tuple[Demonstration, float]] = []
    for index, prompt in enumerate(prompts):
        free = room - len(ids[index])
        fitting = [
            (item, score)
            for item, score in found[index * n : (index + 1) * n]
            if len(trunk.chat.encode_completion(item.message.content)) <= free
        ]
        kept += best(prompt, fitting, config)
    return kept


def drawn_facts(
    found: Sequence[tuple[Completion, float]], kept: Sequence[tuple[Demonstration, float]]
) -> dict[str, float]:
    """Return what a round's metrics say of the completions drawn and of those kept."""
    scores = torch.tensor([score for _, score in found])
    chosen = torch.tensor([score for _, score in kept])
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(unbiased=False)),
        "kept_score_mean": float(chosen.mean()),
        "kept_fraction": len(kept) / len(found),
        "stop_fraction": sum(item.finish_reason == "stop" for item, _ in found) / len(found),
        "length_mean": sum(item.num_tokens or 0 for item, _ in found) / len(found),
    }


def best(
    prompt: Prompt, scored: Sequence[tuple[Completion, float]], config: RftConfig
) -> list[tuple[Demonstration, float]]:
    """Return the best different completions of a prompt as demonstrations, best first.

    One that was cut off at the limit is no example: imitation would put an end where there was none.
    """
    texts: dict[str, tuple[Demonstration, float]] = {}
    for item, score in sorted(scored, key=lambda pair: -pair[1]):
        text = item.message.content
        is_whole = item.finish_reason == "stop" and text.strip()
        if is_whole and (config.min_score is None or score >= config.min_score):
            name = content_id("rft", prompt.id, text)
            demonstration = Demonstration(id=name, prompt=prompt, completion=item.message, source=item.model)
            texts.setdefault(text, (demonstration, score))
    return list(texts.values())[: config.keep]


def imitation(config: RftConfig, number: int) -> SftConfig:
    """Return the settings of a round's training."""
    names = SftConfig.model_fields.keys() & RftConfig.model_fields.keys()
    shared = {name: getattr(config, name) for name in names}
    return SftConfig.model_validate(shared | {"seed": config.seed + number})


def log_round(run: Run, folder: Path, number: int, num_kept: int, config: RftConfig) -> None:
    """Write a round's row of metrics and samples, and note that the round is done."""
    rows = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = read_json(folder / DRAWN_FILE)
    run.log(number, {**drawn, "demonstrations": float(num_kept), "loss": rows[-1]["loss"]})
    for item in read_records(folder / KEPT_FILE, Demonstration)[: config.num_samples]:
        row = {"prompt": item.prompt.messages[-1].content, "completion": item.completion.content}
        run.log_sample(number, row)
    run.save_checkpoint(number, lambda place: write_json(place / "round.json", {"round": number}))


def publish_model(source: str | Path, target: Path, run: Run) -> None:
    """Copy the last round's model to where every stage has it."""
    with storage_errors(target):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    write_folder_manifest(target, "model", parents=run.inputs)
