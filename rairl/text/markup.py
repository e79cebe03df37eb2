r"""What an answer says, without the marks around it: Markdown, quotes, brackets, fonts and spacing of LaTeX."""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 1000
"""What is longer is no answer; only its white space is looked at."""
_SPACES = re.compile(
    r"(?:(?<!\\)\\[,;: ]|\\q?quad\b|\\(?:thin|med|thick)space\b|~(?=\S)|(?<=\S)~|[\s\u200b\ufeff\u2060])+"
)
_SIGNS = str.maketrans("−–‐‑’‘“”＄％", "----''\"\"$%")
_FULL_WIDTH = re.compile("[\uff01-\uff5e]")
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile(r"(\d?)\s?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sc)?|math(?:bf|it|rm|sf|tt|normal|bb|cal)|operatorname|mbox|hbox|emph|"
    r"boldsymbol|bm|pmb|underline|boxed|fbox|framebox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_INLINE = re.compile(r"\\[()]|(?<![\\\w$])\$(?=[^\s$])([^$]*[^\s$])\$(?![\w$])")
_OLD_FONT = re.compile(r"\{\\(?:bf|rm|it|sf|tt)\b\s*([^{}]*)\}")
_NOTHING = re.compile(
    r"\\(?:left|right|m?left|m?right|[bB]igg?[lr]?|displaystyle|textstyle)\b\.?(?=[\s()\[\]\\|{}.\w]|$)"
)
_FRACTION = re.compile(r"\\[dtc]frac\b")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)")
_PAIRS = (("$$", "$$"), ("\\[", "\\]"), ('"', '"'), ("'", "'"), ("(", ")"), ("[", "]"))


def bare(text: str) -> str:
    r"""The text in plain signs, on one line, without what only marks it.

    ``\boxed{\textbf{(C)}}``, ``**(C)**.`` and ``$C$`` are ``C``; ``12\,\text{cm}`` is ``12 cm``; ``x²`` is ``x^2``. A
    bracket stays where it says something: around a pair (``(1,2)``) or a part (``(x+1)(x-1)``).
    """
    if len(text) > _LONGEST:
        return " ".join(text.split())
    while (plain := _without_marks(text)) != text:
        text = plain
    return text


def _without_marks(text: str) -> str:
    text = _FULL_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text.translate(_SIGNS))
    text = _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("−", "-"), text)
    text = _VULGAR.sub(_on_the_line, text)
    text = _NOTHING.sub("", _FRACTION.sub(r"\\frac", text)).replace("\\!", "")
    text = _OLD_FONT.sub(r"\1", _FONT.sub(_without_font, text))
    text = _SHORT_FRACTION.sub(
        lambda match: "\\frac" + "".join(f"{{{part.strip('{}')}}}" for part in match.groups()), text
    )
    return _inside(_SPACES.sub(" ", _INLINE.sub(lambda match: match[1] or "", text)))


def _on_the_line(match: re.Match[str]) -> str:
    return (match[1] + " " if match[1] else "") + unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")


def _without_font(match: re.Match[str]) -> str:
    """The words of a font command, kept apart from a number before them: ``12\\text{cm}``."""
    before = match.string[: match.start()]
    return (" " if before[-1:].isdigit() else "") + match[1]


def _inside(text: str) -> str:
    """The text without one layer of what surrounds it."""
    text = text.strip(" ,;:*`_。，；：、").removesuffix("\\")
    if text.endswith(".") and not text.endswith("..."):
        return text[:-1]
    for opening, closing in _PAIRS:
        inner = text[len(opening) : -len(closing)]
        if inner and text.startswith(opening) and text.endswith(closing):
            says = r"[()\[\],;]" if opening in "([" else re.escape(opening)
            if not re.search(says, inner):
                return inner
    if text[:1] in ("(", "[") and not re.search(r"[)\]]", text):
        return text[1:]
    if text[-1:] in (")", "]") and not re.search(r"[(\[]", text):
        return text[:-1]
    return text
