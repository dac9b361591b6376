"""The report in a real browser: on a phone and a desktop, in light and dark."""

import json
import pathlib

import pytest

from medkor_jax.report.page import write_report

from ..run.conftest import finished  # noqa: F401
from .test_report import make_hostile
from .test_report import run_dir as run_dir

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (pathlib.Path(CHROMIUM).exists() and pathlib.Path(DRIVER).exists()):
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get("about:blank")
    driver.get_log("performance")  # what the browser's own first page asked for
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_hostile", [False, True])
def test_the_page_in_a_browser(is_hostile, scheme, width, height, browser, run_dir):
    if is_hostile:
        make_hostile(run_dir)
    shape = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    browser.get(f"file://{write_report(run_dir)}")
    run = browser.execute_script
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    bottoms = run(
        "return [...document.querySelectorAll('.opening section')].map(one => one.getBoundingClientRect().bottom)"
    )
    assert len(bottoms) == 5 and max(bottoms) <= height
    # No column is so narrow that its words are cut into letters.
    run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert run("return [...document.querySelectorAll('th')].every(one => one.offsetHeight < 60)")
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    paper = run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    n_shown = "return document.querySelectorAll('#examples article').length"
    assert run(n_shown) == 10
    browser.find_element("id", "more").click()
    assert run(n_shown) == 40 and not browser.find_element("id", "more").is_displayed()
    assert run("return typeof hacked") == "undefined"
    if not is_hostile:
        asked = run("return JSON.parse(document.getElementById('data').textContent)[3].question")
        box = browser.find_element("id", "search")
        box.send_keys(asked[:40])
        assert 0 < run(n_shown) < 10
        found = browser.find_element("id", "examples").text
        assert asked in found and "(right" in found and "answered)" in found
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked_for = [
        one["params"]["request"]["url"]
        for one in sent
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert asked_for and all(url.startswith("file://") for url in asked_for)
