"""A run folder: started, stopped at any moment, resumed with equal files, finished, never mixed up."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harken.artifacts import artifact_digest, verify
from harken.config import PpoConfig, SftConfig
from harken.errors import DivergenceError, ResumeError, StorageError
from harken.runs import KEEP_CHECKPOINTS, Run, Timer, derive_seed

CONFIG = SftConfig(seed=3)


def _open(folder: Path, config: Any = CONFIG, **inputs: Path | str) -> Run:
    return Run(folder, "sft", config, {"model": "smollm2", **inputs})


def _save(run: Run, step: int) -> None:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(str(step))

    run.save_checkpoint(step, write)


def _rows(folder: Path, name: str = "metrics.jsonl") -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_bytes().split(b"\n")[:-1]]


def test_a_fresh_run_starts_at_step_0_with_its_settings_on_disk(tmp_path: Path) -> None:
    run = _open(tmp_path / "run")
    assert (run.step, run.checkpoint_folder, run.finished) == (0, None, None)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["stage"] == "sft"
    assert SftConfig.model_validate(stored["config"]) == CONFIG
    assert stored["inputs"] == {"model": "smollm2"}


def test_a_stopped_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = _open(tmp_path)
    for step in (1, 2, 10):
        _save(run, step)
        assert (run.step, run.checkpoint_folder) == (step, tmp_path / "checkpoints" / f"step-{step:08d}")
    again = _open(tmp_path)
    assert again.step == 10
    assert again.checkpoint_folder is not None
    assert (again.checkpoint_folder / "state.json").read_text() == "10"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = _open(tmp_path)
    for step in (8, 9, 10, 11):
        _save(run, step)
    assert KEEP_CHECKPOINTS == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000011"]


def test_rows_after_the_checkpoint_are_dropped_and_those_before_stay_byte_for_byte(tmp_path: Path) -> None:
    run = _open(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0 / step})
        run.log_sample(step, {"text": f"é {step}"})
        if step == 2:
            _save(run, 2)
            before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")}
            assert before["metrics.jsonl"] == b'{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n'
    _open(tmp_path)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [row["step"] for row in _rows(tmp_path, name)] == [1, 2]
        assert (tmp_path / name).read_bytes() == before[name]  # pyright: ignore[reportPossiblyUnboundVariable]


def test_without_a_checkpoint_all_rows_are_dropped(tmp_path: Path) -> None:
    _open(tmp_path).log(1, {"loss": 1.0})
    _open(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_a_last_line_cut_by_a_kill_is_dropped_even_inside_a_character(tmp_path: Path, cut: int) -> None:
    run = _open(tmp_path)
    run.log_sample(1, {"text": "first"})
    _save(run, 1)
    whole = (tmp_path / "samples.jsonl").read_bytes()
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write('{"step": 1, "text": "🙂🙂🙂🙂"}'.encode()[:-cut])
    _open(tmp_path)
    assert (tmp_path / "samples.jsonl").read_bytes() == whole


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\r\nb", "a\x0bb\x0cc\x1cd"])
def test_completions_with_unusual_line_ends_survive_a_resume(tmp_path: Path, text: str) -> None:
    run = _open(tmp_path)
    run.log_sample(1, {"text": text})
    _save(run, 1)
    _open(tmp_path)
    assert _rows(tmp_path, "samples.jsonl") == [{"step": 1, "text": text}]


def test_a_checkpoint_that_a_kill_left_half_written_is_not_seen(tmp_path: Path) -> None:
    run = _open(tmp_path)
    _save(run, 1)

    def die(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2, die)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # the good one, and what the kill left behind
    again = _open(tmp_path)
    assert again.step == 1
    _save(again, 2)
    newest = _open(tmp_path).checkpoint_folder
    assert newest is not None
    assert [path.name for path in newest.iterdir()] == ["state.json"]


def test_a_failed_checkpoint_leaves_the_old_one_and_says_what_to_do(tmp_path: Path) -> None:
    run = _open(tmp_path)
    _save(run, 1)

    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"step-00000002.*disk is full; free some space"):
        run.save_checkpoint(2, full)
    assert run.step == _open(tmp_path).step == 1


def test_a_full_disk_while_logging_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _open(tmp_path)

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match=r"metrics\.jsonl.*disk is full"):
            run.log(1, {"loss": 1.0})
    run.log(1, {"loss": 1.0})
    assert len(_rows(tmp_path)) == 1


def test_other_settings_and_inputs_are_refused_with_a_list_of_what_differs(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "data.jsonl"
    data.write_text("one")
    run = _open(folder, data=data)
    _save(run, 4)
    other = SftConfig(seed=4, optimizer=CONFIG.optimizer.model_copy(update={"learning_rate": 0.5}))
    with pytest.raises(ResumeError) as caught:
        _open(folder, other, data=data)
    for part in (str(folder), "config.seed: 3 -> 4", "config.optimizer.learning_rate: 0.0005 -> 0.5", "--out"):
        assert part in str(caught.value)
    assert "batch_size" not in str(caught.value)
    data.write_text("two")
    with pytest.raises(ResumeError, match=r"inputs\.data: "):
        _open(folder, data=data)
    with pytest.raises(ResumeError, match="stage: 'sft' -> 'ppo'"):
        Run(folder, "ppo", CONFIG, {"model": "smollm2", "data": data})
    data.write_text("one")
    assert _open(folder, data=data).step == 4


def test_inputs_are_compared_by_content_not_by_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (first, second):
        path.write_text("the same")
    _open(tmp_path / "run", data=first)
    assert _open(tmp_path / "run", data=second).inputs["data"] == artifact_digest(first)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stops_the_run_at_its_checkpoint(tmp_path: Path, value: float) -> None:
    run = _open(tmp_path)
    _save(run, 5)
    with pytest.raises(DivergenceError, match=r"step 6: grad_norm is not finite.*checkpoint is step 5"):
        run.log(6, {"loss": 1.0, "grad_norm": value})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_finished_run_is_found_finished_and_its_files_are_hashed(tmp_path: Path) -> None:
    run = _open(tmp_path)
    run.log(1, {"loss": 0.5})
    _save(run, 1)
    manifest = run.finish({"pairs": 7})
    again = _open(tmp_path)
    assert again.finished == manifest
    assert (manifest.kind, manifest.seeds, manifest.info) == ("sft", {"seed": 3}, {"pairs": 7})
    assert manifest.parents == {"model": "smollm2"}
    assert set(manifest.files) == {"config.json", "metrics.jsonl"}
    assert not (tmp_path / "checkpoints").exists()
    verify(tmp_path)
    assert len(_rows(tmp_path)) == 1, "opening a finished run drops nothing"


def test_a_kill_before_the_manifest_is_written_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _open(tmp_path)
    _save(run, 1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harken.runs.write_folder_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert _open(tmp_path).step == 1


def test_a_child_records_the_manifest_of_its_parent(tmp_path: Path) -> None:
    manifest = _open(tmp_path / "parent").finish()
    child = _open(tmp_path / "child", PpoConfig(), start=tmp_path / "parent")
    assert child.inputs["start"] == manifest.digest()


def test_a_checkpoint_is_complete_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _open(tmp_path)
    seen: list[list[str]] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        if Path(target).name.startswith("step-"):
            assert not Path(target).exists()
            seen.append(sorted(path.name for path in Path(source).iterdir()))
        replace(source, target)

    def write(folder: Path) -> None:
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")

    monkeypatch.setattr(os, "replace", watch)
    run.save_checkpoint(1, write)
    assert seen == [["a", "b"]]


def test_seeds_differ_with_every_part_and_repeat() -> None:
    assert derive_seed(1, "a") == derive_seed(1, "a")
    others = [derive_seed(1, "a"), derive_seed(1, "b"), derive_seed(2, "a"), derive_seed("1", "a"), derive_seed("1a")]
    assert len(set(others)) == 5
    assert all(0 <= seed < 2**63 for seed in others)


def test_the_timer_gives_tokens_per_second_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 13.0, 17.0])
    monkeypatch.setattr("harken.runs.time.perf_counter", lambda: next(clock))
    timer = Timer()
    timer.measure("sample", 30)  # 2 s
    timer.measure("score", 0)  # 1 s, nothing to count
    timer.measure("sample", 60)  # 4 s: 90 tokens in 6 s
    assert timer.rates() == {"tokens_per_s_sample": 15.0, "time_s": 7.0}


def test_a_deleted_folder_starts_again(tmp_path: Path) -> None:
    _save(_open(tmp_path / "run"), 3)
    shutil.rmtree(tmp_path / "run")
    assert _open(tmp_path / "run", SftConfig(seed=9)).step == 0


def test_what_auto_became_at_the_start_stays(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "sft", SftConfig(), {})
    assert run.settle("dtype", lambda: "bfloat16") == "bfloat16"
    again = Run(tmp_path / "run", "sft", SftConfig(), {})
    assert again.settle("dtype", lambda: "float32") == "bfloat16"
    assert again.settle("other", lambda: "x") == "x"
    assert json.loads((tmp_path / "run" / "settled.json").read_text()) == {"dtype": "bfloat16", "other": "x"}
