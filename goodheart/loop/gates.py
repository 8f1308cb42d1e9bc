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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from goodheart.errors import ConfigError, GateError
from goodheart.loop.expressions import (
    COMPARE,
    COMPUTE,
    is_finite,
    is_truth,
    keys_meant,
    names_in,
    parse,
    parts_of,
    plain,
)
from goodheart.train.config import nearest

_SHOWN = 200  # characters of a gate in an error


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
        where = _where(place, text)
        tree = parse(text, where, stages)
        roots = {name: _stage(name, stages, where) for name in names_in(tree, where)}
        if not roots:
            raise ConfigError(f"{where}it names no result; begin with a stage: {', '.join(stages)}")
        if not is_truth(tree):
            raise ConfigError(f"{where}it compares nothing; write for example `{text} > 0.5`")
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
        self.where = _where(gate.place, gate.text)
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
                computed = COMPUTE[type(node.op)](left, right)
            except (ZeroDivisionError, OverflowError) as error:
                raise self._cannot(node, error) from error
            if not is_finite(computed):
                raise self._cannot(node, OverflowError("the result is too large"))
            return computed
        return self._result(parts_of(node))

    def _numbers(self, node: ast.expr, *parts: ast.expr) -> list[float]:
        values = [self.value(part) for part in parts]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._cannot(node, TypeError(f"{value!r:.60} is no number"))
        return values

    def _compare(self, node: ast.Compare) -> bool:
        values = [self.value(part) for part in (node.left, *node.comparators)]
        try:
            return all(COMPARE[type(op)](*values[i : i + 2]) for i, op in enumerate(node.ops))
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
            keys = keys_meant(part, found)
            if not keys:
                known = [plain(str(name)) for name in found]
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
        if not is_finite(found):
            raise GateError(f"{self.where}`{path}` is {found}: not a finite number, so what was measured went wrong")
        self.seen.append(f"{path} = {_number(found)}{_interval(around)}")
        return found


def _where(place: str, text: str) -> str:
    """How an error about a gate begins."""
    return f"{place}gate `{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}`: "


def _stage(name: str, stages: Sequence[str], where: str) -> str:
    found = keys_meant(name, dict.fromkeys(stages))
    if not found:
        raise ConfigError(f"{where}no stage `{name}`{nearest(name, [plain(stage) for stage in stages])}")
    if len(found) > 1:
        meant = " or ".join(f"`{stage}`" for stage in found)
        raise ConfigError(f"{where}`{name}` may be the stage {meant}: rename one of them")
    return found[0]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(around: Any) -> str:
    """The interval of a measured value, and how much it was measured on."""
    if not isinstance(around, Mapping) or not {"value", "low", "high"} <= around.keys():
        return ""
    count = f", n = {around['n']}" if "n" in around else ""
    value, low, high = (_number(around[name]) for name in ("value", "low", "high"))
    return f" ({value}, 95 % interval {low} to {high}{count})"
