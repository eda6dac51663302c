"""The page in a real headless Chromium, as people use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from biotune.deployment.predictor import Prediction
from tests.imports import ROOT
from tests.serve_process import ServeProcess

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="there is no chromium with chromedriver: apt install both"
    ),
]

SCREENSHOT = ROOT / "docs" / "images" / "serve.png"
"""Shown in the README; BIOTUNE_SCREENSHOT=artifacts/deploy/model.onnx writes it with that model."""

Digits = list[tuple[str, bytes]]

# What a browser does when files are dropped; a driver cannot drag from outside of the page.
DROP = """
const [input, target] = arguments;
const moved = new DataTransfer();
for (const file of input.files) moved.items.add(file);
input.remove();
target.dispatchEvent(new DragEvent("dragover", {dataTransfer: moved, bubbles: true}));
target.dispatchEvent(new DragEvent("drop", {dataTransfer: moved, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers and root have none
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium: WebDriver, server: ServeProcess) -> WebDriver:
    """The page at a desktop's width, with nothing on it yet."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.set_window_size(1200, 900)
    chromium.get(server.url)
    WebDriverWait(chromium, 20).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#plan td"))
    return chromium


@pytest.fixture
def files(tmp_path: Path, digits: Digits) -> list[Path]:
    for name, content in digits:
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name, _ in digits]


def choose(page: WebDriver, *chosen: Path) -> None:
    page.find_element(By.ID, "files").send_keys("\n".join(map(str, chosen)))


def wait_for(page: WebDriver, status: str) -> None:
    where = (By.ID, "status")
    WebDriverWait(page, 20).until(
        lambda page: page.find_element(*where).text == status,
        f"{page.find_element(*where).text!r} is not {status!r}",
    )


def labels(page: WebDriver) -> list[str]:
    return [element.text for element in page.find_elements(By.CSS_SELECTOR, ".result .top .label")]


def has_focus(page: WebDriver) -> str:
    return str(page.execute_script("return document.activeElement.id"))


def test_chosen_images_are_labelled_as_the_model_labels_them(
    page: WebDriver, files: list[Path], expected: dict[str, Prediction]
) -> None:
    choose(page, *files[:10])
    wait_for(page, "10 classified")
    assert labels(page) == [expected[file.name].ranked[0][0] for file in files[:10]]
    first = page.find_element(By.CSS_SELECTOR, ".result")
    best = expected[files[0].name].ranked[0][1]
    assert first.find_element(By.CSS_SELECTOR, ".probability").text == f"{100 * best:.1f} %"
    bar, track = (
        first.find_element(By.CSS_SELECTOR, f".bars li:first-child {part}").size["width"]
        for part in (".of span", ".of")
    )
    assert bar == pytest.approx(best * track, abs=2)


def test_dropped_images_are_labelled_too(
    page: WebDriver, files: list[Path], expected: dict[str, Prediction]
) -> None:
    page.execute_script(
        "const more = document.createElement('input'); more.type = 'file'; more.multiple = true;"
        "more.id = 'carrier'; document.body.append(more);"
    )
    carrier = page.find_element(By.ID, "carrier")
    carrier.send_keys("\n".join(map(str, files[3:5])))
    page.execute_script(DROP, carrier, page.find_element(By.ID, "drop"))
    wait_for(page, "2 classified")
    assert labels(page) == [expected[file.name].ranked[0][0] for file in files[3:5]]


def test_a_broken_image_is_shown_with_the_reason_and_a_name_is_no_html(
    page: WebDriver, files: list[Path], tmp_path: Path
) -> None:
    hostile = tmp_path / "<img src=x onerror=document.title='taken'>.png"
    hostile.write_bytes(b"no image")
    choose(page, files[0], hostile)
    wait_for(page, "1 classified, 1 cannot be used")
    said = page.find_elements(By.CSS_SELECTOR, ".result")[1].text
    assert said == f"{hostile.name}\nCannot be used: the file is no image that can be read"
    assert page.title == "BioTune"


def test_it_works_by_keyboard_and_shows_where_the_focus_is(
    page: WebDriver, files: list[Path]
) -> None:
    keyboard = ActionChains(page)
    keyboard.send_keys(Keys.TAB).perform()
    assert has_focus(page) == "files"
    outline = page.find_element(By.ID, "drop").value_of_css_property("outline-style")
    assert outline == "solid"
    choose(page, files[0])
    wait_for(page, "1 classified")
    keyboard.send_keys(Keys.TAB).perform()
    assert has_focus(page) == "clear"
    keyboard.send_keys(Keys.ENTER).perform()
    assert labels(page) == []
    assert has_focus(page) == "files"
    label = page.find_element(By.CSS_SELECTOR, "label[for=files]").text
    assert label == "Choose images or drop them here"
    assert page.find_element(By.ID, "status").get_attribute("aria-live") == "polite"


def test_the_model_card_says_what_the_model_says(page: WebDriver, server: ServeProcess) -> None:
    model = server.get("/model").json
    rows = page.find_elements(By.CSS_SELECTOR, "#plan tbody tr")
    plan = dict(
        row.text.rsplit(" ", 1) if "×" not in row.text else row.text.split(" ", 1) for row in rows
    )
    assert plan == {b: "frozen" if m is None else f"{m:g} ×" for b, m in model["plan"].items()}
    facts = page.find_element(By.ID, "facts").text
    assert model["backbone"] in facts
    assert "\nCPU\n" in facts
    page.find_element(By.CSS_SELECTOR, "#classes summary").click()
    assert 'été, 冬, a "quoted" one' in page.find_element(By.ID, "classes").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways_on_a_phone(
    page: WebDriver, files: list[Path], tmp_path: Path, scheme: str
) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    long = tmp_path / f"{'a_very_long_name' * 12}.png"
    long.write_bytes(files[0].read_bytes())
    choose(page, files[0], long)
    wait_for(page, "2 classified")
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    ground = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ground == {"light": "rgba(246, 246, 242, 1)", "dark": "rgba(20, 23, 22, 1)"}[scheme]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_browser_has_nothing_to_complain_of(page: WebDriver, files: list[Path]) -> None:
    page.get_log("browser")  # what earlier tests left
    page.refresh()
    choose(page, *files[:3])
    wait_for(page, "3 classified")
    assert page.get_log("browser") == []
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)"
    )
    origin = page.execute_script("return location.origin")
    assert set(loaded) - {"null"} == {origin}


@pytest.mark.skipif(
    "BIOTUNE_SCREENSHOT" not in os.environ, reason="BIOTUNE_SCREENSHOT=MODEL writes the screenshot"
)
def test_screenshot(chromium: WebDriver, files: list[Path]) -> None:
    size = {"width": 1100, "height": 836, "deviceScaleFactor": 1.5, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    with ServeProcess((ROOT / os.environ["BIOTUNE_SCREENSHOT"]).resolve()) as server:
        chromium.get(server.url)
        choose(chromium, *files[:4])
        wait_for(chromium, "4 classified")
        SCREENSHOT.parent.mkdir(exist_ok=True)
        chromium.save_screenshot(str(SCREENSHOT))
