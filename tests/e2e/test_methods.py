"""benchmarks/methods.py on a tiny run: every method ends with a row, and a second call only reads."""

from pathlib import Path

import pytest

from benchmarks.methods import METHODS, Material, main, settings_of, table_row
from harken.artifacts import read_json
from harken.config import IlqlConfig, KtoConfig, PpoConfig, load_recipe
from harken.core.best_of_n import best_of_n_kl
from harken.pipeline import run_recipe
from tests.e2e import small

TINY = ("dpo.max_pairs=8", "kto.max_pairs=8", "ilql.max_completions=8", "ppo.steps=1", "rloo.steps=1", "grpo.steps=1")


@pytest.fixture(scope="module")
def done(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small recipe."""
    folder = tmp_path_factory.mktemp("methods")
    recipe = small.write_recipe(folder / "small.toml", tiny_model_dir, small.write_ratings(folder / "ratings"))
    run_recipe(load_recipe(recipe, ["ppo.steps=1"]), folder / "run")
    return folder / "run"


def test_every_method_has_a_row_and_a_second_call_only_reads(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(done), "--out", str(tmp_path), "--seeds", "0"]
    arguments += [part for change in TINY for part in ("--set", change)]
    main(arguments)
    table = capsys.readouterr().out
    lines = [line.split("|")[1].strip() for line in table.splitlines()]
    assert lines == ["method", "---", "SFT", *METHODS]
    best = read_json(tmp_path / "best-of-16-0" / "row.json")["row"]
    assert best["kl"] == best_of_n_kl(16)
    assert best["reward"] > read_json(tmp_path / "sft" / "evaluation.json")["policy"]["reward_score"]["value"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    main(arguments)
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit, match="was measured with other settings"):
        main([*arguments, "--only", "dpo", "--set", "dpo.loss.beta=0.3"])


def test_settings_are_the_recipes_and_changes_go_to_their_method(done: Path) -> None:
    shared, changes = Material(done), ["kto.loss.good_weight=1.2", "rloo.kl.coef=0.3"]
    rloo = settings_of("rloo", shared, 4, changes)
    assert isinstance(rloo, PpoConfig)
    # 8 completions an iteration, as in the recipe: 2 prompts of 4; one optimizer step on all of them.
    assert (rloo.prompts_per_step, rloo.completions_per_prompt, rloo.updates_per_step) == (2, 4, 1)
    assert (rloo.kl.coef, rloo.seed, rloo.sampling.max_new_tokens) == (0.3, 4, 8)
    grpo = settings_of("grpo", shared, 4, changes)
    assert isinstance(grpo, PpoConfig)
    assert (grpo.rollouts, grpo.epochs, grpo.minibatch_size, grpo.kl.place) == (8, 2, 4, "loss")
    kto = settings_of("kto", shared, 4, changes)
    assert isinstance(kto, KtoConfig)
    assert kto.loss.model_dump()["good_weight"] == 1.2
    ilql = settings_of("ilql", shared, 4, changes)
    assert isinstance(ilql, IlqlConfig)
    assert ilql.head_width == 128


def test_a_line_shows_mean_and_range_over_seeds() -> None:
    one = {"lexicon": 0.5, "reward": 1.0, "kl": 4.0, "distinct": 0.9, "tokens": 20.0, "seconds": 100.0}
    other = one | {"lexicon": 0.7, "kl": 6.0}
    assert table_row("ppo", [one, other])[:4] == (
        *("ppo", "0.600 (0.500 to 0.700)", "1.00 (1.00 to 1.00)"),
        "5.0 (4.0 to 6.0)",
    )
    assert table_row("ppo", [one])[1] == "0.500"
