"""A question to the index, as text: which samples. It can compare and join, and run nothing."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gazeprep.schema import CHEXPERT_LABELS

# What a query may be made of: comparisons of columns with values. No calls, no attributes, no names from outside.
ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.boolop,
    ast.UnaryOp,
    ast.unaryop,
    ast.BinOp,
    ast.BitAnd,
    ast.BitOr,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.Compare,
    ast.cmpop,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.List,
    ast.Tuple,
)
LONGEST_QUERY = 10_000  # characters


def matches(query: str, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Tell which rows of the index a query chooses, as in "has_gaze and Pleural_Effusion == 1".

    Columns are those of the index and the 14 labels, blanks as underscores. Raises ValueError on anything but
    comparisons of columns with values.
    """
    table = pd.DataFrame(rows).drop(columns="labels")
    labels = np.array([row["labels"] for row in rows])
    for i, name in enumerate(CHEXPERT_LABELS):
        table[name.replace(" ", "_")] = labels[:, i]
    _check_query(query, set(table.columns))
    try:
        taken = table.eval(query, engine="python", local_dict={}, global_dict={})
    except (ValueError, TypeError, KeyError, NameError, SyntaxError, NotImplementedError, AttributeError) as error:
        raise ValueError(f"the query cannot be answered ({type(error).__name__}); compare like with like") from None
    if not isinstance(taken, pd.Series) or taken.dtype != np.bool_:
        raise ValueError('the query gives no yes or no for each sample; write a comparison, as in "sentences > 2"')
    return [bool(one) for one in taken]


def _check_query(query: str, columns: set[str]) -> None:
    if len(query) > LONGEST_QUERY:
        raise ValueError(f"the query has {len(query)} characters; list keys in a file for --keys instead")
    try:
        nodes = list(ast.walk(ast.parse(query.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError('the query is no expression; write it as in "has_gaze and sentences > 2"') from None
    odd = sorted({type(node).__name__ for node in nodes if not isinstance(node, ALLOWED)})
    if odd:
        raise ValueError(
            f"the query holds {', '.join(odd)}; it may compare columns with values and join that by and, or"
        )
    sides = [side for node in nodes if isinstance(node, ast.BinOp) for side in (node.left, node.right)]
    if any(isinstance(side, ast.Constant | ast.List | ast.Tuple) and not _is_number(side) for side in sides):
        raise ValueError("the query calculates with text or lists; calculate with numbers and columns alone")
    unknown = [node.id for node in nodes if isinstance(node, ast.Name) and node.id not in columns]
    if unknown:
        raise ValueError(
            "the query names what is no column; text stands in quotes, as in view_position == 'PA'; columns are "
            + ", ".join(sorted(columns))
        )


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float, bool)
