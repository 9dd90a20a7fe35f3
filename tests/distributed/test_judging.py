"""Judging on several processes is judging on one: the linear protocol, whatever the batch; what cannot be judged."""

import os
import re
import tempfile
import time

import pytest
import torch
import torch.distributed as dist
from spawn import on_ranks
from torch import nn

import evaluate
from ssl import distributed
from ssl.checkpoints import published
from ssl.data.images import Images
from ssl.data.order import Order, Shares
from ssl.data.resident import shown_alike
from ssl.errors import UserError
from ssl.evaluation import inference

CPU = torch.device("cpu")
STATISTICS = dict(mean=[0.5] * 3, std=[0.25] * 3)


def images(count, seed):
    """Noise in the brightness of its class, of three."""
    labels = torch.arange(count) % 3
    noise = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    pixels = (120 * noise + 40 * labels[:, None, None, None]).to(torch.uint8)
    return Images("array", labels, ["a", "b", "c"], resident=pixels)


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def linear(count: int, batch: int) -> dict:
    """The result, and the head that it is of."""
    heads, make = [], nn.Linear
    settings = evaluate.Settings(
        image_size=12, linear_epochs=4, linear_batch=batch, seed=3, workers=0, batch_size=16, **STATISTICS
    )
    evaluate.nn.Linear = lambda *arguments: heads.append(make(*arguments)) or heads[-1]
    try:
        found = evaluate.linear_evaluation(encoder(), 8, images(count, 1), images(50, 2), settings, CPU)
    finally:
        evaluate.nn.Linear = make
    return {"weight": heads[0].weight.detach(), "bias": heads[0].bias.detach(), "acc1": found["acc1"], "n": found["n"]}


def shown() -> list[bool]:
    """Which splits are shown whole, where only the last rank could not read all of one in time."""
    splits = {"train": images(9, 1), "test": images(6, 2)}
    if dist.get_rank() == dist.get_world_size() - 1:
        splits["test"] = Images("array", splits["test"].labels, ["a", "b", "c"], paths=["/nowhere.png"] * 6)
    return [data.resident is not None for data in shown_alike(splits).values()]


def test_all_ranks_show_images_alike(tmp_path):
    assert on_ranks(shown, [2], tmp_path)[2] == [[False, False]] * 2


def linears() -> list[dict]:
    return [linear(3, 256), linear(101, 256), linear(101, 30)]


def test_the_linear_protocol_is_the_same_on_any_number_of_processes(tmp_path):
    results = on_ranks(linears, [1, 2, 4], tmp_path)
    for world in (2, 4):
        for result in results[world]:
            for found, one in zip(result, results[1][0]):
                torch.testing.assert_close(found["weight"], one["weight"], rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(found["bias"], one["bias"], rtol=1e-4, atol=1e-6)
                assert found["n"] == 50 and found["acc1"] == pytest.approx(one["acc1"], abs=1.01 / 50)  # by rounding
    # The control: an image more or less in a batch moves the head by more than that.
    hundred = linear(100, 256)
    assert (hundred["weight"] - results[1][0][1]["weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("count, batch, world", [(3, 3, 4), (101, 101, 2), (101, 30, 4), (64, 16, 4)])
def test_shares_of_a_batch_are_the_batch(count, batch, world):
    whole = Order(count, batch, 1, 1, 5)
    shares = Shares(whole, world)
    for step in range(whole.steps_per_epoch + 1):
        epoch, index, _ = whole.indices(step, 0, 0)
        parts = [shares.indices(step, 0, rank) for rank in range(world)]
        counted = [part[1][shares.counts(rank)] for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat(counted), index) and {part[0] for part in parts} == {epoch}
        assert len({len(part[1]) for part in parts}) == 1  # as many on every rank


def ruined() -> list[str]:
    """What every way of judging says of an encoder that gives NaN for one image, and Inf for another."""

    def net(x):
        h = encoder()(x)
        bright, dark = x.mean((1, 2, 3)) > 1.9, x.mean((1, 2, 3)) < -1.9
        return h + torch.where(bright, torch.nan, 0.0)[:, None] + torch.where(dark, torch.inf, 0.0)[:, None]

    module = nn.Module()
    module.forward = net
    data = images(10, 1)
    data.resident[4], data.resident[7] = 255, 0
    how = inference.Reading(size=12, batch_size=8, workers=0, device=CPU, **STATISTICS)
    settings = evaluate.Settings(image_size=12, seed=0, workers=0, batch_size=8, **STATISTICS)
    view = evaluate.View(12, jitter_prob=0, grayscale=0, blur_prob=0, solarize_prob=0, flip=0)
    told = []
    for judge in (
        lambda: inference.outputs(net, data, how),
        lambda: list(inference.stream(net, data, how)),
        lambda: inference.mean_over_views(net, data, inference.Copies(2, view, seed=0), how),
        lambda: evaluate.linear_evaluation(module, 8, images(30, 2), data, settings, CPU),
    ):
        try:
            judge()
        except UserError as error:
            told.append(str(error))
    return [torch.tensor(list(words.encode())) for words in told]


def test_outputs_that_are_not_finite_are_one_error_on_every_rank(tmp_path):
    for ranks in on_ranks(ruined, [1, 2, 4], tmp_path).values():
        for told in ranks:
            words = [bytes(text.tolist()).decode() for text in told]
            assert len(words) == 4
            for text in words:
                assert re.match("the network gives NaN or Inf for 2 of (8|10) images, first for array/4; [^\n]*$", text)


def fetched() -> list:
    """On each of two processes of a machine: how often it asked for a file, and what came, with and without network."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    weights, asked, came = published.OTHERS["dino"], [], []

    def download(url, path, *_, **__):
        asked.append(url)
        time.sleep(0.5)  # who does not wait finds no file
        if "offline" in path:
            raise OSError("no network")
        torch.save({}, path)

    torch.hub.download_url_to_file = download
    with tempfile.TemporaryDirectory() as own:
        for home in ("online", "offline"):
            torch.hub.set_dir(os.path.join(distributed.broadcast_object(own), home))
            try:
                came.append(int(published.fetch(weights).is_file()))
            except UserError as error:
                came.append(torch.tensor(list(str(error).encode())))
        distributed.barrier()  # before the folder goes
    return [len(asked), *came]


def test_one_process_of_a_machine_downloads_and_all_get_its_file_or_its_error(tmp_path):
    first, second = on_ranks(fetched, [2], tmp_path)[2]
    assert (first[:2], second[:2]) == ([2, 1], [0, 1])
    words = bytes(first[2].tolist()).decode()
    assert words.startswith("the published weights 'dino' cannot be downloaded (no network). Fetch https://")
    assert torch.equal(first[2], second[2])
