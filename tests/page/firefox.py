"""Firefox, by Marionette: WebDriver's commands over a socket, with no driver beside it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx
from browser import WAIT_S, Browser
from live_service import expect

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for a reference
# Whatever is not on this machine is for a proxy that does not exist; the port is one that is free.
PREFERENCES = {
    "marionette.port": 0,
    "network.proxy.type": 1,
    "network.proxy.socks": "127.0.0.1",
    "network.proxy.socks_port": 9,
}
CONSOLE_ERRORS = """
    const isOurs = (each) => each instanceof Ci.nsIScriptError && each.sourceName.startsWith("http");
    const isError = (each) => !(each.flags & Ci.nsIScriptError.warningFlag);
    const errors = Services.console.getMessageArray().filter((each) => isOurs(each) && isError(each));
    Services.console.reset();
    return errors.map((each) => `${each.sourceName}: ${each.errorMessage}`);"""


def program() -> str | None:
    """Where Firefox is."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


class Refused(Exception):
    """A command that Firefox did not carry out."""


class Stale(Refused):
    """It was about an element that was replaced."""


class Marionette:
    """A running Firefox with a profile of its own, and the commands that selenium's driver has, too."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True)
        folder = Path(self._profile.name)
        lines = [f'user_pref("{name}", {json.dumps(value)});\n' for name, value in PREFERENCES.items()]
        (folder / "user.js").write_text("".join(lines), encoding="utf-8")
        access = "--remote-allow-system-access"  # to the console's messages
        command = [
            str(program()),
            "--headless",
            "--marionette",
            access,
            "--no-remote",
            "--profile",
            str(folder),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "MarionetteActivePort"
        expect(lambda: port.exists() and port.read_text() != "", "Firefox", WAIT_S)
        self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())), WAIT_S)
        self._replies = self._socket.makefile("rb")
        self._read()  # it greets
        self._count = 0
        self.ask("WebDriver:NewSession")

    def quit(self) -> None:
        self._replies.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait(WAIT_S)
        self._profile.cleanup()

    def _read(self) -> Any:
        """One message: its length, a colon, JSON."""
        length = b""
        while not length.endswith(b":"):
            length += self._replies.read(1)
        return json.loads(self._replies.read(int(length[:-1])))

    def ask(self, command: str, /, **given: Any) -> Any:
        """Carry out a command; its result, elements as `Element`.

        Raises:
            Stale: its element is no longer there.
            Refused: another reason.
        """
        self._count += 1
        message = json.dumps([0, self._count, command, given], default=lambda each: {ELEMENT: each.reference})
        self._socket.sendall(f"{len(message.encode())}:{message}".encode())
        _, _, error, result = self._read()
        if error is not None:
            stale = error["error"] == "stale element reference"
            raise (Stale if stale else Refused)(f"{command}: {error['message']}")
        found = result["value"] if isinstance(result, dict) and "value" in result else result
        many = [self._element(each) for each in found] if isinstance(found, list) else None
        return self._element(found) if many is None else many

    def _element(self, value: Any) -> Any:
        return Element(self, value[ELEMENT]) if isinstance(value, dict) and ELEMENT in value else value

    def find_element(self, by: str, selector: str) -> Any:
        return self.ask("WebDriver:FindElement", using=by, value=selector)

    def find_elements(self, by: str, selector: str) -> Any:
        return self.ask("WebDriver:FindElements", using=by, value=selector)

    def refresh(self) -> None:
        self.ask("WebDriver:Refresh")


class Element:
    """An element in the page; see selenium's of the same names."""

    def __init__(self, driver: Marionette, reference: str) -> None:
        self._driver = driver
        self.reference = reference

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Element) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def _ask(self, command: str, /, **given: Any) -> Any:
        return self._driver.ask(f"WebDriver:{command}", id=self.reference, **given)

    def click(self) -> None:
        self._ask("ElementClick")

    def send_keys(self, *keys: str) -> None:
        self._ask("ElementSendKeys", text="".join(keys))

    @property
    def text(self) -> Any:
        return self._ask("GetElementText")

    @property
    def rect(self) -> Any:
        return self._ask("GetElementRect")

    def get_property(self, name: str) -> Any:
        return self._ask("GetElementProperty", name=name)

    def get_attribute(self, name: str) -> Any:
        return self._ask("GetElementAttribute", name=name)

    def is_displayed(self) -> Any:
        return self._ask("IsElementDisplayed")

    def is_selected(self) -> Any:
        return self._ask("IsElementSelected")

    def find_element(self, by: str, selector: str) -> Any:
        return self._driver.ask("WebDriver:FindElement", using=by, value=selector, element=self.reference)


class Firefox(Browser):
    """It reaches nothing but this machine."""

    stale = Stale

    def __init__(self) -> None:
        self.driver = Marionette()

    def open(self, url: str) -> None:
        self.driver.ask("WebDriver:Navigate", url=url)

    def close(self) -> None:
        self.driver.quit()

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.ask("WebDriver:ExecuteScript", script=code, args=given, sandbox=None)

    def _type(self, *actions: tuple[str, str]) -> None:
        keys = [{"type": kind, "value": key} for kind, key in actions]
        self.driver.ask("WebDriver:PerformActions", actions=[{"type": "key", "id": "keys", "actions": keys}])

    def press(self, *keys: str) -> None:
        self._type(*((kind, key) for key in "".join(keys) for kind in ("keyDown", "keyUp")))

    def press_with(self, modifier: str, key: str) -> None:
        self._type(("keyDown", modifier), ("keyDown", key), ("keyUp", key), ("keyUp", modifier))

    def focused(self) -> Any:
        return self.driver.ask("WebDriver:GetActiveElement")

    def complaints(self) -> list[str]:
        self.driver.ask("Marionette:SetContext", value="chrome")
        found: list[str] = self.driver.ask("WebDriver:ExecuteScript", script=CONSOLE_ERRORS, args=[])
        self.driver.ask("Marionette:SetContext", value="content")
        return found

    def hosts(self) -> set[str]:
        loaded = self.script("return performance.getEntriesByType('resource').map((each) => each.name)")
        return {httpx.URL(url).host for url in loaded}
