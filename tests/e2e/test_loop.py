"""The whole loop from ratings to report: it runs, skips what is done, survives kills, and knows where it came from."""

import json
import random
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from harken.artifacts import Manifest, artifact_digest, read_manifest, verify
from harken.config import load_recipe
from harken.feedback.exchange import read_ratings
from harken.pipeline import run_recipe
from harken.progress import Describe, Reporter
from tests.e2e import small
from tests.invariants import kill
from tests.policy import material

STAGES = ["collect", "preferences", "sft", "reward", "ppo", "evaluate"]
# The clock's own files and rows.
TIMED = {"run.json", "metrics.jsonl", "report.html"}


@pytest.fixture(scope="module")
def recipe(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return small.write_recipe(folder / "small.toml", tiny_model_dir, small.write_ratings(folder / "ratings"))


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe."""
    out = tmp_path_factory.mktemp("loop")
    assert run_recipe(load_recipe(recipe), out) == out / "report.html"
    return out


def test_one_command_runs_the_whole_loop(done: Path) -> None:
    for stage in STAGES:
        assert read_manifest(done / stage) is not None, stage
    assert "<html" in (done / "report.html").read_text()
    facts = json.loads((done / "run.json").read_text())
    assert list(facts["seconds"]) == STAGES
    assert sum(facts["seconds"].values()) < 60, "measured: 4 s"
    evaluation = json.loads((done / "evaluate" / "evaluation.json").read_text())
    assert set(evaluation["win_rate"]) == {"reward", "lexicon"}
    assert len(material.rows(done / "ppo" / "metrics.jsonl")) == 3


def test_a_recipe_may_name_a_judge_that_watches_ppo(done: Path, recipe: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "watched")
    for stage in ("ppo", "evaluate"):
        shutil.rmtree(out / stage)
    run_recipe(load_recipe(recipe, ["judge=lexicon"]), out)
    rows = material.rows(out / "ppo" / "metrics.jsonl")
    assert len(rows) == 3
    assert all(-1 <= row["judge_mean"] <= 1 for row in rows)
    manifest = read_manifest(out / "ppo")
    assert manifest is not None
    assert manifest.parents["judge"] == "lexicon"


def test_the_same_command_again_skips_everything(done: Path, recipe: Path) -> None:
    said: list[str] = []

    class Listens(Reporter):
        def say(self, message: str) -> None:
            said.append(message)

        def track(
            self, steps: Iterable[int], label: str, *, total: int, done: int = 0, describe: Describe | None = None
        ) -> Iterator[int]:
            raise AssertionError(f"{label} was done again")

    before = material.hashes(done, keep=lambda path: path.name not in TIMED)
    started = time.perf_counter()
    run_recipe(load_recipe(recipe), done, Listens(quiet=True))
    assert time.perf_counter() - started < 10
    assert material.hashes(done, keep=lambda path: path.name not in TIMED) == before


def test_the_loop_is_the_same_twice(done: Path, recipe: Path, tmp_path: Path) -> None:
    # Model paths are part of what some records and manifests say, so what was learned is compared: tensors and numbers.
    run_recipe(load_recipe(recipe), tmp_path)
    for name in ("sft/model", "reward/model", "ppo/model"):
        one, other = (
            material.hashes(out / name, keep=lambda path: path.suffix == ".safetensors") for out in (done, tmp_path)
        )
        assert one
        assert one == other, name
    assert (tmp_path / "evaluate/evaluation.json").read_bytes() == (done / "evaluate/evaluation.json").read_bytes()


def _manifests(out: Path) -> dict[str, Manifest]:
    """Return every manifest of a run by its digest."""
    artifacts = {path.parent for path in out.rglob("manifest.json")} | {
        path.with_name(path.name.removesuffix(".manifest.json")) for path in out.rglob("*.manifest.json")
    }
    found: dict[str, Manifest] = {}
    for artifact in artifacts:
        manifest = read_manifest(artifact)
        assert manifest is not None
        verify(artifact)
        found[manifest.digest()] = manifest
    return found


def test_the_policy_can_be_walked_back_to_the_ratings_and_the_base(done: Path, recipe: Path) -> None:
    manifests = _manifests(done)
    settings = load_recipe(recipe)
    roots = {read_ratings(Path(settings.collect.path)).source.sha256, artifact_digest(Path(settings.model))}
    visited: set[str] = set()
    ends: set[str] = set()
    kinds: set[str] = set()
    waiting = [artifact_digest(done / "ppo" / "model")]
    while waiting:
        digest = waiting.pop()
        if digest in visited:
            continue
        visited.add(digest)
        if digest not in manifests:
            ends.add(digest)
            continue
        kinds.add(manifests[digest].kind)
        waiting += manifests[digest].parents.values()
    assert ends == roots, "the walk ends at the ratings that were imported and at the base model, and nowhere else"
    assert {"model", "reward_model", "pairs", "demonstrations", "prompts"} <= kinds


def test_the_evaluation_names_the_models_it_compared(done: Path) -> None:
    manifest = read_manifest(done / "evaluate")
    assert manifest is not None
    assert manifest.parents["model"] == artifact_digest(done / "ppo" / "model")
    assert manifest.parents["against"] == artifact_digest(done / "sft" / "model")
    assert manifest.parents["prompts"] == artifact_digest(done / "preferences" / "heldout_prompts.jsonl")


def test_no_heldout_text_is_in_any_training(done: Path) -> None:
    def texts(name: str, split: str) -> set[str]:
        lines = (done / "preferences" / name).read_text().splitlines()
        found = [json.loads(line) for line in lines]
        keys = ("completion",) if name.startswith("demonstrations") else ("chosen", "rejected")
        return {row[key]["content"] for row in found if row.get("split", "train") == split for key in keys}

    train = texts("demonstrations.jsonl", "train") | texts("pairs.jsonl", "train")
    heldout = texts("demonstrations.jsonl", "heldout") | texts("pairs.jsonl", "heldout")
    assert heldout
    assert not train & heldout


def _kill_and_compare(recipe: Path, done: Path, folder: Path, tries: int) -> None:
    context, rng = kill.server(), random.Random(1)
    span = kill.seconds(context, small.run, recipe, folder / "first")
    span = min(span, kill.seconds(context, small.run, recipe, folder / "second"))
    expected = (done / "evaluate" / "evaluation.json").read_bytes()
    assert (folder / "first" / "evaluate" / "evaluation.json").read_bytes() == expected, "without any kill"
    kills = 0
    for number in range(tries):
        out = folder / f"try-{number}"
        kills += kill.killed_and_resumed(context, rng, span, small.run, recipe, out)
        assert (out / "evaluate" / "evaluation.json").read_bytes() == expected, f"try {number}"
    assert kills >= tries / 2, f"{kills} kills in {tries} tries prove little"


def test_a_killed_loop_ends_in_the_same_evaluation(recipe: Path, done: Path, tmp_path: Path) -> None:
    _kill_and_compare(recipe, done, tmp_path, tries=2)


@pytest.mark.slow
def test_a_loop_killed_many_times_ends_in_the_same_evaluation(recipe: Path, done: Path, tmp_path: Path) -> None:
    _kill_and_compare(recipe, done, tmp_path, tries=20)
