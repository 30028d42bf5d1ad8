"""Votes for tests: real ones of a crowd as records, and simulated judges of known quality."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harken.preferences.numeric import Floats, Ints
from harken.preferences.votes import Votes
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt, RankingAnswer


def comparison(
    name: str,
    shown: tuple[str, ...],
    winner: str | None,
    *,
    judge: str = "ann",
    outcome: str = "tie",
    strength: int | None = None,
    supersedes: str | None = None,
) -> Judgment:
    """A comparison that `winner` won, or that ended as `outcome`."""
    answer = {"outcome": "win" if winner else outcome, "winner": winner, "strength": strength}
    return Judgment(
        id=name,
        judge=Judge(id=judge, kind="person"),
        prompt_id="q",
        shown=shown,
        answer=Comparison.model_validate(answer),
        supersedes=supersedes,
    )


def ranking(name: str, ranks: dict[str, int], judge: str = "ann") -> Judgment:
    """A ranking of completions, shown in the order in which they stand in `ranks`."""
    answer = RankingAnswer(ranks=ranks)
    return Judgment(id=name, judge=Judge(id=judge, kind="person"), prompt_id="q", shown=tuple(ranks), answer=answer)


def completion(name: str, text: str | None = None, prompt: str = "q", model: str = "") -> Completion:
    """A completion whose text is its id, if no other is given."""
    message = Message(role="assistant", content=name if text is None else text)
    return Completion(id=name, prompt_id=prompt, message=message, model=model)


def prompt(name: str = "q") -> Prompt:
    """A prompt whose text is its id."""
    return Prompt(id=name, messages=(Message(role="user", content=name),))


def llmfao(folder: Path) -> tuple[list[Prompt], list[Completion], list[Judgment]]:
    """The crowd votes of LLMFAO as records, each pair with completions of its own."""
    texts = [json.loads(line) for line in (folder / "llmfao" / "pairs-crowd.jsonl").read_text().splitlines()]
    prompts = {f"p{row['prompt']}": prompt_text(row) for row in texts}
    completions: dict[str, Completion] = {}
    models: dict[str, tuple[str, str]] = {}
    judgments: list[Judgment] = []
    for row in texts:
        for side in "xy":
            name = f"p{row['prompt']}-m{row[f'model_{side}']}"
            completions[name] = completion(name, row[f"result_{side}"], f"p{row['prompt']}", f"m{row[f'model_{side}']}")
        models[str(row["id"])] = (f"p{row['prompt']}-m{row['model_x']}", f"p{row['prompt']}-m{row['model_y']}")
    with (folder / "llmfao" / "crowd-comparisons.csv").open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            shown = models[row["id"]]
            winner = {"left": shown[0], "right": shown[1], "tie": None}[row["winner"]]
            answer = Comparison(outcome="win" if winner else "tie", winner=winner)
            judgments.append(
                Judgment(
                    id=f"v{number:05}",
                    judge=Judge(id=f"w{row['worker']}", kind="person"),
                    prompt_id=f"p{row['prompt']}",
                    shown=shown,
                    answer=answer,
                )
            )
    return list(prompts.values()), list(completions.values()), judgments


def prompt_text(row: dict[str, object]) -> Prompt:
    """The prompt of a row of LLMFAO."""
    return Prompt(id=f"p{row['prompt']}", messages=(Message(role="user", content=str(row["text"])),))


@dataclass(frozen=True)
class Crowd:
    """Simulated votes on pairs 2k, 2k + 1, and the truth behind them."""

    votes: Votes
    scores: Floats
    reliability: Floats
    bias: Floats


def simulated(
    num_pairs: int, per_pair: int, reliability: Floats, bias: Floats, *, seed: int, spread: float = 1.2
) -> Crowd:
    """Votes by judges with logit P(first) = reliability (score difference) + bias side, sides drawn at random."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=2 * num_pairs) * spread
    num_judges = len(reliability)
    judge = np.concatenate([rng.choice(num_judges, per_pair, replace=False) for _ in range(num_pairs)])
    first = np.repeat(np.arange(num_pairs) * 2, per_pair)
    side = rng.choice(np.array([-1, 1]), len(first))
    logits = reliability[judge] * (scores[first] - scores[first + 1]) + bias[judge] * side
    outcome = np.where(rng.random(len(first)) < 1 / (1 + np.exp(-logits)), 1, -1)
    votes = votes_of(2 * num_pairs, num_judges, first, first + 1, outcome, side=side, judge=judge)
    return Crowd(votes, scores, reliability, bias)


def votes_of(
    num_items: int,
    num_judges: int,
    first: Ints,
    second: Ints,
    outcome: Ints,
    *,
    side: Ints | None = None,
    judge: Ints | None = None,
    strength: Ints | None = None,
) -> Votes:
    """Votes from arrays, each of a judgment of its own."""
    size = len(first)
    return Votes(
        items=tuple(f"c{number:07}" for number in range(num_items)),
        judges=tuple(f"j{number:04}" for number in range(num_judges)),
        judgment_ids=tuple(map(str, range(size))),
        prompt_of=("q",) * num_items,
        first=first,
        second=second,
        outcome=outcome,
        side=np.ones(size, dtype=np.int64) if side is None else side,
        strength=np.full(size, -1) if strength is None else strength,
        judge=np.zeros(size, dtype=np.int64) if judge is None else judge,
        judgment=np.arange(size),
        weight=np.ones(size),
        counts={"win": size},
    )
