"""Detectors from presidio (extra `pii`): its patterns only, no language model, nothing downloaded."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from presidio_analyzer import (  # pyright: ignore[reportMissingImports]
    predefined_recognizers,  # pyright: ignore[reportUnknownVariableType]
)

from harken.feedback.privacy.detect import Detector, Finding, built_in

MIN_SCORE = 0.5
"""Presidio's own confidence; patterns without a check digit score less unless a word nearby names the number."""

RECOGNIZERS = (
    "AuMedicareRecognizer",
    "AuTfnRecognizer",
    "CryptoRecognizer",
    "FiPersonalIdentityCodeRecognizer",
    "InPanRecognizer",
    "ItFiscalCodeRecognizer",
    "MedicalLicenseRecognizer",
    "NhsRecognizer",
    "PlPeselRecognizer",
    "SgFinRecognizer",
)
"""What the built-in detectors do not look for."""


class Presidio:
    """Finds what presidio's pattern recognizers find."""

    def __init__(self, min_score: float = MIN_SCORE) -> None:
        # Any: without the extra there are no types, and with it they are not complete.
        module = cast(Any, predefined_recognizers)  # pyright: ignore[reportUnknownArgumentType]
        self._recognizers: list[Any] = [getattr(module, name)() for name in RECOGNIZERS]
        self._min_score = min_score

    def find(self, text: str) -> Iterator[Finding]:
        """Yield findings; the kind is presidio's entity in lower case."""
        for recognizer in self._recognizers:
            for result in recognizer.analyze(text, recognizer.supported_entities):
                if result.score >= self._min_score:
                    yield Finding(result.start, result.end, result.entity_type.lower())


def with_presidio(regions: Sequence[str]) -> tuple[Detector, ...]:
    """Return the built-in detectors and presidio's after them."""
    return (*built_in(regions), Presidio())
