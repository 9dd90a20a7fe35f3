"""Scores of all images: plain, and as the mean over views."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from ssl.augment import View, apply, draw
from ssl.data.images import Images, Paths
from ssl.data.loader import crop_boxes, crop_resize
from ssl.errors import UserError
from ssl.evaluation import classify, inference


class Net(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x[:, 0].std((1, 2)), x[:, :, 8].mean((1, 2))], 1)


@pytest.mark.parametrize("source", ["memory", "files"])
def test_the_mean_over_views_is_that_of_views_made_one_by_one(images, source):
    paths = sorted(images.glob("test/*/*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in paths])
    where = {"resident": pixels} if source == "memory" else {"paths": Paths(map(str, paths))}
    data = Images("folder", torch.arange(21) % 3, ["a", "b", "c"], **where)
    view = View(24, (0.5, 1.0), vertical_flip=0.5, rotation=20.0, blur_prob=0.0)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.2]
    how = inference.Reading(24, 8, 0, mean, std, torch.device("cpu"))
    found, read, bad = inference.mean_over_views(Net(), data, inference.Copies(4, view, 5), how)
    assert found.shape == (21, 3) and bool(read.all()) and not bad
    expected = torch.zeros(21, 3)
    for copy in range(4):
        for i in range(21):
            crop, params = draw(5, copy, torch.tensor([i]), 0, view)
            box = crop_boxes(crop, torch.tensor([32]), torch.tensor([32]), view)
            x = apply(crop_resize(pixels[i : i + 1], box, 24), params, view, torch.tensor(mean), torch.tensor(std))
            expected[i] += Net()(x)[0] / 4
    assert torch.allclose(found, expected, atol=1e-5 if source == "memory" else 5e-3)  # files: crops of whole levels


def test_an_image_that_cannot_be_read_is_not_judged_by_another(images, tmp_path):
    shutil.copytree(images / "test", tmp_path / "test")
    paths = sorted((tmp_path / "test").glob("*/*.png"))
    paths[4].write_bytes(b"no image")
    data = Images("folder", torch.arange(21) % 3, ["a", "b", "c"], paths=Paths(map(str, paths)))
    how = inference.Reading(32, 8, 0, [0.0] * 3, [1.0] * 3, torch.device("cpu"))
    for _, read, bad in (
        inference.outputs(Net(), data, how),
        inference.mean_over_views(Net(), data, inference.Copies(2, View(32, blur_prob=0.0), 0), how),
    ):
        assert read.tolist() == [i != 4 for i in range(21)] and list(bad) == [str(paths[4])]


def test_images_to_judge_of_which_none_can_be_read(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    data = Images("folder", torch.arange(3) % 2, ["a", "b"], paths=Paths(paths))
    settings = finetune.Settings(image_size=32, workers=0, mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(UserError, match="none of the 3 images to judge can be read"):
        classify.score(Net(), data, settings, torch.device("cpu"))
