"""The report of runs: whatever a folder holds it is a page, and real Chromium finds nothing wrong with it."""

import json
import os
import re
import subprocess
import sys

import browser
import pytest
import torch

from ssl.checkpoints import run_reader
from ssl.errors import UserError
from ssl.report import __main__ as report
from ssl.report import markup, page, svg, view_page

needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed here")
EVIL = "</title></svg></script><script>parent.owned=1</script><img src=/stolen onerror=parent.owned=1>\"'&\x1b[2J"


def write_run(folder, word="shapes", steps=300):
    """A run folder with everything in it; `word` stands wherever words come from outside."""
    folder.mkdir(parents=True)
    quoted = json.dumps(word)
    (folder / "config.yaml").write_text(f"method: barlow_twins\ndataset: {quoted}\nlr: 0.2\nepochs: {steps}\n")
    about = {"origin": {"dataset": word, "lr": "default"}, "global_batch": 128, "processes": 2}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "status.json").write_text(json.dumps({"state": "failed", "step": steps, "of": 400, "reason": word}))
    (folder / "best.json").write_text(json.dumps({"step": 9, "epoch": 1, "chosen_by": word, "value": 0.5}))
    lines = [
        {"epoch": s / 10, "step": s, "loss": 1000 / (s + 1), "samples_per_second": 300.0 + s % 7, "data_wait": 0.01}
        | {f"health_{word}": s % 5, **{f"part_{i}": s * i for i in range(9)}}
        for s in range(steps)
    ]
    lines.append({"epoch": 3, "step": steps, "knn_acc1": 0.625, "val_loss": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "health.jsonl").write_text(json.dumps({"step": 7, "rule": word, "words": f"collapsing {word}"}) + "\n")
    results = {"probe": {"acc1": 0.75, "note": word}, "knn": {"acc1": 0.5}, word: {"acc1": 0.25}}
    (folder / "results.json").write_text(json.dumps(results))
    x = torch.linspace(-1, 1, 40)
    looks = {
        "x": x.tolist(),
        "y": (x**2).tolist(),
        "labels": [i % 3 for i in range(40)],
        "explained": [0.6, 0.2],
        "classes": [word, "b", "c"],
        "spectrum": [4.0, 2.0, 1.0, 0.1],
    }
    (folder / "pictures.json").write_text(json.dumps(looks))
    for name in ("views", "neighbours", "correlation"):
        rows = [[torch.rand(3, 8, 8) for _ in range(7)] for _ in range(2)]
        (folder / f"{name}.png").write_bytes(view_page.page(rows, ["image"] * 7))
    return folder


def make_page(*folders):
    return page.page([run_reader.read(folder) for folder in folders])


def without_heads(text):
    """Cells of tables without the heads that stand before them on a narrow screen."""
    return re.sub(' data-head="[^"]*"', "", text)


# In a browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report of two runs whose every word tries to break out of its place."""
    base = tmp_path_factory.mktemp("runs")
    return make_page(write_run(base / EVIL.replace("/", "|"), EVIL), write_run(base / ("wide" * 40), "w" * 5000, 40))


@needs_chromium
@pytest.mark.parametrize(
    ("width", "dark"), [(360, False), (768, True), (1200, True)], ids=["phone-light", "tablet-dark", "desk-dark"]
)
def test_chromium_finds_a_page_that_is_whole_safe_and_readable(hostile, width, dark):
    found = browser.look(hostile, width, dark)
    assert found["console"] == []
    assert set(found["requests"]) == {"/", "/page.html"}, "the page asked for something"
    assert (found["scripts"], found["handlers"], found["owned"]) == (0, 0, False)
    assert found["width"] <= width, "it is wider than the screen"
    assert (sum(found["background"]) < 150) == dark
    assert found["least"]["ratio"] >= 4.5, found["least"]
    assert found["line"] >= 3
    assert found["tick"] >= 8, "numbers at the axes are too small to read"
    assert found["cut"] == 0 or width > 800, "columns of a table are out of sight"
    assert found["first"] == "skip" and found["jumps"] == found["dead"] == 0
    assert found["images"] == 6 and found["broken"] == found["unnamed"] == 0
    assert found["cells"] > 20 and found["scopeless"] == found["twice"] == 0
    for words in ("collapsing", "0.625", "0.75", "failed", "health_<", "parent.owned=1", "300 of 400"):
        assert words in found["text"].replace("</title>", "<"), words


@needs_chromium
def test_control_the_browser_sees_what_would_be_wrong(tmp_path):
    good = make_page(write_run(tmp_path / "run"))
    bad = good.replace("<meta http-equiv", "<meta x").replace(
        "<main>",
        "<main><div id=overview style='width:900px;color:#ccc;background:#fff'>faint</div><img src=/stolen>"
        "<a href='#nowhere' tabindex=3>x</a><table><th>h</table><script>parent.owned=1;console.log('noise')</script>",
    )
    found = browser.look(bad.replace("max-width:", "max-width:0.0"), 360)
    assert found["cut"] and found["tick"] < 8
    assert found["owned"] and found["scripts"] == 1 and found["console"]
    assert "/stolen" in found["requests"]
    assert found["width"] > 360 and found["least"]["ratio"] < 2
    assert found["broken"] == found["unnamed"] == found["dead"] == found["jumps"] == found["scopeless"] == 1
    assert found["twice"] == 1


@needs_chromium
def test_it_opens_from_disk(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(make_page(write_run(tmp_path / "run")), "utf-8")
    dom, console = browser.chromium(path.as_uri())
    assert "<h1>Run run</h1>" in dom and console == []


def test_control_words_from_outside_would_break_out_unescaped(hostile, monkeypatch, tmp_path):
    assert "<script" not in hostile and "<img src=/stolen" not in hostile and "\x1b" not in hostile
    monkeypatch.setattr(markup, "escape", lambda text: text)
    assert "<script" in make_page(write_run(tmp_path / "run", EVIL))


# Whatever is in the folder ---------------------------------------------------------------


def test_what_is_missing_is_said_and_what_is_there_is_shown(tmp_path):
    words = make_page(tmp_path)
    for name in ("about.json", "status.json", "metrics.jsonl", "views.png"):
        assert f"{name} is not there" in words
    assert "config.yaml" in words and "Not judged yet" in words
    (tmp_path / "config.yaml").write_text("freeze: true\n")  # of finetune.py, which makes no views
    assert "views.png" not in run_reader.read(tmp_path).missing[-1] and "about.json" not in make_page(tmp_path)
    full = make_page(write_run(tmp_path / "run"))
    assert "is not there" not in full and "Not judged yet" not in full


BROKEN = {
    "config.yaml": ["- a list", "a: [b", "a: &x [1]\nb: [*x, *x]", "\x00\x01"],
    "about.json": ['{"origin": 3', "[1]", '{"origin": 3, "views": 7, "global_batch": [1]}', "[" * 100_000],
    "status.json": ['{"state": {"a": 1}, "step": []}', "null"],
    "best.json": ['{"step": null}', "7"],
    "metrics.jsonl": [
        '{"step": 1, "loss": 2}\n{"step": 2, "lo',
        "\x00\xff" * 99,
        '{"step": "x", "loss": 1}\n7\n',
        '{"step": 1, "loss": 1e999, "b": NaN, "c": true, "d": "2", "e": {"f": 1}}',
        '{"step": 1, "loss": %s}' % ("9" * 4000),
        '{"step": 1e308, "loss": -1e299}\n{"step": -1e308}',
    ],
    "health.jsonl": ['{"words": 3}\n{"ru', "[]"],
    "results.json": ['{"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}', "{", '{"mean": null, "runs": [1, {}]}'],
    "pictures.json": [
        '{"x": [1], "y": [1, 2]}',
        '{"x": "ab", "y": 1, "labels": {}, "classes": 5, "spectrum": [null]}',
        '{"x": [1, 2], "y": [1, 2], "labels": [-1, 1e9], "classes": [[], {}], "explained": ["a"]}',
        '{"reading": {"redundancy": 1e299, "dim": -1, "rows": "x", "warm": [1], "alignment": 0}}',
    ],
    "views.png": ["no picture", ""],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_costs_what_it_held_and_nothing_else(tmp_path, name):
    whole = write_run(tmp_path / "run", steps=20)
    for content in BROKEN[name]:
        (whole / name).write_bytes(content.encode("latin-1"))
        text = make_page(whole)
        assert text.endswith("</html>\n") and "Traceback" not in text
        assert name == "results.json" or "0.75" in text
        assert name in ("metrics.jsonl", "status.json") or "failed" in text


def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    os.mkfifo(tmp_path / "config.yaml")
    (tmp_path / "views.png").mkdir()
    assert "metrics.jsonl is not there" in make_page(tmp_path)
    with pytest.raises(UserError, match="not a run folder"):
        make_page(tmp_path / "nowhere")


def test_limits_on_what_is_read_and_shown(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(run_reader, "LARGEST_PICTURE", 100)
    monkeypatch.setattr(run_reader, "LARGEST_LOG", 5000)
    monkeypatch.setattr(run_reader, "MOST_CURVES", 3)
    run = run_reader.read(folder)
    assert not run.pictures and len(run.curves) == 3 and 3 < len(run.curves["loss"]) < 50
    assert any("more than is read" in words for words in run.missing)
    assert any("only the first" in words for words in run.missing)


def test_settings_name_their_origin_and_several_runs_what_differs(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", "CIFAR10")
    alone, both = without_heads(make_page(one)), without_heads(make_page(one, two))
    assert '<th scope="row">lr</th><td>0.2</td><td>default</td>' in alone
    differing = both.partition("Settings that differ")[2].partition("are the same")[0]
    assert "<td>shapes</td><td>CIFAR10</td>" in differing and 'row">lr<' not in differing


def test_what_ended_a_run_and_which_of_several_has_a_value_are_told(tmp_path):
    one, two = write_run(tmp_path / "one", "a full disk"), write_run(tmp_path / "two")
    (two / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    both = make_page(one, two)
    assert '<div class="note"><b>one</b>, failed: a full disk</div>' in both
    assert "<b>health_a full disk</b> last 4, -<" in both
    looks = json.loads((one / "pictures.json").read_text())
    for count, words in ((10, ""), (11, "colours repeat after 10"), (22, "… and 2 more; colours repeat after 10")):
        (one / "pictures.json").write_text(json.dumps(looks | {"classes": [f"class {i}" for i in range(count)]}))
        assert f"class {min(count, 20) - 1}</span> {words}</p>" in make_page(one)


def test_of_several_seeds_each_has_its_numbers(tmp_path):
    runs = [{"seed": seed, "epochs": 3, "best": {"epoch": 2}, "test": {"acc1": 0.625 + seed / 16}} for seed in (4, 5)]
    many = {f"class {i}": {"mean": 0.5, "std": 0.1} for i in range(80)}  # as many numbers as would fill the table
    results = {"mean": {"acc1": {"mean": 0.90625, "std": 0.044}, "recall": many}, "runs": runs}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for seed in (4, 5):
        (tmp_path / f"seed_{seed}").mkdir()
    text = without_heads(make_page(tmp_path))
    for measure, value in (
        ("mean · acc1 · mean", "0.9062"),
        ("seed 4 · test · acc1", "0.875"),
        ("seed 5 · test · acc1", "0.9375"),
    ):
        assert f'<th scope="row">{measure}</th><td>results.json</td><td>{value}</td>' in text.partition("<details>")[0]
    assert "name seed_4, seed_5 as runs of their own" in text and "metrics.jsonl is not there" not in text


def test_an_accuracy_stands_with_its_interval_and_n(tmp_path):
    found = {
        "n": 4000,
        "acc1": 0.791,
        "acc1_interval": [0.778, 0.803],
        "balanced_accuracy": 0.75,
        "balanced_accuracy_interval": ["<b>", None],
    }
    (tmp_path / "results.json").write_text(json.dumps({"probe": found}))
    text = without_heads(make_page(tmp_path)).partition("<details>")[0]
    for measure, value in (("acc1", "0.791 (0.778–0.803)"), ("n", "4000"), ("balanced_accuracy", "0.75")):
        assert f'<th scope="row">probe · {measure}</th><td>results.json</td><td>{value}</td>' in text


# Curves ----------------------------------------------------------------------------------


def test_a_long_curve_keeps_its_extremes_and_few_points():
    points = [(float(i), (i * 7919) % 1000 / 1000) for i in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[77_777] = (77_777.0, -99.0)
    kept = svg.thin(points)
    assert len(kept) <= svg.MOST_POINTS and {points[54_321], points[77_777]} <= set(kept)
    assert kept == sorted(kept) and set(kept) <= set(points)
    assert svg.thin(points[:10]) == points[:10]


def test_logarithmic_ticks_are_round():
    assert svg.log_ticks(0.1, 2.05) == [2, 5, 10, 20, 50, 100]
    assert len(svg.log_ticks(-324, 324)) <= 8


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-9, 4e-9), (1e6, 1e6 + 1), (-1e299, 1e299), (5, 5)])
def test_ticks_are_few_round_and_within(low, high):
    found = svg.ticks(low, high)
    room = 1e-6 * (high - low)
    assert 1 <= len(found) <= 11 and all(low - room <= tick <= high + room for tick in found)


def test_a_curve_lies_where_its_numbers_say():
    frame = svg.Frame([(0, 1), (10, 100)], "step", log=True)
    (x0, y0), (x1, y1), (x2, y2) = (frame.place(*point) for point in ((0, 1), (5, 10), (10, 100)))
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2) and y0 > y1
    assert "<circle" in svg.curves([[(1, 2)]], "one point") and "<path" in svg.curves([[(1, 2), (2, 2)]], "flat")
    assert svg.curves([[], []], "nothing").count('class="line') == 0


# The command -----------------------------------------------------------------------------


def test_the_command_writes_one_file(tmp_path, monkeypatch, capsys):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    monkeypatch.setattr(sys, "argv", ["report", str(one), str(two), "--output", str(tmp_path / "both.html")])
    report.main()
    assert "2 runs side by side" in (tmp_path / "both.html").read_text("utf-8")
    assert str(tmp_path / "both.html") in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", str(one), "--output", str(tmp_path / "no" / "where.html")])
    with pytest.raises(UserError, match="cannot write"):
        report.main()


def test_it_runs_as_a_module_beside_the_standard_one(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-m", "ssl.report", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<h1>Run run</h1>" in (folder / "report.html").read_text("utf-8")
