"""Comparisons of any format through the first two stages of a recipe to its report."""

import csv
import random
from pathlib import Path

import pytest

from harken.artifacts import read_json, read_records
from harken.config import CollectConfig, PreferencesConfig
from harken.config.base import build
from harken.config.preferences import ReliabilityConfig
from harken.errors import ConfigError
from harken.pipeline import collect, prepare
from harken.records import Demonstration, PreferencePair, Prompt
from harken.report.html import write_report
from harken.report.run_folder import read_run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """240 votes of 6 judges on 40 pairs, their prompts under another name; ties on the first pair."""
    rng = random.Random(0)
    path = tmp_path / "votes.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "completion_a", "completion_b", "winner", "judge"])
        writer.writeheader()
        for number in range(40):
            for judge in range(6):
                good = rng.choice("ab")
                other = {"a": "b", "b": "a"}[good]
                right = rng.random() < 0.8
                row = {f"completion_{good}": f"good answer {number}", f"completion_{other}": f"bad {number}"}
                winner = "tie" if number == 0 else good if right else other
                writer.writerow({"question": f"<b>{number}</b>", "winner": winner, "judge": f"p{judge}", **row})
    return path


def _run(config: CollectConfig, preferences: PreferencesConfig, out: Path) -> tuple[dict[str, Path], str]:
    files = prepare(preferences, collect(config, out / "collect"), out / "preferences")
    write_report(out, out / "report.html")
    return files, (out / "report.html").read_text()


def test_a_recipe_takes_comparisons_and_its_report_tells_of_them(table: Path, tmp_path: Path) -> None:
    config = CollectConfig(format="auto", path=str(table), columns={"prompt": "question"})
    preferences = PreferencesConfig(resolve=ReliabilityConfig(), heldout_fraction=0.2)
    files, page = _run(config, preferences, tmp_path / "run")
    pairs = read_records(files["pairs"], PreferencePair)
    assert sum(pair.chosen.content.startswith("good") for pair in pairs) >= 35
    # Nothing is rated, so the chosen texts are to be imitated, and the pairs' prompts to be answered.
    demonstrations = read_records(files["demonstrations"], Demonstration)
    assert {one.completion.content for one in demonstrations} == {pair.chosen.content for pair in pairs}
    for split, name in (("train", "train_prompts"), ("heldout", "heldout_prompts")):
        found = {prompt.id for prompt in read_records(files[name], Prompt)}
        assert found == {pair.prompt.id for pair in pairs if pair.split == split}
        assert found
    run = read_run(tmp_path / "run")
    assert run.agreement is None
    assert run.votes is not None
    assert (run.votes.num_votes, run.votes.num_pairs, run.votes.num_judges) == (240, 40, 6)
    for words in (
        "6 judges gave 240 votes on 40 pairs of completions; 2% are ties.",
        f"Votes became {len(pairs)} pairs by scores together with each judge&#39;s reliability and side habit",
        "The side on which a completion was shown makes no clear difference.",
        "Krippendorff&#39;s alpha, nominal",
    ):
        assert words in page, words
    assert "<b>0</b>" not in page


def test_the_crowd_of_llmfao_in_a_recipe(realdata: Path, tmp_path: Path) -> None:
    config = CollectConfig(format="llmfao", path=str(realdata / "llmfao"))
    _, page = _run(config, PreferencesConfig(), tmp_path)
    found = read_json(tmp_path / "collect" / "agreement.json")
    # shared data README
    assert found["votes"]["alpha_nominal"]["value"] == pytest.approx(0.2906, abs=1e-3)
    assert found["votes"]["outcomes"] == {"shown first": 2911, "tie": 3471, "shown second": 2549}
    assert "124 judges gave 8,931 votes" in page


def test_a_format_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="format"):
        build(CollectConfig, {"format": "excel"}, where="recipe.toml")
