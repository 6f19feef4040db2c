"""Pages in a real browser: Chromium without a screen, where there is one.

``python -m tests.browser`` gets it where the system has none.

.. code-block:: python

    @pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
    def test_page(tmp_path: Path) -> None:
        with open_browser(width=390) as driver:
            driver.get((tmp_path / "index.html").as_uri())
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.debian import UnpackError, libraries, unpack

PREFIX = Path(sys.prefix) / "chromium"
"""Where Debian's packages are unpacked, unless the system has a Chromium."""

NO_BROWSER = f"no browser: Chromium and its chromedriver are neither on PATH nor in {PREFIX}"
"""Why a test that needs a browser is skipped."""


class Browser(NamedTuple):
    """The programs: ``chromium`` shows pages, ``chromedriver`` tells it what to do."""

    chromium: Path
    chromedriver: Path


def find_browser() -> Browser | None:
    """Chromium and its driver, the system's or those that :func:`install` has unpacked."""
    own = [PREFIX / "usr/lib/chromium", PREFIX / "usr/bin"]
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, own)])

    def find(*names: str) -> Path | None:
        found = next((path for name in names if (path := shutil.which(name, path=places))), None)
        return None if found is None else Path(found)

    chromium = find("chromium", "chromium-browser", "google-chrome", "chrome")
    driver = find("chromedriver", "chromium.chromedriver")
    return None if chromium is None or driver is None else Browser(chromium, driver)


def install() -> None:
    """Unpack Chromium unless there is a browser; raises :class:`tests.debian.UnpackError`."""
    if find_browser() is None:
        unpack(("chromium", "chromium-driver"), PREFIX)


@contextmanager
def open_browser(width: int = 1280, height: int = 900) -> Iterator[Chrome]:
    """A driver of a browser with a profile of its own, whose pages are ``width`` x ``height`` pixels.

    Files and servers of this machine alone: nothing is fetched from elsewhere by the browser
    itself. Raises ``FileNotFoundError`` where there is none.
    """
    found = find_browser()
    if found is None:
        raise FileNotFoundError(NO_BROWSER)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = str(found.chromium)
        for option in (
            "--headless=new",
            "--no-sandbox",  # tests may run as root in a container
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(option)
        # what a page writes to its console can be read: driver.get_log("browser")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        environment = dict(os.environ)
        if found.chromium.is_relative_to(PREFIX):
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries(PREFIX)))
        service = Service(str(found.chromedriver), env=environment)
        driver = Chrome(options=options, service=service)
        try:
            # the window has a least width of its own, a page has not
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            yield driver
        finally:
            driver.quit()


if __name__ == "__main__":
    try:
        install()
    except UnpackError as error:
        sys.exit(str(error))
    print("Browser:", find_browser())
