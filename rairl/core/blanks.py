"""What stands in a text and says nothing: white space, characters that can't be seen, and lines of mere markup."""

from __future__ import annotations

import re

# Zero-width characters, marks of direction, a soft hyphen, byte order marks; not the selectors and joiners inside an
# emoji, which are part of what is seen.
_UNSEEN = r"\s\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0"
_BODY = re.compile(rf"[^{_UNSEEN}](?:.*[^{_UNSEEN}])?", re.DOTALL)
_MARKUP = re.compile(
    r"""
    (?:`{3,}|~{3,}).{0,40}                                # a fence of code, with its language
    | \\[\[\]()] [.,;]? | \${1,2} [.,;]?                  # delimiters of a formula
    | \\(?:begin|end) [ ]? \{[^{}]*\} (?:\[[^\[\]]*\]|\{[^{}]*\})* [.,;]?
    | \\(?:hline|toprule|midrule|bottomrule|centering|noindent|newpage|\\)
    | -{2,} | (?:-[ ]){2,}- | \*{3,} | _{3,} | —+ | ─+     # a rule
    | \|? [ ]? :?-+:? [ ]? (?:\|[ ]? :?-+:? [ ]?)* \|?      # below the head of a table
    | [-*•>\#]{1} | \#{2,6} | \*\*                        # a list item, a quotation, a heading without a text
    | </? (?:pre|code|details|summary|math|p|div|center|span|ul|ol|li|br|hr|table|tbody|thead|tr|blockquote)\b [^<>]* >
    | <!--.*-->
    | [\x00-\x1f\x7f-\x9f]+                              # nothing but control characters
    """,
    re.VERBOSE | re.IGNORECASE,
)


def body(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Where ``text[start:end]`` begins and ends without what can't be seen around it; None when nothing is left."""
    found = _BODY.search(text, start, end)
    return None if found is None else found.span()


def is_markup(line: str) -> bool:
    """Whether a line, without white space around it, only marks a block: its content is on the lines around it."""
    return _MARKUP.fullmatch(line) is not None


def says_nothing(text: str) -> bool:
    """Whether every line of a text is blank or markup."""
    return all(is_markup(line[slice(*at)]) for line in text.splitlines() if (at := body(line, 0, len(line))))
