"""Gates: expressions over the stages' results that must hold for a pipeline to go on.

    gates:
      - reward.accuracy > 0.6 and reward.accuracy > reward.always_longest
      - evaluate.models.ppo.harmful.high < 0.02

A name begins with a stage and goes on with the keys of its results. Where a key is no Python name, `_` stands for each
other sign (`answers-ppo` is `answers_ppo`, `objective/kl` is `objective_kl`), or it stands in brackets:
`ppo["objective/kl"]`. A measured value with its interval ({"value", "low", "high", "n"}) counts as its value.

Only names, numbers, texts, comparisons, and, or, not, + - * / are read; nothing is ever executed.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from goodheart.errors import ConfigError, GateError
from goodheart.train.config import nearest

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_COMPUTE: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ALLOWED = "a gate has names of results, numbers, texts, < <= > >= == !=, and, or, not, + - * /"
_LONGEST = 500  # characters
_DEEPEST = 50  # parts inside each other; more would exhaust the stack


@dataclass(frozen=True)
class Finding:
    """One comparison of a gate: whether it holds, and the values in it."""

    text: str
    holds: bool
    values: tuple[str, ...]  # `reward.accuracy = 0.61 (95 % interval 0.58 to 0.64, n = 900)`


@dataclass(frozen=True)
class Verdict:
    """What a gate came to."""

    holds: bool
    findings: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """The evidence, one line for each comparison."""
        return [f"{'holds' if f.holds else 'fails'}  {f.text}    {'; '.join(f.values)}" for f in self.findings]


@dataclass(frozen=True)
class Gate:
    """An expression that must hold, checked when the last of the stages it names has finished."""

    text: str
    place: str  # "goodheart.yaml:12: "
    tree: ast.expr = field(repr=False, compare=False)
    roots: Mapping[str, str] = field(repr=False, compare=False)  # name as written -> stage

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.roots.values()))

    @classmethod
    def parse(cls, text: Any, place: str, stages: Sequence[str]) -> Gate:
        """Reads an expression.

        Raises:
            ConfigError: it is not one, has something else than is allowed, or names an unknown stage.
        """
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{place}a gate is an expression such as `evaluate.models.ppo.harmful.high < 0.02`")
        if len(text) > _LONGEST:
            raise ConfigError(f"{place}a gate of {len(text)} characters; make several gates of it")
        where = f"{place}gate `{text}`: "
        tree = _tree(text, where, stages)
        roots = {name: _stage(name, stages, where) for name in _check(tree, where)}
        if not roots:
            raise ConfigError(f"{place}gate `{text}`: it names no result; begin with a stage: {', '.join(stages)}")
        if not _is_truth(tree):
            raise ConfigError(f"{place}gate `{text}`: it compares nothing; write for example `{text} > 0.5`")
        return cls(text, place, tree, roots)

    def check(self, results: Mapping[str, Mapping[str, Any]]) -> Verdict:
        """Whether the gate holds.

        Args:
            results: stage -> its results.

        Raises:
            ConfigError: a result does not exist (with the nearest name), or cannot be compared.
            GateError: a result has no value, because nothing was measured, or is not finite.
        """
        findings: list[Finding] = []
        holds = _Evaluation(self, results, findings).truth(self.tree)
        return Verdict(holds, tuple(findings))


class _Evaluation:
    """One walk over a gate's expression; every comparison met on the way becomes a finding."""

    def __init__(self, gate: Gate, results: Mapping[str, Mapping[str, Any]], findings: list[Finding]) -> None:
        self.gate, self.results, self.findings = gate, results, findings
        self.where = f"{gate.place}gate `{gate.text}`: "
        self.seen: list[str] = []  # values met in the comparison at hand

    def truth(self, node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            # all parts, not only as many as decide: the evidence is worth more than the time
            parts = [self.truth(part) for part in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp):
            return not self.truth(node.operand)
        self.seen = []
        holds = self._compare(node) if isinstance(node, ast.Compare) else self.value(node)
        if not isinstance(holds, bool):
            raise ConfigError(f"{self.where}`{ast.unparse(node)}` is {holds!r}, which is neither true nor false")
        self.findings.append(Finding(ast.unparse(node), holds, tuple(dict.fromkeys(self.seen))))
        return holds

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp):
            operand = self._numbers(node, node.operand)[0]
            return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp):
            left, right = self._numbers(node, node.left, node.right)
            try:
                computed = _COMPUTE[type(node.op)](left, right)
            except (ZeroDivisionError, OverflowError) as error:
                raise self._cannot(node, error) from error
            if not _is_finite(computed):
                raise self._cannot(node, OverflowError("the result is too large"))
            return computed
        return self._result(_parts(node))

    def _numbers(self, node: ast.expr, *parts: ast.expr) -> list[float]:
        values = [self.value(part) for part in parts]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._cannot(node, TypeError(f"{value!r:.60} is no number"))
        return values

    def _compare(self, node: ast.Compare) -> bool:
        values = [self.value(part) for part in (node.left, *node.comparators)]
        try:
            return all(_COMPARE[type(op)](*values[i : i + 2]) for i, op in enumerate(node.ops))
        except TypeError as error:
            raise self._cannot(node, error) from error

    def _cannot(self, node: ast.expr, error: Exception) -> ConfigError:
        return ConfigError(f"{self.where}`{ast.unparse(node)}` cannot be computed: {error}")

    def _result(self, parts: list[str]) -> Any:
        stage = self.gate.roots[parts[0]]
        around: Any = None
        found: Any = self.results.get(stage, {})
        path = parts[0]
        for part in parts[1:]:
            if not isinstance(found, Mapping):
                raise ConfigError(f"{self.where}`{path}` is {found!r:.60}, it has no `{part}`")
            keys = _keys(part, found)
            if not keys:
                known = [_plain(str(name)) for name in found]
                raise ConfigError(f"{self.where}`{path}` has no result `{part}`{nearest(part, known)}")
            if len(keys) > 1:
                meant = " or ".join(f'{path}["{key}"]' for key in keys)
                raise ConfigError(f"{self.where}`{path}.{part}` may be several results: write {meant}")
            around, found, path = found, found[keys[0]], f"{path}.{part}"
        if isinstance(found, Mapping) and "value" in found:
            around, found = found, found["value"]
        if isinstance(found, Mapping | list):
            inside = f": name one of {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
            raise ConfigError(f"{self.where}`{path}` is no single value{inside}")
        if found is None:
            raise GateError(f"{self.where}`{path}` has no value: nothing was measured")
        if not _is_finite(found):
            raise GateError(f"{self.where}`{path}` is {found}: not a finite number, so what was measured went wrong")
        self.seen.append(f"{path} = {_number(found)}{_interval(around)}")
        return found


def _tree(text: str, where: str, stages: Sequence[str]) -> ast.expr:
    """The expression as Python reads it, if it is not too deep."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        unsayable = [name for name in stages if _is_unsayable(name) and re.search(rf"(?<!\w){_plain(name)}\b", text)]
        if unsayable:
            reason = f"a name cannot begin with a digit or be a word of Python; rename the stage `{unsayable[0]}`"
        raise ConfigError(f"{where}cannot be read: {reason}; {_ALLOWED}") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"{where}too many parts inside each other; make several gates of it") from error
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [part for node in level for part in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise ConfigError(f"{where}too many parts inside each other; make several gates of it")


def _is_unsayable(stage: str) -> bool:
    """Whether a stage has a name that no expression can hold."""
    return not _plain(stage).isidentifier() or keyword.iskeyword(_plain(stage))


def _check(node: ast.expr, where: str, *, in_number: bool = False) -> list[str]:
    """The first parts of all names in an expression; refuses everything that a gate may not have.

    Args:
        node: the expression.
        where: begins the error.
        in_number: whether a number or text is wanted, since it stands in a comparison or a computation.
    """
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        return [_parts(node, where)[0]]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str) and _is_finite(node.value):
        return []
    inner: list[ast.expr] | None = None
    if isinstance(node, ast.BoolOp):
        inner, is_truth = node.values, True
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.UAdd):
        inner, is_truth = [node.operand], isinstance(node.op, ast.Not)
    elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTE:
        inner, is_truth = [node.left, node.right], False
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        inner, is_truth = [node.left, *node.comparators], True
    if inner is None:
        raise ConfigError(f"{where}`{ast.unparse(node)}` is not allowed; {_ALLOWED}")
    if is_truth and in_number:
        raise ConfigError(f"{where}`{ast.unparse(node)}` is true or false: neither compare it nor compute with it")
    number = isinstance(node, ast.Compare) or not is_truth
    return [name for part in inner for name in _check(part, where, in_number=number)]


def _is_truth(node: ast.expr) -> bool:
    """Whether the expression can be true or false; a bare name may be a result that is."""
    if isinstance(node, ast.BoolOp):
        return all(_is_truth(part) for part in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not) and _is_truth(node.operand)
    return isinstance(node, ast.Compare | ast.Attribute | ast.Subscript)


def _parts(node: ast.expr, where: str = "") -> list[str]:
    """`ppo["objective/kl"].high` -> ppo, objective/kl, high."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_parts(node.value, where), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return [*_parts(node.value, where), node.slice.value]
    raise ConfigError(f"{where}`{ast.unparse(node)}` is not allowed; {_ALLOWED}")


def _stage(name: str, stages: Sequence[str], where: str) -> str:
    found = _keys(name, dict.fromkeys(stages))
    if not found:
        raise ConfigError(f"{where}no stage `{name}`{nearest(name, [_plain(stage) for stage in stages])}")
    if len(found) > 1:
        meant = " or ".join(f"`{stage}`" for stage in found)
        raise ConfigError(f"{where}`{name}` may be the stage {meant}: rename one of them")
    return found[0]


def _keys(part: str, known: Mapping[str, Any]) -> list[str]:
    """The keys that a part may mean: its own, or those that read so with `_` for every other sign."""
    return [part] if part in known else [key for key in known if _plain(str(key)) == part]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(around: Any) -> str:
    """The interval of a measured value, and how much it was measured on."""
    if not isinstance(around, Mapping) or not {"value", "low", "high"} <= around.keys():
        return ""
    count = f", n = {around['n']}" if "n" in around else ""
    value, low, high = (_number(around[name]) for name in ("value", "low", "high"))
    return f" ({value}, 95 % interval {low} to {high}{count})"
