"""Chromium as a person uses it: open, type, press, read what stands there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from conftest import AXE
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WAIT_S = 180  # of patience with a machine that has other things to do


class Browser:
    """A browser that reaches nothing but this machine.

    Args:
        size: of the window, in pixels.
        is_dark: whether the person prefers dark colours.
    """

    def __init__(self, size: tuple[int, int] = (1280, 900), is_dark: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (
            "--headless=new",
            "--no-sandbox",  # of the container that the tests run in
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(WAIT_S)
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        if is_dark:
            scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What stands in the first such element, shown or not."""
        return str(self.one(selector).get_property("textContent"))

    def wait(self, is_true: Callable[[], object], what: str, limit_s: float = WAIT_S) -> None:
        """Look until something holds; elements may come, go and be replaced meanwhile.

        Raises:
            AssertionError: it did not in time: what was waited for, and what the page showed instead.
        """
        looks = WebDriverWait(
            self.driver, limit_s, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        try:
            looks.until(lambda _: is_true())
        except TimeoutException:
            seen = f"waited {limit_s:g} s for {what}; the page says {self.words()}"
            raise AssertionError(f"{seen}; console: {self.complaints()}") from None

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
        self.driver.execute_script(code, self.one(selector), text)

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
        self.driver.execute_script("document.querySelector('#write [name=ignore_eos]').checked = true")
        self.run("write")
        assert len(self.all("#write .t")) > 20

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def press_with(self, modifier: str, key: str) -> None:
        webdriver.ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def tab_to(self, selector: str) -> None:
        """Press the tab key until an element has the focus."""
        wanted = self.one(selector)
        for _ in range(80):
            if self.focused() == wanted:
                return
            self.press(Keys.TAB)
        raise AssertionError(f"the tab key does not lead to {selector}")

    def complaints(self) -> list[str]:
        """Errors in the console since the last call: scripts, refused loads, broken policy."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
        """Hosts that were asked for anything since the last call; what our policy stopped was not asked."""
        found = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            params = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                found[params["requestId"]] = httpx.URL(params["request"]["url"]).host
            elif params.get("blockedReason") == "csp":
                found.pop(params["requestId"], None)
        return {host for host in found.values() if host}

    def serious_faults(self) -> list[str]:
        """What axe-core calls serious or critical, one line for each kind."""
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        found: Any = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(({violations}) => done(violations))"
        )
        return [
            f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def save(self, path: Path) -> None:
        """A picture of the window."""
        self.driver.execute_script("window.scrollTo(0, 0); document.activeElement.blur()")
        assert self.driver.save_screenshot(str(path))
