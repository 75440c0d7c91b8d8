import math

import numpy as np
import pytest
import torch
from kornia import enhance
from torch.nn import functional as F

from probjepa.data import Preprocess, augment
from probjepa.data.views import RECIPES, default_recipe, views
from probjepa.errors import ConfigError, DataError

PLAIN = {1: {"mean": [0.0], "std": [1.0]}, 3: {"mean": [0.0] * 3, "std": [1.0] * 3}}


def random_images(count=8, channels=3, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def binomial_bounds(count, p):
    return 5 * math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("channels", [1, 3])
def test_recipes(recipe, channels):
    make = views(recipe, size=24, channels=channels, mean=[0.5] * channels, std=[0.25] * channels)
    images = random_images(6, channels, 20, 31)
    state = torch.get_rng_state()
    first = make(images, generator_seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = make(images, generator_seed=3), make(images, generator_seed=4)
    sizes = {"ijepa": [24], "multi-crop": [24, 24, 12, 12, 12, 12]}.get(recipe, [24, 24])
    assert [view.shape[-1] for view in first] == sizes
    for view, same, different in zip(first, again, other, strict=True):
        assert view.shape == (6, channels, view.shape[-1], view.shape[-1])
        assert view.dtype == torch.float32
        assert torch.equal(view, same)
        assert not torch.allclose(view, different)
        assert view.min() >= (0 - 0.5) / 0.25 - 1e-5
        assert view.max() <= (1 - 0.5) / 0.25 + 1e-5
    assert len(first) == 1 or not torch.allclose(first[0], first[1])
    torch.manual_seed(0)
    unseeded = make(images), make(images)
    assert not torch.allclose(unseeded[0][0], unseeded[1][0])


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_image_has_its_own_parameters(recipe):
    make = views(recipe, size=16, channels=3, **PLAIN[3])
    view = make(random_images(1).expand(8, -1, -1, -1), generator_seed=0)[0]
    distances = torch.cdist(view.flatten(1), view.flatten(1)) + torch.eye(8)
    assert distances.min() > 1e-3


def test_normalisation():
    images = random_images()
    raw = views("byol-32", size=16, channels=3, **PLAIN[3])(images, generator_seed=1)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    scaled = views("byol-32", size=16, channels=3, mean=mean, std=std)(images, generator_seed=1)
    for view, other in zip(raw, scaled, strict=True):
        expected = (view - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        assert torch.allclose(other, expected, atol=1e-5)


@pytest.mark.parametrize("size", [16, 7, 40])
def test_crop_equals_interpolating_a_slice(size):
    images = random_images(40, 3, 21, 30).float() / 255
    crop = augment.RandomResizedCrop(size, scale=(0.1, 1.0))
    torch.manual_seed(5)
    result = crop(images)
    torch.manual_seed(5)
    boxes = augment.crop_boxes(40, 21, 30, (0.1, 1.0), crop.ratio)
    flips = torch.rand(40) < 0.5
    for row, (top, left, h, w) in enumerate(torch.stack(boxes, dim=1).int().tolist()):
        cut = images[row : row + 1, :, top : top + h, left : left + w]
        assert cut.shape[2:] == (h, w)  # the box lies within the image
        cut = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False, antialias=True)
        expected = cut.flip(3) if flips[row] else cut
        assert torch.allclose(result[row], expected[0], atol=1e-5)


def test_crop_of_everything_is_the_identity():
    images = random_images().float() / 255
    for scale_only in (
        augment.RandomResizedCrop(16, (1.0, 1.0), (1.0, 1.0), flip=0.0),
        augment.RandomAffineCrop(16, (1.0, 1.0), (1.0, 1.0), degrees=0.0, shift=0.0, shear=0.0),
    ):
        assert torch.allclose(scale_only(images), images, atol=1e-5)


def reference_areas(count, height, width, scale, ratio, seed):
    """torchvision's get_params, one draw at a time."""
    random = np.random.default_rng(seed)
    areas = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * random.uniform(*scale)
            aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        areas.append(w * h)
    return np.array(areas)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 60)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 20000
    torch.manual_seed(0)
    top, left, h, w = augment.crop_boxes(count, height, width, scale, ratio)
    expected = reference_areas(count, height, width, scale, ratio, seed=1)
    areas = (h * w).double().numpy()
    error = math.sqrt((areas.var() + expected.var()) / count)
    assert abs(areas.mean() - expected.mean()) < 4 * error
    assert abs(np.quantile(areas, 0.25) - np.quantile(expected, 0.25)) < 12 * error
    # crops stay inside, touch every border, and are as often near one as near the opposite one
    for start, length, full in ((top, h, height), (left, w, width)):
        assert start.min() == 0
        assert (start + length).max() == full
        assert length.max() <= full
        small = length < 0.75 * full
        before, after = (start == 0)[small].sum().item(), (start + length == full)[small].sum().item()
        assert min(before, after) > 0
        assert abs(before - after) < 6 * math.sqrt(before + after)


def test_flip_and_grey_probabilities():
    count = 4000
    ramp = torch.linspace(0, 1, 8).expand(count, 3, 8, 8)
    torch.manual_seed(0)
    flipped = augment.RandomResizedCrop(8, (1.0, 1.0), (1.0, 1.0))(ramp)
    number = (flipped[:, 0, 0, 0] > 0.5).sum().item()
    assert abs(number - count / 2) < binomial_bounds(count, 0.5)
    colour = torch.rand(count, 3, 2, 2)
    grey = augment.RandomGrey(0.2)(colour)
    is_grey = (grey[:, 0] == grey[:, 2]).flatten(1).all(1)
    assert abs(is_grey.sum().item() - 0.2 * count) < binomial_bounds(count, 0.2)
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(
        grey[is_grey][:, 1], torch.einsum("nchw,c->nhw", colour[is_grey], weights), atol=1e-6
    )
    assert torch.equal(grey[~is_grey], colour[~is_grey])


def test_solarise():
    images = torch.rand(4000, 1, 2, 2)
    out = augment.RandomSolarise(0.2)(images)
    inverted = torch.where(images >= 0.5, 1 - images, images)
    changed = (out != images).flatten(1).any(1)
    assert torch.equal(out[changed], inverted[changed])
    visible = (images >= 0.5).flatten(1).any(1).double().mean().item()
    assert abs(changed.sum().item() - 800 * visible) < binomial_bounds(4000, 0.2 * visible)


def test_hue_agrees_with_kornia():
    images = torch.rand(20, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    images[0] = images[0, :1]  # grey
    images[1, :, :4] = 0
    images[2, :2] = 1
    turns = torch.linspace(-0.5, 0.5, 20)
    expected = enhance.adjust_hue(images, turns * 2 * math.pi)
    assert torch.allclose(augment.shift_hue(images, turns), expected, atol=1e-5)
    assert torch.allclose(augment.shift_hue(images, torch.zeros(20)), images, atol=1e-6)


def test_colour_jitter():
    torch.manual_seed(0)
    count = 4000
    images = torch.rand(count, 3, 4, 4) * 0.8 + 0.1
    out = augment.ColourJitter((0.4, 0.4, 0.2, 0.1), 3, p=0.8)(images)
    changed = (out - images).abs().flatten(1).amax(1) > 1e-4
    assert abs(changed.sum().item() - 0.8 * count) < binomial_bounds(count, 0.8)
    assert out.min() >= 0
    assert out.max() <= 1
    # brightness alone: one factor an image, uniform within 0.6..1.4
    dark = torch.full((count, 3, 4, 4), 0.5)
    bright = augment.ColourJitter((0.4, 0.0, 0.0, 0.0), 3, p=1.0)(dark) / dark
    assert (bright.flatten(1).std(1) < 1e-5).all()
    factors = bright[:, 0, 0, 0]
    assert factors.min() >= 0.6 - 1e-5
    assert factors.max() <= 1.4 + 1e-5
    assert abs(factors.mean().item() - 1) < 5 * 0.8 / math.sqrt(12 * count)


def test_one_channel_keeps_brightness_and_contrast():
    steps = RECIPES["byol-32"](16, 1)[0]
    jitter = steps[1]
    assert not any(isinstance(step, augment.RandomGrey) for step in steps)
    images = torch.rand(50, 1, 6, 6) * 0.3 + 0.3  # nothing is clipped
    torch.manual_seed(1)
    out = jitter(images)
    # brightness and contrast are affine in the pixel
    for image, result in zip(images.flatten(1).numpy(), out.flatten(1).numpy(), strict=True):
        slope, offset = np.polyfit(image, result, 1)
        assert np.abs(slope * image + offset - result).max() < 1e-5
        assert 0.36 - 1e-4 <= slope <= 1.96 + 1e-4


def test_affine_maps_match_their_parameters():
    crop = augment.RandomAffineCrop(16, (0.4, 1.0), degrees=12, shift=0.1, shear=0.1)
    torch.manual_seed(0)
    theta = crop.matrices(5000).double()
    linear, centre = theta[:, :, :2], theta[:, :, 2]
    # rotation and shear have determinant 1, so the area of the box is what is left
    areas = torch.linalg.det(linear)
    assert areas.min() >= (math.sqrt(0.4) * 16 - 0.5) ** 2 / 256 * 0.9
    assert areas.max() <= 1 + 1e-6
    angles = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]) * 180 / math.pi
    assert angles.abs().max() <= 12 + 1e-4
    assert angles.abs().max() > 11.9
    assert abs(angles.mean().item()) < 5 * 24 / math.sqrt(12 * 5000)
    assert centre.abs().max() <= (1 - math.sqrt(0.4) * 0.75) + 0.2
    assert (centre.amax(0) > 0.3).all()
    assert (centre.amin(0) < -0.3).all()


def test_digits_enlarge_small_images_smoothly():
    images = random_images(4, 1, 8, 8).float() / 255
    crop = augment.RandomAffineCrop(16, (1.0, 1.0), (1.0, 1.0), degrees=0, shift=0, shear=0)
    expected = F.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(crop(images), expected, atol=1e-5)


def test_byol_224_blurs_the_first_view_only_sometimes_the_second():
    images = random_images(200, 1, 24, 24)
    first, second = views("byol-224", size=24, channels=1, **PLAIN[1])(images, generator_seed=0)
    rough = [(view.diff(dim=3) ** 2).mean((1, 2, 3)).median() for view in (first, second)]
    assert rough[0] < 0.5 * rough[1]


def test_a_fifth_of_the_second_views_is_solarised():
    images = random_images(2000, 3, 16, 16)
    plain, solarised = (
        views(recipe, size=16, channels=3, **PLAIN[3])(images, generator_seed=0)
        for recipe in ("byol-32", "byol-32-solarised")
    )
    assert torch.equal(solarised[0], plain[0])
    inverted = torch.where(plain[1] >= 0.5, 1 - plain[1], plain[1])
    as_it_was, turned = ((solarised[1] == other).flatten(1).all(1) for other in (plain[1], inverted))
    assert (as_it_was | turned).all()
    bright = (plain[1] >= 0.5).flatten(1).any(1)
    assert abs(int((turned & bright).sum()) - 0.2 * int(bright.sum())) < binomial_bounds(
        int(bright.sum()), 0.2
    )


def test_ijepa_crops_at_least_three_tenths_and_flips_half():
    images = torch.arange(64, dtype=torch.uint8).mul(3).view(1, 1, 1, 64).expand(2000, 1, 64, 64)
    (view,) = views("ijepa", size=16, channels=1, **PLAIN[1])(images, generator_seed=0)
    slope = view.diff(dim=3).mean((1, 2, 3)) * 15  # last minus first pixel: the crop's width in columns
    assert abs((slope < 0).sum().item() - 1000) < binomial_bounds(2000, 0.5)
    width = slope.abs() * 255 / 3 * 16 / 15 / 64
    # area ≥ 0.3 at an aspect from 3/4 to 4/3
    assert width.min() >= math.sqrt(0.3 * 3 / 4) - 0.02
    assert width.max() == pytest.approx(1, abs=0.03)


def test_gradients_and_autocast_do_not_leak():
    make = views("byol-32", size=16, channels=3, **PLAIN[3])
    images = random_images()
    expected = make(images, generator_seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = make(images, generator_seed=0)
    for view, other in zip(expected, cast, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(view, other)


def test_default_recipes_and_errors():
    assert default_recipe(16, 1) == "digits"
    assert default_recipe(32, 3) == "byol-32"
    assert default_recipe(224, 1) == "byol-224"
    with pytest.raises(ConfigError, match="did you mean 'byol-32'"):
        views("byol32", size=32, channels=3, **PLAIN[3])
    with pytest.raises(ConfigError):
        views("byol-32", size=4, channels=3, **PLAIN[3])
    make = views("byol-32", size=16, channels=3, **PLAIN[3])
    with pytest.raises(DataError, match="these have 1"):
        make(random_images(channels=1))
    with pytest.raises(DataError, match="uint8"):
        make(random_images().float())


def test_blur_is_a_gaussian_of_each_images_own_width():
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    blurred = augment.RandomBlur(5, (0.5, 2.0), p=0.5)(images)
    torch.manual_seed(1)
    chosen, sigma = torch.rand(6) < 0.5, 0.5 + 1.5 * torch.rand(6)
    assert 0 < chosen.sum() < 6
    for image, found, of, width in zip(images, blurred, chosen, sigma, strict=True):
        weights = torch.exp(-((torch.arange(5) - 2.0) ** 2) / (2 * width**2))
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        padded = F.pad(image[None], (2, 2, 2, 2), mode="reflect")
        expected = F.conv2d(padded.transpose(0, 1), kernel[None, None]).transpose(0, 1)[0]
        torch.testing.assert_close(found, expected if of else image, rtol=1e-4, atol=1e-5)


def test_a_size_that_is_none_is_one_line():
    for size in (16.0, "16", None, True, math.nan):
        with pytest.raises(ConfigError, match="the setting size takes a whole number") as error:
            views("byol-32", size=size, channels=3, **PLAIN[3])
        assert "\n" not in str(error.value)
        with pytest.raises(ConfigError, match="the setting size takes a whole number"):
            Preprocess(size, 3, *PLAIN[3].values())
    with pytest.raises(ConfigError, match="count is 0: pass at least 1 view"):
        views("byol-32", size=16, channels=3, count=0, **PLAIN[3])


@pytest.mark.parametrize("size", [8, 15])
def test_small_crops_of_multi_crop_are_no_smaller_than_images_may_be(size):
    with pytest.raises(ConfigError, match=f"size is {size}: .* pass at least 16 pixels, or another") as error:
        views("multi-crop", size=size, channels=3, **PLAIN[3])
    assert "\n" not in str(error.value)
    made = views("multi-crop", size=16, channels=3, **PLAIN[3])(random_images(), generator_seed=0)
    assert {view.shape[-1] for view in made} == {16, 8}
