"""One file per objective; the file's name is the objective's, and being here registers it."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from logratio.settings import Refused, unknown

if TYPE_CHECKING:
    from logratio.objective import Objective


def names() -> list[str]:
    """Returns the names of all registered objectives."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> "Objective":
    """Returns an objective by name, or by import path: `my_file.py:mine`, `package.file:mine`."""
    place, _, attribute = name.rpartition(":")
    if not place and name not in names():
        raise Refused(unknown("objective", name, names(), owner="logratio"))
    if place.endswith(".py"):
        module = load_file(Path(place))
    else:
        module = importlib.import_module(place or f"{__name__}.{name}")
    if not hasattr(module, attribute):
        raise Refused(unknown("objective", attribute, vars(module), owner=place))
    return getattr(module, attribute)


def load_file(path: Path) -> object:
    """Returns a user's Python file as a module."""
    if not path.is_file():
        raise Refused(f"`{path}` is not a file, but it must be a Python file with an objective")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Refused(f"`{path}` can not be imported, but it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
