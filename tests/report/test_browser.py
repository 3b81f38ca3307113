"""The report's page in a real browser: no script runs, it fits a phone, and dark text can be read.

The tests are skipped where there is no browser.
"""

import base64
import html
import io
import json
import re

import pypdf
import pytest

from pit_jax.evaluation import reports, seeds
from pit_jax.report import page, sections
from pit_jax.report import seeds as seed_sections
from pit_jax.report import write as report
from tests import chromium, made_up_report, tiny_reports

pytestmark = [pytest.mark.slow, chromium.needed]

# A figure of the report's own width; what it shows matters to none of these tests.
_FIGURE = b'<svg xmlns="http://www.w3.org/2000/svg" width="864" height="400"/>'
# Each would mark the page if the browser took it for more than text.
_ATTACKS = (
    "<script>document.documentElement.id = 'owned'</script>",
    "</pre></td></details><img src=x onerror=\"document.documentElement.id = 'owned'\">",
    '"><svg onload="document.documentElement.id = \'owned\'"></svg>',
    '<style>body { display: none }</style><a href="javascript:0">owned</a>',
)
_POLICY = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
# What is seen of the page in a frame of a phone's width: how far it reaches to the right, and the
# contrast of each text with the colour behind it, as WCAG 2 defines it.
_PROBE = """
const light = c => { const [r, g, b] = c.map(v => v / 255).map(
  v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const colour = text => text.match(/[\\d.]+/g).map(Number);
addEventListener('load', () => {
  const frame = document.querySelector('iframe'), inner = frame.contentDocument;
  const view = frame.contentWindow, found = {texts: 0, dark: false, worst: [99, '']};
  found.wide = inner.documentElement.scrollWidth;
  found.dark = view.matchMedia('(prefers-color-scheme: dark)').matches;
  found.pinned = [...inner.querySelectorAll('td:first-child')].every(
    cell => view.getComputedStyle(cell).position === 'sticky');
  found.figure = inner.querySelector('figure img').currentSrc;
  for (const each of inner.querySelectorAll('body *')) {
    if (each.closest('details:not([open])') || each.closest('svg')) continue;
    if (![...each.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    let behind = each;
    while (behind && (colour(view.getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
      behind = behind.parentElement;
    const ground = behind ? view.getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)';
    const both = [view.getComputedStyle(each).color, ground].map(c => light(colour(c).slice(0, 3)));
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    found.texts += 1;
    if (ratio < found.worst[0]) found.worst = [ratio, each.outerHTML.slice(0, 80)];
  }
  document.documentElement.innerHTML = '<pre>' + btoa(JSON.stringify(found)) + '</pre>';
});
"""


def measured(text, folder, dark):
    """What the probe finds of a page in a frame as wide as a phone."""
    frame = f'<iframe style="width: 390px; height: 844px; border: 0" srcdoc="{html.escape(text)}">'
    path = folder / "framed.html"
    path.write_text(f"<!doctype html><script>{_PROBE}</script>{frame}</iframe>", "utf-8")
    document = chromium.dumped(path, folder / "profile", chromium.scheme(dark))
    (found,) = re.findall(r"<pre>([\w+/=]+)</pre>", document)
    return json.loads(base64.b64decode(found))


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    found = reports.read(tiny_reports.write(tmp_path_factory.mktemp("seeds")))
    return seed_sections.build(reports.headings(found) | seeds.gather(found))


def test_scripts_in_texts_names_and_gin_values_run_nothing(tmp_path):
    """Neither with the page's policy, which forbids scripts, nor without it."""
    attack = " ".join(_ATTACKS)

    def attacked(value):
        if isinstance(value, str):
            return value.replace(made_up_report.SCRIPT, attack)
        if isinstance(value, dict):
            return {key: attacked(item) for key, item in value.items()}
        return [attacked(item) for item in value] if isinstance(value, list) else value

    results = attacked(report._plain(made_up_report.results()))
    results["stages"][0]["name"] = results["curves"][0]["stage"] = attack
    results["curves"][0]["metric"] = results["command"] = results["device"] = attack
    results["task"] = results["score"] = attack
    results["data"]["rows"].append([attack, attack])
    text = page.to_html(attack, attack, *_with_figures(results))
    without = re.sub(_POLICY, "", text)
    assert len(without) < len(text) and text.count("onerror") > 20
    # The page can be marked: that it isn't tells something.
    path = tmp_path / "page.html"
    path.write_text(without.replace("</body>", _ATTACKS[1] + "</body>"), "utf-8")
    assert 'id="owned"' in chromium.dumped(path, tmp_path / "profile")
    for each in (text, without):
        path.write_text(each, "utf-8")
        found = chromium.dumped(path, tmp_path / "profile")
        assert 'id="owned"' not in found and "<script" not in found
        assert found.count("<style") == 1 and '<a href="javascript' not in found


def _with_figures(results):
    parts, figures = sections.build(results)
    return parts, dict.fromkeys(figures, (_FIGURE, _FIGURE))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("what", ["run", "seeds"])
def test_a_phone_shows_the_whole_page_in_colours_that_can_be_read(what, dark, combined, tmp_path):
    if what == "seeds":
        parts, figures = combined
    else:
        whole = made_up_report.whole() | {"warnings": ["careful: " + "x" * 200]}
        whole |= {"command": "run --gin_file=" + "long/" * 60, "data_digest": "d" * 64}
        parts, figures = sections.build(report._plain(whole))
    narrow = _FIGURE.replace(b"864", b"374")
    text = page.to_html("T" * 60, "What it is.", parts, dict.fromkeys(figures, (_FIGURE, narrow)))
    found = measured(text, tmp_path, dark)
    assert found["dark"] == dark and found["texts"] > 100
    assert found["wide"] <= 390
    assert found["pinned"] and found["figure"] == page._data_uri(narrow)
    # 4.5 is what WCAG 2 asks of text at its level AA.
    assert found["worst"][0] >= 4.5, found["worst"]


def lowest(printed):
    """The height above the foot of a printed page, in points, of the lowest text on it."""
    found = []

    def see(text, transform, matrix, *_):
        if text.strip():
            y = matrix[4] * transform[1] + matrix[5] * transform[3] + transform[5]
            found.append(y)

    printed.extract_text(visitor_text=see)
    return min(found, default=float(printed.mediabox.height))


def test_a_printed_report_has_all_sections_and_no_half_empty_page(tmp_path):
    """On A4, dark where the screen is dark or not; only the last page may end early."""
    report.write_report(made_up_report.whole(), tmp_path)
    with chromium.tab(tmp_path / "profile", chromium.scheme(dark=True)) as tab:
        tab.open(tmp_path / "report.html")
        headings = tab.value("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        made = tab.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
    pages = pypdf.PdfReader(io.BytesIO(base64.b64decode(made["data"]))).pages
    assert 5 < len(pages) < 15 and len(headings) > 8
    for number, each in enumerate(pages[:-1], 1):
        assert lowest(each) < each.mediabox.height / 2, f"page {number} is half empty"
    # Ligatures are one character there.
    text = "".join(each.extract_text() for each in pages).replace("ﬁ", "fi").replace("ﬀ", "ff")
    places = [text.find(heading) for heading in headings]
    assert min(places) >= 0, headings[places.index(min(places))]
