"""Personal data: check digits against another library, precision and recall on labeled texts, redaction of records."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn, verhoeff
from stdnum.br import cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.in_ import aadhaar

from harken.feedback.privacy import check_digits, detect
from harken.feedback.privacy.detect import Finding, built_in, find_all
from harken.feedback.privacy.redact import Redactor, redact
from harken.records import Completion, Critique, ErrorSpan, Flag, Judge, Judgment, Message, Prompt, Spans

ROOT = Path(__file__).resolve().parents[2]
LABELED = Path(__file__).with_name("pii_labeled.txt")
DETECTORS = built_in()


def _dni_or_nie(text: str) -> bool:
    return dni.is_valid(text) if text[0].isdecimal() else nie.is_valid(text)


@pytest.mark.parametrize(
    ("own", "other", "first", "length", "last"),
    [
        (check_digits.luhn, luhn.is_valid, "0123456789", 16, "0123456789"),
        (check_digits.verhoeff, verhoeff.is_valid, "0123456789", 12, "0123456789"),
        (check_digits.is_br_cpf, cpf.is_valid, "0123456789", 11, "0123456789"),
        (check_digits.is_de_tax_id, idnr.is_valid, "0123456789", 11, "0123456789"),
        (check_digits.is_in_aadhaar, aadhaar.is_valid, "0123456789", 12, "0123456789"),
        (check_digits.is_es_dni, _dni_or_nie, "0123456789XYZ", 9, "TRWAGMYFPDXBNJZSQVHLCKEIOU"),
    ],
)
def test_check_digits_agree_with_another_library(
    own: Callable[[str], bool], other: Callable[[str], bool], first: str, length: int, last: str
) -> None:
    draw = random.Random(0)
    num_valid = 0
    for _ in range(20_000):
        text = draw.choice(first) + "".join(draw.choices("0123456789", k=length - 2)) + draw.choice(last)
        # A palindrome is no Aadhaar to the other library; the authority says nothing of it.
        if text == text[::-1]:
            continue
        assert own(text) == other(text), text
        num_valid += own(text)
    # The rarest are the CPF and the Steuer-ID: one text in 100, and one in 10 of the 2.4 % with its repeats.
    assert num_valid > 30


def test_the_french_key_agrees_with_another_library() -> None:
    draw = random.Random(0)
    for _ in range(5_000):
        place = draw.choice(["75", "2A", "2B", "13"])
        body = f"{draw.choice('12')}{draw.randint(0, 99):02}{draw.randint(1, 12):02}{place}{draw.randint(0, 999999):06}"
        right = nir.calc_check_digits(body)
        assert check_digits.is_fr_insee(body + right)
        assert not check_digits.is_fr_insee(body + f"{(int(right) + 1) % 98:02}")


def test_ibans_agree_with_another_library() -> None:
    text = "GB82WEST12345698765432"
    assert check_digits.is_iban(text)
    draw = random.Random(0)
    for _ in range(5_000):
        place = draw.randrange(2, len(text))
        changed = text[:place] + draw.choice("0123456789") + text[place + 1 :]
        assert check_digits.is_iban(changed) == iban.is_valid(changed, check_country=False), changed
    assert not check_digits.is_iban("GB82WEST1234569876543")


class Labeled(NamedTuple):
    text: str
    true: list[Finding]


def _labeled() -> list[Labeled]:
    found: list[Labeled] = []
    for line in LABELED.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            continue
        text, true, position = "", list[Finding](), 0
        for match in re.finditer(r"\{\{(\w+)\|(.*?)\}\}", line):
            text += line[position : match.start()]
            true.append(Finding(len(text), len(text) + len(match[2]), match[1]))
            text += match[2]
            position = match.end()
        found.append(Labeled(text + line[position:], true))
    return found


def _measured() -> dict[str, tuple[int, int, int]]:
    """Kind -> found rightly (exactly these characters), found wrongly, missed."""
    right, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    for text, true in _labeled():
        found = set(find_all(text, DETECTORS))
        right.update(one.kind for one in found & set(true))
        wrong.update(one.kind for one in found - set(true))
        missed.update(one.kind for one in set(true) - found)
    return {kind: (right[kind], wrong[kind], missed[kind]) for kind in detect.KINDS}


def test_precision_and_recall_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    for kind, (right, wrong, missed) in _measured().items():
        precision, recall = right / (right + wrong), right / (right + missed)
        row = f"| `{kind}` | {right + missed} | {right} | {missed} | {wrong} | {precision:.2f} | {recall:.2f} |"
        assert row in page, f"docs/privacy.md lacks: {row}"
        assert precision > 0.8
        assert recall > 0.8


def test_labels_name_kinds_that_are_looked_for_and_every_kind_has_hard_negatives() -> None:
    labeled = _labeled()
    assert {one.kind for _, true in labeled for one in true} == set(detect.KINDS)
    assert sum(not true for _, true in labeled) > 60


@pytest.mark.parametrize(
    ("piece", "times"),
    [
        ("a", 200_000),
        ("1", 200_000),
        ("1 ", 100_000),
        ("a@", 100_000),
        ("a.", 100_000),
        (":", 200_000),
        ("(201) 555-0123 ", 2000),
        ("token=", 30_000),
        ("eyJ", 60_000),
        ("-----BEGIN PRIVATE KEY-----", 500),
        ("AB12 ", 40_000),
        ("http://", 30_000),
    ],
)
def test_no_text_makes_the_search_slow(piece: str, times: int) -> None:
    start = time.process_time()
    find_all(piece * times, DETECTORS)
    # At most 6 s of work; a pattern that looks back over the whole text would take minutes.
    assert time.process_time() - start < 20


def test_every_telephone_number_of_a_long_text_is_found() -> None:
    assert len(find_all("call (201) 555-0123 now\n" * 1500, DETECTORS)) == 1500


@given(st.lists(st.sampled_from([text for text, true in _labeled() if true]), min_size=1, max_size=4))
@settings(max_examples=60)
def test_redacting_again_changes_nothing(texts: list[str]) -> None:
    once = redact("\n".join(texts), DETECTORS)
    assert redact(once, DETECTORS) == once


def test_overlapping_findings_go_to_the_surer_kind() -> None:
    # The password and host look like a mail address too.
    assert redact("https://ann:b0b@host.example.org/x", DETECTORS) == "https://[CREDENTIALS]@host.example.org/x"


MAIL = "ann@example.org"


def _judgment(answer: Critique | Spans, rationale: str = "") -> Judgment:
    judge = Judge(id="p", kind="person")
    return Judgment(id="j", judge=judge, prompt_id="q", shown=("a",), answer=answer, rationale=rationale)


def _redacted(judgment: Judgment) -> tuple[Prompt, Completion, Judgment, Redactor]:
    """Return the records of an import as it stores them: each is read once, in this order."""
    prompt = Prompt(id="q", messages=(Message(role="user", content=f"I am {MAIL}"),))
    message = Message(role="assistant", content=f"Hi {MAIL}, you are late.")
    completion = Completion(id="a", prompt_id="q", message=message, token_ids=(1, 2), num_tokens=2)
    redactor = Redactor(DETECTORS)
    ((prompts, completions, judgments),) = redactor.parts([([prompt], [completion], [judgment])])
    return next(prompts), next(completions), next(judgments), redactor


def test_all_texts_of_an_import_are_redacted_and_counted() -> None:
    critique = _judgment(Critique(completion_id="a", text=f"told me {MAIL}"), rationale=f"see {MAIL}")
    critique = critique.model_copy(update={"flags": (Flag(reason="private", note=MAIL), Flag(reason="broken"))})
    prompt, completion, judgment, redactor = _redacted(critique)
    everything = "".join(one.model_dump_json() for one in (prompt, completion, judgment))
    assert MAIL not in everything
    assert everything.count("[EMAIL]") == 5
    assert redactor.summary() == "personal data redacted in 5 texts: 5 email"
    # Tokens of another text.
    assert completion.token_ids is None


def test_error_spans_move_with_the_text() -> None:
    # "Hi ann@example.org, you are late." -> "Hi [EMAIL], you are late."
    spans = Spans(
        spans=(
            ErrorSpan(completion_id="a", start=0, end=2, label="tone"),
            ErrorSpan(completion_id="a", start=28, end=32, label="fact"),
            ErrorSpan(completion_id="a", start=7, end=18, label="inside"),
        )
    )
    _, completion, judgment, _ = _redacted(_judgment(spans))
    text, answer = completion.message.content, judgment.answer
    assert isinstance(answer, Spans)
    assert [text[span.start : span.end] for span in answer.spans] == ["Hi", "late", "[EMAIL]"]


def test_records_without_findings_stay_the_same_objects() -> None:
    redactor = Redactor(DETECTORS)
    judgment = _judgment(Critique(completion_id="a", text="fine"))
    assert redactor.judgment(judgment) is judgment
    assert redactor.summary() == "searched for personal data, found none"


def test_people_may_bring_a_detector_of_their_own() -> None:
    class Staff:
        def find(self, text: str) -> Iterator[Finding]:
            return (Finding(match.start(), match.end(), "staff") for match in re.finditer(r"E-\d{5}", text))

    assert redact("ask E-12345", [*DETECTORS, Staff()]) == "ask [STAFF]"
