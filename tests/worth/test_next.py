"""What follows from a verdict: a command with the settings that were measured."""

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest
import torch

import finetune
from ssl.data.images import Images
from ssl.settings import config
from ssl.worth import answer, page, plan, splits
from ssl.worth import work as work_module
from ssl.worth.choice import FROZEN, TUNED, Facts
from ssl.worth.intervals import Estimate
from ssl.worth.kept import Agreed
from ssl.worth.look import Look
from ssl.worth.measure import Speed
from ssl.worth.plan import Cell, Network, Plan
from ssl.worth.scores import Judges
from ssl.worth.splits import ALL
from ssl.worth.verdict import UNKNOWN, Verdict
from ssl.worth.work import PUBLIC_LR, TUNING, Work

SETTINGS = {"encoder": "ssl.encoders.SmallConvNet", "encoder_kwargs": None, "stem": "auto"}
SPEED = Speed(5, 5, 4, 2e-3, 1e-3, 1e-3, 2e-3, 0)
OWN = Network("own", None, SETTINGS, {}, 48, 64, 128, 2e-3, 50, None, SPEED)
PUBLIC = Network("pub", "/weights/pub.pth", SETTINGS, {}, 96, 160, 128, 2e-3, 50, None, SPEED)


@pytest.fixture
def work(tmp_path) -> Work:
    paths = [f"/data/{i % 3}/{i}.png" for i in range(60)]
    train = Images("folder", torch.arange(60) % 3, ["a", "b", "c"], paths=paths)
    draws = [splits.draw(train, ALL, 0, False)]
    found = Look({"train": train, "val": None, "test": train.subset(torch.arange(9))}, draws, {(ALL, 0)}, False, True)
    return Work(tmp_path, found, {"data_dir": "/data"}, {}, {"device": "cpu", "workers": 2}, None)


def following(work: Work, outcome: str, start: str, use: str, lead: float = 1.0) -> str:
    epochs = {"own": 50, "pub": 50}
    made = Plan(30, 1, 3, 1, epochs, 1, [Cell("own", ALL, 0), Cell("pub", ALL, 0)], 1, [], 0)
    agreed = Agreed([OWN, PUBLIC], made, [])
    of_starts = {"own": 50, "pub+own": 50}
    known = Facts(["nothing", "pub", "own", "pub+own"], {ALL: 60}, of_starts, of_starts, [], 0, False, [])
    gain = Estimate(0.01, -0.01, 0.03, 0.05, 0.8, 1, 9)
    verdict = Verdict({}, Judges([], [], False), known, {start: use}, start, lead, gain, [], [], outcome, "")
    return answer.next_step(verdict, work, agreed)


def parsed(command: str) -> finetune.Settings:
    words = shlex.split(command)
    assert words[0] == "python" and Path(words[1]).name == "finetune.py"
    return config.parse(finetune.Settings, words[2:])[0]


@pytest.mark.parametrize(
    "outcome, start, init, size",
    [
        ("nothing", "own", None, 48),
        ("public", "pub", "/weights/pub.pth", 96),
        ("own", "own", "{folder}/own/pretrained", 48),
        ("public+own", "pub+own", "{folder}/pub+own/pretrained", 96),
    ],
)
def test_the_command_is_the_fine_tuning_that_was_measured(work, outcome, start, init, size):
    found = parsed(following(work, outcome, start, TUNED))
    network = OWN if start == "own" else PUBLIC
    assert found.init == (init and init.format(folder=work.folder)) and found.image_size == size
    assert {name: getattr(found, name) for name in TUNING if name != "crop_scale"} == {
        name: value for name, value in TUNING.items() if name != "crop_scale"
    }
    assert list(found.crop_scale) == TUNING["crop_scale"] and found.val_fraction == splits.HELD
    measured = "nothing" if outcome == "nothing" else start
    assert (
        found.epochs
        == found.patience
        == plan.tune_epochs(
            network,
            measured,
            48,
        )
    )
    assert found.lr_backbone == (PUBLIC_LR if network is PUBLIC else None)
    assert not found.freeze and found.train_files is None


def test_a_start_that_was_better_frozen_is_used_frozen(work):
    found = parsed(following(work, "public", "pub", FROZEN))
    assert found.freeze and found.lr_backbone is None and found.image_size == 160


def test_the_head_of_a_frozen_start_reads_whole_images_as_its_features_did(work, monkeypatch):
    """Fine-tuning reduces them to twice its own size: here to 192 pixels, below the 224 of the head."""
    reduced = dataclasses.replace(PUBLIC, short_side=192, judge_size=224)
    monkeypatch.setattr(sys.modules[__name__], "PUBLIC", reduced)
    monkeypatch.setattr(work_module, "holds_in_memory", lambda *cell: True)
    assert parsed(following(work, "public", "pub", TUNED)).short_side == 192
    found = parsed(following(work, "public", "pub", FROZEN))
    assert (found.image_size, found.short_side) == (224, None)
    work.data["short_side"] = 300  # the user's own
    assert parsed(following(work, "public", "pub", FROZEN)).short_side == 300


def test_the_page_says_which_images_were_seen(work):
    made = Plan(30, 1, 3, 1, {"own": 50}, 1, [], 1, [], 0)
    alone = page._how(Agreed([OWN, PUBLIC], made, []), work.found, None)
    assert "the training images without their labels, and no test image." in alone and "has seen test" not in alone
    saw = Agreed([OWN, dataclasses.replace(PUBLIC, saw_test=True)], made, [])
    more = page._how(saw, work.found, "/more")
    assert "without their labels, and those of /more that are not among test and validation images" in more
    assert "pub has seen test images" in more and answer._facts(work, saw).saw_test == ("pub",)


def test_what_is_left_out_is_counted_by_start(work):
    made = Plan(30, 1, 3, 1, {"own": 50}, 1, [], 1, [Cell("own", ALL, 1), Cell("pub", ALL, 1)], 0)
    assert answer._facts(work, Agreed([OWN, PUBLIC], made, [])).too_long == 3  # nothing, own, and pub alone


def test_where_a_part_stood_for_all_labels_the_command_is_of_all(work):
    part = dataclasses.replace(work, found=work.found.limited(2))
    assert len(part.found.draw(ALL, 0).chosen) == 6
    assert following(part, "nothing", "own", TUNED) == following(work, "nothing", "own", TUNED)


def test_fine_tunings_that_were_left_out_count_as_too_long_for_both_starts(work):
    draws = [splits.draw(work.found.train, count, seed, False) for count, seed in [(ALL, 0), (5, 0), (5, 1)]]
    work = dataclasses.replace(work, found=dataclasses.replace(work.found, draws=draws))
    cells = [Cell("own", ALL, 0), Cell("own", 5, 0), Cell("own", 5, 1), Cell("pub", ALL, 0)]
    more = Cell("pub", 5, 0)
    agreed = Agreed([OWN, PUBLIC], Plan(30, 1, 3, 1, {"own": 50}, 1, cells, 1, [more], 0), [])
    for start, cell in [("nothing", cells[0]), ("own", cells[0]), ("nothing", cells[1]), ("pub", cells[3])]:
        work.tuned_at(start, cell).mkdir(parents=True)
        (work.tuned_at(start, cell) / "status.json").write_text('{"state": "finished"}')
    found = answer.without_undone(work, agreed)
    assert found.plan.cells == [cells[0], cells[3]]  # pub has no other start
    assert found.plan.too_long == [cells[1], cells[2], more]


def test_what_to_take_until_it_can_be_told_has_its_command(work):
    """Own where validation and test images both prefer it, else nothing."""
    assert parsed(following(work, UNKNOWN, "own", TUNED)).init == f"{work.folder}/own/pretrained"
    assert parsed(following(work, UNKNOWN, "own", TUNED, lead=-0.5)).init is None
