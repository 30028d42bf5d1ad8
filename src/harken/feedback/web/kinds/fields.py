"""What all kinds of form share."""

from collections.abc import Mapping

from harken.errors import HarkenError

Fields = Mapping[str, str]
"""Name -> text of each field of a form; the same shape is saved as a draft."""


class BadForm(HarkenError):
    """A form that is not complete, or that no page of this app has made; the message is for the person."""


def choose_number(fields: Fields, name: str, low: int, high: int, missing: str) -> int:
    """Return a whole number of a form.

    Raises:
        BadForm: it is missing (with `missing` as the message) or outside low..high.
    """
    text = fields.get(name, "").strip()
    if not text:
        raise BadForm(missing)
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or not low <= int(text) <= high:
        raise BadForm(f"{name} is {text[:20]!r}; expected a whole number from {low} to {high}")
    return int(text)


def some_text(fields: Fields, name: str, missing: str) -> str:
    """Return a text of a form with the line ends that files have.

    Raises:
        BadForm: it is empty.
    """
    # Browsers send a text box with CR LF at its line ends, whatever the person typed.
    text = fields.get(name, "").replace("\r\n", "\n")
    if not text.strip():
        raise BadForm(missing)
    return text
