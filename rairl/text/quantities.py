r"""Numbers and quantities as people write them: digits in several notations, with a currency, a unit or a noun.

Which number a text is, by these rules:

- ``1,234`` and ``1,234.5`` have English thousands; ``3,5``, ``0,333`` and ``12,34`` a decimal comma; ``1.234,56`` and
  ``1.234.567`` German thousands; ``1 000`` and ``1'000`` thousands as well, whichever kind of space it is;
- ``1e6``, ``1.5 × 10^6`` and ``1.8 million`` are powers of ten; ``2 1/2``, ``2\frac{1}{2}`` and ``2½`` mixed numbers;
- a per cent sign is a unit: 50% is 50, and is not 0.5. Units are never converted: 1 m is not 100 cm.

A text that merely holds a number (``Type 2 diabetes``, ``COVID-19``, ``x^2``, ``1, 2, 3``) is no quantity.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rairl.text.markup import bare

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
"""A number as people write it: ``1,000``, ``3.50``, ``.5``. No sign, no currency."""
_LONGEST = 60
"""More digits than this are not a number anybody meant, but a decoder in a loop."""
_LONGEST_TEXT = 200

CURRENCIES = "$€£¥₹₽₩"


class Quantity(NamedTuple):
    """A number and what it counts.

    Attributes:
        number: its value.
        unit: a known unit or currency in its one form (``km/h``, ``m^2``, ``%``, ``$``, ``$/h``), or nothing.
        words: the other words after the number, in the singular, which are no unit we know.
    """

    number: Fraction
    unit: str = ""
    words: frozenset[str] = frozenset()

    def agrees(self, other: Quantity) -> bool:
        """Whether both say the same; a unit or a noun that only one of them gives does not part them."""
        if self.number != other.number:
            return False
        (kind, per), (other_kind, other_per) = self._kind_and_rate(), other._kind_and_rate()
        if kind and other_kind and kind != other_kind:
            return False
        if per and other_per and per != other_per:
            return False
        whole = kind if not per else other_kind if not other_per else ""
        if per != other_per and whole and whole not in CURRENCIES:
            return False  # 10 km are not 10 km/h, but who asks for a price per hour may be told $5
        if self.unit and not other.unit and other.words - self.words:
            return False
        if other.unit and not self.unit and self.words - other.words:
            return False
        return self.words <= other.words or other.words <= self.words

    def _kind_and_rate(self) -> tuple[str, str]:
        kind, _, rate = self.unit.partition("/")
        return kind, rate


# --- what the parts look like -----------------------------------------------------------------------------------------

_PLAIN = r"(?:\d{1,3}(?:[ ']\d{3})+(?!\d)(?:[.,]\d+)?|\d[\d.,]*\d|\d|\.\d+)"
_POWER = r"10\s?(?:\^|\*\*)\s?\{?\s?(?P<NAME>[+-]?\d{1,2})\s?\}?(?!\d)"
_TIMES = r"\s?(?:×|\*|x|\\times|\\cdot|⋅|·)\s?"
_ABOUT = (
    r"(?:(?:approximately|approx\.?|about|around|roughly|nearly|almost|exactly|circa|ca\.|etwa|rund|ungefähr|genau|"
    r"a total of|only|≈|~|=|\\approx|\\sim|约|大约|共)\s*)*"
)
_SENTENCE = (
    r"(?:[a-z' ]{1,60}?\b(?:is|are|was|were|has|have|had|be|costs?|needs?|pays?|paid|received?|earns?|gets?|got|makes?|"
    r"made|spends?|spent|takes?|took|equals|ist|hat|sind|kostet)\s+)?"
)
"""``Tom has`` 5 apples."""
_QUANTITY = re.compile(
    rf"{_SENTENCE}{_ABOUT}(?P<sign>[+-]?)\s?(?P<currency>US\$|[{CURRENCIES}]|)\s?(?P<second>[+-]?)\s?"
    rf"(?:(?P<whole>\d+)\s(?P<over>[1-9]\d*)\s?/\s?(?P<under>\d+)"
    rf"|(?P<top>{_PLAIN})\s?/\s?(?P<bottom>{_PLAIN})"
    rf"|{_POWER.replace('NAME', 'alone')}"
    rf"|(?P<base>{_PLAIN})(?:{_TIMES}{_POWER.replace('NAME', 'shift')}|[eE](?P<e>[+-]?\d{{1,2}})(?!\w))?"
    r")(?P<tail>.*)",
    re.IGNORECASE,
)
_NOTATIONS = (
    (re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?"), ","),
    (re.compile(r"[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?"), ","),  # 1,00,000: Indian
    (re.compile(r"[1-9]\d{0,2}(?:[ ']\d{3})+(?:[.,]\d+)?"), " '"),
    (re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}"), "."),
    (re.compile(r"\d+|\d*\.\d+|\d+,\d+"), ""),
)
"""How numbers are grouped, and the signs that stand between the groups."""
_SCALES = {
    "hundred": 100, "dozen": 12, "thousand": 10**3, "tausend": 10**3, "million": 10**6, "millionen": 10**6,
    "mio": 10**6, "billion": 10**9, "milliarde": 10**9, "milliarden": 10**9, "mrd": 10**9, "trillion": 10**12,
    "万": 10**4, "亿": 10**8,
}  # fmt: skip
_SCALE = re.compile(rf"\s*({'|'.join(sorted(_SCALES, key=len, reverse=True))})s?(?![a-zäöüß])\.?", re.IGNORECASE)

_UNITS = {
    word: unit
    for unit, words in {
        "mm": "mm millimeter millimetre 毫米", "cm": "cm centimeter centimetre zentimeter 厘米",
        "dm": "dm decimeter decimetre", "m": "m meter metre 米", "km": "km kilometer kilometre 千米 公里",
        "in": "inch inches zoll 英寸", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile meile meilen 英里",
        "nm": "nm nanometer nanometre", "µm": "µm μm um micrometer micrometre micron",
        "ng": "ng nanogram", "µg": "µg μg ug mcg microgram mikrogramm", "mg": "mg milligram milligramm 毫克",
        "g": "g gram gramm 克", "kg": "kg kgs kilo kilogram kilogramm 千克 公斤", "t": "ton tonne tonnen 吨",
        "lb": "lb pound", "oz": "oz ounce",
        "ms": "ms millisecond", "s": "s sec second sekunde sekunden 秒 秒钟",
        "min": "min minute minuten 分钟", "h": "h hr hour stunde stunden 小时", "d": "day tag tage tagen 天",
        "wk": "wk week woche wochen 周 星期", "mo": "month monat monate monaten 个月",
        "y": "yr year jahr jahre jahren 年",
        "ml": "ml milliliter millilitre 毫升", "cl": "cl centiliter centilitre", "dl": "dl deciliter decilitre",
        "l": "l liter litre 升", "gal": "gal gallon", "cup": "cup", "acre": "acre", "ha": "ha hectare hektar",
        "°": "° degree deg grad 度", "°C": "°c ℃ celsius 摄氏度", "°F": "°f ℉ fahrenheit", "rad": "rad radian",
        "K": "kelvin", "J": "j joule", "kJ": "kj kilojoule", "cal": "cal calorie kalorie kalorien", "kcal": "kcal",
        "N": "n newton", "Pa": "pa pascal", "kPa": "kpa", "W": "w watt", "kW": "kw kilowatt", "kWh": "kwh",
        "V": "v volt",
        "A": "ampere amp", "Ω": "ω ohm", "Hz": "hz hertz", "kHz": "khz", "MHz": "mhz", "GHz": "ghz",
        "mol": "mol mole", "mmol": "mmol millimole", "µmol": "µmol μmol umol", "mEq": "meq", "IU": "iu",
        "mmHg": "mmhg", "bpm": "bpm", "mi/h": "mph", "km/h": "kph kmh", "bit": "bit", "B": "byte", "kB": "kb kilobyte",
        "MB": "mb megabyte", "GB": "gb gigabyte", "TB": "tb terabyte",
        "%": "% percent pct prozent percentage",
        "$": "$ us$ usd dollar 美元", "€": "€ eur euro 欧元", "£": "£ gbp", "¥": "¥ cny rmb yuan jpy yen 元 块",
        "₹": "₹ rs inr rupee rupie", "₽": "₽ rub ruble", "₩": "₩ krw won", "ct": "¢ ct cent 分", "CHF": "chf franken",
    }.items()
    for word in words.split()
}  # fmt: skip
_ATTACHED = frozenset("m g l s h".split()) | {word for word in _UNITS if len(word) > 1 or not word.isalpha()}
"""Units that may stand right after the digits: ``5m``; but ``5n`` and ``5v`` are products."""
_ATOM = r"(?:[A-Za-zµμΩäöü]+|[%°¢$€£¥₹₽₩℃℉](?:[CF]\b)?|[一-鿿]+)"
_POWERED = (
    rf"(?P<power>sq(?:uare|\.)?|quadrat|cubic|kubik)?\s?(?P<atom>{_ATOM})\.?"
    r"(?:\s?\^?\{?(?P<digit>-?[123])\}?|\s(?P<word>squared|cubed))?"
)
_FIRST = re.compile(rf"\s*{_POWERED}", re.IGNORECASE)
_NEXT = re.compile(rf"\s*(?:(?P<per>/|per\b|pro\b|每)|[·*⋅])\s*(?:an?\s|one\s)?{_POWERED}", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ'’-]{2,}|[aI]|[一-鿿]+")
_NO_NOUN = frozenset(
    "not nor plus minus times divided over half halves third thirds quarter quarters fourth fifth fifths halb more "
    "less pi sqrt log ln sin cos tan exp mod squared cubed factorial infinity one two three four five six seven eight "
    "nine ten eleven twelve".split()
)
"""Words after a number that change it, or make it one of several."""
_ALTERNATIVE = frozenset("or and to und oder bis".split())
"""Words right after a number that lead to another one."""
_EMPTY = frozenset(
    "a an the of in is are was were for each per total altogether all answer as it so that this be every und insgesamt "
    "pro 个 只 条 名 人 本 次 岁 种 支 张 辆 棵".split()
)
"""Words that say nothing about what is counted; among them the measure words of Chinese."""
_MOST_WORDS = 8


@lru_cache(maxsize=2**16)
def read_quantity(text: str) -> Quantity | None:
    r"""The quantity that a text is as a whole, or None.

    Args:
        text: without the marks around it, as :func:`rairl.text.markup.bare` leaves it.
    """
    text = _flat(text) if len(text) <= _LONGEST_TEXT else ""
    match = _QUANTITY.fullmatch(text)
    if match is None or match.start("tail") - match.start("sign") > _LONGEST:
        return None
    number = _value(match)
    if number is None:
        return None
    tail = match["tail"]
    scale = _SCALE.match(tail)
    if scale is not None:
        number, tail = number * _SCALES[scale[1].lower()], tail[scale.end() :]
    named = _unit_and_words(tail, match["currency"].replace("US", "").replace("us", ""))
    return None if named is None else Quantity(number, *named)


_REPEATING = re.compile(r"(\d+)\.(\d*)\\overline\s?\{(\d+)\}")
_NUMERIC_FRACTION = re.compile(r"\\frac\s?\{(-?[\d.,]+)\}\s?\{([\d.,]+)\}")


def _flat(text: str) -> str:
    """Fractions on one line, units without markup."""
    text = _REPEATING.sub(_repeating, text)
    text = _NUMERIC_FRACTION.sub(r" \1/\2", text)
    text = re.sub(r"\^\s?\{?\s?(?:\\circ|°)\s?\}?|\\degree", "°", text)
    text = re.sub(r"\s*\([^()\d]*\)$", "", text.replace("{,}", ","))  # 5 (five)
    text = re.sub(r"\\([%$€£])", r"\1", text.replace("\\pounds", "£").replace("\\euro", "€"))
    return " ".join(text.split())


def _repeating(match: re.Match[str]) -> str:
    whole, start, period = match.groups()
    value = int(whole) + (int(start or 0) + Fraction(int(period), 10 ** len(period) - 1)) / 10 ** len(start)
    return f"{value.numerator}/{value.denominator}"


def _value(match: re.Match[str]) -> Fraction | None:
    if match["sign"] and match["second"]:
        return None
    sign = -1 if "-" in (match["sign"], match["second"]) else 1
    if match["alone"]:
        return sign * Fraction(10) ** int(match["alone"])
    if match["whole"]:
        over, under = int(match["over"]), int(match["under"])
        return sign * (int(match["whole"]) + Fraction(over, under)) if under else None
    if match["top"]:
        top, bottom = _decimal(match["top"]), _decimal(match["bottom"])
        return sign * top / bottom if top is not None and bottom else None
    base = _decimal(match["base"])
    return None if base is None else sign * base * Fraction(10) ** int(match["shift"] or match["e"] or 0)


def _decimal(text: str) -> Fraction | None:
    """The value of digits with points, commas and spaces among them, or None where they are no one number."""
    for form, separators in _NOTATIONS:
        if form.fullmatch(text):
            return Fraction("".join(sign for sign in text if sign not in separators).replace(",", "."))
    return None


def _unit_and_words(tail: str, currency: str) -> tuple[str, frozenset[str]] | None:
    """What stands after the number: a known unit and other words; None where it is neither."""
    unit, rest = _leading_unit(tail, attached=True) if tail and not tail[0].isspace() else ("", tail)
    if rest and not rest[0].isspace() and not unit and not re.match(r"[一-鿿]", rest):
        return None  # 19th, 5!, 3x, 2:1
    words: list[str] = []
    while rest.strip():
        if not unit:
            unit, rest = _leading_unit(rest, attached=False)
            if unit:
                continue
        word = _WORD.match(rest.strip())
        if (
            word is None
            or word[0].lower() in (_NO_NOUN if words or unit else _NO_NOUN | _ALTERNATIVE)
            or len(words) == _MOST_WORDS
            or "半" in word[0]
        ):
            return None
        words.append(word[0].lower())
        rest = rest.strip()[word.end() :].lstrip(",.")
    if currency and unit and not unit.startswith("/"):
        if unit.partition("/")[0] not in (currency, "ct"):
            words.append(unit)
        unit = "/" + unit.partition("/")[2] if "/" in unit else ""
    return currency + unit, frozenset(_singular(word) for word in words if word not in _EMPTY)


def _leading_unit(text: str, *, attached: bool) -> tuple[str, str]:
    """The known unit that ``text`` begins with, in its one form, and what follows it."""
    unit, at = "", 0
    first = _FIRST.match(text)
    if first is not None and (not attached or _singular(first["atom"].lower()) in _ATTACHED):
        unit = _powered(first)
        at = first.end() if unit else 0
    while (more := _NEXT.match(text, at)) is not None and (name := _powered(more)):
        unit += ("/" if more["per"] else "·") + name
        at = more.end()
    return (unit, text[at:]) if unit and unit[0] != "·" else ("", text)


def _powered(match: re.Match[str]) -> str:
    atom = match["atom"].lower()
    name = _UNITS.get(atom) or _UNITS.get(_singular(atom), "")
    power = match["digit"] or ""
    before, after = (match["power"] or "").lower(), (match["word"] or "").lower()
    if before or after:
        power = "3" if "cub" in before + after or "kub" in before else "2"
    return f"{name}^{power}" if name and power not in ("", "1") else name


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


# --- plain numbers ----------------------------------------------------------------------------------------------------


def to_number(text: str) -> Fraction | None:
    r"""The value of a text that is one number, or None.

    Understands a sign, a currency, a trailing ``%`` (25% is 25), and the notations listed at the top of this module.
    """
    found = read_quantity(bare(text))
    if found is None or found.words or found.unit not in ("", "%", *CURRENCIES):
        return None
    return found.number


def format_number(value: Fraction) -> str:
    """A number in its one form: no commas, no trailing zeros; a fraction where no finite decimal exists."""
    if value.denominator == 1:
        return str(value.numerator)
    places = next((places for places in range(1, 13) if (value * 10**places).denominator == 1), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
