"""What must not matter does not: how often one looks, how many workers and processes there are."""

import json

import pytest
import torch

from ssl.checkpoints import torch_file

pytestmark = pytest.mark.slow


LOOKS = [
    {"log_every": 7, "save_steps": 1},
    {"workers": 3, "save_steps": 1000},
    {"workers": 0, "save_minutes": 1e-6},
]


@pytest.mark.parametrize("options", LOOKS)
def test_to_look_does_not_change_what_is_seen(new_run, undisturbed, options):
    run = new_run(1, options=options)
    run.finished()
    assert run.digest(metrics=False) == undisturbed(1).digest(metrics=False)


def test_four_views_are_continued_to_the_same_bits(new_run, undisturbed):
    whole, run = (new_run(name=name, options={"views": 4}) for name in ("whole", "parts"))
    whole.finished()
    run.options["max_steps"] = 7
    run.finished()
    run.options["max_steps"] = whole.options["max_steps"]
    run.finished()
    assert "continuing at step 7 of 16" in run.printed()
    assert run.digest() == whole.digest() != undisturbed().digest()


def test_another_number_of_processes_continues_the_same_run(new_run, undisturbed):
    """Four, then two, then one: the same images in the same views, so the same losses, to rounding."""
    run = new_run(4, options={"max_steps": 5})
    run.finished()
    run.processes, run.options = 2, {"max_steps": 9, "batch_size": 8, "epochs": 8}
    run.finished()
    run.processes, run.options = 1, {"max_steps": 16, "batch_size": 16, "epochs": 8}
    run.finished()
    assert "continuing at step 5 of 9" in run.printed() and "continuing at step 9 of 16" in run.printed()
    expected = undisturbed(4)
    ours, theirs = (
        [json.loads(line)["loss"] for line in (one.folder / "metrics.jsonl").read_text().splitlines()]
        for one in (run, expected)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
    ours, theirs = (
        torch.cat([v.flatten().double() for v in torch_file.load(one.folder / "encoder.pt").values()])
        for one in (run, expected)
    )
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    run.options["batch_size"] = 8  # and not another global batch
    assert run.finish() == 2 and "global batch: 16 -> 8" in run.last_words()
