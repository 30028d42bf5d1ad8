"""Kinds whose answer is a text: demonstration, critique, correction."""

from harken.feedback.tasks import MAX_TEXT
from harken.feedback.web.kinds.fields import BadForm, Fields, some_text
from harken.records import Completion, Correction, Critique, DemonstrationAnswer


def demonstration_answer(fields: Fields) -> DemonstrationAnswer:
    """Return the written answer."""
    return DemonstrationAnswer(text=_text(fields, "Write the answer first."))


def critique_answer(fields: Fields, completion_id: str) -> Critique:
    """Return what was written about the completion."""
    return Critique(completion_id=completion_id, text=_text(fields, "Write what you think of the answer first."))


def correction_answer(fields: Fields, completion: Completion) -> Correction:
    """Return the edited text; the unchanged one says that nothing needed a correction."""
    text, before = _text(fields, "The text is empty; write what it should be."), completion.message.content
    # A text box knows one kind of line end; a text with others that nobody touched is still unchanged.
    is_unchanged = text == before.replace("\r\n", "\n").replace("\r", "\n")
    return Correction(completion_id=completion.id, text=before if is_unchanged else text)


def _text(fields: Fields, missing: str) -> str:
    text = some_text(fields, "text", missing)
    if len(text) > MAX_TEXT:
        raise BadForm(f"The text has {len(text)} characters; at most {MAX_TEXT} can be kept. Shorten it.")
    return text
