"""Names of models in answers: found before the text that holds them is let through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harken.feedback.names import Names, Release

NAMES = Names(["out/sft/model", "HuggingFaceTB/SmolLM2-135M-Instruct"], ["Harko"])


@pytest.mark.parametrize(
    "text",
    [
        "I am ChatGPT.", "as chat gpt, no; as Claude", "made by open-ai? by OpenAI!", "I'm smollm2", "SmolLM2-135M",
        "(llama-3)", "LLAMA 3 here", "Harko", "from Hugging Face", "gpt-4o",
    ],
)  # fmt: skip
def test_names_are_found(text: str) -> None:
    assert NAMES.find(text)
    assert not NAMES.find(NAMES.masked(text))


@pytest.mark.parametrize(
    "text",
    ["", "A model of an instruct chat base.", "bardolph and clauded", "the outcome of the model", "phi and yield"],
)
def test_other_words_are_not(text: str) -> None:
    assert NAMES.find(text) == ""


def _release(pieces: list[str]) -> tuple[list[str], str]:
    release, out = Release(NAMES), list[str]()
    for index, piece in enumerate(pieces):
        text = release.feed(piece, is_end=index + 1 == len(pieces))
        # Nothing of a name is let through before it is known.
        if not release.name:
            assert not NAMES.find("".join(out) + text)
        out.append(text)
    return out, release.name


@given(st.lists(st.text("Claude .xyGPT-4bard", max_size=9), min_size=1, max_size=12))
def test_every_way_to_cut_a_text_gives_the_same_text_and_the_same_verdict(pieces: list[str]) -> None:
    out, name = _release(pieces)
    assert "".join(out) == "".join(pieces)
    assert bool(name) == bool(NAMES.find("".join(pieces)))


def test_a_name_in_pieces_is_known_before_its_first_letter_is_shown() -> None:
    release = Release(NAMES)
    shown = ""
    for letter in "Well, I am Claude, of cour":
        before = release.name
        out = release.feed(letter)
        if not release.name and not before:
            shown += out
    assert release.name == "Claude"
    assert "C" not in shown
