"""Settings: what is refused and how, what overrides mean, and that every resolved config loads again."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harken import config as configs
from harken.config import (
    RECIPES,
    AdaptiveKl,
    Config,
    EvaluateConfig,
    FixedKl,
    FullConfig,
    GenerateConfig,
    LoraConfig,
    PpoConfig,
    PreferencesConfig,
    RecipeConfig,
    RewardConfig,
    SamplingConfig,
    SftConfig,
    apply_overrides,
    build,
    differences,
    field_paths,
    load,
    load_recipe,
)
from harken.errors import ConfigError, HarkenError

STAGES: list[type[Config]] = [
    EvaluateConfig,
    GenerateConfig,
    PpoConfig,
    PreferencesConfig,
    RewardConfig,
    SftConfig,
]


def _error(model: type[Config], values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(model, values, where="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "values", "found", "nearest"),
    [
        (PpoConfig, {"stpes": 3}, "stpes", "steps"),
        (PpoConfig, {"sampling": {"temprature": 1.0}}, "sampling.temprature", "sampling.temperature"),
        (PpoConfig, {"kl": {"coff": 0.1}}, "kl.coff", "kl.coef"),
        (PpoConfig, {"kl": {"kind": "adaptive", "targte": 6}}, "kl.targte", "kl.target"),
        (PpoConfig, {"tune": {"rnak": 8}}, "tune.rnak", "tune.rank"),
        (PpoConfig, {"optimizer": {}}, "optimizer", "policy_optimizer"),
        (SftConfig, {"learning_rate": 0.1}, "learning_rate", "optimizer.learning_rate"),
        (RecipeConfig, {"name": "x", "ppo": {"kl": {"coff": 1}}}, "ppo.kl.coff", "ppo.kl.coef"),
        (RecipeConfig, {"name": "x", "sfft": {}}, "sfft", "sft"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(
    model: type[Config], values: dict[str, Any], found: str, nearest: str
) -> None:
    message = _error(model, values)
    assert f"unknown config key {found!r}; did you mean {nearest!r}?" in message
    assert nearest in set(field_paths(model))


def test_an_unknown_key_that_resembles_nothing_lists_valid_ones() -> None:
    assert "unknown config key 'zzzz'; valid keys: " in _error(SftConfig, {"zzzz": 1})


def test_a_key_of_another_variant_is_told_as_such() -> None:
    assert "'tune.rank' belongs to another `kind`" in _error(PpoConfig, {"tune": {"kind": "full", "rank": 3}})
    assert "'kl.target' belongs to another `kind`" in _error(PpoConfig, {"kl": {"kind": "fixed", "target": 3}})


@pytest.mark.parametrize(
    ("model", "values", "parts"),
    [
        (PpoConfig, {"steps": "many"}, ("'steps'", "integer", "'many'")),
        (PpoConfig, {"steps": 1.5}, ("'steps'", "integer", "1.5")),
        (PpoConfig, {"steps": 0}, ("'steps'", "greater than or equal to 1", "found 0")),
        (PpoConfig, {"sampling": 3}, ("'sampling'", "found 3")),
        (PpoConfig, {"kl": 0.1}, ("'kl'", "found 0.1")),
        (PpoConfig, {"kl": {"kind": "none"}}, ("'kl'", "'none'", "'fixed', 'adaptive'")),
        (PpoConfig, {"kl": {"kind": "adaptive", "coef": 0}}, ("'kl.coef'", "greater than 0")),
        (SftConfig, {"compute": {"dtype": "float64"}}, ("'compute.dtype'", "'float32'", "'float64'")),
        (RewardConfig, {"margins": [1, 2]}, ("'margins.2'", "required")),
        (RecipeConfig, {}, ("'name'", "required")),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_was_found(
    model: type[Config], values: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = _error(model, values)
    assert all(part in message for part in parts), message


def test_ppo_refuses_truncated_sampling_with_the_reason() -> None:
    for values in ({"top_p": 0.9}, {"top_k": 50}):
        message = _error(PpoConfig, {"sampling": values})
        assert message.startswith("my.toml: PPO samples from the whole distribution")
        assert "'ppo'" in _error(RecipeConfig, {"name": "x", "ppo": {"sampling": values}})
    with pytest.raises(ValidationError, match="whole distribution"):
        PpoConfig(sampling=SamplingConfig(top_p=0.5))
    assert build(GenerateConfig, {"sampling": {"top_p": 0.9}}, where="x").sampling.top_p == 0.9


def test_a_section_that_sets_one_key_keeps_the_stages_other_defaults() -> None:
    ppo = build(PpoConfig, {"policy_optimizer": {"learning_rate": 0.5}, "sampling": {"temperature": 0.5}}, where="x")
    assert ppo.policy_optimizer == PpoConfig().policy_optimizer.model_copy(update={"learning_rate": 0.5})
    assert ppo.policy_optimizer.eps == 1e-5  # OptimizerConfig's own default is 1e-8
    assert ppo.sampling == SamplingConfig(temperature=0.5, max_new_tokens=48)
    recipe = build(RecipeConfig, {"name": "x", "ppo": {"policy_optimizer": {"weight_decay": 0.5}}}, where="x")
    assert recipe.ppo.policy_optimizer == PpoConfig().policy_optimizer.model_copy(update={"weight_decay": 0.5})


def test_a_section_without_kind_is_the_stages_default_kind_and_another_kind_has_its_own_defaults() -> None:
    assert build(PpoConfig, {"kl": {"coef": 0.3}, "tune": {"rank": 4}}, where="x").kl == FixedKl(coef=0.3)
    assert build(PpoConfig, {"tune": {"rank": 4}}, where="x").tune == LoraConfig(rank=4, top_layers=0.5)
    assert build(PpoConfig, {"kl": {"kind": "adaptive"}}, where="x").kl == AdaptiveKl()
    assert build(PpoConfig, {"tune": {"kind": "full"}}, where="x").tune == FullConfig()


def test_overrides_are_typed_as_toml_and_else_text() -> None:
    merged = apply_overrides(
        {"a": {"kept": 1, "b": 2}},
        ["a.b=3", "a.c=1e-4", "x.y.z=true", "list=[1, 2]", "table={ k = 'v' }", "word=cosine", "text='4'", " s = 5"],
    )
    assert merged == {
        "a": {"kept": 1, "b": 3, "c": 1e-4},
        "x": {"y": {"z": True}},
        "list": [1, 2],
        "table": {"k": "v"},
        "word": "cosine",
        "text": "4",
        "s": 5,
    }


def test_overrides_leave_what_they_were_given_alone() -> None:
    values: dict[str, Any] = {"a": {"b": 1}}
    apply_overrides(values, ["a.b=2"])
    assert values == {"a": {"b": 1}}


@pytest.mark.parametrize("override", ["a", "=1", " =1", "a.b.c=1"])
def test_a_malformed_override_is_refused_with_itself(override: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {override}: "):
        apply_overrides({"a": {"b": 3}}, [override])


def test_a_toml_file_and_overrides_make_a_config(tmp_path: Path) -> None:
    path = tmp_path / "ppo.toml"
    path.write_text("steps = 7\n[kl]\nkind = 'adaptive'\ntarget = 3\n")
    loaded = load(PpoConfig, path, ["kl.horizon=5", "seed=2"])
    assert (loaded.steps, loaded.seed, loaded.kl) == (7, 2, AdaptiveKl(target=3, horizon=5))
    assert load(PpoConfig, None) == PpoConfig()


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("steps = 7\nseed = \n")
    with pytest.raises(ConfigError, match=rf"{path.name}: not valid TOML: .*line 2"):
        load(PpoConfig, path)
    path.write_bytes(b"name = '\xff'\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(PpoConfig, path)
    with pytest.raises(HarkenError, match="gone"):
        load(PpoConfig, tmp_path / "gone.toml")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_shipped_recipe_loads_and_its_resolved_form_loads_again(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    dumped = json.loads(json.dumps(recipe.model_dump(mode="json")))
    assert build(RecipeConfig, dumped, where="dump") == recipe
    assert load_recipe(RECIPES / f"{name}.toml") == recipe


@pytest.mark.parametrize("model", STAGES)
def test_a_resolved_config_loads_identically(model: type[Config]) -> None:
    default = model()
    assert build(model, json.loads(default.model_dump_json()), where="dump") == default


def test_a_resolved_config_with_other_variants_loads_identically() -> None:
    other = PpoConfig(kl=AdaptiveKl(coef=0.5), tune=FullConfig(), seed=4)
    assert build(PpoConfig, json.loads(other.model_dump_json()), where="dump") == other


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f"name = 'mine'\n{text}")
    return path


def test_seed_chat_and_compute_go_to_every_stage_that_sets_none(tmp_path: Path) -> None:
    path = _recipe(
        tmp_path,
        "seed = 5\n[chat]\ntemplate = 'raw'\n[compute]\ndevice = 'cpu'\n[ppo]\nseed = 9\n"
        "[reward.chat]\ntemplate = 'plain'\n",
    )
    recipe = load_recipe(path, ["compute.dtype=bfloat16"])
    stages = {"sft": recipe.sft, "reward": recipe.reward, "ppo": recipe.ppo, "evaluate": recipe.evaluate}
    assert {name: stage.seed for name, stage in stages.items()} == {"sft": 5, "reward": 5, "ppo": 9, "evaluate": 5}
    assert recipe.preferences.seed == 5
    templates = {name: stage.chat.template for name, stage in stages.items()}
    assert templates == {"sft": "raw", "reward": "plain", "ppo": "raw", "evaluate": "raw"}
    assert {(stage.compute.device, stage.compute.dtype) for stage in stages.values()} == {("cpu", "bfloat16")}


def test_a_recipe_that_does_not_exist_is_refused_with_the_known_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"'nothing'.*reviews"):
        load_recipe("nothing")
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "gone.toml")
    (tmp_path / "reviews").mkdir()  # a folder of that name is no recipe
    monkeypatch.chdir(tmp_path)
    assert load_recipe("reviews").name == "reviews"


@pytest.mark.parametrize("text", ["sft = 3\n", "ppo = 'x'\n", "sft = [1]\n"])
def test_a_stage_that_is_no_section_is_refused_by_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"config key '{text[:3]}'"):
        load_recipe(_recipe(tmp_path, text))


def test_differences_are_listed_by_dotted_key() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 4}
    new = {"a": 1, "b": {"c": 5, "d": 3}, "new": [6]}
    assert differences(old, new) == ["b.c: 2 -> 5", "gone: 4 -> None", "new: None -> [6]"]
    assert differences(old, old) == []


def _all_configs() -> list[type[Config]]:
    found = [getattr(configs, name) for name in configs.__all__]
    return [item for item in found if isinstance(item, type) and issubclass(item, Config)]


@pytest.mark.parametrize("model", _all_configs())
def test_configs_are_frozen_closed_and_documented(model: type[Config]) -> None:
    assert model.model_config.get("frozen")
    assert model.model_config.get("extra") == "forbid"
    assert all(field.description for field in model.model_fields.values())


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SftConfig().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_field_paths_reach_into_sections_and_all_variants() -> None:
    paths = list(field_paths(PpoConfig))
    assert {"steps", "kl", "kl.coef", "kl.target", "tune.rank", "policy_optimizer.betas"} <= set(paths)
