"""Faults to put into source text: each sign, min / max and comparison turned round, one by one."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
EXTREMES = {"minimum": "maximum", "min": "max", "amin": "amax", "argmin": "argmax"}
EXTREMES |= {most: least for least, most in EXTREMES.items()}


@dataclass(frozen=True)
class Flip:
    """One fault: where it is, what was changed, and the whole source with it."""

    line: int
    what: str
    source: str


def flips(source: str) -> Iterator[Flip]:
    """Gives every flip of a module's source; annotations and docstrings have none."""
    for place in range(len(spots(ast.parse(source)))):
        tree = ast.parse(source)
        node, change = spots(tree)[place]
        before = ast.unparse(node)
        apply(node, change)
        yield Flip(
            line=node.lineno,  # pyright: ignore[reportAttributeAccessIssue]
            what=f"{before}  ->  {ast.unparse(node)}",
            source=ast.unparse(ast.fix_missing_locations(tree)),
        )


def spots(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """Returns the nodes that can be flipped, in a fixed order, with what to do to each."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not()):
                found.append((node, "drop"))
            case ast.BinOp(op=ast.Add() | ast.Sub()):
                found.append((node, "sign"))
            case ast.AugAssign(op=ast.Add() | ast.Sub()):
                found.append((node, "sign"))
            case ast.Compare():
                found += [(node, f"compare {place}") for place in range(len(node.ops))]
            case ast.Attribute(attr=name) if name in EXTREMES:
                found.append((node, "extreme"))
            case ast.Call():
                found += clamps(node)
            case _:
                pass
    return found


def clamps(call: ast.Call) -> list[tuple[ast.AST, str]]:
    """Returns the bounds of a clamp: each becomes the other one."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "clamp"):
        return []
    named = [word for word in call.keywords if word.arg in ("min", "max")]
    return [(word, "bound") for word in named]


def apply(node: ast.AST, change: str) -> None:
    """Turns one node round, in place."""
    match node:
        case ast.UnaryOp(op=ast.USub()):
            node.op = ast.UAdd()
        case ast.UnaryOp():
            node.operand = ast.UnaryOp(op=node.op, operand=node.operand)  # not not x, ~~x
        case ast.BinOp() | ast.AugAssign():
            node.op = SIGNS[type(node.op)]()
        case ast.Compare():
            place = int(change.split()[1])
            node.ops[place] = COMPARISONS[type(node.ops[place])]()
        case ast.Attribute():
            node.attr = EXTREMES[node.attr]
        case ast.keyword():
            node.arg = EXTREMES[str(node.arg)]
        case _:
            raise TypeError(f"can not flip {ast.dump(node)}")
