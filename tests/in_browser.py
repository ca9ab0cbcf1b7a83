"""report.html of every command in a real headless browser that has no network: `make test-browser`, not `make test`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simbatch.sim.files import write_yaml
from tests import exit_code
from tests.bench_files import closed_loop, ran, scenario, vllm

pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DRIVERS = ("chromedriver", "chromium.chromedriver")
PHONE, DESKTOP = (390, 844), (1280, 900)
SCENARIO = """
profile: rtx4090-llama-3.1-8b-bf16
engine: {max_num_seqs: 32, max_model_len: 4096, num_gpu_blocks_override: 600}
workload:
  num_prompts: 150
  request_rate: 4
  prompt_len: {distribution: lognormal, mean: 400, cv: 1.0, max: 2000}
  output_len: {distribution: lognormal, mean: 100, cv: 0.8, max: 800}
  priorities: {high: 0.2, normal: 0.8}
slo: {ttft_ms: 500, tpot_ms: 50}
seed: 3
"""
COMMANDS = {
    "run": "run FILE --bands",
    "cluster": "run FILE --set cluster.replicas=3",
    "compare": "compare FILE --policy vllm --policy priority",
    "replications": "compare FILE --policy vllm --policy priority --policy sjf --replications 3",
    "sweep": "sweep FILE --over engine.max_num_seqs=4,16 --over workload.request_rate=2,6",
    "sweep-curves": "sweep FILE --over engine.max_num_seqs=4,16 --over policy.name=vllm,sjf",
    "tune": "tune FILE --over engine.max_num_seqs=4,16,32 --over policy.name=vllm,sjf --limit p99_ttft_ms=800",
    "pareto": "tune FILE --over engine.max_num_seqs=4,8,16,32 --pareto throughput,p99_tpot_ms --knee",
    "capacity": "tune FILE --capacity --replications 2",
    "plan": "plan FILE --rate 20 --limit p99_ttft_ms=1000 --gpus rtx4090,l40s --seconds 20",
    "recommend": "recommend --use-case longform --profile h100-llama-3.1-8b-bf16 --seed 1",
    "validate": "validate THEORY --recorded RESULT --bounds mean=5",
    "validate-many": "validate THEORY --recorded RESULT OTHER",
    "loads": "compare FILE --policy vllm --policy sjf --rate 2,6",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    binary, driver = (next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, DRIVERS))
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver on the PATH; on Debian: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    for argument in ("--headless=new", "--disable-gpu", "--no-first-run", offline):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root must not have
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a command, which is run when it is asked for the first time."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "scenario.yaml").write_text(SCENARIO, encoding="utf-8")
    for name, users in (("RESULT", 4), ("OTHER", 8)):
        (folder / name).write_text(json.dumps(vllm(ran(closed_loop(users)))), encoding="utf-8")
    write_yaml(folder / "THEORY", scenario(closed_loop(4)))
    places = {"FILE": "scenario.yaml", "THEORY": "THEORY", "RESULT": "RESULT", "OTHER": "OTHER"}

    def page(name: str) -> Path:
        written = folder / name / "report.html"
        if not written.exists():
            words = [str(folder / places[word]) if word in places else word for word in COMMANDS[name].split()]
            assert exit_code(*words, "--html", "--quiet", "-o", str(folder / name)) == 0
        return written

    return page


def opened(browser: webdriver.Chrome, page: Path, size: tuple[int, int], *, touched: bool = False) -> None:
    """The page in a window, or on a phone, of this size, with all charts drawn."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touched}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touched})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    drawn = "return [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.main-svg'))"
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script(drawn))


def charts(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """Of each chart what is drawn in it, and what plotly has against its data."""
    script = """return [...document.querySelectorAll('.chart')].map(chart => ({
        title: chart.parentElement.querySelector('h3').textContent,
        asked: chart.data.filter(trace => trace.visible !== 'legendonly').length,
        drawn: chart.querySelectorAll('.scatterlayer .trace, .heatmaplayer .hm, .barlayer .trace').length,
        width: chart.getBoundingClientRect().right,
        wrong: (Plotly.validate(chart.data, chart.layout) || [])
            .filter(each => each.code !== 'unused').map(each => each.msg),
    }))"""
    found: list[dict[str, Any]] = browser.execute_script(script)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_is_drawn_without_errors_and_without_a_network(
    name: str, browser: webdriver.Chrome, page_of: Callable[[str], Path]
) -> None:
    opened(browser, page_of(name), DESKTOP)
    answers = [element.text for element in browser.find_elements(By.CSS_SELECTOR, ".answer dd")]
    assert answers
    assert all(answers)
    drawn = charts(browser)
    assert drawn
    for chart in drawn:
        assert chart["wrong"] == [], chart
        assert chart["drawn"] >= chart["asked"] > 0, chart
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_reads_on_a_phone(name: str, browser: webdriver.Chrome, page_of: Callable[[str], Path]) -> None:
    """Nothing but wide tables scrolls sideways, and those by themselves."""
    opened(browser, page_of(name), PHONE, touched=True)
    for details in browser.find_elements(By.TAG_NAME, "summary"):
        details.click()
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    assert all(chart["width"] <= PHONE[0] for chart in charts(browser))
    assert browser.execute_script("return document.querySelector('.chart').layout.dragmode") is False
    shades = "return [...document.querySelectorAll('.scroll')].map(box => getComputedStyle(box).backgroundAttachment)"
    assert set(browser.execute_script(shades)) == {"local, local, scroll, scroll"}  # where columns are out of sight
    heights = (
        "return [...document.querySelectorAll('.chart .nsewdrag')].map(panel => panel.getBoundingClientRect().height)"
    )
    assert min(browser.execute_script(heights)) > 70  # a long legend takes no room from the curves
    hidden = "return [...document.querySelectorAll('.chart .scrollbar')].filter(bar => bar.getBBox().height > 0).length"
    assert browser.execute_script(hidden) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_in_the_legend_switches_its_curve_off_and_on(
    name: str, browser: webdriver.Chrome, page_of: Callable[[str], Path]
) -> None:
    opened(browser, page_of(name), DESKTOP)
    names = browser.find_elements(By.CSS_SELECTOR, ".chart .legendtoggle")
    at = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].indexOf(arguments[0].closest('.chart'))", names[0]
    )
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", names[0])

    def shown() -> int:
        drawn: int = charts(browser)[at]["asked"]
        return drawn

    before = shown()
    for after in (before - 1, before):
        browser.find_element(By.CSS_SELECTOR, ".chart .legendtoggle").click()
        WebDriverWait(browser, 10).until(lambda _, after=after: shown() == after)


def test_dragging_zooms_and_a_double_click_goes_back(browser: webdriver.Chrome, page_of: Callable[[str], Path]) -> None:
    opened(browser, page_of("run"), DESKTOP)
    plot = browser.find_element(By.CSS_SELECTOR, ".chart .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)

    def span() -> float:
        low, high = browser.execute_script("return document.querySelector('.chart').layout.xaxis.range")
        return float(high) - float(low)

    before = span()
    actions = webdriver.ActionChains(browser)
    actions.move_to_element_with_offset(plot, -80, 0).click_and_hold().move_by_offset(120, 0).release().perform()
    WebDriverWait(browser, 10).until(lambda _: span() < 0.6 * before)
    webdriver.ActionChains(browser).double_click(plot).perform()
    WebDriverWait(browser, 10).until(lambda _: abs(span() - before) < 1e-6)
