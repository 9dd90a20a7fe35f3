"""Tables that name images: read as the writer meant them, or refused with what is wrong and where."""

import csv
import io
import os
import re
import sys
import unicodedata

import pytest
import torch
from drawn import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT, run, tiny

from ssl.data import tables
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.settings import config
from ssl.sources import datasets, leaks, lookup
from ssl.sources.labels import listed


def written(path, rows, **options) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return str(path)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments)
    return str(raised.value)


def pictures(root, names):
    for number, name in enumerate(names):
        picture(root / name, (number, 0, 0))


# Reading -----------------------------------------------------------------------

cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
cells = cells.filter(lambda cell: not re.match(r'\s+"', cell))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6)),
    # With other line ends than its own, Python's writer does not quote all that it must by itself.
    st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL), ("\r", csv.QUOTE_ALL)]),
    st.booleans(),
)
def test_any_cells_come_back_as_they_were_written(tmp_path_factory, rows, style, mark):
    ending, quoting = style
    path = tmp_path_factory.getbasetemp() / "any.csv"
    columns = [f"column {i}" for i in range(len(rows[0]))]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=ending, quoting=quoting).writerows([columns, *rows])
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode())
    assert tables.read_table(path, columns) == [tuple(row) for row in rows]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from('a,b"\r\n\0é='), max_size=40).map(str.encode)))
def test_any_bytes_are_rows_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(b"a,b\n" + content)
    try:
        rows = tables.read_table(path, ["b", "a"])
        assert all(len(row) == 2 and "\0" not in "".join(row) for row in rows)
    except UserError as error:
        assert str(error).startswith("csv: ") and str(path) in str(error)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", r"'b' is not among the columns of .*: none at all"),
        (b"image,dx\nx,y\n", r"'b' is not among the columns of .*: 'image', 'dx'"),
        (b"a:b\nx:y\n", r"'b' is not among the columns of .*: 'a:b'"),
        (b"b,b\nx,y\n", r"'b' is twice among the columns"),
        (b"a,b\nx,y\n1,2,3\n", r"line 3 has 3 cells, the header 2"),
        (b"a,b\nx\n", r"line 2 has 1 cells, the header 2"),
        (b"a,b\nx,y\0z\n", r"line 2.* NUL"),
        (b'a,b\nx,"y\n', r"line 2: unexpected end of data"),
        (b'a,b\nx,"y"z\n', r"line 2: "),
        (b"a,b\nx,\xff\n", r"cannot read .* as UTF-8 .*; save it as CSV in UTF-8"),
        ("a,b\nx,y\n".encode("utf-16"), r"cannot read .* as UTF-8"),
        (b"a,b\nx," + b"y" * 200_000 + b"\n", r"line 2: field larger than field limit"),
    ],
    ids=["empty", "columns", "colons", "twice", "long", "short", "NUL", "open", "quote", "bytes", "utf-16", "huge"],
)
def test_what_is_wrong_in_a_table_is_said_with_its_line(tmp_path, content, expected):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        tables.read_table(tmp_path / "t.csv", ["b"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_says_what_separates(tmp_path, delimiter):
    others = {",", ";", "\t"} - {delimiter}
    rows = [["image", "a b", "label"], ["x 1", "".join(others), "ants, bees;wasps"], ["y", "", "\t"]]
    path = written(tmp_path / "t.csv", rows, delimiter=delimiter)
    assert tables.read_table(path, ["label", "image"]) == [("ants, bees;wasps", "x 1"), ("\t", "y")]


def test_a_header_that_two_delimiters_part_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("x,b,y;b;z\n1,2,3;4;5\n")
    assert "may be separated by comma or semicolon" in refusal(tables.read_table, tmp_path / "t.csv", ["b"])
    assert tables.read_table(tmp_path / "t.csv", ["b", "x"]) == [("2", "1")]  # the second column decides


def test_what_is_no_file_or_too_large_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.csv")  # reading it would wait for ever
    for path in (tmp_path / "pipe.csv", tmp_path, tmp_path / "none.csv"):
        assert "no ordinary file" in refusal(tables.read_table, path, ["a"])
    written(tmp_path / "t.csv", [["a"], ["x"]])
    monkeypatch.setattr(tables, "LARGEST_TABLE", 3)
    assert "more than the 3 read" in refusal(tables.read_table, tmp_path / "t.csv", ["a"])


def test_a_quoted_line_end_and_a_formula_are_text(tmp_path):
    path = written(tmp_path / "t.csv", [["", "a"], ["0", "two\r\nlines"], ["1", "=1+1"]])
    assert tables.read_table(path, ["a"]) == [("two\r\nlines",), ("=1+1",)]


def test_lists_keep_names_of_any_bytes(tmp_path):
    (tmp_path / "list").write_bytes("\ufeffa b.jpg\r\n\n  c\u2028d.jpg \n".encode() + b"\xff.jpg")
    assert tables.read_lines(tmp_path / "list", "train_files") == ["a b.jpg", "c\u2028d.jpg", "\udcff.jpg"]


# Finding the images ---------------------------------------------------------------


def test_names_are_found_below_the_folder_with_and_without_extension(tmp_path):
    names = ["a.png", "b.JPG", "sub/c.v2.jpg", "d.jpg.png", "d.jpg", "new\nline.png"]
    pictures(tmp_path, names)
    (tmp_path / "a.txt").write_text("no image")
    asked = ["b", "sub/c.v2", "./sub/../a", "d.jpg", "d.jpg.png", "new\nline"]
    found = lookup.find_images(tmp_path, asked)
    assert [os.path.relpath(path, tmp_path) for path in found] == [
        "b.JPG",
        "sub/c.v2.jpg",
        "a.png",
        "d.jpg",
        "d.jpg.png",
        "new\nline.png",
    ]


@pytest.mark.parametrize(
    "names, expected",
    [
        (["/etc/passwd"], "'/etc/passwd' is a whole path; write names relative to --data_dir"),
        (["../outside.png"], "'../outside.png' leads out of"),
        (["sub/../../outside.png"], "leads out of"),
        (["a", ""], "a row names no image"),
        (["two"], "'two' could be two.jpg or two.png; write the folder and the extension"),
        (["a", "a.png"], "'a.png' is in rows 1 and 2"),
        (["notes.txt"], "1 of 1 images are not in"),
        (["sub"], "1 of 1 images are not in"),
        (["pipe.png"], "1 of 1 images are not in"),
        (["a", "v", "w", "x\x1b[2J", "y"], r"4 of 5 images are not in .*: 'v', 'w', 'x\\x1b\[2J' and 1 more"),
    ],
)
def test_names_that_lead_nowhere_or_elsewhere_are_refused(tmp_path, names, expected):
    root = tmp_path / "images"
    pictures(root, ["a.png", "two.png", "two.jpg", "sub/x.png", "../outside.png"])
    (root / "notes.txt").write_text("x")
    os.mkfifo(root / "pipe.png")
    with pytest.raises(UserError, match=expected):
        lookup.find_images(root, names)


@pytest.mark.parametrize(
    "files, names",
    [
        (["é.png"], [unicodedata.normalize("NFD", "é.png")]),
        ([unicodedata.normalize("NFD", "é.png")], ["é"]),
        (["A/Scan.PNG", "b/scan2.png"], ["a/scan.png", "B/SCAN2"]),
        (["part_1/ISIC_1.jpg", "part_2/ISIC_2.jpg"], ["ISIC_1", "ISIC_2.jpg"]),  # as HAM10000 is unpacked
        (["x/1/a.png", "x/2/a.png"], ["2/a", "1/a.png"]),
        (["img/a.png"], ["img\\a.png"]),
        (["a.png", "sub/a.png"], ["a"]),  # the name as it is comes first
    ],
)
def test_a_name_in_another_form_is_found_where_one_file_fits(tmp_path, capsys, files, names):
    pictures(tmp_path, files)
    found = [os.path.relpath(path, tmp_path) for path in lookup.find_images(tmp_path, names)]
    assert found == {2: files, 1: files[:1]}[len(names)] or found == files[::-1]
    assert ("were found in" in capsys.readouterr().out) == (names != ["a"])


@pytest.mark.parametrize(
    "files, names, expected",
    [
        (["part_1/a.png", "part_2/a.png"], ["a"], r"'a' could be part_1/a\.png or part_2/a\.png; write the folder"),
        (["A.png", "sub/a.PNG"], ["a.pnG"], r"could be A\.png or sub/a\.PNG"),
        (["one/a.png"], ["two/a.png"], r"'two/a\.png'; without 'two/' each is one image in '\S*/one': if these"),
        (["p1/a.png", "p2/b.PNG", "c.png"], ["x/a", "x/b.png", "c"], r"2 of 3 .*without 'x/' .* in '\S*/p1', '\S*/p2'"),
        (["a.png", "b.png"], ["img\\a.png", "img\\b.png"], r"without 'img\\\\' each is one image in '[^']*[^/.]':"),
        (["one/a.png", "b.png"], ["two/a.png", "two/c.png"], r"2 of 2 images are not in .*; is --data_dir"),
        (["one/a.png", "two/a.png"], ["x/a.png"], r"1 of 1 images are not in .*; is --data_dir"),
        (["one/a.png"], ["x/a.png", "y/a.png"], r"2 of 2 images are not in .*; is --data_dir"),
        (["one/a.png"], ["e/a.png"], r"1 of 1 images are not in"),  # half a folder's name
        (["sub/a.jpg"], ["a.png"], r"1 of 1 images are not in .*'a\.png'; there is 'sub/a\.jpg'"),
        (["sub/a.jpg"], ["a", "sub/A.jpg"], r"'sub/A\.jpg' is in rows 1 and 2"),
        (["sub/a.jpg"], ["..\\sub\\a.jpg"], r"1 of 1 images are not in"),
    ],
)
def test_a_name_that_fits_two_files_or_another_folder_is_not_guessed(tmp_path, files, names, expected):
    pictures(tmp_path, files)
    with pytest.raises(UserError, match=expected):
        lookup.find_images(tmp_path, names)


def fitting(paths, name, compared):
    """The paths that end with a name, one comparison after the other."""
    wanted = compared(os.path.normpath(name.replace("\\", "/")))
    ends = lambda path: (compared(path), compared(os.path.splitext(path)[0]))  # noqa: E731
    return [path for path in paths if any(f"/{end}".endswith(f"/{wanted}") for end in ends(path))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_names_are_found_as_by_a_plain_search(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("tree")
    part = st.sampled_from(["a", "A", "b", "é", unicodedata.normalize("NFD", "é"), "a.b", "straße"])
    path = st.lists(part, min_size=1, max_size=3).map("/".join)
    files = data.draw(st.lists(st.tuples(path, st.sampled_from([".png", ".JPG"])).map("".join), min_size=1, max_size=8))
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    paths = sorted({os.path.normpath(file) for file in files}, key=os.fsencode)
    other = st.sampled_from(["..\\a.png", "/a", "//a", ".", "a/", "./a", "A\\a.png", *paths])
    names = data.draw(st.lists(path | other | path.map("{}.png".format), max_size=6))
    compared = lambda text: unicodedata.normalize("NFC", text).casefold()  # noqa: E731
    found = lookup._elsewhere(root, names)
    assert found == {name: sorted(fitting(paths, name, compared)) for name in names}


def steps(call, *arguments) -> int:
    """The instructions that Python runs in ssl/sources/ for a call."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "/ssl/sources/" not in frame.f_code.co_filename.replace(os.sep, "/"):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*arguments)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", ["found", "lost", "with a wrong folder", "list"])
def test_twice_as_many_folders_of_one_file_name_take_twice_the_steps(tmp_path, kind):
    taken = {}
    for count in (40, 80, 160):
        root = tmp_path / str(count)
        names = [f"p{number:03}/image.png" for number in range(count)]
        for name in names:
            (root / "deep" / name).parent.mkdir(parents=True)
            (root / "deep" / name).write_text("")
        asked = names if kind in ("found", "list") else [f"x{name if kind == 'lost' else '/' + name}" for name in names]
        if kind == "list":
            (root / "list").write_text("\n".join(asked))
            data = Images("folder", torch.zeros(count), ["a"], paths=[str(root / "deep" / name) for name in names])
            taken[count] = steps(listed, data, str(root / "list"))
        else:
            call = lookup.find_images if kind == "found" else lambda *them: refusal(lookup.find_images, *them)
            taken[count] = steps(call, root, asked)
    assert taken[160] - taken[80] < 2.2 * (taken[80] - taken[40])


# As a data set ------------------------------------------------------------------------


def table_of(tmp_path, count=40):
    pictures(tmp_path / "images", [f"{i:02}.png" for i in range(count)])
    rows = [[f"{i:02}", "ab"[i % 2], "x"] for i in range(count)]
    return written(tmp_path / "t.csv", [["image", "dx", "other"], *rows[::-1]])


def test_a_table_is_the_data_set_that_class_folders_would_be(tmp_path):
    table, root = table_of(tmp_path), str(tmp_path / "images")
    for i in range(40):
        copy = tmp_path / "folders" / "ab"[i % 2] / f"{i:02}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / "images" / f"{i:02}.png").read_bytes())
    options = dict(csv=table, label_column="dx")
    parts = {split: datasets.load("folder", root, split, **options) for split in ("train", "unlabelled", "test", "all")}
    for data in parts.values():
        assert data.classes == ["a", "b"]
        assert all(int(path[-6:-4]) % 2 == label for path, label in zip(data.paths, data.labels.tolist()))
    assert parts["unlabelled"].paths == parts["train"].paths
    train, test = set(parts["train"].paths), set(parts["test"].paths)
    assert not train & test and train | test == set(parts["all"].paths) and len(parts["all"]) == 40
    folders = datasets.load("folder", str(tmp_path / "folders"), "all")
    assert torch.equal(folders.labels.bincount(), parts["all"].labels.bincount())


def test_without_labels_all_images_are_trained_on_and_none_judged(tmp_path):
    table, root = table_of(tmp_path), str(tmp_path / "images")
    data = datasets.load("folder", root, "unlabelled", csv=table)
    assert len(data) == 40 and data.classes == [] and data.paths == sorted(data.paths)
    assert "label_column: is not set" in refusal(lambda: datasets.load("folder", root, "test", csv=table))


def test_rows_in_another_order_are_the_same_data_set(tmp_path):
    table, root = table_of(tmp_path), str(tmp_path / "images")
    one = datasets.load("folder", root, "train", csv=table, label_column="dx")
    rows = list(csv.reader(open(table)))  # noqa: SIM115
    other = written(tmp_path / "other.csv", [rows[0], *sorted(rows[1:], key=lambda row: row[0][::-1])])
    two = datasets.load("folder", root, "train", csv=other, label_column="dx")
    assert one.paths == two.paths and torch.equal(one.labels, two.labels)
    assert one.fingerprint(root) == two.fingerprint(root)


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    table, root = table_of(tmp_path), str(tmp_path / "images")
    for name, options, expected in (
        ("shapes", {"csv": table}, "csv: names images of your own"),
        ("folder", {"label_column": "dx"}, "label_column: is for a table"),
        ("folder", {"image_column": "name"}, "image_column: is for a table"),
        ("folder", {"class_list": "100.txt"}, "class_list: goes with --dataset ImageNet50, ImageNet100, ImageNet200"),
        ("folder", {"csv": table, "image_column": "name"}, "'name' is not among the columns"),
    ):
        with pytest.raises(UserError, match=expected):
            datasets.load(name, root if name == "folder" else None, "train", **options)
    rows = list(csv.reader(open(table)))  # noqa: SIM115
    with pytest.raises(UserError, match="a header and no rows"):
        datasets.load("folder", root, "train", csv=written(tmp_path / "e.csv", rows[:1]))


def test_rows_without_a_label_are_pre_trained_on_and_not_judged(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    rows = [[f"{i:02}", "ab"[i % 2]] for i in range(40)]
    missing = ["NaN", "nan", "NA", "null", "", " ", "N/A", "NULL", "<NA>", "?", "-"]
    for i, cell in enumerate(missing):
        rows[3 * i][1] = cell
    rows[1][1] = rows[2][1] = "None"  # may be a class
    rows[4][1] = rows[5][1] = "Unknown"  # and so may this
    options = dict(csv=written(tmp_path / "n.csv", [["image", "dx"], *rows]), label_column="dx", seed=3)
    parts = {split: datasets.load("folder", root, split, **options) for split in ("unlabelled", "train", "test", "all")}
    unlabelled = {3 * i for i in range(len(missing))}
    assert all(data.classes == ["None", "Unknown", "a", "b"] for data in parts.values())
    labels = {i: label for part in parts.values() for i, label in zip(sorted(numbers(part)), part.labels.tolist())}
    assert labels == {i: -1 if i in unlabelled else ["None", "Unknown", "a", "b"].index(rows[i][1]) for i in range(40)}
    assert numbers(parts["train"]) | numbers(parts["test"]) == numbers(parts["all"]) == set(range(40)) - unlabelled
    assert not numbers(parts["train"]) & numbers(parts["test"]) and len(parts["test"]) >= 3
    assert numbers(parts["unlabelled"]) == numbers(parts["train"]) | unlabelled
    said = capsys.readouterr().out
    assert said.count("11 of 40 rows have no 'dx' (2 empty, 1 NaN, 1 nan, 1 NA, 1 null, ") == 1
    assert said.count("2 of 40 rows have 'Unknown' as 'dx': it counts as a value; leave the cell empty") == 1
    assert said.count(f"{len(parts['test'])} of 29 images of {options['csv']} for the test; --split_column") == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_a_table_in_another_encoding_is_told_to_be_saved_in_utf_8(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("image,dx\na,é\n", encoding=encoding)
    assert refusal(tables.read_table, tmp_path / "a.csv", ["image", "dx"]).lower().endswith("save it as csv in utf-8")


def test_columns_of_0_and_1_are_told_of_where_the_label_column_is_missing(tmp_path):
    rows = [["image", "MEL", "NV", "age"], ["a", "1.0", "0", "1"], ["b", "0.0", "1", "30"]]
    said = refusal(tables.read_table, written(tmp_path / "a.csv", rows), ["image", "label"])
    assert "'NV', 'age' ('MEL', 'NV' look one-hot: write the class's name into one column)" in said
    rows[1][2] = "2"
    assert "one-hot" not in refusal(tables.read_table, written(tmp_path / "b.csv", rows), ["image", "label"])


def test_an_unlabelled_image_of_a_tested_patient_is_not_pre_trained_on(tmp_path):
    table, root = rich_table(tmp_path)
    rows = list(csv.reader(open(table)))  # noqa: SIM115
    for row in rows[1::4]:  # the first image of every patient
        row[1] = "NA"
    options = dict(csv=written(tmp_path / "n.csv", rows), label_column="dx", group_column="patient")
    test, learnt = (numbers(datasets.load("folder", root, split, **options)) for split in ("test", "unlabelled"))
    assert test and not {i // 4 for i in test} & {i // 4 for i in learnt}
    assert learnt == {i for i in range(40) if i // 4 not in {j // 4 for j in test}}
    del options["group_column"]
    test, learnt = (numbers(datasets.load("folder", root, split, **options)) for split in ("test", "unlabelled"))
    assert {i // 4 for i in test} & {i // 4 for i in learnt}  # control: without the column nobody knows


def test_rows_without_a_label_in_a_tables_own_splits(tmp_path):
    table, root = rich_table(tmp_path)
    rows = list(csv.reader(open(table)))  # noqa: SIM115
    for row in rows[1::4]:
        row[1] = "nan"
    options = dict(csv=written(tmp_path / "n.csv", rows), label_column="dx", split_column="part")
    parts = {split: datasets.load("folder", root, split, **options) for split in ("unlabelled", "train", "val", "test")}
    assert [len(part) for part in parts.values()] == [24, 18, 6, 6]
    assert (parts["unlabelled"].labels < 0).sum() == 6 and all((parts[x].labels >= 0).all() for x in ("train", "test"))
    for row in rows[1:]:
        row[1] = "nan" if row[3] == "test" else row[1]
    options["csv"] = written(tmp_path / "m.csv", rows)
    said = refusal(lambda: datasets.load("folder", root, "test", **options))
    assert said.startswith(f"no image of the split 'test' of {options['csv']} has a label; ")
    options["csv"] = written(tmp_path / "a.csv", [rows[0], *([*row[:1], "NaN", *row[2:]] for row in rows[1:])])
    assert "no row has a label in column 'dx'" in refusal(lambda: datasets.load("folder", root, "train", **options))


def test_labels_and_groups_that_are_equal_as_numbers_are_one(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    spelled = [["0", "0.0", "-0", "00"], ["1", "1.0", "+1", "01.00"], ["1e0", "1_0", "1.5", "1.50"]]
    rows = [[f"{i:02}", spelled[i % 3][i % 4], ["7", "7.0", "7a"][i % 3] if i < 20 else f"p{i}"] for i in range(40)]
    table = written(tmp_path / "n.csv", [["image", "dx", "patient"], *rows])
    data = datasets.load("folder", root, "all", csv=table, label_column="dx", group_column="patient")
    assert data.classes == ["0", "1", "1.5", "1_0", "1e0"]  # 1e0 may be a name
    wanted = [["0"] * 4, ["1"] * 4, ["1e0", "1_0", "1.5", "1.5"]]
    assert [data.classes[label] for label in data.labels.tolist()] == [wanted[i % 3][i % 4] for i in range(40)]
    assert data.groups[:3] == ["7", "7", "7a"]
    said = capsys.readouterr().out
    assert "3 values of 'dx' are written in several ways, such as '+1', '01.00', '1', '1.0': equal numbers" in said
    assert "1 values of 'patient' are written in several ways, such as '7', '7.0'" in said


def test_numbers_as_spreadsheets_write_them_are_the_same_groups_and_thousands_are_not(tmp_path):
    _, root = rich_table(tmp_path)
    spelled = ["7", "7,0", "7,000", "100000", "1E+05", "1e+05", "12e3", "12000"]
    rows = [[f"{i:02}", "ab"[i % 2], spelled[i % 8]] for i in range(40)]
    table = written(tmp_path / "n.csv", [["image", "dx", "patient"], *rows])
    data = datasets.load("folder", root, "all", csv=table, label_column="dx", group_column="patient")
    assert data.groups[:8] == ["7", "7", "7,000", "1E+05", "1E+05", "1E+05", "12e3", "12000"]


def test_groups_that_differ_only_in_case_are_told_of_in_one_line(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    rows = [[f"{i:02}", "ab"[i % 2], f"{'Pp'[i % 2]}{i // 4}"] for i in range(40)]
    table = written(tmp_path / "n.csv", [["image", "dx", "patient"], *rows])
    datasets.load("folder", root, "all", csv=table, label_column="dx", group_column="patient")
    said = (
        f"groups      *** 'P0' and 'p0' of column 'patient' of {table} are two groups, and so are 9 more pairs; should"
    )
    assert capsys.readouterr().out.count(said) == 1


def test_a_blank_before_a_quote_is_refused_as_it_would_make_another_class(tmp_path):
    (tmp_path / "t.csv").write_text('image,label\nim00, "a"\nim01,a\n')
    said = f"csv: {tmp_path / 't.csv'} line 2: ' \"a\"' has a blank before its quote; remove the blank"
    assert refusal(tables.read_table, tmp_path / "t.csv", ["image", "label"]) == said
    assert tables.read_table(tmp_path / "t.csv", ["image"]) == [("im00",), ("im01",)]  # where it does not matter


def test_a_group_that_is_missing_is_no_group(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    rows = [[f"{i:02}", "ab"[i % 2], ["nan", "", "p"][i % 3]] for i in range(40)]
    table = written(tmp_path / "n.csv", [["image", "dx", "patient"], *rows])
    data = datasets.load("folder", root, "all", csv=table, label_column="dx", group_column="patient")
    assert data.groups == [[None, None, "p"][i % 3] for i in range(40)]
    assert "27 of 40 rows have no 'patient' (14 nan, 13 empty): each is a group of its own" in capsys.readouterr().out


def test_labels_that_are_alike_are_told_and_several_in_a_cell_refused(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    for labels, said, error in (
        (["Ant", "ant"], "*** 'Ant' and 'ant' of column 'dx'", None),
        (["bee", "bee  fly", "Bee fly"], "*** 'Bee fly' and 'bee  fly' of column 'dx'", None),
        (["a", "b", "a|b"], "", "'a|b' in column 'dx' of .* joins the labels 'a', 'b': several labels"),
        (["a", "b", "b; a"], "", "joins the labels 'b', 'a'"),
        (["a", "a|b"], None, "joins the labels 'a', 'b'"),
        (["c", "a;b", "b;d"], None, "joins the labels 'a', 'b'"),
        (["['a']", "['a', 'b']"], None, "joins the labels 'a', 'b'"),
        (["a", '["c", "a"]'], None, "joins the labels 'c', 'a'"),
        (["a", "b", "a,b"], None, "joins the labels 'a', 'b'"),
        (["a", "b", "a/b"], None, "joins the labels 'a', 'b'"),
        (["a", "a,b", "c"], "*** 'a,b' of column 'dx' of", None),  # as 'cat, domestic' beside 'cat'
        (["cat, domestic", "cat, wild", "R&D", "C++", "(rare)"], None, None),
        (["one|a", "two|b", "['c']", "['d']", "e;"], None, None),
    ):
        rows = [[f"{i:02}", labels[i % len(labels)]] for i in range(40)]
        options = dict(csv=written(tmp_path / "n.csv", [["image", "dx"], *rows]), label_column="dx")
        if error:
            with pytest.raises(UserError, match=error):
                datasets.load("folder", root, "train", **options)
            with pytest.raises(UserError, match=error):
                datasets.load("folder", root, "train", positive=["a"], **options)
            continue
        assert len(datasets.load("folder", root, "train", **options).classes) == len(labels)
        assert said in capsys.readouterr().out if said else "***" not in capsys.readouterr().out


def test_a_cut_that_leaves_no_test_is_one_line_and_said_in_pre_training(tmp_path, capsys):
    _, root = rich_table(tmp_path)
    options = dict(csv=written(tmp_path / "n.csv", [["image", "dx"], *([f"{i:02}", 30 + i] for i in range(40))]))
    assert len(datasets.load("folder", root, "unlabelled", **options)) == 40
    assert "held out" not in capsys.readouterr().out  # control: without labels nothing is to be judged
    options["label_column"] = "dx"
    assert "every class has one image" in refusal(lambda: datasets.load("folder", root, "test", **options))
    for split in ("train", "unlabelled"):
        assert len(datasets.load("folder", root, split, **options)) == 40
    said = capsys.readouterr().out
    assert said.count(f"held out    *** none of 40 images of {options['csv']}: every class has one image") == 1


@pytest.mark.parametrize(
    "labels, refused",
    [
        (["30.37", "31", "-2.50"], "hold quantities such as -2.5, no classes; expected names or whole numbers"),
        (["0.25", "1e-05", "3"], "hold quantities such as 0.25, no classes"),  # as pandas writes them
        (["1E-05", "2.5e+1"], "hold quantities such as 1e-05, no classes"),
        (["30,37", "31", "-2,5"], "hold quantities such as -2.5, no classes"),
        ([".5", "2.", "NA"], "hold quantities such as 0.5, no classes"),
        (["1.0", "2", "-3", "123456789012345678901234567890"], None),
        (["12e3", "12000", "1,000"], None),
        (["1e-05", "low"], None),
        (["grade 1.5", "1.5", "2"], None),
    ],
)
def test_labels_that_are_quantities_are_refused_as_those_of_arrays_are(tmp_path, labels, refused):
    _, root = rich_table(tmp_path)
    rows = [[f"{i:02}", labels[i % len(labels)]] for i in range(40)]
    options = dict(csv=written(tmp_path / "n.csv", [["image", "dx"], *rows], delimiter=";"), label_column="dx")
    for split in ("unlabelled", "train", "test"):
        if refused:
            said = refusal(lambda split=split: datasets.load("folder", root, split, **options))
            assert said.startswith(f"csv: the labels in column 'dx' of {options['csv']} {refused}")
        else:
            assert sorted(datasets.load("folder", root, split, **options).classes) == sorted(set(labels))


@pytest.mark.slow
def test_a_run_by_a_table_is_judged_by_it_and_missing_images_are_named_first(tmp_path):
    table, folder = table_of(tmp_path), tmp_path / "run"
    data = ["--data_dir", "images", "--csv", "t.csv", "--image_column", "image", "--label_column", "dx"]
    common = [ROOT / "train.py", *data]
    pictures(tmp_path / "images", ["unlabelled/0.png", "unlabelled/1.png"])
    with open(table, "a") as file:
        file.write("0,NaN,x\n1,,x\n")
    done = run(*common, *tiny(batch_size=8, epochs=2, eval_every=1), output_dir=folder, cwd=tmp_path)
    assert "2 of 42 rows have no 'dx' (1 NaN, 1 empty)" in done.stdout and "folder: 38 images" in done.stdout
    assert config.read_yaml(folder / "config.yaml")["csv"] == table
    done = run("evaluate.py", model_path=folder, protocol="knn", batch_size=8)
    assert "36 train, 4 test images, 2 classes" in done.stdout
    with open(table, "a") as file:
        file.write("gone,a,x\n")
    done = run(*common, *tiny(), output_dir=tmp_path / "other", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "csv: 1 of 43 images are not in" in done.stderr and "'gone'" in done.stderr
    assert not (tmp_path / "other").exists()


# Splits, groups and positives ---------------------------------------------------------------


def rich_table(tmp_path, splits=("train", "train", "val", "test")):
    """40 images of 10 patients; classes mel, nv, bkl; a split column that keeps patients together."""
    pictures(tmp_path / "images", [f"{i:02}.png" for i in range(40)])
    rows = [[f"{i:02}", ("mel", "nv", "bkl")[i % 3], f"p{i // 4}", splits[i // 4 % len(splits)]] for i in range(40)]
    return written(tmp_path / "t.csv", [["image", "dx", "patient", "part"], *rows]), str(tmp_path / "images")


def numbers(data) -> set[int]:
    return {int(path[-6:-4]) for path in data.paths}


def test_the_splits_of_a_table_are_its_own(tmp_path):
    table, root = rich_table(tmp_path)
    options = dict(csv=table, label_column="dx", split_column="part", group_column="patient")
    parts = {split: datasets.load("folder", root, split, **options) for split in ("train", "val", "test")}
    for part, data in parts.items():
        wanted = {i for i in range(40) if ("train", "train", "val", "test")[i // 4 % 4] == part}
        assert numbers(data) == wanted and data.classes == ["bkl", "mel", "nv"]
        assert data.groups == [f"p{i // 4}" for i in sorted(wanted)]
    leaks.check(parts)
    alone = datasets.load("folder", root, "unlabelled", csv=table, split_column="part")
    assert alone.paths == parts["train"].paths and alone.classes == []
    assert "label_column: is not set" in refusal(
        lambda: datasets.load("folder", root, "test", csv=table, split_column="part")
    )


def test_splits_in_a_table_have_many_names_in_any_case(tmp_path, capsys):
    names = ("Train", "training", "Valid", "TEST")
    table, root = rich_table(tmp_path, names)
    options = dict(csv=table, label_column="dx", split_column="part")
    for split, meant in (("train", names[:2]), ("unlabelled", names[:2]), ("val", names[2:3]), ("all", names[3:])):
        data = datasets.load("folder", root, split, **options)
        assert numbers(data) == {i for i in range(40) if names[i // 4 % 4] in meant}
    assert "held out" not in capsys.readouterr().out


def test_where_a_table_has_no_test_rows_its_val_rows_judge(tmp_path):
    table, root = rich_table(tmp_path, ("train", "val"))
    options = dict(csv=table, label_column="dx", split_column="part")
    test = datasets.load("folder", root, "test", **options)
    assert numbers(test) == {i for i in range(40) if i // 4 % 2}
    assert datasets.load("folder", root, "val", **options) is None
    del options["label_column"]
    assert "label_column: is not set" in refusal(lambda: datasets.load("folder", root, "test", **options))


def test_splits_that_are_none_are_refused(tmp_path):
    options = dict(label_column="dx", split_column="part")
    table, root = rich_table(tmp_path, ("train", "test", "tset"))
    said = refusal(lambda: datasets.load("folder", root, "train", csv=table, **options))
    assert "split_column: 12 of 40 rows have none of train, val, test in 'part'" in said
    assert "the first is row 9 (after the header): 'tset'; did you mean 'test'?" in said
    table, root = rich_table(tmp_path, ("train",))
    said = refusal(lambda: datasets.load("folder", root, "test", csv=table, **options))
    assert said == f"split_column: no row of {table} has 'test' in 'part'"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_whole_groups_are_cut_and_without_the_column_they_are_not(tmp_path_factory, seed):
    base = tmp_path_factory.getbasetemp() / "groups"
    table, root = rich_table(base) if not base.is_dir() else (str(base / "t.csv"), str(base / "images"))
    options = dict(csv=table, label_column="dx", seed=seed)
    parts = [datasets.load("folder", root, s, group_column="patient", **options) for s in ("train", "test")]
    assert not {i // 4 for i in numbers(parts[0])} & {i // 4 for i in numbers(parts[1])}
    assert numbers(parts[0]) | numbers(parts[1]) == set(range(40))
    assert all(part.labels.unique().tolist() == [0, 1, 2] for part in parts)
    assert datasets.load("folder", root, "val", group_column="patient", **options) is None
    parts = [datasets.load("folder", root, split, **options) for split in ("train", "test")]  # control
    assert {i // 4 for i in numbers(parts[0])} & {i // 4 for i in numbers(parts[1])}


def test_positive_labels_against_all_others(tmp_path):
    table, root = rich_table(tmp_path)
    options = dict(csv=table, label_column="dx")
    data = datasets.load("folder", root, "train", positive=["mel", "bkl"], split_column="part", **options)
    assert data.classes == ["negative", "positive"]
    assert data.labels.tolist() == [int(i % 3 != 1) for i in sorted(numbers(data))]
    said = refusal(lambda: datasets.load("folder", root, "train", positive=["mell"], **options))
    assert said.startswith("positive: 'mell' is none of the labels in column 'dx'")
    assert said.endswith("'bkl', 'mel', 'nv'; did you mean 'mel'?")
    assert "no label is negative" in refusal(
        lambda: datasets.load("folder", root, "train", positive=["mel", "nv", "bkl"], **options)
    )
    assert "pass their column as --label_column" in refusal(
        lambda: datasets.load("folder", root, "train", csv=table, positive=["mel"])
    )
    for column in ("group_column", "split_column"):
        assert f"{column}: is for a table; pass it as --csv" in refusal(
            lambda column=column: datasets.load("folder", root, "train", **{column: "part"})
        )
        assert "'pert' is not among the columns" in refusal(
            lambda column=column: datasets.load("folder", root, "train", **options, **{column: "pert"})
        )


@pytest.mark.slow
def test_a_run_by_positives_and_splits_is_judged_by_them_and_a_leak_is_found_first(tmp_path):
    rich_table(tmp_path, ("train", "test"))
    columns = ["--label_column", "dx", "--positive", "mel", "--group_column", "patient", "--split_column", "part"]
    data = ["--data_dir", "images", "--csv", "t.csv", *columns, "--output_dir", tmp_path / "run"]
    run(ROOT / "train.py", *data, *tiny(batch_size=8, epochs=2), cwd=tmp_path)
    judge = ["evaluate.py", "--model_path", tmp_path / "run", "--protocol", "knn", "--batch_size", 8]
    assert "20 train, 20 test images, 2 classes" in run(*judge).stdout
    assert "10 train, 20 test images" in run(*judge, train_percent=50.0).stdout
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("p1,", "p0,"))
    done = run(*judge, check=False)
    assert done.returncode == 2 and "leak: 1 patients, lesions or slides of test are in train too: 'p0'" in done.stderr


# Tables as they are published -----------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    "table, column, count",
    [
        ("isic_csv/ISIC_2019_Training_Metadata.csv", "image", 25331),
        ("isic_csv/ISIC_2020_Training_GroundTruth.csv", "image_name", 33126),
        ("isic_csv/datasplits/isic2020/isic2020-subset-test.csv", "image", 1743),
        ("padufes20/pad-ufes-20-labels.csv", "image", 1261),
    ],
)
def test_published_tables_are_read_whole(real_data, table, column, count):
    rows = tables.read_table(real_data / table, [column])
    with open(real_data / table, newline="") as file:
        assert rows == [(row[column],) for row in csv.DictReader(file)] and len(rows) == count


@pytest.mark.data
def test_ham10000_by_its_table_has_the_labels_of_its_class_folders(real_data, tmp_path):
    source = real_data / "ham10000_224_small"
    files = {path.stem: path for path in source.rglob("*.jpg")}
    with open(source / "labels.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] in files]
    for number, row in enumerate(rows):  # as it is distributed: in two folders
        place = tmp_path / f"HAM10000_images_part_{1 + number % 2}" / files[row["image"]].name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(files[row["image"]])
    table = written(tmp_path / "t.csv", [["image", "dx"], *([row["image"], row["dx"]] for row in rows)])
    parts = [datasets.load("folder", str(tmp_path), split, csv=table, label_column="dx") for split in ("train", "test")]
    assert len(parts[0]) + len(parts[1]) == len(rows) > 400 and len(parts[0].classes) == 7
    for data in parts:
        for path, label in zip(data.paths, data.labels.tolist()):
            assert os.path.realpath(path).split("/")[-2] == data.classes[label]
