"""Personal data in texts: what is looked for, and where it stands.

Each kind has a pattern and, where the number has one, its check digit. What no pattern can know (names, addresses,
health, what a sentence says about someone) is not found here: docs/privacy.md says what that means.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

import phonenumbers

from harken.errors import UsageError
from harken.feedback.privacy import check_digits

REGIONS = ("US", "GB", "DE", "FR", "ES", "IN", "BR")
"""Where telephone numbers without a country code may come from, by default."""


@dataclass(frozen=True, order=True)
class Finding:
    """A place in a text; offsets count Unicode code points, end exclusive."""

    start: int
    end: int
    kind: str


class Detector(Protocol):
    """Anything that finds personal data of some kinds in a text."""

    def find(self, text: str) -> Iterator[Finding]:
        """Yield findings in any order; they may overlap."""
        ...


@dataclass(frozen=True)
class Pattern:
    """Finds what a pattern matches and a check accepts; the group `pii`, where there is one, is the finding."""

    kind: str
    pattern: re.Pattern[str]
    accept: Callable[[re.Match[str]], bool] = bool

    def find(self, text: str) -> Iterator[Finding]:
        """Yield every match that is accepted."""
        position = 0
        while match := self.pattern.search(text, position):
            group = "pii" if "pii" in self.pattern.groupindex else 0
            if accepted := self.accept(match):
                yield Finding(match.start(group), match.end(group), self.kind)
            # A refused match may hide a true one that begins inside it.
            position = max(match.end() if accepted else match.start() + 1, position + 1)


@dataclass(frozen=True)
class Phone:
    """Telephone numbers that could be dialed, by the numbering plans that `phonenumbers` knows."""

    regions: Sequence[str] = REGIONS

    def find(self, text: str) -> Iterator[Finding]:
        """Yield numbers with a country code anywhere, others where they are written as numbers are."""
        if not _MAYBE_PHONE.search(text):
            return
        for region in (None, *self.regions):
            for match in phonenumbers.PhoneNumberMatcher(text, region, max_tries=len(text)):
                if region is None or _is_written_as_phone(text, match.start, match.raw_string):
                    yield Finding(match.start, match.end, "phone")


_MAYBE_PHONE = re.compile(r"\d(?:[^\w\n]{0,3}\d){6}")
_PHONE_WORD = re.compile(r"(?i)\b(?:phone|tel|call|mobile|cell|fax|whatsapp|text|ring|dial|handy|m[oó]vil|celular)\b")


def _is_written_as_phone(text: str, start: int, raw: str) -> bool:
    """Return True for a number in groups, or after a word such as `phone`: a bare run of digits may be anything."""
    groups = re.findall(r"\d+", raw)
    if len(groups) >= 3 or (raw.startswith(("(", "0")) and len(groups) == 2):
        is_date = re.fullmatch(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}", raw)
        return not is_date and max(map(len, groups)) > 1
    return bool(_PHONE_WORD.search(text[max(0, start - 25) : start]))


def _bare(match: re.Match[str]) -> str:
    group = "pii" if "pii" in match.re.groupindex else 0
    return re.sub(r"[\s./-]", "", match.group(group))


def _checked(check: Callable[[str], bool]) -> Callable[[re.Match[str]], bool]:
    return lambda match: check(_bare(match))


def _grouped_or_named(check: Callable[[str], bool], words: str) -> Callable[[re.Match[str]], bool]:
    """Accept a number in its official groups; a bare run of digits only near a word that names it.

    One check digit lets every tenth number pass, so order numbers and times would be found too.
    """
    named = re.compile(rf"(?i)\b(?:{words})\b")

    def accept(match: re.Match[str]) -> bool:
        if not check(_bare(match)):
            return False
        around = match.string[max(0, match.start() - 40) : match.end() + 20]
        return not match.group().isdecimal() or bool(named.search(around))

    return accept


_FILE_ENDINGS = (
    "png",
    "jpg",
    "jpeg",
    "gif",
    "svg",
    "webp",
    "pdf",
    "txt",
    "md",
    "py",
    "js",
    "ts",
    "css",
    "html",
    "json",
    "yml",
)


def _is_mail(match: re.Match[str]) -> bool:
    if match.string[max(0, match.start() - 3) : match.start()] == "://":
        return False  # a user without a password in an address
    local, _, domain = match.group().rpartition("@")
    # git@host:path is how repositories are named, and icon@2x.png is a picture.
    return local != "git" and domain.rpartition(".")[2].lower() not in _FILE_ENDINGS


def _is_ip(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 10) : match.start()].lower()
    if re.search(r"(?:version|release|build|ver\.?|v|section|chapter|§)\s*$", before):
        return False
    try:
        address = ip_address(match.group())
    except ValueError:
        return False
    if address.version == 6 and not re.search(r"\d", match.group()):
        return False  # `abc::def` is a name in C++ and an address
    return not (address.is_loopback or address.is_unspecified)


def _is_secret(match: re.Match[str]) -> bool:
    value = match.group("pii")
    has_digit, has_letter = re.search(r"\d", value), re.search(r"[A-Za-z]", value)
    return bool(has_digit and has_letter) and not re.search(r"[(\[{<$]|environ|example", value)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.VERBOSE)


_TOKENS = r"""(?<![\w-])(?:
    (?:AKIA|ASIA)[0-9A-Z]{16}
  | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255} | glpat-[\w-]{20,64}
  | sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,200} | hf_[A-Za-z0-9]{30,64} | pypi-[\w-]{50,250}
  | xox[abposr]-[A-Za-z0-9-]{10,120} | AIza[0-9A-Za-z_-]{35} | [sr]k_(?:live|test)_[0-9A-Za-z]{16,120}
  | SG\.[\w-]{16,32}\.[\w-]{30,64} | npm_[A-Za-z0-9]{36} | \d{8,10}:AA[\w-]{33}
  | eyJ[\w-]{8,2000}\.eyJ[\w-]{4,4000}\.[\w-]{8,1000}
)(?![\w-])"""
_PRIVATE_KEY = (
    r"-----BEGIN\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----(?s:.{0,8000}?)-----END\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----"
)
_NAMED_SECRET = r"""(?i:(?:api|access|secret|auth|private)[_-]?(?:key|token)|secret|token|passwor[dt]|passwd|pwd)
    ["']?\s{0,3}(?:[:=]|\ is\ )\s{0,3}["']?(?P<pii>[^\s"',;]{6,200})"""
_BEARER = r"(?i)\bbearer\ {1,3}(?P<pii>[\w.~+/-]{16,2000}={0,2})"
_MAIL = r"""(?<![\w.!\#$%&'*+^`{|}~-])\w[\w.!\#$%&'*+^`{|}~-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}
    [^\W\d_]{2,24}(?![\w@])"""
_IPV4 = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)"
_IPV6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
_CREDENTIALS = r"(?<![\w+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://(?P<pii>[^\s/:@]{0,64}:[^\s/@]{1,128})@"
_QUERY_SECRET = r"""(?i)[?&](?:access_token|api_?key|auth|key|password|secret|sig|signature|token)=
    (?P<pii>[^&\s\#"'<>]{8,500})"""
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])"
)
_CARD = r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])"
# No part of a longer run of digit groups.
_ALONE = r"(?<![\w.+-])(?<!\d[ -])"
_ENDED = r"(?![\w-])(?! \d)"


class Iban:
    """Finds IBANs in groups of four or in one piece."""

    def find(self, text: str) -> Iterator[Finding]:
        """Yield IBANs whose length and check digits fit their country."""
        for match in _IBAN.finditer(text):
            whole = match.group()
            # The number ends where its country says; a word behind it may look like its last group.
            for end in range(len(whole), 14, -1):
                is_whole_group = whole[end - 1] not in " -" and not whole[end : end + 1].isalnum()
                if is_whole_group and check_digits.is_iban(re.sub(r"[ -]", "", whole[:end])):
                    yield Finding(match.start(), match.start() + end, "iban")
                    break


def _accept_named_us(match: re.Match[str]) -> bool:
    around = match.string[max(0, match.start() - 40) : match.end() + 20]
    named = re.search(r"(?i)\bssn\b|social security", around)
    return check_digits.is_us_ssn(_bare(match)) and (not match.group().isdecimal() or bool(named))


def _accept_dni(match: re.Match[str]) -> bool:
    bare = _bare(match)
    return check_digits.is_es_dni(bare) and not check_digits.is_date_like(bare[:8])


def built_in(regions: Sequence[str] = REGIONS) -> tuple[Detector, ...]:
    """Return the detectors that need no model, the surest first: of two that overlap the earlier one counts.

    Args:
        regions: two-letter countries whose telephone numbers are known without a country code.
    """
    return (
        Pattern("credentials", _compiled(_CREDENTIALS)),
        Pattern("credentials", _compiled(_QUERY_SECRET), lambda match: bool(re.search(r"\d", match.group("pii")))),
        Pattern("secret", _compiled(_PRIVATE_KEY)),
        Pattern("secret", _compiled(_TOKENS)),
        Pattern("secret", _compiled(_BEARER), _is_secret),
        Pattern("secret", _compiled(_NAMED_SECRET), _is_secret),
        Pattern("email", _compiled(_MAIL), _is_mail),
        Iban(),
        Pattern("fr_insee", re.compile(r"(?<!\w)[1-478] ?\d\d ?\d\d ?\d[\dABab] ?\d{3} ?\d{3} ?\d\d(?!\w)"), _FR),
        Pattern("card", re.compile(_CARD), _checked(check_digits.is_card)),
        Pattern("br_cpf", re.compile(r"(?<![\w.-])(?:\d{3}\.\d{3}\.\d{3}-\d\d|\d{11})(?![\w-])"), _BR),
        Pattern("de_tax_id", re.compile(rf"{_ALONE}[1-9]\d ?\d{{3}} ?\d{{3}} ?\d{{3}}{_ENDED}"), _DE),
        Pattern("in_aadhaar", re.compile(rf"{_ALONE}[2-9]\d{{3}}([ -]?)\d{{4}}\1\d{{4}}{_ENDED}"), _IN),
        Pattern("us_ssn", re.compile(rf"{_ALONE}\d{{3}}([ -]?)\d\d\1\d{{4}}{_ENDED}"), _accept_named_us),
        Pattern("uk_nino", re.compile(r"(?<!\w)[A-Za-z]{2} ?\d\d ?\d\d ?\d\d ?[A-Da-d](?!\w)"), _UK),
        Pattern(
            "es_dni", re.compile(r"(?<!\w)(?:\d{2}\.?\d{3}\.?\d{3}|[XYZxyz]-?\d{7})[ -]?[A-Za-z](?!\w)"), _accept_dni
        ),
        Pattern("ip", re.compile(_IPV4), _is_ip),
        Pattern("ip", re.compile(_IPV6), _is_ip),
        Phone(regions),
    )


_FR = _checked(check_digits.is_fr_insee)
_UK = _checked(check_digits.is_uk_nino)
_BR = _grouped_or_named(check_digits.is_br_cpf, "cpf")
_DE = _grouped_or_named(check_digits.is_de_tax_id, "steuer-?(?:id|nummer|identifikationsnummer)|idnr|tin|tax id")
_IN = _grouped_or_named(check_digits.is_in_aadhaar, "aadhaa?r|uidai|uid")

KINDS = (
    "credentials",
    "secret",
    "email",
    "iban",
    "fr_insee",
    "card",
    "br_cpf",
    "de_tax_id",
    "in_aadhaar",
    "us_ssn",
    "uk_nino",
    "es_dni",
    "ip",
    "phone",
)
"""What the built-in detectors find."""


def chosen_regions(text: str) -> tuple[str, ...]:
    """Return the countries in `US,DE`; the default ones of an empty text.

    Raises:
        UsageError: no such country.
    """
    regions = tuple(part.strip().upper() for part in text.split(",") if part.strip()) or REGIONS
    if unknown := sorted(set(regions) - phonenumbers.SUPPORTED_REGIONS):
        raise UsageError(f"--regions: no country {unknown[0]!r}; expected two letters each, such as US,DE")
    return regions


def find_all(text: str, detectors: Sequence[Detector]) -> list[Finding]:
    """Return findings in order of place, none overlapping another; earlier detectors go before later ones."""
    kept: list[Finding] = []
    for detector in detectors:
        for finding in sorted(detector.find(text)):
            if all(finding.end <= other.start or finding.start >= other.end for other in kept):
                kept.append(finding)
    return sorted(kept)
