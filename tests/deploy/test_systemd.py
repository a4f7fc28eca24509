"""The systemd unit: valid, confined, and true to what the service does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_files import DEPLOY, tool

from service.settings import Settings

UNIT = DEPLOY / "systemd" / "textgen.service"


def value(name: str) -> str:
    """The last value of a setting of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)[-1]


def test_the_unit_gives_the_service_longer_to_stop_than_it_takes_to_drain() -> None:
    assert int(value("TimeoutStopSec")) >= Settings.model_fields["drain_s"].default + 10


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert (value("Restart"), value("RestartPreventExitStatus")) == ("on-failure", "2")


@pytest.mark.tools
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/textgen-service/.venv/bin/textgen", sys.executable), encoding="utf-8")
    done = subprocess.run([tool("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True)
    about_ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (about_ours, done.returncode) == ([], 0)


@pytest.mark.tools
def test_the_unit_is_as_confined_as_it_says() -> None:
    said = re.search(r"gives it (\d\.\d) \(OK\)", UNIT.read_text(encoding="utf-8"))
    assert said is not None
    # The threshold is in tenths; a newer systemd may know more to ask for, so half a point is left.
    threshold = int(float(said[1]) * 10) + 5
    command = [tool("systemd-analyze"), "security", "--offline=true", f"--threshold={threshold}", str(UNIT)]
    assert subprocess.run(command, capture_output=True).returncode == 0
