"""What equations may say: every text is read over an allow-list before Brian2 sees it.

Brian2 and sympy evaluate what they read: a string in a call would run as Python.  What may stand
here is numbers, names, calls of known functions, arithmetic, comparisons and ``and``, ``or``,
``not``; the lines are divided as Brian2 divides them.  Formulas are bounded, too: written out, with
subexpressions put in and powers multiplied out, they stay of a size that sympy can hold.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from biograd.brian.import_brian2 import import_brian2
from biograd.errors import RecipeError, brief, nearest
from biograd.recipes import PopulationRecipe

LONGEST, DEEPEST = 20_000, 200
"""Characters of a text; levels of brackets and operations in a formula."""
MOST_PARTS, MOST_TERMS = 20_000, 5_000
"""Numbers, names and operations of a formula when it is written out; terms when multiplied out."""
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
TOO_LONG = "a formula is too long: give parts of it names, in lines like 'part = ... : 1'"
STATEMENT = re.compile(r"(\w+)\s*(\+|-|\*|/|//|%|\*\*)?=(?!=)(.*)", re.S)
NAMES = re.compile(r"[A-Za-z_]\w*", re.A)

Size = tuple[int, float]
"""Parts and terms of a formula."""


def parse(text: str, longest: int = LONGEST) -> ast.expr:
    """Return the syntax tree of a formula; nothing of it is evaluated or checked.

    Raises:
        SyntaxError: it is none, too long, too deep, or has other letters than ASCII.
    """
    if len(text) > longest:
        raise SyntaxError(f"longer than {longest} characters")
    if not text.isascii():
        raise SyntaxError("only ASCII letters may stand outside of comments")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (RecursionError, MemoryError):
        raise SyntaxError(TOO_LONG) from None
    except ValueError as error:
        raise SyntaxError(str(error)) from None


def check_texts(
    recipe: PopulationRecipe, where: str, constants: Mapping[str, Any], regular: Iterable[str]
) -> None:
    """Check every text of a population.

    Args:
        constants: Python objects; those that can be called may be called by their names.
        regular: statements beside those of the recipe.

    Raises:
        RecipeError: what may not stand there.
    """
    language = Language(where, [name for name, value in constants.items() if callable(value)])
    language.equations(recipe.equations)
    for key in ("threshold", "refractory"):
        if getattr(recipe, key):
            language.expression(getattr(recipe, key), key)
    for key in ("reset", "update"):
        language.statements(getattr(recipe, key), key)
    for code in regular:
        language.statements(code, "run_regularly")


class Language:
    """The allow-list of one population.

    Args:
        where: opens every message.
        functions: names that can be called beside Brian2's own functions.
    """

    def __init__(self, where: str, functions: Collection[str] = ()) -> None:
        self.where = where
        self.functions = {*import_brian2().core.functions.DEFAULT_FUNCTIONS, *functions}

    def equations(self, text: str, key: str = "equations") -> None:
        """Check equations, ``dx/dt = ... : unit (flags)`` and the like, before Brian2 does.

        Raises:
            RecipeError: what may not stand there.
        """
        import pyparsing
        from brian2.equations.equations import EQUATIONS, SUBEXPRESSION

        self._plain(text, key)
        try:
            found = list(EQUATIONS.parse_string(text, parse_all=True))
        except (pyparsing.ParseException, RecursionError) as error:
            line = getattr(error, "line", "").strip() or text
            raise self._refusal(key, line, "is no equation") from None
        formulas, put_in = [], {}
        for one in found:
            self._formula(one["unit"], key, calls=False)
            if "expression" in one:
                formulas.append(self._formula(one["expression"], key))
                if one.get_name() == SUBEXPRESSION:
                    put_in[one["identifier"]] = formulas[-1]
        sizes = _Sizes(put_in)
        for formula in formulas:
            self._bounded(formula, sizes, key)

    def statements(self, text: str, key: str) -> None:
        """Check statements, ``x = ...`` or ``x += ...``, divided by lines and semicolons.

        Raises:
            RecipeError: what may not stand there.
        """
        self._plain(text, key)
        for line in re.split(r"[;\n]", text):  # as Brian2 does it: also within comments
            code = line.partition("#")[0].strip()
            if not code:
                continue
            found = STATEMENT.fullmatch(code)
            if found is None or not NAMES.fullmatch(found[1]):
                raise self._refusal(key, code, "is no statement 'x = ...' or 'x += ...'")
            self._bounded(self._formula(found[3], key), _Sizes({}), key)

    def expression(self, text: str, key: str) -> None:
        """Check a formula or a condition.

        Raises:
            RecipeError: what may not stand there.
        """
        self._plain(text, key)
        self._bounded(self._formula(text, key), _Sizes({}), key)

    def _refusal(self, key: str, what: str, why: str) -> RecipeError:
        return RecipeError(f"{self.where}.{key}: {brief(what)!r} {why}")

    def _plain(self, text: str, key: str) -> None:
        """Refuse long texts, control characters, and letters that only look like ASCII."""
        if len(text) > LONGEST:
            raise self._refusal(key, text, f"is longer than {LONGEST} characters")
        for line in text.split("\n"):
            code, _, comment = line.partition("#")
            odd = [c for c in code if not (" " <= c <= "~" or c == "\t")]
            odd += [c for c in comment if not (c.isprintable() or c == "\t")]
            if odd:
                raise self._refusal(key, odd[0], "may not stand there: write ASCII")

    def _formula(self, text: str, key: str, calls: bool = True) -> ast.expr:
        """Return the tree of a formula, every part of which is on the allow-list."""
        try:
            tree = parse(text)
            nodes = list(_walk(tree))
        except SyntaxError as error:
            raise RecipeError(f"{self.where}.{key}: {error.msg} (in: {brief(text)})") from None
        for node in nodes:
            why = self._fault(node, calls)
            if why:
                raise self._refusal(key, ast.unparse(node), why)
        return tree

    def _fault(self, node: ast.expr, calls: bool) -> str:
        """Return why a node may not stand in a formula; "": it may."""
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return ""
            case ast.Name(id=name):
                return "" if "__" not in name else "is no name of a variable: it has two '_'"
            case ast.UnaryOp(op=ast.UAdd() | ast.USub() | ast.Not()) | ast.BoolOp():
                return ""
            case ast.BinOp(op=sign):
                known = type(sign) in BINARY
                return "" if known else "is no arithmetic: + - * / // % ** are known"
            case ast.Compare(ops=[sign]):
                return "" if isinstance(sign, COMPARISONS) else "is no comparison of numbers"
            case ast.Compare():
                return "compares several things at once: write 'a < b and b < c'"
            case ast.Call(func=ast.Name(id=name), keywords=[]) if calls:
                known = name in self.functions
                return "" if known else f"calls no known function: {nearest(name, self.functions)}"
        kind = type(node.value if isinstance(node, ast.Constant) else node).__name__
        return f"may not stand in a formula ({kind}): numbers, names, known functions, operators do"

    def _bounded(self, tree: ast.expr, sizes: _Sizes, key: str) -> None:
        """Refuse numbers that overflow and formulas that explode when they are written out."""
        try:
            parts, terms = sizes.of(tree)
        except (ArithmeticError, ValueError) as error:
            raise self._refusal(key, ast.unparse(tree), f"is no number: {error}") from None
        if parts > MOST_PARTS or terms > MOST_TERMS:
            what = f"{parts} parts" if parts > MOST_PARTS else f"{terms:.0f} terms"
            raise self._refusal(key, ast.unparse(tree), f"has {what} when it is written out")


class _Sizes:
    """Bounds for how large formulas become when subexpressions are put into them."""

    def __init__(self, formulas: Mapping[str, ast.expr]) -> None:
        self.formulas = formulas
        self._known: dict[str, Size] = {}

    def of(self, node: ast.AST) -> Size:
        """Return how many parts a formula has, and how many terms if it is multiplied out.

        Raises:
            ArithmeticError, ValueError: a number in it overflows, or is none.
        """
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Constant():
                _number(node)
            case ast.BinOp(left=left, op=sign, right=right):
                _number(node)
                (parts, terms), (more, others) = self.of(left), self.of(right)
                parts += more + 1
                if isinstance(sign, (ast.Add, ast.Sub)):
                    return parts, terms + others
                if isinstance(sign, ast.Pow):
                    return parts, max(_expanded(terms, right), others)
                return parts, min(terms * others, 2.0 * MOST_TERMS)
        children = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]
        found = [self.of(child) for child in children]
        return 1 + sum(parts for parts, _ in found), max([1, *(terms for _, terms in found)])

    def _named(self, name: str) -> Size:
        if name in self.formulas and name not in self._known:
            self._known[name] = 1, 1  # what refers to itself Brian2 refuses
            self._known[name] = self.of(self.formulas[name])
        return self._known.get(name, (1, 1))


def _expanded(terms: float, exponent: ast.expr) -> float:
    """Return into how many terms a power is multiplied out."""
    power = sum(abs(_number(n) or 0.0) for n in _walk(exponent) if isinstance(n, ast.Constant))
    if terms == 1 or power <= 1:
        return terms
    if power + terms > MOST_TERMS:
        return 2.0 * MOST_TERMS
    return min(float(math.comb(int(power + terms) - 1, int(terms) - 1)), 2.0 * MOST_TERMS)


def _number(node: ast.expr) -> float | None:
    """Return the value of a formula of numbers alone; None: there are names in it."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return _real(float(value))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            found = _number(operand)
            return -found if found is not None and isinstance(sign, ast.USub) else found
        case ast.BinOp(left=left, op=sign, right=right):
            first, second = _number(left), _number(right)
            if first is None or second is None:
                return None
            return _real(BINARY[type(sign)](first, second))
    return None


def _real(value: complex) -> float:
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError("not real and finite")
    return float(value)


def _walk(tree: ast.expr) -> Iterator[ast.expr]:
    """Yield all parts of a formula.

    Raises:
        SyntaxError: it is nested too deeply.
    """
    left = [(tree, 1)]
    while left:
        node, depth = left.pop()
        if depth > DEEPEST:
            raise SyntaxError(TOO_LONG)
        yield node
        children = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
        left += [(child, depth + 1) for child in children]
