"""What people may tell of themselves: the questions, and how an answer is kept."""

from collections.abc import Mapping

from harken.errors import DataError
from harken.records import Record

OWN_WORDS = "in own words"
"""What is told of people who described themselves: their words would single them out."""
MAX_WORDS = 100
"""Longest description of oneself in characters."""
NOT_SAID = "prefer not to say"


class Question(Record):
    """A question that nobody has to answer."""

    name: str
    """Attribute under which the answer is kept."""
    text: str
    why: str
    """What the answer is for."""
    choices: tuple[str, ...]
    """Beside these everybody can say `NOT_SAID`, or describe themselves in their own words."""


QUESTIONS = (
    Question(
        name="age",
        text="How old are you?",
        why="To see whether people of different ages judge differently.",
        choices=("18 to 29", "30 to 44", "45 to 59", "60 or older"),
    ),
    Question(
        name="gender",
        text="What is your gender?",
        why="To see whether some are missing among those who judge.",
        choices=("woman", "man", "non-binary"),
    ),
    Question(
        name="region",
        text="Where do you live?",
        why="To see for which parts of the world these judgments can speak.",
        choices=("Africa", "Asia", "Europe", "Latin America", "North America", "Oceania"),
    ),
    Question(
        name="language",
        text="How well do you read the language of the tasks?",
        why="To see whether answers are judged by people at home in their language.",
        choices=("my first language", "fluently", "I get by"),
    ),
    Question(
        name="education",
        text="What education do you have?",
        why="To see whether some are missing among those who judge.",
        choices=("no school certificate", "school certificate", "vocational training", "university degree"),
    ),
)


def answers(fields: Mapping[str, str]) -> dict[str, str]:
    """Return attribute -> value of a form; what is blank or not to be said is left out.

    Args:
        fields: `NAME` holds the choice and `NAME-words` a description, which goes before the choice.

    Raises:
        DataError: a description is too long, or a choice is none of the question's.
    """
    found: dict[str, str] = {}
    for question in QUESTIONS:
        choice = fields.get(question.name, "")
        words = " ".join(fields.get(f"{question.name}-words", "").split())
        if len(words) > MAX_WORDS:
            raise DataError(f"{question.text} Your own words have at most {MAX_WORDS} characters.")
        if choice not in ("", NOT_SAID, *question.choices):
            raise DataError(f"{question.text} Choose one of the answers, or use your own words.")
        if words:
            found[question.name] = f"{OWN_WORDS}: {words}"
        elif choice in question.choices:
            found[question.name] = choice
    return found


def form_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a form that `answers` reads into these values."""
    fields: dict[str, str] = {}
    for name, value in values.items():
        is_own, _, words = value.partition(f"{OWN_WORDS}: ")
        fields |= {f"{name}-words": words} if words and not is_own else {name: value}
    return fields


def group_of(value: str) -> str:
    """Return the group of people that an answer puts somebody in: all own words are one."""
    return OWN_WORDS if value.startswith(f"{OWN_WORDS}: ") else value
