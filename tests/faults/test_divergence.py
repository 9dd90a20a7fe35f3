"""Numbers that are not finite, on one rank of two: the step is left out on both; in a row the run goes back once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn import class_folders

from ssl.checkpoints import torch_file
from ssl.data.order import Order
from ssl.faultcheck.small_run import IMAGES, SmallRun

SCRIPT = Path(__file__).with_name("diverging_train.py")


@pytest.fixture
def launched(new_run) -> Callable[..., tuple[SmallRun, int]]:
    """launched(SPOIL, name) is a run of 16 steps with such an encoder, and its exit status."""

    def launched(spoil: str, name: str = "run", **environment: str) -> tuple[SmallRun, int]:
        run = new_run(2, name, options={"max_bad_steps": 2}, script=SCRIPT, environment={"SPOIL": spoil, **environment})
        return run, run.finish()

    return launched


def lines(run: SmallRun, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


def finite(run: SmallRun) -> bool:
    state = torch_file.load(run.folder / "checkpoint.pt")
    return all(value.isfinite().all() for value in state["model"].values())


def test_one_ranks_nan_costs_one_step_on_all(launched):
    run, status = launched("6,6,1,0", "one")
    assert status == 0 and run.status()["state"] == "finished" and finite(run)
    (bad,) = lines(run, "bad_steps.jsonl")
    order = Order(IMAGES, 4, 1, 2, seed=0)
    _, first, _ = order.indices(6, 0, 0)
    _, second, _ = order.indices(6, 0, 1)
    # Global statistics bring it to the other rank's loss within the step.
    assert (bad["step"], bad["retries"], bad["ranks"]) == (7, 0, [0, 1])
    assert [Path(name).stem for name in bad["images"]] == [f"{i:03}" for i in torch.cat([first, second]).tolist()]
    counts = [line["bad_steps"] for line in lines(run, "metrics.jsonl")]
    assert counts == [0] * 6 + [1] * 10

    other, status = launched("6,6,0,0", "other")
    assert status == 0 and other.digest() == run.digest()  # whoever's fault it was


def test_health_knows_of_every_step_that_was_left_out_also_between_log_steps(new_run):
    options = {"max_bad_steps": 20, "log_every": 16, "health_every": 2}
    run = new_run(2, options=options, script=SCRIPT, environment={"SPOIL": "6,9,1,0"})
    assert run.finish() == 0, run.printed()
    read = {line["step"]: line["health_skipped"] for line in lines(run, "metrics.jsonl") if "health_skipped" in line}
    assert read == {step: float(step in (8, 10)) for step in range(2, 17, 2)}
    said = [(line["step"], line["words"][:9]) for line in lines(run, "health.jsonl") if line["rule"] == "skipping"]
    assert said == [(10, "100 % of "), (14, "no longer")]
    assert [bad["step"] for bad in lines(run, "bad_steps.jsonl")] == [7, 8, 9, 10]


def test_control_without_the_guard_the_weights_are_lost(launched):
    run, status = launched("6,6,1,0", UNGUARDED="1")
    assert status != 0 and run.status()["state"] == "failed" and "not finite" in run.status()["reason"]
    assert finite(run)  # ruined ones are never saved


def test_bad_steps_in_a_row_send_the_run_back_once_at_half_the_rate(launched):
    run, status = launched("10,999,1,0")
    assert status == 0 and run.status()["state"] == "finished" and finite(run)
    log = run.log.read_text()
    assert "2 steps in a row, up to step 12, had no finite gradient" in log
    assert "on rank 1; going back to step 9, with lr × 0.5" in log
    assert [(bad["step"], bad["retries"]) for bad in lines(run, "bad_steps.jsonl")] == [(i, 0) for i in range(11, 13)]

    undisturbed, _ = launched("1,0,0,0", "undisturbed")
    for line, plain in zip(lines(run, "metrics.jsonl"), lines(undisturbed, "metrics.jsonl"), strict=True):
        assert line["step"] == plain["step"]
        assert line["loss"] == plain["loss"] or line["step"] > 10  # the first step after going back has the old weights
        assert line["lr_weights"] == pytest.approx(plain["lr_weights"] * (1.0 if line["step"] <= 9 else 0.5), rel=1e-4)


def test_a_run_that_was_stopped_among_bad_steps_goes_back_to_before_them(new_run):
    options = {"max_bad_steps": 4, "max_steps": 12}
    run = new_run(2, options=options, script=SCRIPT, environment={"SPOIL": "10,999,1,0"})
    assert run.finish() == 0 and run.status()["saved_step"] == 12  # steps 11 and 12 were bad
    run.options["max_steps"] = 16
    assert run.finish() == 0 and finite(run), run.printed()
    assert "4 steps in a row, up to step 14" in run.printed() and "going back to step 9" in run.printed()
    assert run.status()["state"] == "finished" and not list(run.folder.glob("*.damaged"))


def test_an_evaluation_among_bad_steps_does_not_end_a_run_that_would_go_back(new_run, tmp_path):
    labelled = class_folders(tmp_path / "labelled", {"train": (IMAGES, 0), "val": (20, 1)})
    options = {"max_bad_steps": 3, "eval_every": 1, "data_dir": labelled}
    run = new_run(2, options=options, script=SCRIPT, environment={"SPOIL": "10,999,1,0"})
    assert run.finish() == 0 and finite(run), run.printed()
    assert "step 12 is not judged: the network gives NaN or Inf" in run.printed()
    assert "3 steps in a row, up to step 13" in run.printed() and "going back to step 9" in run.printed()
    assert [line["step"] for line in lines(run, "metrics.jsonl") if "linear_acc1" in line] == [12]


def test_a_run_that_diverges_again_ends_and_says_what_was_first(launched):
    run, status = launched("10,999,1,1")
    assert status != 0 and run.status()["state"] == "failed" and finite(run)
    reason = run.status()["reason"]
    assert "2 steps in a row, up to step 12" in reason and "again after going back with lr × 0.5" in reason
    assert "the output of encoder." in reason and " on rank 1" in reason
    retries = [(bad["step"], bad["retries"]) for bad in lines(run, "bad_steps.jsonl")]
    assert retries == [(i, retry) for retry in (0, 1) for i in range(11, 13)]

    # Continued, it is still the run that went back once, also under torchrun itself.
    status = run.finish(run.launch())
    assert status != 0 and "again after going back" in run.status()["reason"]
    assert [(bad["step"], bad["retries"]) for bad in lines(run, "bad_steps.jsonl")] == retries
