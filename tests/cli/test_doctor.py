"""`harken doctor`: right here, and wrong when something is wrong."""

import json
from pathlib import Path

import pytest

from harken import cli_doctor
from harken.errors import SelfTestError
from tests.cli.calling import call


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path / "cache"))


def test_doctor_finds_nothing_wrong_and_names_versions_and_device() -> None:
    ended = call("doctor", "--json")
    found = json.loads(ended.out)
    assert ended.code == 0, found
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert len(found["checks"]) == 5
    assert {"harken", "python", "torch", "transformers", "device", "dtype", "cache"} <= set(found["facts"])
    assert found["facts"]["cached"] == "nothing yet"


def test_doctor_ends_with_1_when_a_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> str:
        raise SelfTestError("estimated and exact KL differ by 0.1")

    monkeypatch.setattr(cli_doctor, "check_kl", wrong)
    ended = call("doctor")
    assert ended.code == 1
    assert "FAILED  KL estimators have the exact KL as their mean: estimated and exact KL differ by 0.1" in ended.out
    assert ended.out.count("ok    ") == 4


def test_doctor_says_when_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path / "file" / "cache"))
    ended = call("doctor")
    assert ended.code == 1
    assert "FAILED  the cache folder can be written" in ended.out
