"""The report of runs: whatever a folder holds it is a page, and real Chromium finds nothing wrong with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import browser
import pytest
import torch
from running import without_roots_rights

from ssl.checkpoints import run_reader
from ssl.errors import UserError
from ssl.report import __main__ as report
from ssl.report import card_page, markup, page, svg, view_page

needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed here")
OLD_RUNS = Path(__file__).resolve().parents[1] / "old_runs"
EVIL = "</title></svg></script><script>parent.owned=1</script><img src=/stolen onerror=parent.owned=1>\"'&{0}{x}\x1b[2J"


def write_run(folder, word="shapes", steps=300):
    """A run folder with everything in it; `word` stands wherever words come from outside."""
    folder.mkdir(parents=True)
    quoted = json.dumps(word)
    (folder / "config.yaml").write_text(f"method: barlow_twins\ndataset: {quoted}\nlr: 0.2\nepochs: {steps}\n")
    about = {"origin": {"dataset": word, "lr": "default"}, "global_batch": 128, "processes": 2, "device": word}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "status.json").write_text(
        json.dumps({"state": "failed", "step": steps, "of": 400, "reason": word, "begun": word})
    )
    (folder / "best.json").write_text(json.dumps({"step": 9, "epoch": 1, "chosen_by": word, "value": 0.5}))
    lines = [
        {"epoch": s / 10, "step": s, "loss": 1000 / (s + 1), "samples_per_second": 300.0 + s % 7, "data_wait": 0.01}
        | {f"health_{word}": s % 5, **{f"part_{i}": s * i for i in range(9)}}
        for s in range(steps)
    ]
    lines.append({"epoch": 3, "step": steps, "knn_acc1": 0.625, "val_loss": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "health.jsonl").write_text(json.dumps({"step": 7, "rule": word, "words": f"collapsing {word}"}) + "\n")
    shots = {"labels": 3, "acc1": 0.375, "acc1_interval": [0.25, 0.5], "smaller_classes": [word]}
    strengths = {"0.1": {"probe": {"acc1": 0.5}}, "0.3": {"probe": {"acc1": 0.25}}, word: {"probe": {"acc1": 0.125}}}
    card = {"few_labels": {"head": word, "shots": {"1": shots, word: shots}}, "groups": None, "groups_why": word}
    card |= {"corruptions": {"noise": strengths}}
    results = {"probe": {"acc1": 0.75, "note": word}, "knn": {"acc1": 0.5}, word: {"acc1": 0.25}, "card": card}
    (folder / "results.json").write_text(json.dumps(results))
    x = torch.linspace(-1, 1, 40)
    looks = {
        "x": x.tolist(),
        "y": (x**2).tolist(),
        "labels": [i % 3 for i in range(40)],
        "explained": [0.6, 0.2],
        "classes": [word, "b", "c"],
        "map": {"method": word, "x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 0.0]},
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
    assert found["widest"] <= 640 or width < 832, "a curve fills the whole screen"
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
    bad = bad.replace("max-width:", "max-width:0.0").replace("svg{display:block;width:100%", "svg{width:900px")
    found = browser.look(bad, 360)
    assert found["widest"] > 640
    assert found["cut"]
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
    runs = [{"seed": seed, "best": {"epoch": 2}, "test": {"acc1": 0.625 + seed / 16, "images": 9}} for seed in (4, 5)]
    many = {f"class {i}": {"mean": 0.5, "std": 0.1} for i in range(80)}  # as many numbers as would fill the table
    results = {"mean": {"acc1": {"mean": 0.90625, "std": 0.044}, "recall": many}, "runs": runs}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for seed in (4, 5):
        (tmp_path / f"seed_{seed}").mkdir()
    text = without_heads(make_page(tmp_path))
    mean = '<th scope="row">mean ± deviation of 2 seeds</th><td>90.6 ± 4.4 %</td><td>9</td>'
    rows = [
        mean,
        *(f'<th scope="row">seed {seed}</th><td>{62.5 + 6.25 * seed:.1f} %</td><td>9</td>' for seed in (4, 5)),
    ]
    assert all(row in text.partition("<details>")[0] for row in rows)
    assert "metrics.jsonl is not there" not in text


def test_seeds_with_folders_of_their_own_are_read_with_their_run(tmp_path):
    runs = [{"seed": seed, "test": {"acc1": 0.5, "images": 9}} for seed in (9, 10)]
    (tmp_path / "config.yaml").write_text("freeze: false\nlr: 0.5\n")
    (tmp_path / "results.json").write_text(json.dumps({"mean": {"acc1": {"mean": 0.5, "std": 0.0}}, "runs": runs}))
    for one in runs:
        folder = tmp_path / f"seed_{one['seed']}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(one))
        (folder / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "train_loss": {2 + s}}}\n' for s in (1, 2)))
    run = run_reader.read(tmp_path)
    assert [seed.short_name for seed in run.seeds] == [f"{tmp_path.name}/seed_{seed}" for seed in (9, 10)]
    assert all(seed.fine_tuned and seed.curves["train_loss"] == [(1, 3), (2, 4)] for seed in run.seeds)
    text = make_page(tmp_path)
    judged = text.partition('id="judged"')[2].partition("<details>")[0]
    assert judged.count("fine-tuned network, ") == 2 and judged.count("mean ± deviation of 2 seeds") == 1
    assert text.count(' class="line c') == 2 and 'id="health"' not in text


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
    assert "trained encoder</th><td>79.1 % (77.8–80.3)</td><td>75.0 %</td><td>4000</td>" in text


def test_the_report_card_is_the_terminals_table_and_a_picture(tmp_path):
    page = without_heads(make_page(write_run(tmp_path / "run")))
    shown = page.partition('<section id="card"')[2].partition("</section>")[0]
    assert "few labels: 1 a class, 3 in all; 1 classes have fewer</th><td>37.5 % (25.0–50.0)</td>" in shown
    assert "noise 0.1 / 0.3 / shapes</th><td>50.0 / 25.0 / 12.5 %</td>" in shown
    assert "<li>not measured: groups: shapes</li>" in shown
    assert shown.count('r="3.6"') == 4 and 'class="line dashed c0"' in shown  # the key, two rows, the first strength
    (tmp_path / "run" / "results.json").write_text('{"probe": {"acc1": 0.75}}')
    assert 'id="card"' not in make_page(tmp_path / "run")
    both = make_page(write_run(tmp_path / "one"), write_run(tmp_path / "two"))
    assert "trained encoder, one" in both and "trained encoder, two" in both and "c1" in both


def test_card_svg_is_whole_and_keeps_words_from_outside_as_words(tmp_path):
    found = json.loads((write_run(tmp_path / "run", EVIL) / "results.json").read_text())
    card_page.write(found | {"random_init": {"card": found["card"]}}, tmp_path)
    drawn = ElementTree.parse(tmp_path / "card.svg").getroot()
    texts = [part.text for part in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "untrained encoder" in texts and "1 a class, 3 in all; 1 classes have fewer" in texts
    assert not [part for part in drawn.iter() if part.tag.endswith("script")]
    card_page.write({"probe": {"acc1": 0.75}}, tmp_path / "nowhere")  # without a card nothing is written
    card_page.write({"probe": {"acc1": 0.75}}, tmp_path)
    assert not (tmp_path / "card.svg").exists()  # it was of earlier results
    assert ElementTree.parse(tmp_path / "card.1.svg").getroot().tag == drawn.tag
    (tmp_path / "card.svg").touch()
    with pytest.raises(UserError, match="output_dir: cannot write"):
        card_page.write(found, tmp_path / "card.svg" / "inside")


def test_accuracies_are_the_terminals_table_and_validation_stands_apart(tmp_path):
    def found(acc1):
        low_high = [acc1 - 0.01, acc1 + 0.01]
        return {"n": 400, "acc1": acc1, "acc1_interval": low_high} | {
            "balanced_accuracy": acc1,
            "balanced_accuracy_interval": low_high,
        }

    one = write_run(tmp_path / "one")
    of = {
        "weights": {"path": "runs/one/encoder.pt", "steps": 300},
        "data": {"dataset": "folder", "data_dir": "my <photos>", "split": "test", "test_checksum": "400 images abc"},
    }
    content = {"raw_pixels": {"knn": found(0.25)}, "random_init": {"probe": found(0.375), "knn": found(0.3)}}
    (one / "results.json").write_text(json.dumps(content | {"probe": found(0.5), "knn": found(0.625), "of": of}))
    line = {"step": 300, "epoch": 3, "judged_n": 50, "knn_acc1": 0.7, "linear_acc1": 0.8}
    with open(one / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line | {f"{name}_acc1_interval": [0.6, 0.9] for name in ("knn", "linear")}) + "\n")
    best = {"step": 200, "epoch": 2, "chosen_by": "linear_acc1", "value": 0.9, "interval": [0.8, 0.95], "n": 50}
    (one / "best.json").write_text(json.dumps(best))
    text = without_heads(make_page(one))
    test, validation = (part.partition("</table>")[0] for part in text.split("<caption")[2:4])
    assert "Test: frozen encoders on the test split of my &lt;photos&gt; (400 images abc)" in test
    for row in (
        "raw pixels</th><td>-</td><td>25.0 % (24.0–26.0)</td><td>400</td>",
        "untrained encoder</th><td>37.5 % (36.5–38.5)</td><td>30.0 % (29.0–31.0)</td><td>400</td>",
        "trained encoder (encoder.pt, step 300)</th><td>50.0 % (49.0–51.0)</td><td>62.5 % (61.5–63.5)</td><td>400</td>",
    ):
        assert row in test.replace(" class=dash", ""), row
    assert "Validation" in validation and "chosen on these images" in validation
    assert "epoch 3 (the last)</th><td>80.0 % (60.0–90.0)</td><td>70.0 % (60.0–90.0)</td><td>50</td>" in validation
    assert "epoch 2 (encoder_best.pt)</th><td>90.0 % (80.0–95.0)</td>" in validation


def test_a_fixed_head_is_not_called_the_probe(tmp_path):
    def judged(name, eval_head, **best):
        folder = write_run(tmp_path / name)
        with open(folder / "config.yaml", "a") as file:
            file.write(f"eval_head: {eval_head}\n")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 300, "epoch": 3, "judged_n": 50, "linear_acc1": 0.8}) + "\n")
        best = {"step": 200, "epoch": 2, "chosen_by": "linear_acc1", "value": 0.9, "n": 50} | best
        (folder / "best.json").write_text(json.dumps(best))
        return folder

    def validation_table(*folders):
        text = without_heads(make_page(*folders))
        return text[text.index("Validation: ") :].partition("</table>")[0].replace(" class=dash", "")

    validation = validation_table(judged("fixed", "fixed"))
    assert "fixed head" in validation and "probe" not in validation
    validation = validation_table(judged("one", "probe"), judged("two", "fixed", head="probe"))
    for row in (
        "epoch 3 (the last), one</th><td>80.0 %</td><td>-</td><td>-</td><td>50</td>",
        "epoch 3 (the last), two</th><td>-</td><td>-</td><td>80.0 %</td><td>50</td>",
        "epoch 2 (encoder_best.pt), two</th><td>90.0 %</td><td>-</td><td>-</td><td>50</td>",
    ):
        assert row in validation, validation


def test_a_fine_tuning_has_its_curves_and_no_health(tmp_path):
    (tmp_path / "config.yaml").write_text("freeze: false\nval_fraction: 0.1\n")
    lines = [
        {"step": 10 * e, "epoch": e, "train_loss": 2 / e, "val_loss": 3 / e, "val_n": 30, "val_acc1": e / 4}
        | {"val_acc1_interval": [0.1, 0.9], "val_auc": 0.5 + e / 10}
        for e in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test = {"loss": 1.5, "images": 40, "acc1": 0.6, "acc1_interval": [0.5, 0.7], "auc": None, "auc_macro": 0.75}
    (tmp_path / "results.json").write_text(json.dumps({"best": lines[1], "test": test}))
    text = without_heads(make_page(tmp_path))
    assert 'id="health"' not in text and "Health" not in text
    assert "<b>Loss</b>" in text and 'class="line dashed c0"' in text and "Accuracy on validation images" in text
    assert "fine-tuned network</th><td>60.0 % (50.0–70.0)</td><td>0.75</td><td>1.5</td><td>40</td>" in text
    assert "epoch 2 (the best)</th><td>50.0 % (10.0–90.0)</td><td>0.7</td><td>1.5</td><td>30</td>" in text
    assert "0.1 of every class of train" in text and "The best epoch was chosen on these images" in text


# What ran ----------------------------------------------------------------------------------


def test_the_overview_says_where_when_and_how_to_continue(tmp_path):
    folder = write_run(tmp_path / "a run")
    status = {"state": "preempted", "step": 7, "of": 9, "reason": "SIGTERM", "time": "2026-11-29T13:05:09+0000"}
    (folder / "status.json").write_text(json.dumps(status | {"begun": "2026-11-28T23:00:00+0000", "seconds": 7500}))
    about = {"device": "CPU, 2 threads × 1 process", "processes": 1, "images": 20000}
    (folder / "about.json").write_text(json.dumps(about))
    text = without_heads(make_page(folder)).replace(" class=long", "")
    command = f"train.py --config &#x27;{folder}/config.yaml&#x27; --output_dir &#x27;{folder}&#x27;"
    for name, value in (
        ("Folder", str(folder)),
        ("State", "preempted"),
        ("Started", "2026-11-28 23:00"),
        ("Ended", "2026-11-29 13:05"),
        ("Time computed", "2 h 05 min"),
        ("Device", "CPU, 2 threads × 1 process"),
        ("Data", "shapes"),
        ("Images trained on", "20,000"),
    ):
        assert f'<th scope="row">{name}</th><td>{value}</td>' in text, name
    assert command in text.partition("Continue with")[2].partition("</td>")[0]
    with open(folder / "config.yaml", "a") as file:
        file.write("resume: none\n")
    assert f"{command} --resume auto</code>" in make_page(folder)
    (folder / "status.json").write_text(json.dumps(status | {"state": "finished"}))
    (folder / "about.json").write_text("{}")
    older = make_page(folder)
    assert not any(
        words in older for words in ("Continue with", "Started", "Time computed", "Device", "Images trained")
    )


def test_a_run_of_an_earlier_version_has_a_report():
    for name in ("pretrain", "finetune"):
        text = make_page(OLD_RUNS / name)
        assert "preempted" in text and "2026-11-29" in text and "Time computed" not in text and "Traceback" not in text


def test_every_axis_has_a_name(tmp_path):
    text = make_page(write_run(tmp_path / "run"))
    pictures = re.findall("<svg.*?</svg>", text)
    assert len(pictures) > 10
    for picture in pictures:
        words = re.findall('<text class="tick"[^>]*>([^<]*)</text>', picture)
        assert words[0] and not re.match(r"-?\d", words[0]) and not re.match(r"-?\d", words[-1]), picture[:300]
    for words in ("first component, 60 % of the variance", "second component, 20 %", "eigenvalue, logarithmic"):
        assert words in text


def test_the_command_that_continues_a_run_is_whole_however_long_its_path_is(tmp_path):
    folder = tmp_path / ("a" * 100) / ("b" * 100) / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method: simclr\n")
    (folder / "status.json").write_text('{"state": "preempted", "reason": "<b>", "step": 7}')
    assert f"--config {folder}/config.yaml --output_dir {folder}</code>" in make_page(folder)


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [tmp_path / name / "run" for name in ("flowers/a", "flowers/b", "x/b")] + [tmp_path / "other"]
    for folder in folders:
        write_run(folder, steps=5)
        (folder / "seed_1").mkdir()
        (folder / "seed_1" / "status.json").write_text("{}")
    runs = [run_reader.read(folder) for folder in folders]
    text = page.page(runs)
    assert [run.short_name for run in runs] == ["a/run", "flowers/b/run", "x/b/run", "other"]
    assert [run.seeds[0].short_name for run in runs][2:] == ["x/b/run/seed_1", "other/seed_1"]
    assert '<th scope="col">flowers/b/run</th>' in text


def test_a_run_that_is_named_by_a_dot_has_its_folders_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_run(tmp_path / "run", steps=5))
    assert "<h1>Run run</h1>" in make_page(Path("."))


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


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-9, 4e-9), (1e6, 1e6 + 1), (-1e299, 1e299), (5, 5), (0, 4e-323)])
def test_ticks_are_few_round_and_within(low, high):
    found = svg.ticks(low, high)
    room = 1e-6 * (high - low)
    assert 1 <= len(found) <= 11 and all(low - room <= tick <= high + room for tick in found)


def test_a_count_has_all_its_digits():
    assert [svg.number(n) for n in (12, 50_000, 123_499)] == ["12", "50000", "123499"]
    assert [svg.number(x) for x in (0.00123456, 12.0, 3_456_789.0)] == ["0.001235", "12", "3.457e+06"]
    assert svg.number(10**200) == "1e+200"


def test_the_numbers_at_an_axis_differ():
    assert svg.numbers([2.3022, 2.3024, 2.3026]) == ["2.3022", "2.3024", "2.3026"]
    assert svg.numbers([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    frame = svg.Frame([(10000, 2.3021), (10001, 2.3029)], "step")
    words = re.findall(r'text-anchor="\w+">(-?[\d.]+)</text>', frame.axes())
    assert len(words) > 6 and len(set(words)) == len(words)


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


def test_a_folder_above_runs_reports_them_all(tmp_path, monkeypatch, capsys):
    for name in ("a/one", "a/b/two", "three"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "runs")])
    report.main()
    text = (tmp_path / "runs" / "report.html").read_text("utf-8")
    assert "3 runs side by side" in text and all(f">{name}</th>" in text for name in ("one", "two", "three"))
    assert "report.html, of 3 runs" in capsys.readouterr().out
    # `runs/*` also names the report that was just written
    several = sorted(map(str, (tmp_path / "runs").iterdir()))
    monkeypatch.setattr(sys, "argv", ["report", *(path for path in several if not path.endswith("empty"))])
    report.main()
    assert "3 runs side by side" in (tmp_path / "runs" / "a" / "report.html").read_text("utf-8")


def test_many_runs_have_a_line_each(tmp_path, monkeypatch):
    for number in range(8):
        write_run(tmp_path / f"run_{number}", steps=20)
    read, kept = run_reader.read, []
    monkeypatch.setattr(run_reader, "read", lambda *how, **more: kept.append(read(*how, **more)) or kept[-1])
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    report.main()
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<h1>8 runs</h1>" in text and text.count("20 of 400") == 8 and 'id="judged"' in text
    assert 'id="pictures"' not in text and "data:image" not in text
    assert text.count('<td data-head="Last loss">50</td>') == 8  # 1000 / (19 + 1)
    points = [point for run in kept for line in run.curves.values() for point in line]
    assert len(points) == 8 * len(kept[0].curves) and not any(run.pictures for run in kept)  # little is in memory


def test_a_run_that_two_paths_lead_to_is_reported_once(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "one", steps=5)
    (tmp_path / "runs" / "two").symlink_to("one")
    monkeypatch.chdir(tmp_path)
    assert report.find([Path("runs"), tmp_path / "runs" / "one"]) == [Path("runs") / "one"]


def test_of_very_many_runs_the_newest_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "MOST", 2)
    for age, name in enumerate("cab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    assert [path.name for path in report.find([tmp_path])] == ["a", "c"]
    assert "3 runs: the report has the 2 that changed last" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for given in (["photos"], ["nowhere"], ["report.html"]):
        monkeypatch.setattr(sys, "argv", ["report", *(str(tmp_path / name) for name in given)])
        with pytest.raises(UserError, match=r"no run|nor a folder in it|not a folder"):
            report.main()
    assert list(tmp_path.rglob("*")) == [tmp_path / "photos"]


def test_it_runs_as_a_module_beside_the_standard_one_and_skips_what_it_may_not_enter(tmp_path):
    for name in ("run", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
    (tmp_path / "private").chmod(0)
    (tmp_path / "link").symlink_to("x" * 300)
    command = [sys.executable, "-m", "ssl.report"]
    how = {"capture_output": True, "text": True, "preexec_fn": without_roots_rights}
    done = subprocess.run([*command, tmp_path], **how)
    assert done.returncode == 0, done.stderr
    assert "<h1>Run run</h1>" in (tmp_path / "report.html").read_text("utf-8")
    done = subprocess.run([*command, tmp_path / "private" / "run"], **how)
    assert (done.returncode, done.stderr) == (2, f"report: error: {tmp_path}/private/run: Permission denied\n")
