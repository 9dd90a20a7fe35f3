"""The best model of a fine-tuning, as a file that others send."""

import pytest

from ssl.checkpoints import torch_file
from ssl.errors import UserError
from ssl.training import best_model


def test_what_a_file_cannot_hold_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"output_dir: cannot write .*best\.pt .*frozenset is neither a tensor nor"):
        best_model.write_best(tmp_path, {"settings": frozenset()})
    assert not list(tmp_path.iterdir())


def test_the_numbers_are_printed_also_where_they_cannot_be_written(tmp_path, capsys):
    (tmp_path / "results.json").mkdir()
    test = {"images": 400, "loss": 0.5, "acc1": 0.8125} | dict.fromkeys(best_model.SHOWN[2:])
    with pytest.raises(OSError, match=r"results\.json"):
        best_model.report([{"test": test}], tmp_path)
    said = capsys.readouterr().out
    assert "0.8125" in said and "n = 400 test images" in said


def test_runs_that_have_not_ended_are_not_tested(tmp_path):
    for name in ("seed_10", "seed_2", "seed_11"):
        (tmp_path / name).mkdir()
        torch_file.save(dict.fromkeys(best_model.CONTENTS), tmp_path / name / "best.pt")
    with pytest.raises(UserError, match="has it ended"):
        best_model.models(tmp_path)
    for name in ("seed_10", "seed_2"):
        (tmp_path / name / "results.json").touch()
    assert list(best_model.models(tmp_path)) == [tmp_path / "seed_2" / "best.pt", tmp_path / "seed_10" / "best.pt"]
