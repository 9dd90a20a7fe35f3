"""Changed test images: what is done to the pixels, and the same features on any batches and processes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation import corruptions
from ssl.evaluation.corruptions import change, features, noise_of
from ssl.evaluation.inference import Reading


def pictures(count=9, channels=3, size=20, seed=0):
    pixels = torch.randint(256, (count, channels, size, size), generator=torch.Generator().manual_seed(seed))
    return Images("array", torch.arange(count) % 3, ["a", "b", "c"], resident=pixels.to(torch.uint8))


def reading(batch_size=4, channels=3):
    return Reading(20, batch_size, 0, [0.4] * channels, [0.25] * channels, torch.device("cpu"))


def flat(x):
    return x.flatten(1)


def test_noise_and_brightness_stay_within_0_and_1():
    x = torch.rand(3, 3, 8, 8)
    noise = torch.randn(3, 3, 8, 8)
    assert torch.equal(change(x, "noise", 0.18, noise), (x + 0.18 * noise).clamp(0, 1))
    assert torch.equal(change(x, "brightness", 0.3, noise), (x + 0.3).clamp(0, 1))


@pytest.mark.parametrize("size", [32, 112])
def test_blur_is_scipys_at_the_scale_of_the_image(size):
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for strength in (1, 3, 6):
        expected = gaussian_filter(x.numpy(), (0, 0, *[strength * size / 224] * 2), mode="mirror", truncate=8)
        assert np.abs(change(x, "blur", strength, x).numpy() - expected).max() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels):
    image = pictures(1, channels).resident[0]
    shown = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(shown[..., 0] if channels == 1 else shown).save(file, "JPEG", quality=15)
    expected = torch.from_numpy(np.array(Image.open(file))).view(20, 20, channels).permute(2, 0, 1)
    found = change(image[None].float() / 255, "jpeg", 15, image)
    assert torch.equal((found[0] * 255).round().byte(), expected) and not torch.equal(expected, image)


def test_noise_is_of_the_seed_and_the_image_and_nothing_else():
    one, other = noise_of(0, torch.tensor([3, 8]), (3, 5, 5)), noise_of(0, torch.tensor([8]), (3, 5, 5))
    assert torch.equal(one[1], other[0]) and not torch.equal(one[0], one[1])
    assert not torch.equal(noise_of(1, torch.tensor([8]), (3, 5, 5)), other)
    assert abs(noise_of(5, torch.arange(50), (3, 20, 20)).std() - 1) < 0.02


def test_features_are_those_of_each_changed_image_in_any_batches():
    data, how = pictures(), reading()
    found = features(flat, data, how, 100, 1, "test")
    assert found.ways == corruptions.EACH and found.features.shape == (12, 9, 1200)
    x, noise = data.resident.float() / 255, noise_of(1, torch.arange(9), (3, 20, 20))
    for (kind, strength), h in zip(found.ways, found.features):
        assert torch.allclose(h, flat((change(x, kind, strength, noise) - 0.4) / 0.25), atol=1e-5)
    assert torch.equal(features(flat, data, reading(batch_size=100), 100, 1, "test").features, found.features)
    assert len(set(found.features.sum((1, 2)).tolist())) == 12


def test_some_of_the_images_are_the_same_ones_with_the_same_noise(capsys):
    data, every = pictures(), features(flat, pictures(), reading(), 9, 2, "test")
    some = features(flat, data, reading(), 6, 2, "the trained one")
    assert len(some.index) == 6 and some.index.tolist() == sorted(set(some.index.tolist()))
    kept = some.ways.index(("blur", 3))
    assert torch.equal(some.features[kept], every.features[kept][some.index])
    said = capsys.readouterr().out
    assert "12 changed copies of 6 of 9 test images, the trained one" in said and "--corrupted_images" in said


def test_images_of_other_channels_have_no_jpeg_and_wide_features_take_fewer_images(monkeypatch):
    found = features(flat, pictures(channels=2), reading(channels=2), 100, 0, "test")
    assert [kind for kind, _ in found.ways].count("jpeg") == 0 and found.features.shape == (9, 9, 800)
    monkeypatch.setattr(corruptions, "MOST_NUMBERS", 12 * 1200 * 4)
    assert features(flat, pictures(), reading(), 100, 0, "test").features.shape == (12, 4, 1200)


def test_a_file_that_went_away_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 30)).save(path)
    data = Images("folder", torch.tensor([0, 0]), ["a"], paths=[str(path), str(tmp_path / "gone.png")])
    with pytest.raises(UserError, match=r"gone\.png could be read before"):
        features(flat, data, reading(), 100, 0, "test")
