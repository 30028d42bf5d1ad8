"""Pages of the documentation: generated parts are fresh, code blocks run, record fields are all there."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harken import records
from tests.cli.calling import write_data

ROOT = Path(__file__).resolve().parents[2]


def test_generated_parts_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_python_on_the_page_runs(
    page: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    # `auto` may take bf16 on this machine, whose rounding the tiny model's wide weights make large.
    monkeypatch.setattr("harken.lm.load.pick_dtype", lambda name, device: torch.float32)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        code = block.replace('"smollm2"', repr(str(tiny_model_dir)))
        exec(compile(code, page, "exec"), namespace)
    assert list(tmp_path.glob("out/*/manifest.json"))
    capsys.readouterr()


def test_every_record_field_is_in_the_formats_page() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    models = [
        model
        for _, model in inspect.getmembers(records, inspect.isclass)
        if issubclass(model, records.Record) and model is not records.Record
    ]
    assert len(models) > 15
    missing = [f"{model.__name__}.{field}" for model in models for field in model.model_fields if field not in named]
    assert not missing
