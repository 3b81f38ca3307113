"""The page for people in a real browser: by keyboard, closed and opened again, to the download."""

import csv
import io
import json
import time

import pytest

from pit_jax.evaluation import people, verdict_files
from pit_jax.report import people as page
from tests import chromium
from tests.report.test_browser import _ATTACKS

pytestmark = [pytest.mark.slow, chromium.needed]

ATTACK = " ".join(_ATTACKS) + " </script><!-- \u2028 ${name} 'single' \\u003c"
COUNT = 6


def key(ties=True):
    prompts = [f"{ATTACK} {n}" for n in range(COUNT)]
    first = [f"first {n} {ATTACK}" for n in range(COUNT)]
    second = ["word " * 500, *(f"second {n}" for n in range(1, COUNT))]
    row = {"name": ATTACK, "first": "system", "second": "system"}
    sides = people.Sides(row, prompts, first, second, prompts)
    return people.ask([sides], f"Which? {ATTACK}", ties, 3, {"title": ATTACK})


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page.to_html(key()), "utf-8")
    return file


def start(tab, name):
    tab.value("document.getElementById('name').value = ''")
    tab.type(name)
    tab.press("Enter")
    tab.until("!document.getElementById('footer').hidden")


def shown(tab, name):
    return tab.value(f"document.querySelector('#{name} div').textContent")


def state(tab):
    return tab.value("document.getElementById('progress').textContent")


def downloaded(tab, folder):
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.value("[...document.querySelectorAll('.download')].find(b => b.offsetParent).click()")
    for _ in range(200):
        found = [each for each in folder.iterdir() if each.suffix == ".csv"]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def test_judging_by_keyboard_and_going_on_after_the_tab_was_closed(path, tmp_path):
    made, profile = key(), tmp_path / "profile"
    with chromium.tab(profile) as tab:
        tab.open(path)
        tab.type("=1+1")  # a formula in a spreadsheet
        tab.press("Enter")
        assert tab.value("!document.getElementById('misnamed').hidden")
        start(tab, "  Zoë   Ann-Ö ")
        assert state(tab) == "Zoë Ann-Ö: 0 judged"
        assert (shown(tab, "prompt"), shown(tab, "a"), shown(tab, "b")) == made.asked[0].shown
        tab.press("a", "T", "x")
        tab.press("b", autoRepeat=True)  # held down
        tab.press("b", modifiers=2)  # Ctrl+B is the browser's
        assert state(tab) == "Zoë Ann-Ö: 2 judged"
        assert shown(tab, "a") == made.asked[2].shown[1]
        tab.press("b")
        first = tmp_path / "first"
        first.mkdir()
        part = downloaded(tab, first)
        assert part.name == "verdicts-Zoë_Ann_Ö-unfinished.csv"
    with chromium.tab(profile) as tab:  # of the same person, in another process
        tab.open(path)
        assert tab.value("document.getElementById('name').value") == "Zoë Ann-Ö"
        start(tab, "Ben")
        assert state(tab) == "Ben: 0 judged"
        tab.open(path)
        start(tab, "Zoë Ann-Ö")
        assert state(tab) == "Zoë Ann-Ö: 3 judged"
        assert shown(tab, "prompt") == made.asked[3].prompt
        tab.press("ArrowLeft", "ArrowLeft")
        pressed = "document.querySelector('[aria-pressed=true]').dataset.verdict"
        assert tab.value(pressed) == "tie"
        tab.press("a", "ArrowRight", "ArrowRight", "b", "a")  # leaves out the fourth
        assert tab.value("document.getElementById('ended').textContent").startswith("1 of 6 have")
        tab.value("document.getElementById('missing').click()")
        assert shown(tab, "prompt") == made.asked[3].prompt
        tab.press("t")
        tab.press("ArrowRight", "ArrowRight")
        assert "All are judged" in tab.value("document.getElementById('ended').textContent")
        last = tmp_path / "last"
        last.mkdir()
        whole = downloaded(tab, last)
        assert whole.name == "verdicts-Zoë_Ann_Ö.csv"
    read = verdict_files.read(str(whole), made.page, COUNT, ties=True)
    assert read.annotator == "Zoë Ann-Ö"
    assert read.verdicts == {1: "A", 2: "A", 3: "B", 4: "tie", 5: "B", 6: "A"}
    assert verdict_files.read(str(part), made.page, COUNT, True).verdicts == {
        1: "A",
        2: "tie",
        3: "B",
    }
    rows = list(csv.reader(io.StringIO(whole.read_text("utf-8-sig"))))
    assert rows[1] == ["1", "A", "Zoë Ann-Ö", made.page]


def test_scripts_in_texts_and_names_run_nothing(path, tmp_path):
    """Neither with the page's policy nor without it; all is shown as it was written."""
    made = key()
    found = path.read_text("utf-8")
    policy = found.partition('<meta http-equiv="Content-Security-Policy"')[2].partition(">")[0]
    without = tmp_path / "without.html"
    without.write_text(found.replace(policy, ""), "utf-8")
    for file in (path, without):
        with chromium.tab(tmp_path / f"profile-{file.stem}") as tab:
            tab.open(file)
            # The page's own question is shown too, and a name is what somebody types.
            name = f"X {ATTACK}"[:80]
            start(tab, name)
            for item in made.asked:
                assert (shown(tab, "prompt"), shown(tab, "a"), shown(tab, "b")) == item.shown
                tab.press("a")
            assert state(tab) == f"{' '.join(name.split())}: 6 judged"
            assert tab.value("document.documentElement.id") == ""
            assert tab.value("document.querySelectorAll('script, style, img, svg, a').length") == 3
            inserted = """(() => { const made = document.createElement('script');
              made.textContent = 'document.documentElement.id = "owned"';
              document.body.append(made); return document.documentElement.id; })()"""
            # So the page's policy is what forbids it.
            assert tab.value(inserted) == ("" if file == path else "owned")


PROBE = """(() => {
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  let worst = [99, ''];
  for (const each of document.querySelectorAll('body *')) {
    if (!each.offsetParent || each.disabled || each.localName === 'script') continue;
    if (![...each.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    let behind = each;
    while (behind && (colour(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
      behind = behind.parentElement;
    const ground = getComputedStyle(behind ?? document.body).backgroundColor;
    const both = [getComputedStyle(each).color, ground].map(c => light(colour(c).slice(0, 3)));
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < worst[0]) worst = [ratio, each.outerHTML.slice(0, 80)];
  }
  return {wide: document.documentElement.scrollWidth, worst,
    dark: matchMedia('(prefers-color-scheme: dark)').matches};
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_the_whole_page_in_colours_that_can_be_read(dark, path, tmp_path):
    made = key()
    with chromium.tab(tmp_path / "profile", chromium.scheme(dark)) as tab:
        tab.open(path, width=390, height=844)

        def check():
            found = tab.value(PROBE)
            assert found["dark"] == dark and found["wide"] <= 390
            assert found["worst"][0] >= 4.5, found["worst"]

        check()
        start(tab, "Ana")
        for item in made.asked:
            check()
            # The long response is folded until it is asked for.
            folded = "document.querySelectorAll('.folded').length"
            assert tab.value(folded) == sum(len(text) > 1200 for text in item.shown)
            tab.press("f")
            assert tab.value(folded) == 0
            tab.press("b")
        tab.press("ArrowLeft")
        check()
        tab.press("ArrowRight")
        check()


def test_without_ties_there_is_no_key_for_one(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page.to_html(key(ties=False)), "utf-8")
    with chromium.tab(tmp_path / "profile") as tab:
        tab.open(file)
        start(tab, "Ana")
        tab.press("t")
        assert state(tab) == "Ana: 0 judged"
        assert tab.value("document.querySelectorAll('[data-verdict]').length") == 2
        assert json.loads(tab.value("document.getElementById('data').textContent"))["ties"] is False
