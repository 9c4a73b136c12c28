"""What all tests have in common: hypothesis' settings and its seed, and the terminal."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # tests/gpu do without it
    pass
else:
    # No verdict may depend on how fast or how busy the machine is.
    settings.register_profile(
        "any machine",
        settings.get_profile("default"),  # also where CI is set, which would choose another
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    settings.load_profile("any machine")

SEED = "--hypothesis-seed"
# By these, rich, argparse and others decide whether to print escape codes into a pipe.
COLOURS = (
    *("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PYTHON_COLORS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw hypothesis' seed here, to be able to tell it; it keeps the one it draws to itself."""
    if config.getoption(SEED, "none installed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    seed = config.getoption(SEED, None)
    if seed is not None and terminalreporter.stats.keys() & {"failed", "error"}:
        terminalreporter.write_line(f"The same examples again: pytest {SEED}={seed}")


@pytest.fixture(scope="session", autouse=True)
def one_terminal(pytestconfig: pytest.Config) -> Iterator[None]:
    """Wide, without colours, UTF-8: for what a test prints, and for every process it starts."""
    writer = pytestconfig.get_terminal_writer()
    writer.fullwidth = writer.fullwidth  # pytest's own lines stay as wide as they are
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")  # nothing is cut off at the edge
        patch.delenv("LINES", raising=False)
        for name in COLOURS:
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONUTF8", "1")
        yield
