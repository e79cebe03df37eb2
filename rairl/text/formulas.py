r"""Whether two formulas are equal: math-verify's parser reads them, and its comparison decides on sets and equations.

It answers wrongly, or not at all, for some texts, and is kept from them:

- it reads a part of a text (``1 2/3``), or prose as a product of letters (``Type 2 diabetes``); only what is a formula
  as a whole is handed over (:func:`as_latex`);
- it stops what takes too long by ``signal.alarm``, which works in the main thread only. Here nothing takes long: texts
  are short, two expressions are compared by value, in numbers of bounded size, and no expression is simplified.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from rairl.core.errors import RairlError

_LONGEST = 200
_MOST_NODES = 150
_DIGITS = 80
_LARGEST = "1e400"
_POINTS = 3
"""Where two expressions with variables must agree."""
_FUNCTIONS = "sqrt log ln lg sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp pi max min gcd lcm".split()
_LETTERS = {
    "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "θ": "\\theta ",
    "λ": "\\lambda ", "μ": "\\mu ", "σ": "\\sigma ", "φ": "\\phi ", "ω": "\\omega ", "Δ": "\\Delta ", "°": "^\\circ ",
}  # fmt: skip
_UNREADABLE = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf|partial|nabla|[pb]?mod|det|gcd|lcm|[lcd]?dots|overline|end\{[a-z]+\}\s*\^)"
    r"(?![a-zA-Z])"
)
"""What would have to be worked out, and what the parser drops in silence."""
_RUN = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")
_EVIDENCE = re.compile(r"\\[A-Za-z]|[\d^=<>+*/|!\-{},]")
_NO_FORMULA = re.compile(r"(?<![\\A-Za-z])[A-Za-z]\d|\d\s+\d|[^\x00-\x7f]|[\"'?@#$`:]|(?<!\d)\.|\.(?!\d)|,\s*$")
_BINOMIAL = re.compile(r"\\binom\s*\{[^{}]{1,6}\}\s*\{[^{}]{1,6}\}")
_NAME = re.compile(
    r"((?:[A-Za-z]|[A-Z]?[a-z]{2,12}(?: [a-z]{2,12})?|\\[A-Za-z]{2,8})(?:_\{?\w{1,5}\}?)?(?:\s?\([a-zA-Z]\))?)\s*"
    r"(?:=|\\in\b|∈)\s*(?:[^=]+=\s*)*([^=]+)"
)
_TERMS = r"(?:[\d\s.,+*/()^×÷·-]|\\times|\\cdot|\\div)+"
_SUM = re.compile(rf"{_TERMS}(?:={_TERMS})*=\s*([^=]+)")


def split_equation(text: str) -> tuple[str, str]:
    """Name and value of an equation: ``x`` and ``5`` of ``x = 5``, none and ``5`` of ``2 + 3 = 5`` and of ``5``."""
    if (match := _NAME.fullmatch(text)) is not None:
        return match[1].replace(" ", ""), match[2].strip()
    match = _SUM.fullmatch(text)
    return "", text if match is None else match[1].strip()


@lru_cache(maxsize=2**14)
def as_latex(text: str) -> str | None:
    """A text that is a formula as a whole, in LaTeX; None for prose, and for what is too long to be an answer.

    Args:
        text: as :func:`rairl.text.markup.bare` leaves it.
    """
    if len(text) > _LONGEST or text.count("^") > 12 or _UNREADABLE.search(text):
        return None
    text = re.sub(r"√\s?(\d+|[a-z])", r"\\sqrt{\1}", text.replace("**", "^"))
    text = "".join(_LETTERS.get(sign, sign) for sign in text)
    text = re.sub(rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)})(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:,?\s*(?:and|or|und|oder)\b)(?![A-Za-z])", ",", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = (
        re.sub(r"(?<![\d,])(\d{1,3}(?:,\d{3})+)(?![\d,])", _ungrouped, text) if not re.search(r"[(\[{]", text) else text
    )
    if _NO_FORMULA.search(text) or not _EVIDENCE.search(text) or not re.search(r"[\dA-Za-z]", text):
        return None
    if not all(_may_be_variables(run, text) for run in _RUN.findall(re.sub(r"\\(?:begin|end)\{\w+\}", "", text))):
        return None
    if text.count("\\binom") != len(_BINOMIAL.findall(text)) or "choose" in text:
        return None
    return text


def _ungrouped(match: re.Match[str]) -> str:
    return match[1].replace(",", "")


def _may_be_variables(run: str, text: str) -> bool:
    if run.startswith("\\") or len(run) == 1:
        return True
    return len(run) <= 3 and run.islower() and re.search(r"[\^=+*/\\]|\d" + run, text) is not None


@lru_cache(maxsize=2**14)
def same_formula(one: str, other: str) -> bool:
    """Whether two formulas, in LaTeX, are equal; what can't be read is not.

    Raises:
        RairlError: when math-verify is not installed.
    """
    left, right = _parsed(one), _parsed(other)
    if left is None or right is None:
        return False
    from sympy import Expr

    try:
        both = isinstance(left, Expr) and isinstance(right, Expr)
        return _same_value(left, right) if both else _same_whole(left, right)
    except Exception:  # whatever sympy raises at the logarithm of a matrix
        return False


@lru_cache(maxsize=2**14)
def _parsed(latex: str) -> Any:
    """The expression, or None where the parser does not take the whole text, or where it is very large."""
    try:
        import math_verify  # noqa: F401
        from latex2sympy2_extended import NormalizationConfig, latex2sympy
        from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    except ImportError as error:
        raise RairlError(f"comparing the formula {latex[:40]!r} needs `pip install math-verify`") from error
    from sympy import nan, preorder_traversal, zoo

    try:
        found = latex2sympy(
            latex,
            is_real=True,
            normalization_config=NormalizationConfig(malformed_operators=True, nits=True, boxed="none"),
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        nodes = list(preorder_traversal(found))
    except Exception:  # whatever its grammar and sympy raise
        return None
    return None if len(nodes) > _MOST_NODES or nan in nodes or zoo in nodes else found


def _same_value(one: Any, other: Any) -> bool:
    """Whether two expressions agree at some points; decimals agree with what they are rounded from, to six places."""
    from sympy import Float

    names = sorted({symbol.name for symbol in one.free_symbols | other.free_symbols})
    rounded = isinstance(one, Float) != isinstance(other, Float)
    for point in range(_POINTS if names else 1):
        values = {
            name: Float(str((-1) ** (point * at + point) * (at + 2) ** 0.5 / (point + 1)), _DIGITS)
            for at, name in enumerate(names)
        }
        left, right = _value(one, values), _value(other, values)
        if left is None or right is None:
            return bool(one == other)
        if abs(left - right) > (5e-7 if rounded else abs(left) * Float("1e-60") + Float("1e-60")):
            return False
    return True


def _value(expression: Any, at: dict[str, Any]) -> Any:
    """The number that an expression is, or None; from the inside out, so that no number grows beyond bounds."""
    from sympy import Float, Symbol

    if isinstance(expression, Symbol):
        return at[expression.name]
    if isinstance(expression, Float):
        found = Float(str(expression), _DIGITS)  # 0.1 as it was written, not as the machine holds it
    elif not expression.args:
        found = expression.evalf(_DIGITS)
    else:
        parts = [_value(part, at) for part in expression.args]
        if None in parts:
            return None
        found = expression.func(*parts).evalf(_DIGITS)
    if not found.is_number or found.is_finite is not True or abs(found) > Float(_LARGEST):
        return None
    return found


def _same_whole(one: Any, other: Any) -> bool:
    """Whether two sets, tuples, matrices or equations are equal, by math-verify, which is asked both ways round."""
    if one == other:
        return True
    if not (_easy(one) and _easy(other)):
        return False
    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it does not watch the time
    return bool(verify(one, other, timeout_seconds=None) or verify(other, one, timeout_seconds=None))


def _easy(whole: Any) -> bool:
    """Whether comparing takes no time: numbers of bounded size, and variables in sums, products and squares only."""
    from sympy import Add, Expr, Mul, Pow, Symbol, preorder_traversal

    for node in preorder_traversal(whole):
        if not isinstance(node, Expr) or isinstance(node, Symbol):
            continue
        if not node.free_symbols:
            if node.is_finite is not False and _value(node, {}) is None:
                return False
        elif not isinstance(node, (Add, Mul)) and not (isinstance(node, Pow) and node.exp in (-1, 2)):
            return False
    return True
