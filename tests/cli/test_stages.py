"""The commands in order, on a tiny model: each one's files are what the next one takes."""

import json
from pathlib import Path

import pytest

import harken
from harken.artifacts import read_manifest
from harken.cli_loop import FAST
from tests.cli.calling import FP32, Ended, call, write_data, write_ratings, write_rows

COMPUTE = harken.ComputeConfig(dtype="float32")
SMALL = ("--set", "batch_size=10")
SHORT = ("--set", "sampling.max_new_tokens=6")
# A reward model of 20 pairs is a coin.
ACCEPT = ("--set", "score.accept_chance=true")
STEPS = ("--set", "steps=2", "--set", "prompts_per_step=4", "--set", "minibatch_size=4", *SHORT, *ACCEPT)
NORMALIZE = ("--set", "normalization_samples=8", *SHORT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Ended]:
    """What each command printed; its files lie in the folder under the key `folder`."""
    here = tmp_path_factory.mktemp("stages")
    write_data(here)
    labeled = [{"prompt": f"name {n} films", "completion": f"it is {n}", "label": n % 2 == 0} for n in range(30)]
    write_rows(here / "labeled.jsonl", labeled)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("COLUMNS", "40")
        ends = {"folder": Ended(0, str(here), "")}
        prompts = ("--prompts", "heldout.txt")
        demonstrations = ("--data", "demonstrations.jsonl", "--out", "out/sft")
        commands: dict[str, tuple[object, ...]] = {
            "sft": ("sft", "--model", tiny_model_dir, *demonstrations, *FP32, *SMALL),
            "reward": (
                *("reward", "--model", "out/sft", "--data", "pairs.jsonl", "--out", "out/reward"),
                *(*FP32, *SMALL, *NORMALIZE),
            ),
            "dpo": ("dpo", "--model", "out/sft", "--data", "pairs.jsonl", "--out", "out/dpo", *FP32, *SMALL),
            "kto": ("kto", "--model", "out/sft", "--data", "labeled.jsonl", "--out", "out/kto", *FP32, *SMALL),
            **{
                name: (name, "--model", "out/sft", "--data", "pairs.jsonl", "--out", f"out/{name}", *FP32, *SMALL)
                for name in ("ipo", "simpo", "orpo", "cpo")
            },
            "online-dpo": (
                *("online-dpo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/online"),
                *("--reward", "lexicon", *FP32, "--set", "steps=2", "--set", "prompts_per_step=2"),
                *("--set", "sampling.max_new_tokens=4"),
            ),
            "ppo": (
                *("ppo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/ppo"),
                *("--reward", "out/reward", *FP32, *STEPS),
            ),
            "ilql": ("ilql", "--model", "out/sft", "--data", "pairs.jsonl", "--out", "out/ilql", *FP32, *SMALL),
            "rft": (
                *("rft", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/rft"),
                *("--reward", "lexicon", *FP32, "--set", "sampling.max_new_tokens=200"),
                *("--set", "sampling.temperature=2"),
            ),
            "best": (
                *("generate", "--model", "out/ilql", *prompts, "--out", "b.jsonl"),
                *("--best-of", "4", "--reward", "lexicon", *FP32, *SHORT),
            ),
            "evaluate": (
                *("evaluate", "--model", "out/ppo", *prompts, "--out", "out/evaluate"),
                *("--reward", "out/reward", *FP32, *SHORT, "--set", "bootstrap_resamples=100"),
            ),
            "report": ("report", "out", "--out", "page/report.html"),
            "generate": (
                *("generate", "--model", "out/ppo", *prompts, "--out", "c.jsonl"),
                *("--n", "3", *FP32, *SHORT),
            ),
            "score": (
                *("score", "--reward", "out/reward", "--reward", "0.5*lexicon", *prompts),
                *("--in", "c.jsonl", "--out", "s.jsonl", "--json", "--set", "dtype=float32"),
            ),
        }
        for name, arguments in commands.items():
            ends[name] = call(*arguments)
    return ends


@pytest.fixture
def here(made: dict[str, Ended], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(made["folder"].out)
    monkeypatch.chdir(folder)
    return folder


def test_every_command_ends_well_and_without_a_traceback(made: dict[str, Ended]) -> None:
    assert {name: ended.code for name, ended in made.items()} == dict.fromkeys(made, 0)
    assert not [name for name, ended in made.items() if "Traceback" in ended.err or "error:" in ended.err]


def test_commands_print_where_their_result_is(made: dict[str, Ended], here: Path) -> None:
    assert made["sft"].out == "out/sft/model\n"
    assert made["ppo"].out == "out/ppo/model\n"
    assert made["report"].out == "page/report.html\n"
    assert made["reward"].out.endswith("out/reward/model\n")
    found = json.loads((here / "out/dpo/evaluation.json").read_text())
    assert made["dpo"].out.startswith(
        f"accuracy on {found['num_pairs']} held-out pairs: {found['accuracy']['value']:.3f}"
    )
    assert made["dpo"].out.endswith("out/dpo/model\n")
    assert made["online-dpo"].out == "out/online/model\n"
    found = json.loads((here / "out/kto/evaluation.json").read_text())
    assert made["kto"].out.startswith(f"accuracy on {found['num_completions']} held-out completions: ")
    folders = ("sft", "dpo", "kto", "ipo", "simpo", "orpo", "cpo", "online", "ppo")
    for folder in [f"out/{name}/model" for name in folders]:
        assert (here / folder / "model.safetensors").is_file()


def test_the_best_of_some_draws_comes_with_what_was_gained(made: dict[str, Ended], here: Path) -> None:
    assert made["ilql"].out == "out/ilql/model\n"
    assert made["rft"].out == "out/rft/model\n"
    assert (here / "out/ilql/model/q_heads.safetensors").is_file()
    assert "b.jsonl: 2 completions of 2 prompts" in made["best"].out
    manifest = read_manifest(here / "b.jsonl")
    assert manifest is not None
    found = manifest.info["best_of"]
    assert set(found["expected"]) == {"1", "2", "4"}
    rows = [line.split() for line in made["best"].out.splitlines()]
    assert [row[1] for row in rows if row[0] == "4"] == [f"{found['expected']['4']:.3f}"]


def test_progress_goes_to_standard_error_only(made: dict[str, Ended]) -> None:
    assert "ppo: 2/2" in made["ppo"].err
    assert "ppo: 2/2" not in made["ppo"].out


def test_evaluate_finds_the_model_that_the_policy_started_from(made: dict[str, Ended]) -> None:
    assert "comparing out/ppo/model with out/sft/model" in made["evaluate"].err


def test_evaluate_asks_each_reward_and_the_lexicon(here: Path) -> None:
    found = json.loads((here / "out/evaluate/evaluation.json").read_text())
    assert set(found["win_rate"]) == {"reward", "lexicon"}
    assert found["num_prompts"] == 2


def test_an_evaluation_by_other_judges_is_not_passed_off_as_this_one(here: Path) -> None:
    arguments = ("evaluate", "--model", "out/ppo", "--prompts", "heldout.txt", "--out", "out/evaluate")
    ended = call(*arguments, *FP32, *SHORT, "--set", "bootstrap_resamples=100")
    assert ended.code == 2
    assert "inputs.judges: 'reward, lexicon' -> 'lexicon'" in ended.problem


def test_evaluate_prints_json_of_what_it_wrote(here: Path) -> None:
    arguments = ("evaluate", "--model", "out/ppo", "--prompts", "heldout.txt", "--out", "out/evaluate")
    judged = ("--reward", "out/reward", "--json")
    ended = call(*arguments, *FP32, *SHORT, "--set", "bootstrap_resamples=100", *judged)
    assert json.loads(ended.out) == json.loads((here / "out/evaluate/evaluation.json").read_text())


def test_generate_writes_n_completions_of_each_prompt_with_their_parents(here: Path) -> None:
    prompts = harken.read_prompts(here / "heldout.txt")
    pairs = harken.read_completions(here / "c.jsonl", prompts)
    assert [prompt.id for prompt, _ in pairs] == [prompts[0].id] * 3 + [prompts[1].id] * 3
    manifest = read_manifest(here / "c.jsonl")
    assert manifest is not None
    model = read_manifest(here / "out/ppo/model")
    assert model is not None
    assert manifest.parents["model"] == model.digest()


def test_scores_are_the_weighted_sum_of_the_rewards(made: dict[str, Ended], here: Path) -> None:
    pairs = harken.read_completions(here / "c.jsonl", harken.read_prompts(here / "heldout.txt"))
    prompts, completions = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
    own = harken.load_reward("out/reward", compute=COMPUTE)(prompts, completions)
    lexicon = harken.load_reward("lexicon")(prompts, completions)
    rows = [json.loads(line) for line in (here / "s.jsonl").read_text().splitlines()]
    expected = [first + 0.5 * second for first, second in zip(own, lexicon, strict=True)]
    assert [row["score"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [row["completion_id"] for row in rows] == [completion.id for completion in completions]
    assert json.loads(made["score"].out)["num_completions"] == 6


def test_a_finished_command_given_again_returns_at_once(here: Path) -> None:
    before = (here / "out/ppo/manifest.json").read_bytes()
    arguments = ("ppo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/ppo", "--reward", "out/reward")
    ended = call(*arguments, *FP32, *STEPS)
    assert ended.out == "out/ppo/model\n"
    assert (here / "out/ppo/manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (("--set", "seed=7"), "config.seed: 0 -> 7"),
        (("--reward", "lexicon"), "inputs.reward"),
        (("--prompts", "heldout.txt"), "inputs.prompts"),
    ],
    ids=["setting", "reward", "prompts"],
)
def test_a_folder_of_other_settings_is_refused_with_what_differs(
    change: tuple[str, str], fragment: str, here: Path
) -> None:
    arguments = {"--model": "out/sft", "--prompts": "prompts.txt", "--out": "out/ppo", "--reward": "out/reward"}
    if change[0] in arguments:
        arguments[change[0]] = change[1]
        change = ("--set", "seed=0")
    ended = call("ppo", *(part for pair in arguments.items() for part in pair), *FP32, *STEPS, *change)
    assert ended.code == 2
    assert "started with other settings" in ended.problem
    assert fragment in ended.problem
    assert (here / "out/ppo/manifest.json").is_file()


def test_weights_and_functions_of_rewards_are_part_of_the_settings(here: Path) -> None:
    (here / "rules.py").write_text(
        "def short(prompts, completions):\n    return [-len(c.message.content) for c in completions]\n\n\n"
        "def zero(prompts, completions):\n    return [0.0 for _ in completions]\n"
    )
    arguments = ("ppo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/rules", *FP32, *STEPS)
    assert call(*arguments, "--reward", "2*rules.py:short", "--reward", "out/reward").code == 0
    for rewards in (("3*rules.py:short", "out/reward"), ("2*rules.py:zero", "out/reward"), ("2*rules.py:short",)):
        ended = call(*arguments, *(part for reward in rewards for part in ("--reward", reward)))
        assert ended.code == 2, rewards
        assert "inputs.reward" in ended.problem


def test_a_judge_watches_what_the_reward_teaches(here: Path) -> None:
    arguments = ("rloo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/watched", *FP32, *SHORT)
    sizes = ("--set", "steps=1", "--set", "prompts_per_step=2", "--set", "minibatch_size=8")
    assert call(*arguments, *sizes, "--reward", "lexicon", "--judge", "0.5*lexicon").code == 0
    row = json.loads((here / "out/watched/metrics.jsonl").read_text().splitlines()[0])
    assert row["judge_mean"] == pytest.approx(0.5 * row["score_mean"], abs=1e-6)
    manifest = read_manifest(here / "out/watched")
    assert manifest is not None
    assert manifest.parents["judge"] == "lexicon"
    assert manifest.parents["judge_weight"] == "0.5"


def test_two_reward_models_add_up_though_they_have_the_same_base(here: Path) -> None:
    data = ("--data", "pairs.jsonl", "--out", "out/other")
    assert call("reward", "--model", "out/sft", *data, *FP32, *SMALL, *NORMALIZE, "--set", "seed=9").code == 0
    arguments = ("ppo", "--model", "out/sft", "--prompts", "prompts.txt", "--out", "out/two", *FP32, *STEPS)
    assert call(*arguments, "--reward", "out/reward", "--reward", "out/other").code == 0
    prompts = {prompt.messages[-1].content: prompt for prompt in harken.read_prompts(here / "prompts.txt")}
    rows = [json.loads(line) for line in (here / "out/two/samples.jsonl").read_text().splitlines()]
    rewards = [harken.load_reward(name, compute=COMPUTE) for name in ("out/reward", "out/other")]
    for row in rows:
        completion = harken.Completion(
            id="c",
            prompt_id="p",
            message=harken.Message(role="assistant", content=row["completion"]),
            finish_reason=row["finish_reason"],
        )
        scores = [reward([prompts[row["prompt"]]], [completion])[0] for reward in rewards]
        assert row["score"] == pytest.approx(sum(scores), abs=1e-3)


def test_a_command_with_its_mistake_mended_may_use_the_same_folder(here: Path) -> None:
    arguments = ("sft", "--model", "out/sft", "--data", "demonstrations.jsonl", "--out", "out/mended", *FP32, *SMALL)
    assert call(*arguments, "--set", "max_length=3").code == 2
    assert not (here / "out/mended").exists()
    assert call(*arguments).code == 0


def test_the_recipe_that_init_writes_runs_all_stages(
    here: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = call("init", "my")
    assert ended.code == 0
    assert "harken run my/recipe.toml" in ended.out
    assert sorted(path.name for path in (here / "my").iterdir()) == ["data", "out", "recipe.toml"]
    assert harken.load_recipe(here / "my/recipe.toml") == harken.load_recipe("reviews")
    assert call("init", "my").code == 2
    write_ratings(here / "my/data")
    changes = {
        "model": tiny_model_dir,
        "compute.dtype": "float32",
        "collect.path": "my/data",
        "preferences.heldout_fraction": "0.3",
        "reward.normalization_samples": "8",
        "reward.tune.top_layers": "1",
        "ppo.tune.top_layers": "1",
        "ppo.steps": "2",
        "ppo.prompts_per_step": "4",
        "ppo.minibatch_size": "4",
        "ppo.score.accept_chance": "true",
        "evaluate.bootstrap_resamples": "100",
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    ended = call("run", "my/recipe.toml", "--out", "my/out/first", *options)
    assert ended.code == 0, ended.err
    verdict, page = ended.out.splitlines()
    assert verdict.endswith(".")
    assert page == "my/out/first/report.html"
    assert (here / page).is_file()


def test_what_the_fast_demo_changes_is_valid() -> None:
    fast, whole = harken.load_recipe("reviews", FAST), harken.load_recipe("reviews")
    assert fast.ppo.steps < whole.ppo.steps
    assert fast.model == whole.model


def test_preferences_of_an_export_are_what_reward_takes(here: Path) -> None:
    write_ratings(here / "ratings")
    store = ("--store", "sqlite:///f.db")
    assert call("collect", "import", *store, "ratings").code == 0
    assert call("collect", "export", *store, "--out", "export").code == 0
    ended = call("preferences", "export", "--out", "made.jsonl", "--set", "heldout_fraction=0.3")
    assert ended.code == 0
    pairs = harken.read_pairs(here / "made.jsonl")
    num_train = sum(pair.split == "train" for pair in pairs)
    assert ended.out == f"made.jsonl: {num_train} pairs to train on, {len(pairs) - num_train} held out\n"
    assert 0 < num_train < len(pairs)
    ended = call("preferences", "export", "--out", "none.jsonl", "--set", "min_difference=9")
    assert ended.code == 2
    assert "min_difference = 9" in ended.problem


def test_a_file_that_was_changed_after_it_was_written_is_refused(here: Path) -> None:
    write_rows(here / "p.jsonl", [{"prompt": "name a film"}])
    assert call("generate", "--model", "out/sft", "--prompts", "p.jsonl", "--out", "d.jsonl", *FP32, *SHORT).code == 0
    text = (here / "d.jsonl").read_text()
    (here / "d.jsonl").write_text(text.replace('"temperature":1.0', '"temperature":0.5'))
    ended = call("score", "--reward", "lexicon", "--prompts", "p.jsonl", "--in", "d.jsonl", "--out", "t.jsonl")
    assert ended.code == 2
    assert "changed after it was written" in ended.problem


def test_the_fast_demo_goes_on_with_a_reward_model_that_may_be_a_coin() -> None:
    # 192 pairs do not teach it enough to be told from one, and PPO would refuse it after a minute.
    assert harken.load_recipe("reviews", FAST).ppo.score.accept_chance
    assert not harken.load_recipe("reviews").ppo.score.accept_chance
