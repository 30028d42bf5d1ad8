import pytest

from harken.report.numbers import count, duration, moment, number, percent, plural, shorten, span, visible

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (-12.34, f"{MINUS}12.3"),
        (0.0123, "0.012"),
        (1234567.8, "1,234,568"),
        (1e-5, f"1.0e{MINUS}5"),
        (float("nan"), "n/a"),
        (None, "n/a"),
    ],
)
def test_numbers_have_about_three_digits(value, shown):
    assert number(value) == shown


def test_signs_are_real_minus_signs_and_zero_has_none():
    assert number(-0.25, 2, signed=True) == f"{MINUS}0.25"
    assert number(0.25, 2, signed=True) == "+0.25"
    assert number(-0.001, 2, signed=True) == "0.00"


def test_counts_and_shares():
    assert count(44_730) == "44,730"
    assert percent(0.739) == "74%"
    assert percent(0.739, 1) == "73.9%"
    assert plural(1, "prompt") == "1 prompt"
    assert plural(1200, "prompt") == "1,200 prompts"


def test_an_interval_has_one_number_of_decimals():
    assert span(0.4, 0.52) == "0.400 to 0.520"
    assert span(-0.4, 1.8, places=1) == f"{MINUS}0.4 to 1.8"
    assert span(0.7, 0.781, as_percent=True) == "70% to 78%"
    assert span(None, 1.0) == ""


def test_an_end_that_decides_a_claim_is_not_rounded_onto_the_line():
    assert span(0.001, 0.5, places=2) == "0.001 to 0.500"
    assert span(0.502, 0.58, as_percent=True) == "50.2% to 58.0%"
    assert span(0.5, 0.58, as_percent=True) == "50% to 58%"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.13, "1.1 s"), (48.2, "48 s"), (59.6, "1 min 0 s"), (432.3, "7 min 12 s"), (7_500, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(seconds, shown):
    assert duration(seconds) == shown


def test_times_lose_their_seconds_and_other_texts_stay():
    assert moment("2026-11-20T17:41:03+00:00") == "2026-11-20 17:41 UTC"
    assert moment("yesterday") == "yesterday"


def test_invisible_characters_become_visible():
    assert visible("a\u202eb\u200bc\x00") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩"
    assert visible("\ud800 \U000e0041") == "⟨U+D800⟩ ⟨U+E0041⟩"


def test_what_scripts_need_stays():
    # Newline, tab, a zero-width joiner inside an emoji, right-to-left letters.
    text = "a\n\tb \U0001f469\u200d\U0001f4bb \u05e9\u05dc\u05d5\u05dd"
    assert visible(text) == text


def test_long_texts_are_cut_with_an_ellipsis_and_not_inside_a_character():
    assert shorten("word " * 100, 9) == "word word…"
    # e + combining acute at the cut stay together, outside.
    assert shorten("abce\u0301xyz", 4) == "abc…"
    assert shorten("short", 9) == "short"
