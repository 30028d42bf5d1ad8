"""A recipe, ratings and a model so small that the whole loop runs in seconds."""

import json
import random
from pathlib import Path

import torch

from harken.config import load_recipe
from harken.pipeline import run_recipe

GOOD, BAD = ("fine", "great", "lovely", "bright"), ("dull", "awful", "weak", "sad")


def write_ratings(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Write snippets in the format of the reviews: more good words, higher ratings."""
    rng = random.Random(seed)
    texts: list[str] = []
    ratings: list[str] = []
    for number in range(1, count + 1):
        num_good = rng.randrange(5)
        words = rng.sample(GOOD, num_good) + rng.sample(BAD, 4 - num_good)
        rng.shuffle(words)
        given = [max(-4, min(4, 2 * num_good - 4 + rng.choice((-1, 0, 1)))) for _ in range(6)]
        mean = sum(given) / len(given)
        spread = (sum((value - mean) ** 2 for value in given) / len(given)) ** 0.5
        texts.append(f"{number}\t{mean}\tfilm {number} is {' '.join(words)} ok\n")
        ratings.append(f"{number}\t{mean}\t{spread}\t{json.dumps(given)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movieReviewSnippets_anonDataRatings.txt").write_text("".join(ratings))
    path = folder / "movieReviewSnippets_GroundTruth.txt"
    path.write_text("".join(texts))
    return path


def write_recipe(path: Path, model: Path, ratings: Path) -> Path:
    path.write_text(
        f"""
name = "small"
model = "{model}"
chat.template = "raw"
compute = {{ dtype = "float32", device = "cpu" }}

[collect]
format = "ratings"
path = "{ratings}"

[preferences]
heldout_fraction = 0.3
pairs_per_item = 2
prefix_words = 3
min_words = 6

[sft]
batch_size = 8

[reward]
batch_size = 8
normalization_samples = 16
sampling = {{ max_new_tokens = 8 }}

[ppo]
steps = 3
prompts_per_step = 8
epochs = 2
minibatch_size = 4
sampling = {{ max_new_tokens = 8 }}
score.accept_chance = true

[evaluate]
max_prompts = 8
bootstrap_resamples = 200
sampling = {{ max_new_tokens = 8 }}
"""
    )
    return path


def run(recipe: Path, out: Path) -> None:
    torch.set_num_threads(1)
    run_recipe(load_recipe(recipe), out)
