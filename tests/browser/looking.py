"""What is wrong with a page for those who see, read or use it otherwise."""

from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

# Tables and code may scroll in a box of their own; the page itself never does, and nothing is cut off beside it.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  const inBox = (node) => node.closest(".scroll, pre, table, textarea, .skip-link, dialog:not([open])");
  const out = [...document.querySelectorAll("body *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return !inBox(node) && box.width > 0 && (box.right > wide + 1 || box.left < -1);
  });
  return document.documentElement.scrollWidth > wide || out.length
    ? [document.documentElement.scrollWidth, wide, ...out.slice(0, 4).map((node) => node.outerHTML.slice(0, 120))] : [];
}"""


def axe(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe finds that is serious or critical; `rules` are the only ones to check."""
    page.evaluate(AXE_SCRIPT)
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = page.evaluate("(options) => axe.run(options)", options)
    return [
        f"{one['id']}: {node['html'][:150]} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def look(page: Page) -> list[str]:
    """What is wrong with a page: light, dark, narrow, enlarged, from right to left; it stands wide and light after."""
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    problems = axe(page)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    problems += [f"dark: {text}" for text in axe(page, ["color-contrast", "link-in-text-block"])]
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    # A window of 1280 at 200 and at 400 %; then the text alone at 200 %.
    for width in (640, 320):
        page.set_viewport_size({"width": width, "height": 800})
        problems += [f"{width} wide: {found}" for found in [page.evaluate(OVERFLOW)] if found]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    problems += [f"text at 200 %: {found}" for found in [page.evaluate(OVERFLOW)] if found]
    # The whole page from right to left, as in a browser set to Arabic.
    page.evaluate("document.documentElement.style.fontSize = ''; document.documentElement.dir = 'rtl'")
    problems += [f"right to left: {found}" for found in [page.evaluate(OVERFLOW)] if found]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("document.documentElement.dir = ''")
    return problems
