"""Check digits and structure of account, card and identity numbers: what tells them from any other number.

Every function takes the number without separators and returns True when it could have been issued. None of them says
that it was.
"""

import datetime

_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "NL", "FO", "GL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
}
"""Country -> number of characters; source: the IBAN registry of ISO 13616."""

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"

# Verhoeff (1969): the multiplication table of the dihedral group D5, and the powers of one permutation.
_D5 = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 0, 6, 7, 8, 9, 5),
    (2, 3, 4, 0, 1, 7, 8, 9, 5, 6),
    (3, 4, 0, 1, 2, 8, 9, 5, 6, 7),
    (4, 0, 1, 2, 3, 9, 5, 6, 7, 8),
    (5, 9, 8, 7, 6, 0, 4, 3, 2, 1),
    (6, 5, 9, 8, 7, 1, 0, 4, 3, 2),
    (7, 6, 5, 9, 8, 2, 1, 0, 4, 3),
    (8, 7, 6, 5, 9, 3, 2, 1, 0, 4),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
)
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def luhn(digits: str) -> bool:
    """Return True when the last digit fits by Luhn's formula (ISO/IEC 7812-1, annex B)."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def verhoeff(digits: str) -> bool:
    """Return True when the last digit fits by Verhoeff's scheme, which finds every swap of neighbors."""
    check = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(index % 8):
            value = _PERMUTATION[value]
        check = _D5[check][value]
    return check == 0


def mod_11_10(digits: str) -> bool:
    """Return True when the last digit fits by ISO 7064, MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def is_card(digits: str) -> bool:
    """Payment card: 13 to 19 digits, a first digit that card networks use, Luhn."""
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and len(set(digits)) > 1 and luhn(digits)


def is_iban(text: str) -> bool:
    """IBAN: the length of its country, and 1 modulo 97 with letters as numbers (ISO 13616)."""
    upper = text.upper()
    if len(upper) != _IBAN_LENGTHS.get(upper[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in upper[4:] + upper[:4])) % 97 == 1


def is_us_ssn(digits: str) -> bool:
    """US Social Security number: no check digit; areas 000, 666, 900-999 and zero groups are never issued."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return len(digits) == 9 and area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_uk_nino(text: str) -> bool:
    """UK National Insurance number: no check digit; two letters (some never used), six digits, A to D."""
    upper = text.upper()
    return (
        len(upper) == 9
        and upper[0] in "ABCEGHJKLMNOPRSTWXYZ"
        and upper[1] in "ABCEGHJKLMNPRSTWXYZ"
        and upper[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")
        and upper[2:8].isdecimal()
        and upper[8] in "ABCD"
    )


def is_de_tax_id(digits: str) -> bool:
    """German Steuer-ID: 11 digits, no leading 0, one digit two or three times in the first ten, MOD 11,10."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    repeats = sorted(digits[:10].count(digit) for digit in set(digits[:10]))
    return repeats[-1] in (2, 3) and repeats[:-1] == [1] * (len(repeats) - 1) and mod_11_10(digits)


def is_fr_insee(text: str) -> bool:
    """French social security number (NIR): sex, year, month, place, order, and 97 minus the rest as key."""
    upper = text.upper()
    body = upper[:13]
    # Corsica's departments have a letter; the key is that of 19 and 18.
    body = body[:5] + {"2A": "19", "2B": "18"}.get(body[5:7], body[5:7]) + body[7:]
    if len(upper) != 15 or not (body + upper[13:]).isdecimal() or body[0] not in "123478":
        return False
    month = int(body[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and 97 - int(body) % 97 == int(upper[13:])


def is_es_dni(text: str) -> bool:
    """Spanish DNI (8 digits) or NIE (X, Y or Z and 7 digits): the letter is the number modulo 23."""
    upper = text.upper()
    body = str("XYZ".find(upper[0])) + upper[1:8] if upper[0] in "XYZ" else upper[:8]
    return len(upper) == 9 and body.isdecimal() and _DNI_LETTERS[int(body) % 23] == upper[8]


def is_in_aadhaar(digits: str) -> bool:
    """Indian Aadhaar: 12 digits, the first 2 to 9, Verhoeff."""
    return len(digits) == 12 and digits[0] in "23456789" and verhoeff(digits)


def is_br_cpf(digits: str) -> bool:
    """Brazilian CPF: 11 digits, not all the same, two check digits modulo 11."""
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(digit) * weight for digit, weight in zip(digits, range(length + 1, 1, -1), strict=False))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def is_date_like(digits: str) -> bool:
    """Return True for 8 digits that are a date of 1900 to 2099, year or day first."""
    for order in ("%Y%m%d", "%d%m%Y"):
        try:
            found = datetime.datetime.strptime(digits, order).replace(tzinfo=datetime.UTC)
        except ValueError:
            continue
        if 1900 <= found.year <= 2099:
            return True
    return False
