"""Numbers and texts as people read them: rounding, minus signs, durations, invisible characters."""

import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime

MINUS = "\N{MINUS SIGN}"
NOT_KNOWN = "n/a"
_SPOOFING = re.compile(
    # Controls except newline and tab, bidi controls, other invisible formatting, tag characters,
    # and lone surrogates, which UTF-8 cannot hold. ZWJ and ZWNJ stay: scripts and emoji need them.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Return the text with control, bidi and other invisible characters written as code points.

    A completion that holds U+202E would otherwise turn around the letters that follow it.
    """
    return _SPOOFING.sub(lambda match: f"\u27e8U+{ord(match.group()):04X}\u27e9", text)


def decimals(values: Iterable[float]) -> int:
    """Return how many decimals show the largest of some values: three digits, two below 0.1."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return 2
    digits = 2 if largest >= 0.1 else 1
    return min(6, max(0, digits - math.floor(math.log10(largest)))) if largest < 1000 else 0


def number(value: float | None, places: int | None = None, *, signed: bool = False) -> str:
    """Return a number with about three digits, a real minus sign and separated thousands."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    if places is None and value != 0 and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    text = f"{value:{'+' if signed else ''},.{decimals([value]) if places is None else places}f}"
    if places is None and "." in text and abs(value) == round(abs(value)):
        text = text.rstrip("0").rstrip(".")
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def count(value: float) -> str:
    """Return a whole number with separated thousands."""
    return number(value, 0)


def percent(share: float | None, places: int = 0) -> str:
    """Return a share as a percentage."""
    return NOT_KNOWN if share is None else f"{number(100 * share, places)}%"


def span(low: float | None, high: float | None, *, as_percent: bool = False, places: int | None = None) -> str:
    """Return an interval in words, "0.21 to 0.43", or "" where it is not known."""
    if low is None or high is None:
        return ""
    ends = [100 * low, 100 * high] if as_percent else [low, high]
    line = 50.0 if as_percent else 0.0
    if places is None:
        places = 0 if as_percent else decimals(ends)
    # An end near the line of no difference is not rounded onto it: the claim hangs on its side.
    while places < 6 and any(end != line and round(end, places) == line for end in ends):
        places += 1
    unit = "%" if as_percent else ""
    return " to ".join(f"{number(end, places)}{unit}" for end in ends)


def duration(seconds: float) -> str:
    """Return seconds as people say them: "48 s", "7 min 12 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def moment(iso: str) -> str:
    """Return an ISO 8601 time as a date and a time of day; what is not one comes back as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = when.strftime("%Z")
    return when.strftime("%Y-%m-%d %H:%M") + (f" {zone}" if zone else "")


def plural(amount: float, one: str, many: str | None = None) -> str:
    """Return a count with its noun: "1 prompt", "1,200 prompts"."""
    return f"{count(amount)} {one if amount == 1 else many or one + 's'}"


def shorten(text: str, limit: int = 280) -> str:
    """Return at most `limit` characters of a text, cut at a character boundary people see."""
    if len(text) <= limit:
        return text
    end = limit
    while end and (unicodedata.combining(text[end]) or text[end] == "\u200d"):
        end -= 1
    return text[:end].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
