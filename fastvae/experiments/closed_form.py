"""Experiments of the tutorial without training: its figures 2 and 3 and its appendix A."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastvae.data import load
from fastvae.experiments.base import BLUE, GREEN, ORANGE, Result, Setting, figure, label, show_images


def ring(setting: Setting) -> Result:
    """Figure 2: a normal variable z in two dimensions becomes a ring by g(z) = z/10 + z/|z|."""
    count = 500 if setting.quick else 2000
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(setting.seed))
    rings = z / 10 + z / z.norm(dim=1, keepdim=True)
    radius = rings.norm(dim=1)

    picture = figure(9, 4.6)
    for axes, points, title in zip(
        picture.subplots(1, 2), (z, rings), ("z ~ N(0, I)", "g(z) = z/10 + z/|z|"), strict=True
    ):
        axes.scatter(*points.T.numpy(), s=4, color=BLUE, alpha=0.6)
        axes.set_aspect("equal")
        label(axes, "first dimension", "second dimension", title)
    # |g| = 1 + |z|/10, and |z| has Rayleigh's distribution.
    return Result(
        picture,
        {
            "points": count,
            "radius_mean": float(radius.mean()),
            "radius_mean_exact": 1 + math.sqrt(math.pi / 2) / 10,
            "radius_deviation": float(radius.std()),
            "radius_deviation_exact": math.sqrt(2 - math.pi / 2) / 10,
        },
    )


def shifted(images: Tensor) -> Tensor:
    """Images ``[..., H, W]`` moved down and right by half a pixel: each pixel becomes the mean of four."""
    padded = torch.nn.functional.pad(images, (1, 0, 1, 0))
    return (padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]) / 4


def broken(image: Tensor, size: int) -> Tensor:
    """An image ``[H, W]`` with a square erased at the ink nearest to its centre of mass, which cuts a stroke."""
    rows, columns = (torch.arange(n, dtype=image.dtype) for n in image.shape)
    mass = image.sum()
    centre = (image.sum(1) @ rows / mass, image.sum(0) @ columns / mass)
    distance = (rows[:, None] - centre[0]).square() + (columns - centre[1]).square()
    distance = distance.masked_fill(image < 0.5 * image.max(), math.inf)
    row, column = divmod(int(distance.argmin()), image.shape[1])
    top, left = max(0, row - size // 2), max(0, column - size // 2)
    result = image.clone()
    result[top : top + size, left : left + size] = 0
    return result


def pixel_distance(setting: Setting) -> Result:
    """Figure 3: a digit moved by half a pixel is farther from the original than one with a piece missing."""
    data = load("digits" if setting.quick else "mnist", setting.data_dir)
    images = data.test[data.test_labels == 2].double() / 255
    size = 1 if setting.quick else 3
    moved = shifted(images)
    cut = torch.stack([broken(image, size) for image in images])
    norms = images.square().sum((1, 2))
    to_moved, to_cut = ((images - other).square().sum((1, 2)) / norms for other in (moved, cut))

    # The digit in the middle of what is found.
    shown = int((to_moved - to_cut).argsort()[len(images) // 2])
    picture = figure(10, 3.8)
    panels = picture.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    for axes, image, title in (
        (panels[0], images, "a digit"),
        (panels[1], cut, f"broken: {to_cut[shown]:.3f}"),
        (panels[2], moved, f"moved by half a pixel: {to_moved[shown]:.3f}"),
    ):
        show_images(axes, image[shown : shown + 1], 1, title)
    bins = torch.linspace(0, float(torch.stack([to_moved, to_cut]).max()), 30).numpy()
    panels[3].hist(to_cut.numpy(), bins, color=ORANGE, alpha=0.7, label="broken")
    panels[3].hist(to_moved.numpy(), bins, color=BLUE, alpha=0.7, label="moved", hatch="//")
    panels[3].legend(frameon=False)
    label(panels[3], "squared distance / squared norm", "digits of class 2", "all of the class")
    return Result(
        picture,
        {
            "digits": len(images),
            "distance": "squared Euclidean distance over the digit's squared norm",
            "moved_half_a_pixel_mean": float(to_moved.mean()),
            "broken_mean": float(to_cut.mean()),
            "moved_is_farther_share": float((to_moved > to_cut).double().mean()),
            "shown": {"moved": float(to_moved[shown]), "broken": float(to_cut[shown])},
        },
    )


class _Mixture:
    """A density of two bumps on the line, all of whose derivatives exist: what X is distributed as."""

    weights, means, deviations = (0.4, 0.6), (-1.0, 1.2), (0.5, 0.7)

    def _sum(self, f: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
        parts = zip(self.weights, self.means, self.deviations, strict=True)
        return torch.stack([w * f((x - m) / s, s) for w, m, s in parts]).sum(0)

    def density(self, x: Tensor) -> Tensor:
        return self._sum(lambda u, s: torch.exp(-u * u / 2) / (s * math.sqrt(2 * math.pi)), x)

    def g(self, x: Tensor) -> Tensor:
        """The z of which f(z) = x: the distribution function of X, then the inverse of the normal's."""
        z: Tensor = torch.special.ndtri(self._sum(lambda u, _: torch.special.ndtr(u), x))
        return z

    def f(self, z: Tensor) -> Tensor:
        """The inverse of ``g``, by bisection: what takes N(0, 1) to the density."""
        low, high = torch.full_like(z, -12.0), torch.full_like(z, 12.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.g(middle) > z
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def slope(self, x: Tensor) -> Tensor:
        """The derivative of ``g``, by the chain rule."""
        z = self.g(x)
        return self.density(x) * math.sqrt(2 * math.pi) * torch.exp(z * z / 2)


def kl_to_posterior(sigma: float, x: Tensor, points: int) -> Tensor:
    """KL(Q(z|x), P(z|x)) for each x ``[N]`` by quadrature, nats.

    P(x|z) = N(f(z), sigma^2), and Q(z|x) = N(g(x), (sigma g'(x))^2), as in the tutorial's appendix A (eq. 16 to 22).
    The grid spans 16 standard deviations of Q, outside of which lies 1e-15 of it. The normaliser P(x) has the same
    grid, because the posterior is as narrow as Q.
    """
    mixture = _Mixture()
    mean, deviation = mixture.g(x), sigma * mixture.slope(x)
    u = torch.linspace(-8, 8, points, dtype=torch.float64)
    z = mean[:, None] + deviation[:, None] * u
    log_q = -u * u / 2 - math.log(2 * math.pi) / 2 - deviation.log()[:, None]
    error = (x[:, None] - mixture.f(z)) / sigma
    log_joint = -(z * z + error * error) / 2 - math.log(2 * math.pi * sigma)
    width = deviation[:, None] * (u[1] - u[0])
    log_p = torch.logsumexp(log_joint + width.log(), 1, keepdim=True)
    return (log_q.exp() * (log_q - log_joint + log_p) * width).sum(1)


def one_dimensional(setting: Setting) -> Result:
    """Appendix A: with one dimension and an arbitrarily powerful decoder, KL(Q, P(z|X)) tends to 0 with sigma."""
    mixture, points = _Mixture(), 401 if setting.quick else 4001
    sigmas = [2.0**-i for i in range(2, 10)]
    # At the quantiles of P(X): their mean is the expectation over X.
    n = 50 if setting.quick else 500
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    x = mixture.f(z)
    kls = torch.stack([kl_to_posterior(sigma, x, points) for sigma in sigmas])
    means = kls.mean(1).tolist()

    picture = figure(10, 4)
    left, right = picture.subplots(1, 2)
    grid = torch.linspace(-3.5, 4, 400, dtype=torch.float64)
    left.plot(grid, mixture.density(grid), color=BLUE, label="density of X")
    codes = torch.linspace(-3, 3, 400, dtype=torch.float64)
    left.plot(mixture.f(codes), codes / 6, color=ORANGE, linestyle="--", label="z / 6, where f(z) = X")
    left.legend(frameon=False)
    label(left, "X", "", "f takes N(0, 1) to the distribution of X")
    right.loglog(sigmas, means, color=BLUE, marker="o", label="mean over X")
    right.loglog(sigmas, kls.amax(1), color=GREEN, marker="s", linestyle="--", label="largest over quantiles of X")
    right.legend(frameon=False)
    label(right, "sigma", "KL(Q(z|X), P(z|X)), nats", "it tends to 0 with sigma")
    return Result(
        picture,
        {"sigma": sigmas, "kl_mean_nats": means, "kl_largest_nats": kls.amax(1).tolist(), "quantiles_of_x": n},
    )
