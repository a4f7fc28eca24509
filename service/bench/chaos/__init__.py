"""Storms: scenarios that hold a promise of the service under stress and print the figure beside its target.

Each scenario starts its own server on a free loopback port, is bounded in requests and seconds, and returns
checks. Read `check` and `server` first, then any scenario; `traffic` makes the mixed requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from service.bench.chaos.check import Check
from service.bench.chaos.conservation import conservation
from service.bench.chaos.disconnects import disconnects
from service.bench.chaos.fairness import fairness
from service.bench.chaos.hostile import hostile
from service.bench.chaos.overload import overload
from service.bench.chaos.server import ChaosOptions, ServerFailed
from service.bench.chaos.shutdown import shutdown
from service.bench.measure import run_async

__all__ = ["SCENARIOS", "ChaosOptions", "Check", "run_scenarios"]

Scenario = Callable[[ChaosOptions], Awaitable[list[Check]]]

SCENARIOS: dict[str, Scenario] = {
    "conservation": conservation,
    "disconnects": disconnects,
    "overload": overload,
    "shutdown": shutdown,
    "hostile": hostile,
    "fairness": fairness,
}


def run_scenarios(
    names: Sequence[str], options: ChaosOptions, say: Callable[[str], None]
) -> dict[str, list[Check]]:
    """Run scenarios one after another.

    Args:
        names: of `SCENARIOS`.
        options: see there.
        say: takes each line for the reader.

    Returns:
        The checks of each scenario; a scenario whose server failed has one check that says so.
    """
    verdicts = {}
    for name in names:
        say(f"== {name}")
        verdicts[name] = run_async(_run(SCENARIOS[name], options))
        for check in verdicts[name]:
            say(check.line())
    return verdicts


async def _run(scenario: Scenario, options: ChaosOptions) -> list[Check]:
    try:
        return await scenario(options)
    except ServerFailed as error:
        return [Check("the server starts and stays", str(error), "a server", False)]
