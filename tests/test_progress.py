"""Progress for people: all steps pass through, and what is shown is right wherever it is shown."""

import io
from typing import Any

import pytest
from rich.console import Console

from harken.progress import QUIET, Reporter


def _with_console(*, terminal: bool) -> tuple[Reporter, io.StringIO]:
    reporter: Any = Reporter()
    file = io.StringIO()
    reporter._console = Console(file=file, force_terminal=terminal, width=100, highlight=False)
    return reporter, file


@pytest.mark.parametrize("terminal", [True, False])
def test_every_step_is_yielded_in_order(terminal: bool) -> None:
    reporter, _ = _with_console(terminal=terminal)
    assert list(reporter.track(range(3, 7), "sft", total=7, done=3)) == [3, 4, 5, 6]


def test_a_quiet_reporter_yields_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    QUIET.say("hello")
    assert list(QUIET.track([1, 2], "x", total=2)) == [1, 2]
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_lines_go_to_standard_error_as_they_are_and_unbroken(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]not markup[/bold] :smile: " + "word " * 60 + "end"
    Reporter().say(message)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == message + "\n"


def test_without_a_terminal_the_last_step_is_a_plain_line_with_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    notes = iter(["loss 0.25"])
    list(Reporter().track(range(4, 10), "ppo", total=10, done=4, describe=lambda: next(notes)))
    assert capsys.readouterr().err == "ppo: 10/10 after 0 s  loss 0.25\n"


def test_without_a_terminal_a_line_comes_every_quarter_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One step takes 6 s: lines after 18 s (step 3) and at the end (step 5), 12 s later.
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr("harken.progress.time.monotonic", lambda: float(next(clock)))
    list(Reporter().track(range(5), "reward", total=5))
    assert capsys.readouterr().err == "reward: 3/5 after 18 s\nreward: 5/5 after 30 s\n"


def test_a_terminal_shows_the_count_of_the_whole_work_and_the_newest_note() -> None:
    reporter, file = _with_console(terminal=True)
    list(reporter.track(range(3, 7), "sft", total=7, done=3, describe=lambda: "loss 0.25"))
    shown = file.getvalue()
    assert "7/7" in shown
    assert "loss 0.25" in shown


def test_steps_may_be_stopped_in_the_middle() -> None:
    reporter, _ = _with_console(terminal=True)
    seen: list[int] = []
    for step in reporter.track(range(10), "x", total=10):
        seen.append(step)
        if step == 2:
            break
    assert seen == [0, 1, 2]
