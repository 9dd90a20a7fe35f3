"""The table that evaluate.py prints: shares with their intervals, n, and balanced accuracy where it is another."""

from pathlib import Path

import pytest
import torch

from ssl.errors import UserError
from ssl.evaluation import metrics, results

OF = {"weights": {"steps": None}}


def found(counts: list[int], right: list[int]) -> dict:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    first = torch.cat([torch.arange(count) < hit for count, hit in zip(counts, right)])
    return metrics.accuracy(labels, first)


def test_classes_of_one_size_have_one_accuracy():
    table = results.accuracy_table({"of": OF, "knn": found([10, 10], [9, 6])}, ["trained"])
    assert table.splitlines()[0].split() == ["k-NN"]
    assert "trained encoder  75.0 % (53.1–88.8)" in table and table.endswith(
        "n = 20 test images; in brackets 95 % intervals (Wilson)"
    )


def test_intervals_over_groups_are_called_so():
    judged = metrics.accuracy(torch.arange(20) % 2, torch.arange(20) < 15, ["a", "b", "c", None] * 5)
    table = results.accuracy_table({"of": OF, "knn": judged}, ["trained"])
    assert table.endswith("n = 20 test images of 8 groups; in brackets 95 % intervals over groups")


def test_where_one_class_is_large_balanced_accuracy_stands_beside():
    """Who always says the large class has 90 % right, and half of the classes."""
    judged = {"of": OF, "knn": found([90, 10], [90, 0]), "probe": found([90, 10], [81, 9])}
    raw = {"knn": found([90, 10], [90, 0])}
    head, _, first, second, _ = results.accuracy_table(
        judged | {"raw_pixels": raw}, ["raw_pixels", "trained"]
    ).splitlines()
    assert head.split() == ["linear", "probe", "balanced", "k-NN", "balanced"]
    assert first.split()[:4] == ["raw", "pixels", "-", "-"] and second.count("90.0 %") == 3
    assert first.count("50.0 %") == second.count("50.0 %") == 1


def test_after_0_steps_the_row_says_so():
    judged = {"of": {"weights": {"steps": 0}}, "knn": found([10, 10], [9, 6])}
    assert "not trained (0 steps)" in results.accuracy_table(judged, ["trained"])


def test_results_that_cannot_be_written_are_printed_and_the_earlier_ones_stay(tmp_path, monkeypatch, capsys):
    """The control: with room the earlier ones get a number."""
    results.report({"of": OF, "knn": found([10, 10], [9, 6])}, ["trained"], tmp_path)
    earlier = (tmp_path / "results.json").read_text()
    now = {"of": OF, "knn": found([10, 10], [8, 6])}

    def full(self, *_):
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"cannot write .*No space.* printed above"),
    ):
        patch.setattr(Path, "write_text", full)
        results.report(now, ["trained"], tmp_path)
    assert "70.0 %" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == earlier
    results.report(now, ["trained"], tmp_path)
    assert (tmp_path / "results.1.json").read_text() == earlier
