"""One promise, measured: name, figure, target, verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """A figure against its target."""

    name: str
    measured: str
    target: str
    passed: bool

    def line(self) -> str:
        """For people."""
        return f"{'PASS' if self.passed else 'FAIL'}  {self.name}: {self.measured}  (target: {self.target})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def at_most(name: str, value: float, bound: float, unit: str = "") -> Check:
    """A figure that must not exceed a bound."""
    return Check(name, f"{_number(value)}{unit}", f"at most {_number(bound)}{unit}", value <= bound)


def at_least(name: str, value: float, bound: float, unit: str = "") -> Check:
    """A figure that must reach a bound."""
    return Check(name, f"{_number(value)}{unit}", f"at least {_number(bound)}{unit}", value >= bound)


def equal(name: str, value: object, wanted: object) -> Check:
    """A figure that must be exactly this."""
    return Check(name, str(value), str(wanted), value == wanted)


def nothing(name: str, value: object) -> Check:
    """Something of which there must be none; shows what there is."""
    return Check(name, str(value or "none"), "none", not value)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
