"""The HTML report in a real Chromium."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.tune.conftest import make_row
from tune.cli import main
from tune.run_options import RunOptions
from tune.search import run_search
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep

GRID = {
    "model": ["mlp2", "mlp3"],
    "regularizer": ["l2", "l1"],
    "mode": ["none", "baseline", "ours", "ours_orig"],
    "lam": [1e-3, 1e-2, 0.3],
    "seed": [0, 1],
    "epochs": 4,
    "gamma": 1,
}
EVIL = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    run_sweep(SweepSpec(experiment="test", grid=GRID), Store(str(out)), RunOptions(executor="inline"))
    return out


@pytest.fixture(scope="module")
def swept_page(swept):
    return page(swept, swept.parent)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield started
    started.quit()


def page(out, folder, *options):
    path = Path(folder) / "report.html"
    assert main(["report", str(out), "--format", "html", "--out", str(path), *options]) == 0
    return path


def open_page(browser, url, *, width=1280, height=1000):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    deadline = time.monotonic() + 30
    while not browser.execute_script("return document.body.dataset.drawn") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.execute_script("return document.body.dataset.drawn") == "yes", browser.get_log("browser")


def requested(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "blob:", "data:"))]


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_draws_and_asks_the_network_for_nothing(browser, swept_page, width):
    assert swept_page.stat().st_size < 5_000_000
    open_page(browser, swept_page.as_uri(), width=width)
    assert browser.get_log("browser") == []
    assert requested(browser) == []
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)"
    )
    assert len(plots) >= 2 * 2 + 2 + 2 + 4
    assert all(plots)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"


def test_in_print_a_table_is_no_larger_than_the_text(browser, swept_page):
    open_page(browser, swept_page.as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    sizes = browser.execute_script(
        "return ['li', 'td'].map(name => parseFloat(getComputedStyle(document.querySelector(name)).fontSize))"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    text, cell = sizes
    assert cell < text == 11


def test_the_legend_toggles_and_so_does_the_theme(browser, swept_page):
    open_page(browser, swept_page.as_uri())

    def visible():
        return browser.execute_script("return document.querySelector('.plot').data.map(t => t.visible ?? true)")

    before = visible()
    browser.execute_script("document.querySelector('.plot .legendtoggle').dispatchEvent(new MouseEvent('mousedown'))")
    browser.execute_script("document.querySelector('.plot .legendtoggle').dispatchEvent(new MouseEvent('mouseup'))")
    deadline = time.monotonic() + 5
    while visible() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert visible().count("legendonly") == 1

    def ground():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = ground()
    browser.execute_script("document.getElementById('theme').click()")
    assert ground() != light


def test_the_numbers_are_those_of_json(browser, swept, swept_page, capsys):
    open_page(browser, swept_page.as_uri())
    capsys.readouterr()
    assert main(["report", str(swept), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#settings tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert len(rows) == len(data["settings"])
    for cells, setting in zip(rows, data["settings"], strict=True):
        assert float(cells[3]) == setting["lam"]
        assert cells[5].startswith(f"{100 * setting['accuracy_mean']:.2f} ± {100 * setting['accuracy_ci95']:.2f}")
        assert all(trial_id in cells[10] for trial_id in setting["trial_ids"])
    drawn = browser.execute_script("return JSON.parse(document.getElementById('figure-data').textContent)")
    shown = sorted(y for trace in drawn[0]["data"] for y in trace["y"])
    first = [s for s in data["settings"] if s["model"] == "mlp2" and s["regularizer"] == "l2" and s["mode"] != "none"]
    assert shown == pytest.approx(sorted(100 * s["accuracy_mean"] for s in first))
    assert data["headline"] in browser.execute_script("return document.body.textContent")


def test_lam_0_is_a_level_and_no_point_of_a_logarithmic_axis(browser, tmp_path):
    store = Store(str(tmp_path / "out"))
    for model, lost in (("mlp2", 1e-2), ("mlp3", 1e-3)):
        for lam in (0, 1e-3, 1e-2):
            for mode in ("baseline", "ours"):
                learns = lam < lost or mode == "ours"
                status = "finished" if learns else "collapsed"
                row = make_row(0.9 - lam if learns else 0.1, status=status, model=model, mode=mode, lam=lam)
                store.write_trial(row, [])
    path = page(tmp_path / "out", tmp_path, "--figures", str(tmp_path / "figures"))
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3
    open_page(browser, path.as_uri())
    drawn = browser.execute_script("return JSON.parse(document.getElementById('figure-data').textContent)")
    on_log = [
        value
        for figure in drawn
        for axis in "xy"
        if figure["layout"][f"{axis}axis"]["type"] == "log"
        for trace in figure["data"]
        for value in trace[axis]
    ]
    assert set(on_log) == {1e-3, 1e-2}
    (level,) = drawn[0]["layout"]["annotations"]
    assert (level["text"], level["y"]) == ("no L1/L2", 90)


def test_names_are_text_and_never_html(browser, tmp_path):
    store = Store(str(tmp_path / "out"))
    for seed in range(2):
        store.write_trial(make_row(seed=seed, lam=1e-3) | {"device": EVIL}, [])
    store.write_trial(make_row(status="failed", seed=7) | {"error": EVIL}, [])
    store.write_manifest({"experiment": EVIL, "spec": {"description": EVIL}, "trials": [], "runs": [{"commit": EVIL}]})
    open_page(browser, page(tmp_path / "out", tmp_path).as_uri())
    time.sleep(0.3)
    assert browser.title != "stolen"
    assert browser.execute_script("return document.querySelector('h1').textContent") == EVIL
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize(("runs", "summary"), [(1, "The spec"), (2, "The spec of the last run")])
def test_where_a_store_had_several_runs_the_spec_is_said_to_be_the_last_ones(runs, summary, tmp_path):
    store = Store(str(tmp_path / "out"))
    store.write_trial(make_row(lam=1e-3), [])
    store.write_manifest({"experiment": "test", "spec": {}, "trials": [], "runs": runs * [{"commit": "abc"}]})
    text = page(tmp_path / "out", tmp_path).read_text(encoding="utf-8")
    assert f"<summary>{summary}</summary>" in text


def test_a_printed_page_is_light_and_holds_its_figures_and_the_screen_comes_back(browser, swept_page):
    open_page(browser, swept_page.as_uri())
    looks = "return [document.documentElement.dataset.theme, document.querySelector('.main-svg').clientWidth]"
    browser.execute_script("setTheme(true)")
    before = browser.execute_script(looks)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(looks) == ["light", 660]
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(looks) == before


def test_watch_follows_a_store_that_grows(browser, tmp_path):
    out = tmp_path / "out"
    store = Store(str(out))
    store.write_trial(make_row(lam=1e-3), [])
    command = [sys.executable, "-m", "tune.cli", "report", str(out), "--watch", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/", server.stderr.readline())[0]
        open_page(browser, url)
        assert len(browser.find_elements("css selector", "#settings tbody tr")) == 1
        for folder in ("trials", "epochs"):
            store.write_bytes(f"{folder}/0123456789abcdef.parquet", b"half-written")
        store.write_trial(make_row(lam=2e-3), [])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # the page may reload under our hands
                if len(browser.find_elements("css selector", "#settings tbody tr")) == 2:
                    break
            time.sleep(0.1)
        assert len(browser.find_elements("css selector", "#settings tbody tr")) == 2
        with urllib.request.urlopen(url + "version") as answer:
            assert len(answer.read()) == 16
        foreign = urllib.request.Request(url, headers={"Host": "somebody.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign)
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_figures_as_files_and_tables_for_latex(tmp_path, capsys):
    spec = SweepSpec(experiment="test", grid=GRID | {"model": "mlp2", "regularizer": "l1"})  # a few: drawing takes long
    run_sweep(spec, Store(str(tmp_path / "out")), RunOptions(executor="inline"))
    assert main(["report", str(tmp_path / "out"), "--format", "latex", "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 4
    assert r"ours\_orig $\mu$=0.6" in text
    assert all(ord(character) < 128 for character in text), "no character that LaTeX does not know"
    written = list((tmp_path / "figures").iterdir())
    assert {path.suffix for path in written} == {".svg", ".png", ".pdf"}
    assert len(written) % 3 == 0
    assert all(path.stat().st_size > 1000 for path in written)


def test_a_store_without_a_trial_has_a_page(browser, tmp_path):
    store = Store(str(tmp_path / "out"))
    store.write_manifest({"experiment": "empty", "trials": ["x"]})
    path = page(tmp_path / "out", tmp_path)
    browser.get(path.as_uri())
    text = browser.execute_script("return document.body.textContent")
    assert "No trial has ended yet" in text
    assert "Settings" not in text


def test_the_page_says_which_data_and_which_versions_of_a_module_were_trained_on(browser, tmp_path):
    store = Store(str(tmp_path / "out"))
    manifest = {
        "data": {"birds.npz": "d" * 64},
        "networks": {"mine:net": ["a" * 64, "b" * 64], "mine:other": ["a" * 64]},
    }
    store.write_manifest({"experiment": "own", "trials": [], **manifest})
    browser.get(page(tmp_path / "out", tmp_path).as_uri())
    rows = (
        "[...document.querySelectorAll('tr:has(> th + td)')].map(row => [...row.children].map(cell => cell.innerText))"
    )
    told = dict(browser.execute_script(f"return {rows}"))
    assert told["birds.npz"] == "sha256 dddddddddddd…"
    assert told["mine:net"] == "sha256 aaaaaaaaaaaa…, then bbbbbbbbbbbb…"
    assert told["mine:other"] == "sha256 aaaaaaaaaaaa…"


def test_a_search_shows_its_history_and_what_mattered(browser, tmp_path):
    grid = GRID | {"model": "mlp2", "regularizer": "l2", "mode": ["baseline", "ours_orig"], "gamma": 1}
    spec = SweepSpec(experiment="test", grid=grid)
    options = RunOptions(executor="inline", stop_collapsed=True)
    run_search(spec, Store(str(tmp_path / "out")), options, trials=40, window=2, storage=None, refit=False)
    open_page(browser, page(tmp_path / "out", tmp_path).as_uri())
    (history,) = browser.find_elements("css selector", "figure#history-0 .plot")
    traces = browser.execute_script("return arguments[0].data.map(t => [t.name, t.y.length])", history)
    assert sorted(map(tuple, traces)) == [
        ("baseline", 10),
        ("baseline, best so far", 10),
        ("ours_orig", 10),
        ("ours_orig, best so far", 10),
    ]
    text = browser.execute_script("return document.body.textContent")
    assert "Importance of the searched parameters" in text
    assert "digits/mlp2/l2/ours_orig" in text
