"""Views: the generator against known answers, the boxes and pixels against torchvision."""

import re
import runpy
import sys
import warnings
import zlib
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop, RandomRotation
from torchvision.transforms.v2 import functional as tv

from ssl.augment import COLUMNS, View, apply, blur, crop_boxes, crop_resize, draw, philox, same_operations, uniforms
from ssl.data import loader
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.pixels import jitter_stains

# Numbers from a counter -------------------------------------------------------


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert philox(torch.tensor(counter), tuple(key)).tolist() == words


def test_uniforms_are_uniform_and_strictly_inside():
    u = uniforms(7, 3, torch.arange(4000), 1, 5)
    assert u.shape == (4000, 5) and u.dtype == torch.float64
    assert (u > 0).all() and (u < 1).all()
    assert all(stats.kstest(column.numpy(), "uniform").pvalue > 1e-3 for column in u.T)


def test_a_draw_does_not_depend_on_its_batch():
    view = View(solarize_prob=0.5)
    index = torch.tensor([5, 900, 2, 77, 5])
    crop, params = draw(3, 8, index, 1, view)
    for row, i in enumerate(index):
        alone = draw(3, 8, i[None], 1, view)
        assert torch.equal(alone[0][0], crop[row]) and torch.equal(alone[1][0], params[row])


@pytest.mark.parametrize("other", [(4, 8, 5, 1), (3 + 2**32, 8, 5, 1), (3, 9, 5, 1), (3, 8, 6, 1), (3, 8, 5, 0)])
def test_a_draw_changes_with_seed_epoch_index_and_view(other):
    def numbers(seed, epoch, index, view):
        return uniforms(seed, epoch, torch.tensor([index]), view, 33)

    here = numbers(3, 8, 5, 1)
    assert torch.equal(here, numbers(3, 8, 5, 1))
    assert not (numbers(*other) == here).any()


def test_neighbouring_draws_are_uncorrelated():
    n = 20_000
    index = torch.arange(n)
    here = uniforms(0, 0, index, 0, 4)
    neighbours = {
        "index": uniforms(0, 0, index + 1, 0, 4),
        "epoch": uniforms(0, 1, index, 0, 4),
        "view": uniforms(0, 0, index, 1, 4),
        "seed": uniforms(1, 0, index, 0, 4),
        "place": here.roll(1, dims=1),
    }
    for name, there in neighbours.items():
        r = np.corrcoef(here.T.numpy(), there.T.numpy())[:4, 4:]
        if name == "place":
            r = r[np.abs(r) < 1 - 1e-9]  # a place with itself
        assert np.abs(r).max() < 4.5 / n**0.5, name


def test_what_was_drawn_before_rotation_came_is_drawn_still():
    """Checksums of the crops and of the first nine parameters as they were then: a seed keeps its meaning."""
    view = View(solarize_prob=0.2, blur_prob=0.5)
    for seed, epoch, number, expected in (
        (0, 0, 0, (0x59CA64BA, 0xB1D303E5)),
        (2**40 + 7, 3, 1, (0xEC6B740, 0x901F397A)),
    ):
        turned = replace(view, vertical_flip=0.5, rotation=30.0, rotation_prob=0.5)
        for asked in (view, turned, replace(turned, stain_jitter=(0.2, 0.1), stain_prob=0.5)):
            crop, params = draw(seed, epoch, torch.arange(500), number, asked)
            parts = crop.contiguous(), params[:, :9].contiguous()
            assert tuple(zlib.crc32(part.numpy().tobytes()) for part in parts) == expected


def test_operations_are_drawn_as_often_and_as_strongly_as_asked():
    n = 20_000
    view = View(
        jitter=(0.4, 0.3, 1.5, 0.1),
        blur_prob=0.5,
        solarize_prob=0.2,
        solarize_threshold=0.5,
        vertical_flip=0.3,
        rotation=30,
        rotation_prob=0.33,
        stain_jitter=(0.3, 0.1),
        stain_prob=0.4,
    )
    columns = dict(zip(COLUMNS, draw(0, 0, torch.arange(n), 0, view)[1].double().T))
    jittered = columns["brightness"] != 1
    often = {
        "flip": (columns["flip"] == 1, 0.5),
        "jitter": (jittered, 0.8),
        "gray": (columns["gray"] == 1, 0.2),
        "blur": (columns["sigma"] > 0, 0.5),
        "solarise": (columns["threshold"] == 0.5, 0.2),
        "vertical": (columns["vertical"] == 1, 0.3),
        "rotation": (columns["angle"] != 0, 0.33),
        "stain": (columns["stain"] == 1, 0.4),
    }
    for name, (happened, p) in often.items():
        assert abs(happened.double().mean().item() - p) < 4.5 * (p * (1 - p) / n) ** 0.5, name
    assert (columns["hue"][~jittered] == 0).all() and (columns["threshold"][~often["solarise"][0]] > 1).all()
    strength = {
        "brightness": (columns["brightness"][jittered], 0.6, 1.4),
        "contrast": (columns["contrast"][jittered], 0.7, 1.3),
        "saturation": (columns["saturation"][jittered], 0.0, 2.5),
        "hue": (columns["hue"][jittered], -0.1, 0.1),
        "sigma": (columns["sigma"][columns["sigma"] > 0], 0.1, 2.0),
        "angle": (columns["angle"][columns["angle"] != 0], -30, 30),
        **{name: (columns[name], 0.7, 1.3) for name in COLUMNS if name.startswith("gain")},
        **{name: (columns[name], -0.1, 0.1) for name in COLUMNS if name.startswith("offset")},
    }
    assert len(strength) == 12
    for name, (values, low, high) in strength.items():
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3, name
    counts = columns["order"].long().bincount()
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_flips_and_rotation_are_drawn_apart_from_everything_else():
    n = 20_000
    view = View(blur_prob=0.5, solarize_prob=0.2, vertical_flip=0.5, rotation=30.0)
    crop, params = draw(0, 0, torch.arange(n), 0, view)
    own = params[:, [COLUMNS.index(name) for name in ("flip", "vertical", "angle")]].double()
    rest = torch.cat([crop, params[:, 1:9], params[:, 1:9].abs()], 1).double()
    r = np.corrcoef(torch.cat([own, rest], 1).T.numpy())[:3]
    assert np.abs(r[~np.eye(*r.shape, dtype=bool)]).max() < 4.5 / n**0.5


def test_stains_are_drawn_apart_from_everything_else_and_change_nothing_of_it():
    n = 20_000
    view = View(blur_prob=0.5, solarize_prob=0.2, vertical_flip=0.5, rotation=30.0)
    crop, without = draw(0, 0, torch.arange(n), 0, view)
    same_crop, params = draw(0, 0, torch.arange(n), 0, replace(view, stain_jitter=(0.2, 0.1), stain_prob=0.5))
    assert torch.equal(crop, same_crop) and torch.equal(without[:, :11], params[:, :11])
    assert not without[:, 11:].any()
    own, rest = params[:, 11:].double(), torch.cat([crop, params[:, :11], params[:, 1:9].abs()], 1).double()
    r = np.corrcoef(torch.cat([own, rest], 1).T.numpy())[:7]
    assert np.abs(r[~np.eye(*r.shape, dtype=bool)]).max() < 4.5 / n**0.5


# Crop boxes -------------------------------------------------------------------


def our_boxes(n, height, width, view):
    crop, _ = draw(11, 0, torch.arange(n), 0, view)
    return crop_boxes(crop, torch.full((n,), height), torch.full((n,), width), view)


def their_boxes(n, height, width, view):
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    get = RandomResizedCrop.get_params
    return torch.tensor([get(image, list(view.crop_scale), list(view.crop_ratio)) for _ in range(n)])


@pytest.mark.parametrize("height, width", [(375, 500), (60, 400)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    view, n = View(), 10_000
    ours, theirs = our_boxes(n, height, width, view), their_boxes(n, height, width, view)
    top, left, h, w = ours.T
    assert ((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all()
    measures = {
        "area": lambda box: box[:, 2] * box[:, 3] / (height * width),
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "vertical place": lambda box: box[:, 0] / (height - box[:, 2]).clamp(min=1),
        "horizontal place": lambda box: box[:, 1] / (width - box[:, 3]).clamp(min=1),
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > 1e-3, name


@pytest.mark.parametrize("height, width", [(30, 300), (300, 30), (31, 300), (1, 1), (1, 7)])
def test_where_no_try_fits_the_box_is_torchvisions_central_one(height, width):
    view = View(crop_scale=(0.95, 1.0), crop_ratio=(3 / 4, 4 / 3))
    ours, theirs = our_boxes(20, height, width, view), their_boxes(20, height, width, view)
    assert ours.unique(dim=0).tolist() == theirs.unique(dim=0).tolist()


def test_boxes_of_images_of_several_sizes_stay_inside():
    height, width = torch.randint(1, 40, (2, 500), generator=torch.Generator().manual_seed(0))
    crop, _ = draw(0, 0, torch.arange(500), 0, View())
    top, left, h, w = crop_boxes(crop, height, width, View()).T
    assert ((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all()


# Pixels -----------------------------------------------------------------------


def images(n=4, channels=3, height=33, width=29, seed=0):
    """Random uint8 images, smooth and rough, with grey, black and white corners."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    x = tv.resize(coarse, [height, width], antialias=True)
    x = x + 0.3 * torch.rand(n, channels, height, width, generator=generator) - 0.15
    x[:, :, :4, :4], x[:, :, -4:, -4:], x[:, :, :4, -4:] = 0.0, 1.0, 0.5
    return (x.clamp(0, 1) * 255).round().byte()


NEUTRAL = dict(
    flip=0, brightness=1, contrast=1, saturation=1, hue=0, order=0, gray=0, sigma=0, threshold=2, vertical=0, angle=0
) | dict(stain=0, gain_h=1, gain_e=1, gain_d=1, offset_h=0, offset_e=0, offset_d=0)
EVERYTHING = View(solarize_prob=0.2, vertical_flip=0.5, rotation=30.0, rotation_prob=0.5)
STAINED = replace(EVERYTHING, stain_jitter=(0.3, 0.1), stain_prob=0.5)  # of RGB alone


def parameters(n, **columns):
    """Rows for `apply` that do nothing but what is named; a value or one a row."""
    values = [torch.as_tensor((NEUTRAL | columns)[name], dtype=torch.float32) for name in COLUMNS]
    return torch.stack([value.expand(n) for value in values], 1)


def applied(x, params, view=EVERYTHING):
    """`apply` without its normalisation."""
    channels = x.shape[1]
    return apply(x, params, view, torch.zeros(channels), torch.ones(channels))


def assert_within(ours, theirs, levels):
    assert ours.shape == theirs.shape
    worst = 255 * (ours - theirs).abs().max().item()
    assert worst <= levels, f"{worst:.2f} of 255"


BOXES = [(0, 0, 33, 29), (3, 2, 20, 25), (10, 11, 5, 4), (32, 28, 1, 1), (0, 1, 33, 2)]


BICUBIC = dict(interpolation=InterpolationMode.BICUBIC, antialias=True)


@pytest.mark.parametrize("size", [1, 7, 16, 48])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crop_resize_is_torchvisions_bicubic_of_floats(size, channels):
    x = (60 + 0.5 * images(len(BOXES), channels)) / 255  # clear of 0 and 1: floats are not clipped between the passes
    theirs = torch.stack([tv.resized_crop(image, *box, [size, size], **BICUBIC) for image, box in zip(x, BOXES)])
    assert_within(crop_resize(x, torch.tensor(BOXES), size), theirs, 0.01)


@pytest.mark.parametrize("size", [7, 16, 48])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crop_resize_is_within_a_level_of_torchvisions_bicubic_of_bytes(size, channels):
    x = images(len(BOXES), channels)  # 1-pixel results in RGB trip an assertion inside torchvision's resize
    theirs = torch.stack([tv.resized_crop(image, *box, [size, size], **BICUBIC) for image, box in zip(x, BOXES)])
    ours = crop_resize(x, torch.tensor(BOXES), size)
    assert_within((255 * ours).round() / 255, theirs / 255, 1.001)


def test_crop_resize_of_the_whole_at_its_own_size_is_the_image():
    x = images(3, height=16, width=16)
    assert_within(crop_resize(x, torch.tensor([[0, 0, 16, 16]] * 3), 16), x / 255, 1e-3)


STRENGTHS = [0.0, 0.4, 0.8, 1.0, 1.3, 1.9]
SHIFTS = [-0.5, -0.2, -0.05, 0.0, 0.1, 0.5]
OPERATIONS = {
    "brightness": (tv.adjust_brightness, STRENGTHS),
    "contrast": (tv.adjust_contrast, STRENGTHS),
    "saturation": (tv.adjust_saturation, STRENGTHS),
    "hue": (tv.adjust_hue, SHIFTS),
    "gray": (lambda x, on: tv.rgb_to_grayscale(x, 3) if on else x, [0.0, 1.0]),
    "flip": (lambda x, on: tv.horizontal_flip(x) if on else x, [0.0, 1.0]),
    "vertical": (lambda x, on: tv.vertical_flip(x) if on else x, [0.0, 1.0]),
    "angle": (lambda x, a: tv.rotate(x, a, InterpolationMode.BILINEAR), [-180.0, -45.0, -7.0, 0.0, 0.5, 30.0, 90.0]),
    "threshold": (tv.solarize, [0.0, 0.3, 128 / 255, 1.0]),
    "sigma": (lambda x, s: tv.gaussian_blur(x, [23, 23], [s, s]), [0.1, 0.5, 1.0, 2.0]),
}


ON_GREY = ["brightness", "contrast", "flip", "vertical", "angle", "threshold", "sigma"]


@pytest.mark.parametrize("name, channels", [(name, 3) for name in OPERATIONS] + [(name, 1) for name in ON_GREY])
def test_each_operation_is_torchvisions(name, channels):
    operation, strengths = OPERATIONS[name]
    x = images(len(strengths), channels=channels)
    ours = applied(x, parameters(len(strengths), **{name: strengths}))
    theirs = torch.stack([operation(image.float() / 255, strength) for image, strength in zip(x, strengths)])
    assert_within(ours, theirs, 2)


def test_rotation_is_random_rotations_of_that_angle_but_for_its_edges_and_its_rounding():
    x = tv.gaussian_blur(images(1), [9, 9], [2.0, 2.0]).float() / 255  # smooth: rounding to a pixel costs little
    for angle in (-30.0, 12.0, 45.0):
        theirs = RandomRotation((angle, angle))(x)
        ours = applied(x, parameters(1, angle=angle))
        inside = tv.rotate(torch.ones_like(x), angle) > 0
        inside = -torch.nn.functional.max_pool2d(-inside.float(), 3, 1, 1) > 0
        assert (ours - theirs).abs()[inside].mean() < 0.02 < (x - theirs).abs()[inside].mean()
        assert inside.float().mean() > 0.4


def test_jitter_follows_every_images_own_order():
    orders = list(permutations(range(4)))
    factors = (1.5, 0.6, 1.7, 0.15)
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    x = images(1).expand(24, -1, -1, -1)
    brightness, contrast, saturation, hue = factors
    ours = applied(
        x,
        parameters(
            24,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            order=torch.arange(24),
        ),
    )
    theirs = []
    for order in orders:
        image = x[0].float() / 255
        for i in order:
            image = steps[i](image, factors[i])
        theirs.append(image)
    assert_within(ours, torch.stack(theirs), 2)
    distance = (ours[:, None] - ours[None]).abs().amax((2, 3, 4))
    assert (distance > 4 / 255).sum() > 24 * 12  # or the order would not matter here


def test_the_chain_is_stains_flips_rotation_jitter_grey_blur_solarise_normalise():
    x = images(2)
    both = dict(stain=1, gain_h=0.7, offset_e=0.1, flip=1, vertical=1, angle=20, brightness=1.2, sigma=1, threshold=0.5)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    ours = apply(x, parameters(2, gray=[0.0, 1.0], **both), STAINED, mean, std)
    for image, got, gray in zip(x, ours, (False, True)):
        y = torch.from_numpy(restained(image.numpy() / 255, [0.7, 1, 1], [0, 0.1, 0])).float()
        y = tv.vertical_flip(tv.horizontal_flip(y))
        y = tv.adjust_brightness(tv.rotate(y, 20, InterpolationMode.BILINEAR), 1.2)
        y = tv.rgb_to_grayscale(y, 3) if gray else y
        y = tv.gaussian_blur(y, [23, 23], [1.0, 1.0])
        sure = (y - 0.5).abs() > 1e-3  # beside the threshold a rounding error decides
        y = tv.normalize(tv.solarize(y, 0.5), mean.tolist(), std.tolist())
        torch.testing.assert_close(got[sure], y[sure], atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("height, width", [(33, 29), (8, 8), (1, 5)])
def test_a_batch_is_its_images_one_by_one(channels, height, width):
    x = images(12, channels, height, width) if height > 8 else images(12, channels)[..., 9 : 9 + height, :width]
    view = View(solarize_prob=0.5, blur_prob=0.5, grayscale=0.5, vertical_flip=0.5, rotation=90, rotation_prob=0.5)
    view = replace(view, stain_jitter=(0.3, 0.1), stain_prob=0.5) if channels == 3 else view
    _, params = draw(1, 2, torch.arange(12), 0, view)
    before = x.clone()
    mean, std = torch.full((channels,), 0.4), torch.full((channels,), 0.2)
    whole = apply(x, params, view, mean, std)
    alone = torch.cat([apply(x[i : i + 1], params[i : i + 1], view, mean, std) for i in range(12)])
    assert torch.equal(x, before) and whole.shape == x.shape and torch.isfinite(whole).all()
    # a pixel on the solarisation threshold may fall either way
    assert ((whole - alone).abs() < 1e-4).double().mean() > 0.999


@pytest.mark.parametrize("most", [1, 5, 100])
def test_groups_of_images_that_need_the_same_give_the_batch(most):
    n = 60
    x = images(n)
    view = replace(STAINED, blur_prob=0.5, vertical_flip=0.3, rotation_prob=0.3, stain_prob=0.3)
    _, params = draw(4, 0, torch.arange(n), 1, view)
    zero, one = torch.zeros(3), torch.ones(3)
    seen, whole = [], apply(x, params, view, zero, one)
    for rows, needed, hue_place in same_operations(params, view, most):
        assert 1 <= len(rows) <= most
        seen += rows.tolist()
        part = apply(x[rows], params[rows], needed, zero, one, hue_place)
        assert ((part - whole[rows]).abs() < 1e-4).double().mean() > 0.999
    assert sorted(seen) == list(range(n))
    *_, last = same_operations(params, view, 1)
    assert last[1].blur_prob == view.blur_prob and last[2] == 3  # sorted by hue's place, then blur


def test_a_neutral_group_needs_nothing():
    ((rows, needed, hue_place),) = same_operations(parameters(4), STAINED, 100)
    assert rows.tolist() == [0, 1, 2, 3] and hue_place is None
    assert needed.jitter_prob == needed.grayscale == needed.blur_prob == needed.solarize_prob == 0
    assert needed.vertical_flip == needed.rotation == needed.stain_prob == 0


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_colour_operations_leave_other_channel_counts_alone(channels):
    x = images(3, channels)
    assert_within(applied(x, parameters(3, saturation=0.3, hue=0.2, gray=1)), x / 255, 1e-3)
    half = applied(x, parameters(3, contrast=0.5))
    mean = (x / 255).mean((1, 2, 3), keepdim=True)
    assert_within(half, (0.5 * x / 255 + 0.5 * mean).clamp(0, 1), 0.01)


def test_a_neutral_row_changes_nothing():
    x = images(4)
    for view in (EVERYTHING, STAINED):
        assert torch.equal(applied(x, parameters(4), view), x.float() / 255)


def test_float_and_uint8_pixels_give_the_same_view():
    x = images(4)
    _, params = draw(0, 0, torch.arange(4), 0, STAINED)
    assert torch.equal(applied(x, params, STAINED), applied(x.float() / 255, params, STAINED))


# Stains -----------------------------------------------------------------------


def restained(image, gains, offsets):
    """Stain jitter of one image (3, H, W), pixel by pixel, in float64: to concentrations and back, as rgb2hed does."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    result = np.empty_like(image, dtype=float)
    for place in np.ndindex(image.shape[1:]):
        density = -np.log(np.maximum(image[(slice(None), *place)], 1 / 255))
        concentrations = np.linalg.solve(stains.T, density)  # of haematoxylin, eosin, DAB
        concentrations = concentrations * gains + offsets
        result[(slice(None), *place)] = np.exp(-np.maximum(concentrations @ stains, 0))
    return result


GAINS = [[1.0, 1.0, 1.0], [0.7, 1.3, 1.0], [1.4, 0.2, 0.9], [0.0, 2.0, 1.0]]
OFFSETS = [[0.0, 0.0, 0.0], [0.1, -0.1, 0.05], [0.0, 0.0, 0.0], [-0.5, 0.5, 1.0]]


def test_every_image_has_its_own_gains_and_offsets_of_its_stains():
    x, gains, offsets = images(4).float() / 255, torch.tensor(GAINS), torch.tensor(OFFSETS)
    before = x.clone()
    ours = jitter_stains(x, gains, offsets)
    for image, got, *strengths in zip(x.double().numpy(), ours, GAINS, OFFSETS):
        np.testing.assert_allclose(got, restained(image, *strengths), atol=1e-5)
    assert torch.equal(x, before) and ours.min() >= 0 and ours.max() <= 1
    same = jitter_stains(x[:1].expand(4, -1, -1, -1), gains, offsets)
    distance = (same[:, None] - same[None]).abs().amax((2, 3, 4))
    assert (distance[~torch.eye(4, dtype=torch.bool)] > 0.1).all()


def test_an_image_of_one_stain_keeps_its_colour_and_gets_paler_or_stronger():
    amount, eosin = torch.linspace(0, 2, 20).view(1, 1, 1, 20), torch.tensor([0.07, 0.99, 0.11]).view(1, 3, 1, 1)
    pink = torch.exp(-amount * eosin)
    for gain in (0.0, 0.5, 1.3):
        paler = jitter_stains(pink, torch.tensor([[1.7, gain, 0.2]]), torch.zeros(1, 3))  # the others are not there
        torch.testing.assert_close(paler, torch.exp(-gain * amount * eosin))


def test_white_stays_white_without_an_offset_and_nothing_leaves_the_range():
    x = torch.tensor([0.0, 1e-8, 0.5, 1.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    gains = torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    for gain in gains:
        for offset in (0.0, 1.0, -1.0):
            y = jitter_stains(x, gain.expand(4, 3), torch.full((4, 3), offset))
            assert torch.isfinite(y).all() and y.min() >= 0 and y.max() <= 1
            assert (y[3] == 1).all() == (offset <= 0)
    same = jitter_stains(x, torch.ones(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(same, x.clamp(min=1 / 255))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_stains_of_other_channel_counts_are_refused(channels):
    _, params = draw(0, 0, torch.arange(2), 0, STAINED)
    with pytest.raises(ValueError, match=f"red, green and blue, and these images have {channels} channels"):
        applied(images(2, channels), params, STAINED)


@pytest.mark.parametrize("height, width, kernel", [(5, 4, 23), (2, 9, 7), (1, 1, 3), (31, 17, 3)])
def test_blur_reflects_as_often_as_small_images_need(height, width, kernel):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.7, 3.0])
    offsets, half = np.arange(kernel) - kernel // 2, kernel // 2
    for image, s, got in zip(x.double().numpy(), sigma.tolist(), blur(x, sigma, kernel)):
        weights = np.exp(-0.5 * (offsets / s) ** 2)
        weights = np.outer(weights, weights) / weights.sum() ** 2
        padded = np.pad(image, [(0, 0), (half, half), (half, half)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))
        np.testing.assert_allclose(got.numpy(), (windows * weights).sum((3, 4)), atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_gives_the_view_to_its_own_precision(dtype, tolerance):
    x = images(6)
    _, params = draw(0, 0, torch.arange(6), 0, STAINED)
    half = applied((x / 255).to(dtype), params, STAINED)
    assert half.dtype == dtype
    assert (half.float() - applied(x, params, STAINED)).abs().max() < tolerance


def test_sixteen_bits_are_eight_with_finer_steps():
    x = images(3)
    _, params = draw(0, 0, torch.arange(3), 0, STAINED)
    fine = (x.int() * 257).to(torch.uint16)  # 255 -> 65535
    torch.testing.assert_close(applied(fine, params, STAINED), applied(x, params, STAINED))


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("count, height, width", [(1, 32, 32), (5, 7, 31)])
def test_compiled_in_one_graph_it_gives_the_same(channels, count, height, width):
    x = images(count, channels)[..., :height, :width]
    view = STAINED if channels == 3 else EVERYTHING
    _, params = draw(0, 0, torch.arange(count), 0, view)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo says that it traces through lru_cache
        compiled = torch.compile(applied, fullgraph=True, backend="eager")(x, params, view)
    torch.testing.assert_close(compiled, applied(x, params, view))


# examples/views_in_your_loop.py -------------------------------------------------------

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "views_in_your_loop.py"


def test_the_example_gives_the_views_of_training_and_uses_nothing_else():
    example, data = runpy.run_path(str(EXAMPLE)), images(12)
    kinds, order = [EVERYTHING, replace(EVERYTHING, blur_prob=0.0), View(size=20)], Order(12, 4, 1, 1, 7)
    held = Images("held", torch.zeros(12, dtype=torch.int64), ["one"], resident=data)
    batches = loader.training_batches(held, kinds, order, 3, 5, 0, torch.device("cpu"))  # of epoch 1
    for batch in batches:
        expected = loader.finish(batch, kinds, example["MEAN"], example["STD"])
        views = example["make_views"](data, batch.index, kinds, seed=7, epoch=1)
        for view, other in zip(views, expected, strict=True):
            torch.testing.assert_close(view, other, atol=1e-5, rtol=1e-5)
    imports = re.findall(r"^(?:from|import) (ssl\S*)", EXAMPLE.read_text("utf-8"), re.MULTILINE)
    assert imports == ["ssl", "ssl.augment"]


def test_the_example_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--views", "3"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "epoch 0: 3 views of 128 images a batch, each (3, 32, 32)"
    assert [line.split(": ")[-1] for line in said[2:]] == ["True", "True", "False"]
