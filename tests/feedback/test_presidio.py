"""The patterns of presidio beside our own."""

from harken.feedback.privacy.detect import find_all
from harken.feedback.privacy.presidio import with_presidio


def test_presidio_adds_patterns_and_loads_no_model() -> None:
    # A Polish PESEL and a Bitcoin address, both with right check digits.
    text = "pesel 44051401359, pay 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa, mail ann@example.org"
    found = {(one.kind, text[one.start : one.end]) for one in find_all(text, with_presidio(("US",)))}
    assert found >= {("email", "ann@example.org"), ("crypto", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa")}
