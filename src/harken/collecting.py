"""Models at both ends of collecting: completions of models become tasks for people, and models judge tasks themselves.

This is where the store, which knows no torch, meets what draws and scores.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harken.artifacts import artifact_digest
from harken.config import ChatConfig, ComputeConfig, JudgeConfig, SampleConfig
from harken.config.project import ComparisonTask
from harken.endpoint import Endpoint, parse_endpoint
from harken.errors import DataError, UsageError
from harken.feedback.choose_pairs import (
    Candidate,
    Floats,
    candidate_pairs,
    choose_pairs,
    prompt_clusters,
    uncertainty,
)
from harken.feedback.judge import ByScore, ModelJudge
from harken.feedback.language_judge import LanguageJudge
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore, Project, Projects
from harken.feedback.store.machine import add_made, drawn_completions
from harken.feedback.tasks import TaskLine, check_task
from harken.generate.sampling import generate
from harken.lm.load import Notify, ignore, load_model
from harken.lm.q_heads import read_guide
from harken.lm.sample import completion_seeds
from harken.lm.talk import TrunkChat
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.protocols import ChatModel, PairwiseJudge, Reward, checked_scores, whole_answer
from harken.records import Completion, Message, Prompt, SamplingSettings, content_id
from harken.reward.functions import load_reward
from harken.reward.model import StoredRewardModel
from harken.runs import derive_seed

_SCORED_AT_ONCE = 64
RANDOM = "random"
"""Tag of tasks that belong to the even sample of all pairs."""


@dataclass(frozen=True)
class SampledTasks:
    """What `sample_tasks` did."""

    num_drawn: int
    """Completions drawn now."""
    num_kept: int
    """Completions that an earlier run had drawn."""
    num_candidates: int
    """Pairs among which was chosen."""
    num_new: int
    num_known: int
    """Tasks that were there already."""
    num_random: int
    """Chosen pairs that belong to the random share."""


def sample_tasks(
    store: FeedbackStore,
    project: Project,
    models: Sequence[str],
    prompts: Sequence[Prompt],
    rewards: Sequence[str] = (),
    config: SampleConfig | None = None,
    *,
    reporter: Reporter = QUIET,
) -> SampledTasks:
    """Draw completions of models, choose pairs of them, and add these to a project as tasks.

    Completions are stored as they are drawn, and everything is decided by the seed: the same call after a kill goes on
    where it stopped and adds no task twice.

    Args:
        store: of the project.
        project: it compares two completions.
        models: folders, names, or ADDRESS#MODEL for a service that speaks OpenAI's chat API.
        prompts: what the models are asked.
        rewards: reward models, as for `harken ppo`; pairs about which they disagree (or about which the only one is
            unsure) are chosen more often. None: all pairs have the same chance.
        config: settings.
        reporter: shows progress.

    Raises:
        UsageError: the project asks for something else, or a model is named twice.
        DataError: there are no pairs to choose from.
    """
    config = config or SampleConfig()
    if not isinstance(project.config.task, ComparisonTask):
        raise UsageError(f"project {project.name!r} asks for a {project.config.task.kind}; expected a comparison")
    if len(set(models)) < len(models):
        raise UsageError(f"--model {', '.join(models)}: a model is named twice")
    completions: list[Completion] = []
    num_drawn = 0
    for model in models:
        drawn, new = _drawn_by(store, model, prompts, config, reporter)
        completions += drawn
        num_drawn += new
    candidates = candidate_pairs(prompts, completions, config.choose.across)
    if not candidates:
        raise DataError(
            f"{len(completions)} completions of {len(prompts)} prompts make no pair of different texts; draw more "
            "(--n), at a higher temperature, or with more models"
        )
    logits = [_logits(name, prompts, completions, candidates, config.compute, reporter) for name in rewards]
    lines = _chosen(project, prompts, completions, candidates, logits, config)
    new, known = Projects(store.database).add_tasks(project.id, lines, _source(models, rewards, candidates, config))
    num_random = sum(RANDOM in line.tags for line in lines)
    return SampledTasks(num_drawn, len(completions) - num_drawn, len(candidates), new, known, num_random)


def _chosen(
    project: Project,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    candidates: Sequence[Candidate],
    logits: Sequence[Floats],
    config: SampleConfig,
) -> list[TaskLine]:
    """Choose among the candidates and return the tasks."""
    chosen = choose_pairs(
        uncertainty(np.reshape(np.array(logits), (len(logits), len(candidates)))),
        prompt_clusters(prompts, config.choose.clusters)[[candidate.prompt for candidate in candidates]],
        num_chosen=config.choose.num_tasks,
        random_share=config.choose.random_share,
        seed=derive_seed(config.seed, "choose") % 2**32,
    )
    lines: list[TaskLine] = []
    for one in chosen:
        pair = candidates[one.candidate]
        line = TaskLine(
            prompt=prompts[pair.prompt],
            completions=(completions[pair.one], completions[pair.other]),
            tags=("sampled", RANDOM if one.is_random else "uncertain"),
            selection_probability=one.probability,
        )
        check_task(line, project.config.task, f"prompt {line.prompt.id!r}")
        lines.append(line)
    return lines


def _source(
    models: Sequence[str], rewards: Sequence[str], candidates: Sequence[Candidate], config: SampleConfig
) -> ImportSource:
    digest = hashlib.sha256("\0".join([*models, *rewards, config.model_dump_json()]).encode()).hexdigest()
    by = "by the disagreement of" if len(rewards) > 1 else "by the uncertainty of" if rewards else "at random, by"
    how = f"chosen from {len(candidates)} pairs {by} {len(rewards)} rewards, {config.choose.random_share:.0%} at random"
    return ImportSource("sample", ", ".join(_short(model) for model in models), digest, (how,))


def _short(name: str) -> str:
    """Return a model's name without the place where it lies."""
    path = Path(name)
    if not path.exists():
        return name.partition("#")[2] or name
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _drawn_by(
    store: FeedbackStore, spec: str, prompts: Sequence[Prompt], config: SampleConfig, reporter: Reporter
) -> tuple[list[Completion], int]:
    """Return a model's completions of all prompts, and how many of them had to be drawn now.

    They are drawn and stored in blocks of prompts. A block's seeds follow from its place, so what an earlier run stored
    is known again.
    """
    settings = SamplingSettings(**config.sampling.model_dump())
    endpoint = parse_endpoint(spec, settings)
    name = endpoint.name if endpoint else spec
    n = config.completions_per_prompt
    stored = {
        (one.prompt_id, one.seed): one
        for one in drawn_completions(store.database, prompts, name)
        if one.sampling == settings
    }
    size = max(1, config.batch_size // n)
    blocks: list[tuple[Sequence[Prompt], int, list[tuple[Prompt, int]]]] = []
    for start in range(0, len(prompts), size):
        block = prompts[start : start + size]
        seed = derive_seed(config.seed, "sample", start)
        seeds = completion_seeds(len(block) * n, seed, "generate")
        asked = [prompt for prompt in block for _ in range(n)]
        blocks.append((block, seed, list(zip(asked, seeds, strict=True))))
    todo = [index for index, block in enumerate(blocks) if any((p.id, seed) not in stored for p, seed in block[2])]
    if not todo:
        return [stored[p.id, seed] for block in blocks for p, seed in block[2]], 0
    trunk: Trunk | None = None
    role: str | None = None
    if endpoint is None:
        trunk = Trunk(load_model(spec, compute=config.compute, chat=config.chat, notify=reporter.say))
        role = read_guide(trunk, spec, config.guidance)
    num_drawn = 0
    for index in reporter.track(todo, _short(spec), total=len(blocks), done=len(blocks) - len(todo)):
        block, seed, asked = blocks[index]
        if endpoint is not None:
            drawn = _ask(endpoint, asked, config.concurrency)
        else:
            assert trunk is not None
            drawn = generate(trunk, block, config.model_copy(update={"seed": seed}), role=role, model=name)
        add_made(store.database, asked=block, drawn=drawn)
        num_drawn += len(drawn)
        stored |= {(one.prompt_id, one.seed): one for one in drawn}
    return [stored[p.id, seed] for block in blocks for p, seed in block[2]], num_drawn


def _ask(endpoint: Endpoint, asked: Sequence[tuple[Prompt, int]], concurrency: int) -> list[Completion]:
    def one(question: tuple[Prompt, int]) -> Completion:
        prompt, seed = question
        answer = whole_answer(endpoint, prompt.messages, seed=seed)
        return Completion(
            id=content_id(prompt.id, endpoint.name, seed, answer.text),
            prompt_id=prompt.id,
            message=Message(role="assistant", content=answer.text),
            model=endpoint.name,
            sampling=endpoint.settings,
            seed=seed,
            finish_reason=answer.finish_reason,
        )

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, asked))


def _logits(
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    candidates: Iterable[Candidate],
    compute: ComputeConfig,
    reporter: Reporter,
) -> Floats:
    """Return by how many logits a reward prefers the one completion of each pair to the other."""
    reward = load_reward(name, compute=compute, notify=reporter.say)
    by_id = {prompt.id: prompt for prompt in prompts}
    asked = [by_id[completion.prompt_id] for completion in completions]
    scores: list[float] = []
    starts = range(0, len(completions), _SCORED_AT_ONCE)
    for start in reporter.track(starts, _short(name), total=len(starts)):
        rows = slice(start, start + _SCORED_AT_ONCE)
        scores += checked_scores(reward, asked[rows], completions[rows])
    found = np.array(scores) / _gain(reward)
    return np.array([found[pair.one] - found[pair.other] for pair in candidates])


def _gain(reward: Reward) -> float:
    """Return what a reward model's scores were multiplied with after training, which made their differences logits."""
    if not isinstance(reward, StoredRewardModel):
        return 1.0
    model = reward.model()
    return float(model.trunk.roles[model.role].gain)


def open_chat(
    spec: str, settings: SamplingSettings, *, chat: ChatConfig, compute: ComputeConfig, notify: Notify = ignore
) -> ChatModel:
    """Return a model to talk with, loaded into this process.

    Raises:
        HarkenError: it cannot be loaded.
    """
    trunk = Trunk(load_model(spec, compute=compute, chat=chat, notify=notify))
    return TrunkChat(trunk, read_guide(trunk, spec, None), settings, spec)


def open_judge(
    spec: str, config: JudgeConfig, *, criteria: str = "", notify: Callable[[str], None] = ignore
) -> ModelJudge:
    """Return the judge that a command line names.

    Args:
        spec: a language model (folder, name, or ADDRESS#MODEL), or a reward: a reward model folder, `lexicon`,
            `file.py:function`.
        config: settings.
        criteria: for a language model: by what to judge.
        notify: told in one line what was assumed.

    Raises:
        HarkenError: none of these, or it cannot be loaded.
    """
    folder = Path(spec)
    is_reward = (folder / "reward.json").exists() or (folder / "model" / "reward.json").exists()
    if spec == "lexicon" or spec.rpartition(":")[0].endswith(".py") or is_reward:
        found = load_reward(spec, compute=config.compute, notify=notify)
        judge = found if isinstance(found, PairwiseJudge) else ByScore(found)
        version = f"score:{artifact_digest(folder)[:12]}" if is_reward else "score"
        name = _short(spec) if is_reward or spec == "lexicon" else Path(spec).name
        return ModelJudge(name, "model" if is_reward else "rule", version, judge)
    settings = SamplingSettings(**config.sampling.model_dump())
    model = parse_endpoint(spec, settings) or open_chat(
        spec, settings, chat=config.chat, compute=config.compute, notify=notify
    )
    asked = LanguageJudge(model, criteria=criteria, seed=config.seed, concurrency=config.concurrency)
    return ModelJudge(_short(spec), "model", asked.version, asked)
