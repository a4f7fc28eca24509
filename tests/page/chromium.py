"""Chromium, by Selenium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
from browser import WAIT_S, Browser
from conftest import AXE
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException


class Chromium(Browser):
    """It reaches nothing but this machine.

    Args:
        size: of the window, in pixels.
        is_dark: whether the person prefers dark colours.
    """

    stale = StaleElementReferenceException

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

    def close(self) -> None:
        self.driver.quit()

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def press_with(self, modifier: str, key: str) -> None:
        webdriver.ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def complaints(self) -> list[str]:
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
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
