"""Random transformations of float batches (B, C, H, W) in [0, 1], with own parameters for every image.

All parameters are drawn by ``drawn`` on the CPU from torch's global generator, which ``Views`` seeds, so the
same seed gives the same views on every device. An image that a transformation leaves out gets neutral
parameters instead of being indexed out: no boolean indexing, hence no synchronisation on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probjepa.draws import drawn


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Return numbers from U(low, high), on the CPU, of a shape that begins with the batch's rows."""
    return low + (high - low) * drawn(torch.rand, shape)


def chosen_with(p: float, count: int) -> Tensor:
    """Return which of ``count`` images are changed: each with probability ``p``."""
    return drawn(torch.rand, (count,)) < p


def to_device(numbers: Tensor, images: Tensor) -> Tensor:
    """Return what was drawn, on the images' device; a GPU is not waited for: it reads pinned memory."""
    if images.device.type != "cuda":
        return numbers.to(images.device)
    return numbers.pin_memory().to(images.device, non_blocking=True)


def crop_boxes(
    count: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the boxes of RandomResizedCrop (Inception crops): top, left, height, width, each (count,).

    Area uniform within ``scale``, log aspect ratio uniform within ``ratio``, whole pixels, position uniform.
    As usual, the first of ten draws that fits is taken, and else the largest centred box of a valid ratio.
    """
    tries = 10
    area = height * width * uniform(*scale, count, tries)
    aspect = uniform(math.log(ratio[0]), math.log(ratio[1]), count, tries).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.float().argmax(1, keepdim=True)
    none = ~fits.any(1)
    w = widths.gather(1, first)[:, 0].masked_fill(none, min(width, round(height * ratio[1])))
    h = heights.gather(1, first)[:, 0].masked_fill(none, min(height, round(width / ratio[0])))
    top = torch.where(none, ((height - h) / 2).floor(), uniform(0, 1, count).mul(height - h + 1).floor())
    left = torch.where(none, ((width - w) / 2).floor(), uniform(0, 1, count).mul(width - w + 1).floor())
    return top, left, h, w


def resize_matrix(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Return the matrices (B, size, source) that cut [start, start + length) out of a line and resize it.

    Bilinear with antialiasing: output j averages the pixels around its centre c_j = start + (j + ½)·r,
    r = length/size, with weights max(0, 1 − |i + ½ − c_j| / max(r, 1)) normalised to sum 1.
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    pixel = torch.arange(source, device=start.device)
    # in place from here on: fresh memory costs more than the arithmetic
    weight = (pixel + 0.5 - centre).abs_().div_(step.clamp_min(1)).neg_().add_(1).clamp_min_(0)
    weight.mul_((pixel >= start) & (pixel < start + length))
    return weight.div_(weight.sum(2, keepdim=True))


class RandomResizedCrop(nn.Module):
    """Crop a random box, resize it to (size, size), and mirror it with probability ``flip``.

    The three are one linear map that acts on rows and columns separately, so two batched matrix products do
    it: 3.1 ms for (256, 3, 32, 32) on one core, parameters included, against 7.2 for kornia's crop and flip.
    One ``grid_sample`` takes as long and does not antialias. Crops shrink and enlarge exactly as
    ``F.interpolate(crop, antialias=True)``.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, size, size)."""
        count, channels, height, width = images.shape
        boxes = crop_boxes(count, height, width, self.scale, self.ratio)
        flips = chosen_with(self.flip, count).float()
        top, left, h, w, flips = to_device(torch.stack([*boxes, flips]), images)
        rows = resize_matrix(top, h, height, self.size)
        columns = resize_matrix(left, w, width, self.size)
        columns = torch.where(flips[:, None, None] > 0, columns.flip(1), columns)
        narrow = torch.bmm(images.reshape(count, channels * height, width), columns.mT)
        narrow = narrow.view(count, channels, height, self.size)
        # channel by channel: broadcasting would copy ``rows`` for each of them
        return torch.stack([torch.bmm(rows, narrow[:, channel]) for channel in range(channels)], dim=1)


class RandomAffineCrop(nn.Module):
    """A random box like RandomResizedCrop's, turned, shifted and sheared: one bilinear warp, black outside.

    Parameters
    ----------
    size
        side of what comes out; the source is first brought to it, so small images are warped smoothly
    scale, ratio
        area and aspect ratio of the box
    degrees, shift, shear
        largest rotation in degrees, translation as a fraction of the side, and shear (tangent of its angle)
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        degrees: float = 12.0,
        shift: float = 0.1,
        shear: float = 0.1,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio
        self.degrees, self.shift, self.shear = degrees, shift, shear

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, size, size)."""
        size = (self.size, self.size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        theta = to_device(self.matrices(len(images)), images)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def matrices(self, count: int) -> Tensor:
        """Draw the maps (count, 2, 3) from output to source positions, both in [−1, 1]²."""
        top, left, h, w = (
            side / self.size for side in crop_boxes(count, self.size, self.size, self.scale, self.ratio)
        )
        angle = uniform(-self.degrees, self.degrees, count) * (math.pi / 180)
        shear = uniform(-self.shear, self.shear, count)
        cos, sin = angle.cos(), angle.sin()
        across = 2 * left + w - 1 + 2 * uniform(-self.shift, self.shift, count)
        down = 2 * top + h - 1 + 2 * uniform(-self.shift, self.shift, count)
        # rotation · shear · the box's extent
        first = torch.stack([cos * w, (cos * shear - sin) * h, across], dim=1)
        second = torch.stack([sin * w, (sin * shear + cos) * h, down], dim=1)
        return torch.stack([first, second], dim=1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images (B, 3, H, W) by ``turns`` (B,) of a full circle.

    With v the largest channel, Δ its distance to the smallest and h the hue in sixths, each channel is
    v − Δ·clamp(min(k, 4 − k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1: HSV's round trip without its tables.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = chroma.clamp_min(1e-12)  # grey: all three differences are 0, and so is the hue
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * turns[:, None, None]
    k = (hue[:, None] + hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]).remainder_(6)
    k = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], k, value=-1)


class ColourJitter(nn.Module):
    """Brightness, contrast, saturation and hue by random factors, in a random order that a batch shares.

    torchvision's ColorJitter, with kornia's steps but for the hue: kornia's jitter takes 18 ms for
    (256, 3, 32, 32) on one core, nearly all of it the hue's way over HSV; this takes 6. One-channel
    images have only the first two.

    Parameters
    ----------
    strengths
        b, c, s, h: factors from U(1 − b, 1 + b) and so on, and hue turns from U(−h, h)
    p
        probability that an image is changed at all
    """

    def __init__(self, strengths: tuple[float, float, float, float], channels: int, p: float) -> None:
        super().__init__()
        self.strengths, self.p = strengths[: 4 if channels == 3 else 2], p

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        from kornia import enhance

        steps = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
            shift_hue,
        )
        count = len(images)
        change = chosen_with(self.p, count)
        # neutral: 1 for factors, 0 for the hue
        factors = [uniform(-s, s, count) * change + (i < 3) for i, s in enumerate(self.strengths)]
        order = drawn(lambda n, **of: torch.randperm(*n, **of), (len(factors),), None).tolist()
        steered = to_device(torch.stack(factors), images)
        for step in order:
            images = steps[step](images, steered[step])
        return images


class RandomGrey(nn.Module):
    """Replace RGB by its ITU-R 601 luma with probability ``p``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 3, H, W)."""
        chosen = to_device(chosen_with(self.p, len(images)), images)
        red, green, blue = images.unbind(1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return torch.where(chosen[:, None, None, None], luma[:, None], images)


class RandomBlur(nn.Module):
    """Blur with a Gaussian of ``kernel`` pixels and σ from U(low, high), with probability ``p`` an image.

    Not kornia's module, which draws its parameters on the images' device: a GPU's views would differ.
    """

    def __init__(self, kernel: int, sigma: tuple[float, float], p: float) -> None:
        super().__init__()
        self.kernel, self.sigma, self.p = kernel, sigma, p

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        from kornia.filters import gaussian_blur2d

        count = len(images)
        parameters = torch.stack([chosen_with(self.p, count).float(), uniform(*self.sigma, count)])
        chosen, sigma = to_device(parameters, images)
        blurred = gaussian_blur2d(images, (self.kernel, self.kernel), sigma[:, None].expand(-1, 2))
        return torch.where(chosen[:, None, None, None] > 0, blurred, images)


class RandomSolarise(nn.Module):
    """Invert the pixels from ½ up, with probability ``p`` an image.

    Not kornia's, which takes 5.3 ms for (256, 3, 32, 32) with p = 0.2 on one core; this takes a tenth.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        chosen = to_device(chosen_with(self.p, len(images)), images)
        return torch.where(chosen[:, None, None, None] & (images >= 0.5), 1 - images, images)
