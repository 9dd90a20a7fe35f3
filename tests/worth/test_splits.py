"""Draws of labels: nested, the same for all starts, groups whole; and the same parts as finetune.py makes of them."""

from types import SimpleNamespace

import pytest
import torch

from ssl.data.images import Images
from ssl.sources import labels
from ssl.sources.labelled import choose_labels
from ssl.worth import splits
from ssl.worth.splits import ALL, HELD, draw


def pictures(count: int, classes: int, groups: list[str] | None = None) -> Images:
    marks = torch.arange(count) % classes
    paths = [f"/data/{mark}/{i:04}.png" for i, mark in enumerate(marks.tolist())]
    return Images("folder", marks, [f"class{i}" for i in range(classes)], paths=paths, groups=groups)


def members(one: splits.Draw) -> set[int]:
    return set(one.chosen.tolist())


def test_draws_are_nested_and_have_so_many_of_every_class():
    data = pictures(120, 4)
    for seed in range(3):
        found = [draw(data, count, seed, False) for count in (1, 5, 20, ALL)]
        for count, one in zip((1, 5, 20, 30), found):
            assert torch.bincount(data.labels[one.chosen]).tolist() == [count] * 4
            assert not set(one.fit.tolist()) & set(one.held.tolist())
        for small, large in zip(found, found[1:]):
            assert members(small) < members(large)
    assert members(draw(data, 5, 0, False)) != members(draw(data, 5, 1, False))


def test_one_label_a_class_holds_nothing_out_and_five_hold_out_one():
    data = pictures(120, 4)
    assert len(draw(data, 1, 0, False).held) == 0
    assert len(draw(data, 5, 0, False).held) == 4
    assert len(draw(data, 5, 0, True).held) == 0  # there is a validation split


def test_a_class_with_fewer_images_gives_all_of_them():
    data = Images("folder", torch.tensor([0] * 20 + [1] * 3), ["a", "b"], paths=[str(i) for i in range(23)])
    assert torch.bincount(data.labels[draw(data, 5, 0, False).chosen]).tolist() == [5, 3]


def test_draws_that_are_nearly_all_labels_are_not_made():
    assert splits.counts_for(torch.arange(120) % 4) == [1, 5, 20, ALL]
    assert splits.counts_for(torch.arange(100) % 4) == [1, 5, ALL]  # 20 of 25 would say what all say
    assert splits.counts_for(torch.arange(8) % 4) == [1, ALL]


@pytest.mark.parametrize("groups", [None, [f"patient {i // 6}" for i in range(120)]])
@pytest.mark.parametrize("count", [5, 20, ALL])
def test_the_parts_are_those_of_finetune(tmp_path, groups, count):
    data = pictures(120, 4, groups)
    for seed in range(2):
        one = draw(data, count, seed, False)
        path = splits.write_list((data.sample_name(i) for i in one.chosen.tolist()), tmp_path / "list")
        settings = SimpleNamespace(train_percent=100, train_files=str(path), val_fraction=HELD, watch="loss")
        train, val = choose_labels(settings, {"train": data, "val": None}, seed)
        assert list(train.paths) == [data.paths[i] for i in one.fit.tolist()]
        assert list(val.paths) == [data.paths[i] for i in one.held.tolist()]


def test_groups_are_held_out_whole():
    groups = [f"patient {i // 6}" for i in range(120)]
    one = draw(pictures(120, 4, groups), ALL, 0, False)
    fit, held = ({groups[i] for i in part.tolist()} for part in (one.fit, one.held))
    assert held and not fit & held


def test_a_draw_that_finetune_would_refuse_is_known():
    data = pictures(120, 4)
    assert not splits.can_tune(draw(data, 1, 0, False), data.labels, False)
    assert splits.can_tune(draw(data, 1, 0, True), data.labels, True)
    assert splits.can_tune(draw(data, 5, 0, False), data.labels, False)
    one_group = pictures(120, 4, ["the only patient"] * 120)
    assert not splits.can_tune(draw(one_group, 5, 0, False), one_group.labels, False)


def test_images_of_an_array_are_listed_by_their_places(tmp_path):
    data = Images("array", torch.arange(30) % 3, ["a", "b", "c"], resident=torch.zeros(30, 3, 8, 8, dtype=torch.uint8))
    one = draw(data, 5, 0, False)
    path = splits.write_list((data.sample_name(i) for i in one.chosen.tolist()), tmp_path / "list")
    assert labels.listed(data, str(path)).tolist() == one.chosen.tolist()


def test_a_name_that_is_the_end_of_another_is_listed_rightly(tmp_path):
    paths = ["/data/a/1.png", "/data/b/a/1.png", "/data/b/2.png"]
    data = Images("folder", torch.tensor([0, 1, 1]), ["a", "b"], paths=paths)
    path = splits.write_list(["/data/a/1.png"], tmp_path / "list")
    assert labels.listed(data, str(path)).tolist() == [0]
