"""One file per objective; the file's name is the objective's, and being here registers it."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
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
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place or name)
    found = vars(module).get(attribute)
    if found is None or type(found).__name__ != "Objective":
        known = [key for key, value in vars(module).items() if type(value).__name__ == "Objective"]
        raise Refused(unknown("objective", attribute, known, owner=place))
    return found


def load_module(place: str) -> ModuleType:
    """Returns a registered objective's module, or any other by its dotted path."""
    path = f"{__name__}.{place}" if place in names() else place
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise Refused(f"`{place}` is not a module that can be imported, but it must be a dotted "
                      "path, or a file that ends in .py") from error  # fmt: skip


def load_file(path: Path) -> ModuleType:
    """Returns a user's Python file as a module."""
    if not path.is_file():
        raise Refused(f"`{path}` is not a file, but it must be a Python file with an objective")
    name = f"logratio_user_{abs(hash(path.resolve()))}"  # no other module has such a name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refused(f"`{path}` can not be imported, but it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
