"""Every default is a value that its own setting allows: nobody types it, so nothing checks it."""

import inspect
import typing

import pytest

from logratio.average import AVERAGES
from logratio.credit import CREDITS
from logratio.keep import KEEPS
from logratio.objectives import find, names
from logratio.settings import allowed, defaults
from logratio.weight import WEIGHTS

TABLES = {"average": AVERAGES, "credit": CREDITS, "keep": KEEPS, "weight": WEIGHTS}
FUNCTIONS = {
    **{
        f"{table} {name}": part.function
        for table, parts in TABLES.items()
        for name, part in parts.items()
    },
    **{f"loss {name}": find(name).loss.function for name in names()},
    **{f"coefficient {name}": find(name).coefficient for name in names()},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_default_is_allowed(name):
    function = FUNCTIONS[name]
    hints = typing.get_type_hints(function, include_extras=True)
    for setting, value in defaults(function).items():
        if value is not inspect.Parameter.empty:
            assert allowed(value, hints[setting])
