"""What pytest does differently when mutmut runs it; `tools/mutants.py` loads this with `-p`.

The fork server loads this once, so what is loaded or made here every worker has already.
"""

import gc
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import Phase
from mutmut.stats import record_trampoline_hit

torch.set_num_threads(1)
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # its first call imports for a second
hypothesis.settings.register_profile(
    "mutants",  # as in tests/conftest.py, with fewer examples that are not made smaller
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=4,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)

ASKED = re.compile(
    "/tests/(conftest|laws/|objectives/|test_(average|credit|devices|door|edges|identities|keep|"
    "known_bugs|numbers|numerics|survivors|weight))"
)
ALONE = "test_warnings_point_at"  # starts a process of its own, on what is not mutated


def mutant() -> str:
    """Returns the mutant under test, as `package.module.x_function__mutmut_1`, or nothing."""
    name = os.environ.get("MUTANT_UNDER_TEST", "")
    return name if "__mutmut_" in name else ""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Draws few examples; loads everything anew where a mutant changes what a module holds.

    Tests may then have other names, so whole files are asked for.
    """
    hypothesis.settings.load_profile("mutants")
    if ".x_table_" in mutant():
        session.config.args = sorted({test.partition("::")[0] for test in session.config.args})
        here = str(Path.cwd())
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(here):
                del sys.modules[name]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out the tests of other modules than those that are mutated."""
    wanted = collection_path.is_dir() or ASKED.search(collection_path.as_posix())
    return None if wanted else True


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Ends at once where a mutant can not be imported: pytest would call that a wrong command."""
    if report.failed and mutant():
        os._exit(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the mutated file first, and the laws last."""
    items[:] = [item for item in items if ALONE not in item.nodeid]
    module = mutant().rpartition(".")[0].rpartition(".")[2]
    items.sort(key=lambda item: (f"test_{module}" not in item.nodeid, "/laws/" in item.nodeid))


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Tells mutmut which tests read a table, for tables were made before it began to look."""
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        for place in tables():
            module = place.rpartition(".")[0].rpartition(".")[2]
            if module in item.nodeid:  # named after it, or a law about it
                record_trampoline_hit(place)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keeps the collector off what the fork server loaded, or each worker would copy it."""
    if session.config.option.collectonly:
        gc.freeze()


def tables() -> Iterator[str]:
    """Gives the functions that `mutants.py` put around the tables of a module."""
    for name, module in list(sys.modules.items()):
        if name.startswith("logratio"):
            yield from (f"{name}.x_{key}" for key in vars(module) if key.startswith("table_"))
