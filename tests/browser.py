"""A page as a browser has it: real headless Chromium, on pages of a server of our own that notes every request."""

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Looks at the page in a frame of a given width, and writes what it finds into its own body.
HARNESS = """<!DOCTYPE html><html style="color-scheme: light dark"><title>harness</title><link rel="icon" href="data:,">
<iframe src="/page.html" style="width:WIDTHpx;height:800px;border:0"></iframe><pre></pre><script>
const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
const rgb = text => text.match(/[\\d.]+/g).map(Number)
const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2])
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05)
document.querySelector("iframe").onload = event => {
  const view = event.target.contentWindow, page = view.document, style = x => view.getComputedStyle(x)
  const all = [...page.querySelectorAll("body *")]
  page.querySelectorAll("details").forEach(x => x.open = true)
  const behind = x => {
    for (; x; x = x.parentElement) { const c = rgb(style(x).backgroundColor); if (c.length < 4 || c[3] > 0) return c }
    return [255, 255, 255]
  }
  const words = all.filter(x => [...x.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && x.tagName != "title")
  const least = {}
  for (const x of words) {
    const ratio = contrast(rgb(x.closest("svg") ? style(x).fill : style(x).color), behind(x))
    if (!(ratio >= (least.ratio ?? 99))) Object.assign(least, {ratio, text: x.textContent.slice(0, 40)})
  }
  const lines = [...page.querySelectorAll(".line, .dot")].map(x => contrast(rgb(style(x).stroke), behind(x)))
  const focus = [...page.querySelectorAll("a[href], summary, button, input, [tabindex]")]
  const ids = [...page.querySelectorAll("[id]")].map(x => x.id)
  document.querySelector("pre").textContent = JSON.stringify({
    width: page.documentElement.scrollWidth, background: rgb(style(page.body).backgroundColor), least,
    line: Math.min(99, ...lines), scripts: page.querySelectorAll("script").length, owned: !!window.owned,
    handlers: all.filter(x => [...x.attributes].some(a => a.name.startsWith("on"))).length,
    first: focus[0]?.className, jumps: focus.filter(x => x.tabIndex > 0).length,
    dead: focus.filter(x => x.tagName == "A" && !page.querySelector(x.getAttribute("href"))).length,
    broken: [...page.images].filter(x => !x.naturalWidth).length, images: page.images.length,
    unnamed: [...page.images].filter(x => !x.alt).length
      + [...page.querySelectorAll("svg")].filter(x => !x.querySelector("title")?.textContent).length,
    scopeless: [...page.querySelectorAll("th")].filter(x => !x.scope).length,
    widest: Math.max(0, ...[...page.querySelectorAll("svg")].map(x => x.getBoundingClientRect().width)),
    cells: page.querySelectorAll("td").length,
    cut: [...page.querySelectorAll(".scroll")].filter(x => x.scrollWidth > x.clientWidth + 1).length,
    tick: Math.min(99, ...[...page.querySelectorAll(".tick")].map(
      x => parseFloat(style(x).fontSize) * x.closest("svg").getBoundingClientRect().width / 480)),
    twice: ids.length - new Set(ids).size, text: page.body.innerText,
  })
}
</script></html>"""


def look(page: str, width: int, dark: bool = False) -> dict:
    """What Chromium makes of `page` in a frame `width` pixels wide; `requests` and `console` beside HARNESS's."""
    pages = {"/": HARNESS.replace("WIDTH", str(width)), "/page.html": page}
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content = pages.get(self.path, "").encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            dom, console = chromium(f"http://127.0.0.1:{server.server_port}/", dark)
        finally:
            server.shutdown()
    found = re.search(r"<pre>(.+)</pre>", dom, re.DOTALL)
    assert found, f"the page did not load: {dom[:300]} {console}"
    return json.loads(html.unescape(found[1])) | {"requests": requests, "console": console}


def chromium(address: str | Path, dark: bool = False) -> tuple[str, list[str]]:
    """(the DOM, lines of the console) after everything at `address` has loaded."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-proxy-server",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={profile}",
            "--dump-dom",
            str(address),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
