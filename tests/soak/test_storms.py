"""Every promise that `textgen bench chaos` holds, on a small model: minutes, so `make soak` runs it.

Needs nothing but loopback. The scenarios, their figures and targets stand in `service/bench/chaos`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bench.chaos import SCENARIOS, ChaosOptions, run_scenarios

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_the_promises_hold_in_a_storm(
    scenario: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten times a tiny model's capacity measures the client; ten times GPT-2's measures the service.
    model = request.getfixturevalue("gpt2_model" if scenario == "overload" else "storm_model")
    if scenario != "overload":
        monkeypatch.setenv("TEXTGEN_THREADS", "1")  # the storm's clients want a core too
    options = ChaosOptions(str(model), num_requests=10_000, log_dir=tmp_path)
    lines: list[str] = []
    verdicts = run_scenarios([scenario], options, lines.append)
    failed = [check.line() for check in verdicts[scenario] if not check.passed]
    assert not failed, "\n".join(lines)
