"""Pages are looked at in a real browser, as wide as they are asked to be."""

import shutil
from pathlib import Path

import pytest

from tests.browser import NO_BROWSER, find_browser, open_browser


def test_a_machine_without_a_browser_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.browser.PREFIX", tmp_path / "chromium")
    assert find_browser() is None
    with pytest.raises(FileNotFoundError, match="no browser"), open_browser():
        pass
    # one that was unpacked is found, too
    for name in ("chromium", "chromedriver"):
        path = tmp_path / "chromium" / "usr" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", "utf-8")
        path.chmod(0o755)
    found = find_browser()
    assert found is not None
    assert found.chromium == tmp_path / "chromium" / "usr" / "bin" / "chromium"
    assert shutil.which("chromium") is None


@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_as_wide_as_asked(tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p id=found></p><script>found.innerText = innerWidth</script>", "utf-8")
    with open_browser(width=width) as driver:
        driver.get(page.as_uri())
        assert driver.find_element("id", "found").text == str(width)
        assert driver.get_log("browser") == []
