"""A browser as a person uses it: open, type, press, read what stands there."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

WAIT_S = 180  # of patience with a machine that has other things to do
CONTROL, ENTER, ESCAPE, TAB = "\ue009", "\ue007", "\ue00c", "\ue004"  # as WebDriver names keys
ARROW_RIGHT, END = "\ue014", "\ue010"


class Browser(ABC):
    """What every browser can do. Elements are its driver's own, which are alike.

    Attributes:
        driver: its driver, whose other calls differ.
        stale: what the driver raises for an element that was replaced.
    """

    driver: Any
    stale: type[Exception]

    @abstractmethod
    def open(self, url: str) -> None:
        """Load a page, wholly."""

    @abstractmethod
    def close(self) -> None:
        """End the browser."""

    @abstractmethod
    def script(self, code: str, *given: Any) -> Any:
        """Run code in the page, with `arguments`; what it returns."""

    @abstractmethod
    def press(self, *keys: str) -> None:
        """Type, wherever the focus is."""

    @abstractmethod
    def press_with(self, modifier: str, key: str) -> None:
        """Press a key while another is held."""

    @abstractmethod
    def focused(self) -> Any:
        """The element that has the focus."""

    @abstractmethod
    def complaints(self) -> list[str]:
        """Errors in the console since the last call: scripts, refused loads, broken policy."""

    @abstractmethod
    def hosts(self) -> set[str]:
        """Hosts that were asked for anything; what our policy stopped was not asked."""

    def reload(self) -> None:
        self.driver.refresh()

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        """What stands in the first such element, shown or not."""
        return str(self.one(selector).get_property("textContent"))

    def wait(self, is_true: Callable[[], object], what: str, limit_s: float = WAIT_S) -> None:
        """Look until something holds; elements may come, go and be replaced meanwhile.

        Raises:
            AssertionError: it did not in time: what was waited for, and what the page showed instead.
        """
        last = time.monotonic() + limit_s
        while True:
            with suppress(self.stale):
                if is_true():
                    return
            if time.monotonic() > last:
                seen = f"waited {limit_s:g} s for {what}; the page says {self.words()}"
                raise AssertionError(f"{seen}; console: {self.complaints()}")
            time.sleep(0.05)

    def words(self) -> list[str]:
        """What the page tells a person now: states, notices, problems."""
        told = [each.text for each in self.all("#live-state, #away, .status, .problem")]
        return [text for text in told if text]

    def wait_for_state(self, state: str) -> None:
        self.wait(lambda: self.text("#live-state") == state, f"the state {state!r}")

    def tab(self, name: str) -> None:
        self.one(f"#tab-{name}").click()

    def write(self, selector: str, text: str) -> None:
        """Put a text into a control at once, as a paste does."""
        code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.script(code, self.one(selector), text)

    def start(self, panel: str) -> None:
        self.one(f"#{panel} .primary").click()

    def run(self, panel: str, limit_s: float = WAIT_S) -> None:
        """Press the button and wait until the answer is whole and shown."""
        self.start(panel)
        self.wait_until_done(panel, limit_s)

    def wait_until_done(self, panel: str, limit_s: float = WAIT_S) -> None:
        """Until the answer is not busy: its request has ended, well or not, and what came is in its place."""
        busy = f"#{panel} [aria-busy=true]"
        self.wait(lambda: not self.all(busy), f"the end of the request in {panel!r}", limit_s)

    def colour_a_text(self) -> None:
        """Write a text of more than twenty tokens, the same each time, in colours."""
        self.write("#write [name=seed]", "5")
        self.script("document.querySelector('#write [name=ignore_eos]').checked = true")
        self.run("write")
        assert len(self.all("#write .t")) > 20

    def tab_to(self, selector: str) -> None:
        """Press the tab key until an element has the focus."""
        wanted = self.one(selector)
        for _ in range(80):
            if self.focused() == wanted:
                return
            self.press(TAB)
        raise AssertionError(f"the tab key does not lead to {selector}")
