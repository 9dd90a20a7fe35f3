"""Choosing labels: shares of every class, lists, whole groups, and what is refused before training."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn import picture
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from ssl.data.hold_out import hold_out, hold_out_groups, split_validation
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.settings.shared import LabelSettings
from ssl.sources import datasets, every_image, labels
from ssl.training import checks

classes = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(torch.tensor)
percents = st.floats(0.1, 100)


def chosen(of: torch.Tensor, percent: float, seed: int) -> set[int]:
    return set(labels.stratified(of, percent, seed).tolist())


@settings(max_examples=200, deadline=None)
@given(classes, percents, st.integers(0, 2**31))
def test_a_share_is_that_of_every_class_to_rounding_and_at_least_one(of, percent, seed):
    count = Counter(of[sorted(chosen(of, percent, seed))].tolist())
    for label, total in Counter(of.tolist()).items():
        assert count[label] == max(1, round(total * percent / 100))


@settings(max_examples=200, deadline=None)
@given(classes, percents, percents, st.integers(0, 2**31))
def test_of_one_seed_fewer_labels_are_part_of_more(of, one, two, seed):
    assert chosen(of, min(one, two), seed) <= chosen(of, max(one, two), seed)
    assert chosen(of, 100, seed) == set(range(len(of)))


def test_seeds_choose_other_labels_and_one_seed_the_same():
    of = torch.arange(10).repeat(100)
    assert chosen(of, 10, 1) == chosen(of, 10, 1) != chosen(of, 10, 2)
    nested = len(chosen(of, 1, 1) & chosen(of, 10, 2))
    assert nested < 10  # control: of two seeds they are not part of each other


def test_one_and_ten_percent_are_those_that_were_held_out_before():
    of = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0))
    for percent in (1, 10):
        assert torch.equal(labels.stratified(of, percent, 3), split_validation(of, percent / 100, 3)[1])


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.5])
def test_shares_that_cannot_be_are_refused(percent):
    with pytest.raises(UserError, match=r"train_percent: .* expected more than 0, at most 100"):
        labels.check_choice(percent, None)


def test_two_choices_at_once_are_refused():
    labels.check_choice(0.5, None)
    labels.check_choice(100, "list")
    with pytest.raises(UserError, match="both choose the labels"):
        labels.check_choice(10, "list")


# Lists ------------------------------------------------------------------------------


def listing(tmp_path, text):
    (tmp_path / "list").write_text(text)
    return str(tmp_path / "list")


def test_a_listed_name_is_one_image(tmp_path):
    paths = [str(tmp_path / folder / name) for folder in ("a", "b") for name in ("1.png", f"{folder}2.png")]
    data = Images("folder", torch.tensor([0, 0, 1, 1]), ["a", "b"], paths=paths)
    assert labels.listed(data, listing(tmp_path, "b/1.png\na2.png\n./a/1.png\n")).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"'1.png' in .* is the name of 2 images; write it with its class folder"):
        labels.listed(data, listing(tmp_path, "1.png\n"))
    with pytest.raises(UserError, match=r"4 of the 5 names .* training split: 'u', 'v', 'w' and 1 more"):
        labels.listed(data, listing(tmp_path, "u\nv\nw\nx\na2.png"))


def test_lists_as_published_for_imagenet_choose_their_images(tmp_path):
    paths = [f"/imagenet/train/n0144076{c}/n0144076{c}_{i}.JPEG" for c in range(3) for i in range(100)]
    data = Images("ImageNet", torch.arange(3).repeat_interleave(100), ["a", "b", "c"], paths=paths)
    path = listing(tmp_path, "n01440762_17.JPEG\nn01440760_3.JPEG\nn01440761_99.JPEG\n")
    part = labels.choose(data, 100, path, 0)
    assert [part.paths[i].rsplit("/")[-1] for i in range(3)] == [
        "n01440760_3.JPEG",
        "n01440761_99.JPEG",
        "n01440762_17.JPEG",
    ]
    assert part.labels.tolist() == [0, 1, 2]


# Classes that are left out --------------------------------------------------------------


def test_the_images_of_other_classes_stay_and_their_labels_are_numbered_anew(capsys):
    data = replace(images([2, 0, 1, -1, 2, 0]), paths=list("abcdef"), groups=list("uvwxyz"))
    left = labels.without(data, ["dog", "bat"], "test")  # a bat is in another split alone
    assert left.classes == ["cat", "owl"] and left.labels.tolist() == [1, 0, -1, 1, 0]
    assert list(left.paths) == list("abdef") and left.groups == list("uvxyz")
    assert "left out    test: 1 image of 6, of 'dog'" in capsys.readouterr().out
    assert labels.without(data, None, "train") is data


def test_a_name_that_is_no_class_and_a_split_without_images_are_refused():
    with pytest.raises(UserError, match=r"leave_out: 'dgo' is none of the classes; did you mean .*dog.*'cat', 'dog'"):
        labels.without(images([0, 1, 2]), ["cat", "dgo"], "train")
    with pytest.raises(UserError, match="leave_out: no image of the split 'test' is left without 'dog'"):
        labels.without(images([1, 1]), ["dog"], "test")
    assert labels.without(images([1, 1]), ["dog"], "val") is None  # as if there were no validation split
    with pytest.raises(UserError, match="leave_out: 'dog' is none of the classes; the images have none"):
        labels.without(replace(images([-1, -1]), classes=[]), ["dog"], "train")


def test_the_images_that_stay_keep_their_names():
    """Also those in memory, which are named by their places."""
    every = datasets.load("shapes", None, "test")
    some = datasets.load("shapes", None, "test", leave_out=["disc"])
    named = {every.sample_name(i): every.resident[i] for i in range(len(every))}
    assert len(some) == 3600 and len(every) == 4000
    assert all(torch.equal(named[some.sample_name(i)], some.resident[i]) for i in range(len(some)))
    settings = LabelSettings("shapes", image_size=32, leave_out=["disc"])
    found = every_image.load(settings)["test"]
    assert found.rows.tolist() == some.rows.tolist() and found.classes == some.classes


def test_unreadable_images_of_a_class_that_is_left_out_do_not_count(tmp_path):
    for place in ("ant/1", "ant/2", "ant/3", "bee/4", "bee/5", "bee/6"):
        picture(tmp_path / f"{place}.png", size=(24, 24))
    (tmp_path / "broken").mkdir()
    for number in range(40):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(UserError, match="cannot be read"):
        datasets.load_labelled(LabelSettings("folder", str(tmp_path)), "train")
    settings = LabelSettings("folder", str(tmp_path), leave_out=["broken"])
    data = datasets.load_labelled(settings, "train")
    assert data.classes == ["ant", "bee"] and data.bad == () and data.resident is not None
    assert all(part.bad == () for part in every_image.load(settings).values())


def test_slides_are_pre_trained_on_with_all_their_classes():
    """They come without their labels."""
    patches = replace(images([-1, -1]), name="tissue_5", classes=[])
    assert labels.without(patches, ["junk"], "unlabelled") is patches


def test_the_advice_keeps_the_classes_that_are_left_out_already():
    left = labels.without(images([0, 0, 1, 2, 2, 3, 3], ("cat", "dog", "owl", "bat")), ["owl"], "train")
    with pytest.raises(UserError, match=r"or leave classes out, --leave_out owl dog$"):
        labels.require_each(left, 2, "two are needed")


def test_every_split_of_folders_is_read_without_the_classes(tmp_path):
    """`rare` is in train alone, which is refused if it is used."""
    for place in ("train/cat/1", "train/dog/2", "train/rare/3", "test/cat/4", "test/dog/5"):
        picture(tmp_path / f"{place}.png")
    with pytest.raises(UserError, match=r"class 'rare' is not in .*test; .*, or --leave_out names those that are not"):
        datasets.load("folder", str(tmp_path), "test")
    found = {split: datasets.load("folder", str(tmp_path), split, leave_out=["rare"]) for split in ("train", "test")}
    assert [data.classes for data in found.values()] == [["cat", "dog"]] * 2
    assert [data.labels.tolist() for data in found.values()] == [[0, 1]] * 2
    settings = LabelSettings("folder", str(tmp_path), leave_out=["rare"])
    every = every_image.load(settings)
    assert {split: sorted(Path(path).name for path in data.paths) for split, data in every.items()} == {
        "train": ["1.png", "2.png"],
        "test": ["4.png", "5.png"],
    }


# What is refused ------------------------------------------------------------------------


def images(of, names=("cat", "dog", "owl")):
    return Images("folder", torch.tensor(of), list(names))


def test_a_class_absent_from_train_is_named():
    labels.require_each(images([0, 1, 2]), 1, "")
    with pytest.raises(
        UserError, match=r"1 of 3 classes have no training images: 'dog'\. Add images, .*, --leave_out dog$"
    ):
        labels.require_each(images([0, 0, 2]), 1, "")
    with pytest.raises(UserError, match="class 'owl' has 1 training images to use; two are needed"):
        labels.require_each(images([0, 0, 1, 1, 2]), 2, "two are needed")
    with pytest.raises(
        UserError, match=r"class 'cat' has 1 training images to use \(and 1 more have too few: 'owl'\);"
    ):
        labels.require_each(images([0, 1, 1, 2]), 2, "two are needed")


@pytest.mark.parametrize(
    "of, names, expected",
    [([0, -1], "ab", "images without labels"), ([-1, -1], "", "images without labels"), ([0, 0], "a", "of one class")],
)
def test_images_that_teach_nothing_are_refused(of, names, expected):
    with pytest.raises(UserError, match=expected):
        labels.require_classes(images(of, names), "x")


# Whole groups -----------------------------------------------------------------------------


@st.composite
def grouped(draw):
    groups = draw(st.lists(st.one_of(st.none(), st.integers(0, 30).map(str)), min_size=2, max_size=150))
    return torch.tensor(draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))), groups


@settings(max_examples=300, deadline=None)
@given(grouped(), st.floats(0.02, 0.5), st.integers(0, 2**31))
def test_no_group_is_cut_and_every_class_stays_in_train(data, fraction, seed):
    of, groups = data
    held = hold_out_groups(of, groups, fraction, seed)
    sides = {side: {g for g, h in zip(groups, held.tolist()) if g is not None and h == side} for side in (True, False)}
    assert not sides[True] & sides[False]
    assert set(of[~held].tolist()) == set(of.tolist())
    assert torch.equal(held, hold_out_groups(of, groups, fraction, seed))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=150).map(torch.tensor), st.floats(0.02, 0.5), st.integers(0, 99)
)
def test_groups_of_one_give_the_shares_that_images_would(of, fraction, seed):
    held = hold_out_groups(of, [None] * len(of), fraction, seed)
    for label in of.unique():
        total = int((of == label).sum())
        expected = min(max(1, round(total * fraction)), total - 1)
        assert int((of[held] == label).sum()) == expected


def test_shares_are_near_where_groups_are_small_and_seeds_differ():
    generator = torch.Generator().manual_seed(0)
    of = torch.randint(3, (3000,), generator=generator)
    groups = [f"patient {i // 3}" for i in range(3000)]
    held = [hold_out_groups(of, groups, 0.1, seed) for seed in range(3)]
    for mask in held:
        assert all(abs(int((of[mask] == label).sum()) / int((of == label).sum()) - 0.1) < 0.02 for label in range(3))
    assert not torch.equal(held[0], held[1])
    # Control: cut by images, patients are on both sides.
    train, test = split_validation(of, 0.1, 0)
    assert {groups[i] for i in train.tolist()} & {groups[i] for i in test.tolist()}


def test_one_large_group_of_a_class_is_not_held_out_and_the_smaller_of_two_is():
    of, groups = torch.tensor([0] * 10 + [1] * 10), ["a"] * 10 + ["b"] * 6 + ["c"] * 4
    assert hold_out_groups(of, groups, 0.1, 0).nonzero()[:, 0].tolist() == list(range(16, 20))


def test_what_is_held_out_keeps_its_groups():
    data = Images("folder", torch.tensor([0, 1] * 10), ["a", "b"], groups=[str(i // 4) for i in range(20)])
    train, held = hold_out(data, 0.2, 0)
    assert len(train) + len(held) == 20 and not set(train.groups) & set(held.groups)
    assert Counter(train.groups) + Counter(held.groups) == Counter(data.groups)


@pytest.mark.parametrize("groups", [False, True])
def test_a_class_keeps_an_image_to_learn_from_however_much_is_held_out(groups):
    of = torch.tensor([0] * 10 + [1] * 2 + [2])
    names = [str(i) for i in range(13)] if groups else None
    train, held = (torch.bincount(of[part], minlength=3).tolist() for part in split_validation(of, 0.8, 0, names))
    assert (train, held) == ([2, 1, 1], [8, 1, 0])


def test_where_nothing_can_be_held_out_it_is_said():
    one_group_a_class = Images("folder", torch.tensor([0, 0, 1, 1]), ["a", "b"], groups=["p", "p", "q", "q"])
    with pytest.raises(UserError, match="no image of the 4 can be held out for validation"):
        hold_out(one_group_a_class, 0.1, 0)
    assert len(hold_out(replace(one_group_a_class, groups=["p", "r", "q", "s"]), 0.1, 0)[1]) == 2  # control


def test_classes_without_a_validation_image_are_named(capsys):
    """The control: with a second group of each class nothing is said."""
    data = Images("folder", torch.tensor([0] * 4 + [1] * 4 + [2]), ["a", "b", "c"], groups=[*"ppppqqrrs"])
    assert hold_out(data, 0.1, 0)[1].labels.tolist() == [1, 1]
    assert "no image of 2 of 3 classes, 'a', 'c'" in capsys.readouterr().out
    two = replace(data, labels=torch.tensor([0] * 4 + [1] * 4 + [2, 2]), groups=[*"ppttqqrrsu"])
    assert sorted(set(hold_out(two, 0.1, 0)[1].labels.tolist())) == [0, 1, 2]
    assert not capsys.readouterr().out


def test_sets_without_a_validation_split_have_none():
    for name in ("shapes", "fake"):
        assert datasets.load(name, None, "val", image_size=32) is None


# Learning from labels


def test_supcon_of_one_class_is_refused_before_it_learns_nothing():
    """Each image is a positive of every other: contrastive_acc1 is 1 from the first step on."""

    def labelled(chosen):
        return Images("folder", torch.tensor(chosen), ["a", "b"])

    supcon = train.Settings(method="supcon")
    with pytest.raises(UserError, match=r"supcon: all 6 images are of one class, 'b': .* nothing can be learnt"):
        checks.require_labels(supcon, labelled([1] * 6))
    for chosen in ([1, 1, 0], [1, 1, -1]):  # an image without a label is of a kind of its own
        assert checks.require_labels(supcon, labelled(chosen)).tolist() == chosen
    one = labelled([1] * 6)
    assert len(checks.require_labels(replace(supcon, method="simclr", balanced=True), one)) == 6
