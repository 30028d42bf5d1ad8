"""Redaction: personal data in records replaced by a mark such as [EMAIL], on import, for display and on export."""

import dataclasses
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harken.feedback.privacy.detect import Detector, Finding, find_all
from harken.records import (
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    Judgment,
    Message,
    Prompt,
    Spans,
)


def mark(kind: str) -> str:
    """Return what stands in the place of personal data of a kind: `[EMAIL]`."""
    return f"[{kind.upper()}]"


def redact(text: str, detectors: Sequence[Detector]) -> str:
    """Return a text as it may be shown: personal data that is found is replaced by marks.

    Redacting again changes nothing.
    """
    return _replaced(text, find_all(text, detectors))


def _replaced(text: str, findings: Sequence[Finding]) -> str:
    parts: list[str] = []
    end = 0
    for finding in findings:
        parts += [text[end : finding.start], mark(finding.kind)]
        end = finding.end
    return "".join([*parts, text[end:]])


@dataclasses.dataclass(frozen=True)
class _Moved:
    """Where offsets of a text lie after its redaction."""

    findings: tuple[Finding, ...]

    def offset(self, old: int, *, is_end: bool) -> int:
        """Return the new offset; one inside a replaced part moves to the end (or beginning) of its mark."""
        index = bisect_right([finding.start for finding in self.findings], old - is_end)
        shift = sum(len(mark(found.kind)) - (found.end - found.start) for found in self.findings[:index])
        if index and old < self.findings[index - 1].end:
            inside = self.findings[index - 1]
            return inside.end + shift - (0 if is_end else len(mark(inside.kind)))
        return old + shift


class Redactor:
    """Redacts records and counts what it found, by kind.

    Completions must be redacted before judgments: error spans in a completion move with its text.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = detectors
        self._moved: dict[str, _Moved] = {}
        self.counts: Counter[str] = Counter()
        """Kind -> findings."""
        self.num_texts = 0
        """Texts in which something was found."""

    def text(self, text: str) -> str:
        """Return a text with what is found replaced."""
        return self._findings(text)[0]

    def parts(
        self, parts: Iterable[tuple[Iterable[Prompt], Iterable[Completion], Iterable[Judgment]]]
    ) -> Iterator[tuple[Iterator[Prompt], Iterator[Completion], Iterator[Judgment]]]:
        """Yield the parts of an import, redacted as they are read: completions before the judgments on them."""
        for prompts, completions, judgments in parts:
            yield map(self.prompt, prompts), map(self.completion, completions), map(self.judgment, judgments)

    def prompt(self, record: Prompt) -> Prompt:
        """Return a prompt with redacted messages."""
        messages = tuple(self._message(message) for message in record.messages)
        return record if messages == record.messages else record.model_copy(update={"messages": messages})

    def completion(self, record: Completion) -> Completion:
        """Return a completion with redacted text; token ids and log-probabilities of another text are dropped."""
        text, findings = self._findings(record.message.content)
        if not findings:
            return record
        self._moved[record.id] = _Moved(tuple(findings))
        message = record.message.model_copy(update={"content": text})
        dropped = {"token_ids": None, "sampler_logprobs": None, "num_tokens": None}
        return record.model_copy(update={"message": message, **dropped})

    def judgment(self, record: Judgment) -> Judgment:
        """Return a judgment with redacted rationale, answer and notes."""
        answer = record.answer
        match answer:
            case Correction() | Critique() | DemonstrationAnswer():
                answer = answer.model_copy(update={"text": self.text(answer.text)})
            case Spans():
                answer = self._spans(answer)
            case _:
                pass
        rationale = self.text(record.rationale) if record.rationale else ""
        flags = record.flags and tuple(
            flag.model_copy(update={"note": self.text(flag.note)}) if flag.note else flag for flag in record.flags
        )
        if (answer, rationale, flags) == (record.answer, record.rationale, record.flags):
            return record
        return record.model_copy(update={"answer": answer, "rationale": rationale, "flags": flags})

    def _spans(self, answer: Spans) -> Spans:
        moved = [self._moved.get(span.completion_id) for span in answer.spans]
        spans = tuple(
            span
            if map is None
            else span.model_copy(
                update={"start": map.offset(span.start, is_end=False), "end": map.offset(span.end, is_end=True)}
            )
            for span, map in zip(answer.spans, moved, strict=True)
        )
        return Spans(spans=spans)

    def _message(self, message: Message) -> Message:
        text, findings = self._findings(message.content)
        return message.model_copy(update={"content": text}) if findings else message

    def _findings(self, text: str) -> tuple[str, list[Finding]]:
        findings = find_all(text, self._detectors)
        if not findings:
            return text, findings
        self.counts.update(finding.kind for finding in findings)
        self.num_texts += 1
        return _replaced(text, findings), findings

    def summary(self) -> str:
        """Return what was found as one sentence."""
        if not self.counts:
            return "searched for personal data, found none"
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        return f"personal data redacted in {self.num_texts} texts: {kinds}"
