"""The quality of the noise that operators draw, against the distribution it claims to have.

Every statistic becomes a p-value under independent standard normals, fair bits or a given probability. The long
batteries over the raw words are TestU01's: tests/noise/testu01.sh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

import fastvae
from fastvae import _hooks

Normals = NDArray[np.float32]
Damage = Callable[[Normals], Normals]
PValues = dict[str, float]

# A sound generator gives less once in a million statistics. There are 200 here and their seeds are fixed, so that a
# change of the stream is refused by mistake once in 5000. What damage is found all the same stands at the end.
LEAST = 1e-6


def assert_sound(p_values: PValues) -> None:
    low = {name: p for name, p in p_values.items() if not p > LEAST}  # a NaN is low
    assert not low, f"p-values below {LEAST}: {low}"


def undamaged(x: Normals) -> Normals:
    return x


def draws(calls: int, damage: Damage = undamaged) -> Iterator[Normals]:
    """10^6 normals from each of some calls, each with a key of its own."""
    zero = torch.zeros(1000, 1000)
    for _ in range(calls):
        yield damage(fastvae.reparameterize(zero, zero).numpy().reshape(-1))


def one_stream(rows: int = 12_500, columns: int = 800, damage: Damage = undamaged) -> Normals:
    """10^7 normals of one key, or fewer."""
    zero = torch.zeros(rows, columns)
    return damage(fastvae.reparameterize(zero, zero).numpy().reshape(-1))


def two_sided(z: float) -> float:
    """Of a statistic that is standard normal: here always a mean over a million or more, by its standard error."""
    return float(2 * special.ndtr(-abs(z)))


def moments(chunks: Iterable[Normals]) -> PValues:
    """The means of x, x^2, ... x^8, whose variances are E x^2k - (E x^k)^2."""
    powers = np.arange(1, 9)
    sums, n = np.zeros(len(powers)), 0
    for chunk in chunks:
        x = chunk.astype(np.float64)
        power = np.ones_like(x)
        for k in range(len(powers)):
            power *= x
            sums[k] += power.sum()
        n += x.size
    exact = np.array([stats.norm.moment(k) for k in range(17)])
    error = np.sqrt((exact[2 * powers] - exact[powers] ** 2) / n)
    return {f"moment {k}": two_sided(z) for k, z in zip(powers, (sums / n - exact[powers]) / error, strict=True)}


def tails(chunks: Iterable[Normals]) -> PValues:
    """How many lie beyond some limits: binomial, and as good as Poisson."""
    limits = [4, 5, 5.5, 6]
    counts, n = np.zeros((len(limits), 2), dtype=np.int64), 0
    for x in chunks:
        counts += [[np.count_nonzero(x > t), np.count_nonzero(x < -t)] for t in limits]
        n += x.size
    return {
        f"beyond {sign}{t}": stats.binomtest(int(count), n, stats.norm.sf(t)).pvalue
        for t, row in zip(limits, counts, strict=True)
        for sign, count in zip("+-", row, strict=True)
    }


def anderson_darling_p_value(statistic: float) -> float:
    """Upper tail of A^2 against a distribution that is fully known ("case 0"), for many samples.

    A^2 is then a sum of independent chi^2_1 / (j (j + 1)) (Anderson & Darling 1952, Ann. Math. Stat. 23), and the
    tail of such a sum is that of its first term times prod_{j > 1} (1 - 2 / (j (j + 1)))^(-1/2) = sqrt(3) (Zolotarev
    1961, Theory Probab. Appl. 6). scipy.stats.anderson has the critical values for estimated parameters only.
    """
    return min(1.0, np.sqrt(3) * special.erfc(np.sqrt(statistic)))


def fit(x: Normals) -> PValues:
    """The whole distribution: Kolmogorov-Smirnov, and Anderson-Darling, which weighs the tails."""
    x = np.sort(x).astype(np.float64)
    n = len(x)
    log_probability = special.log_ndtr(x) + special.log_ndtr(-x[::-1])
    a2 = -n - np.arange(1, 2 * n, 2) @ log_probability / n
    return {"KS": stats.kstest(x, "norm").pvalue, "AD": anderson_darling_p_value(a2)}


def dependence(a: Normals, b: Normals) -> PValues:
    """Correlations of x and (x^2 - 1) / sqrt(2), both of mean 0 and variance 1, between two aligned sequences."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return {
        f"{name_a} by {name_b}": two_sided(np.vdot(p, q) / np.sqrt(len(a)))
        for name_a, p in (("x", a), ("x^2", (a * a - 1) / np.sqrt(2)))
        for name_b, q in (("x", b), ("x^2", (b * b - 1) / np.sqrt(2)))
    }


def labelled(label: str, p_values: PValues) -> PValues:
    return {f"{label}: {name}": p for name, p in p_values.items()}


def neighbours(x: Normals, lags: Sequence[int]) -> PValues:
    found: PValues = {}
    for lag in lags:
        found |= labelled(f"lag {lag}", dependence(x[:-lag], x[lag:]))
    return found


def repeated_blocks(x: Normals) -> int:
    """How many blocks of four numbers came before. Hashed to 64 bits, one of 10^6 does by chance with p = 3e-8."""
    halves = np.ascontiguousarray(x).view(np.uint64).reshape(-1, 2)
    blocks = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, 1]
    return int(np.count_nonzero(np.diff(np.sort(blocks)) == 0))


def bits(words: NDArray[np.uint32]) -> PValues:
    """Each of the 32 bits is set half the time."""
    ones = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, 32).sum(axis=0, dtype=np.int64)
    n = len(words)
    return {f"bit {i}": two_sided((2 * count - n) / np.sqrt(n)) for i, count in enumerate(ones)}


def ones(pixel: float, expected: float, calls: int) -> PValues:
    """How often binarize makes a pixel 1, in 10^6 draws a call."""
    image = torch.full((1000, 1000), pixel)
    count = sum(int(np.count_nonzero(fastvae.binarize(image).numpy())) for _ in range(calls))
    return {"ones": stats.binomtest(count, calls * image.numel(), expected).pvalue}


def streams(kind: str) -> Normals:
    """[2000, 2000]: the beginnings of 2000 streams, by what tells their keys apart."""
    zero = torch.zeros(1, 2000)
    out = np.empty((2000, 2000), dtype=np.float32)
    for i, row in enumerate(out):
        if kind in ("seeds", "high halves of seeds", "offsets"):
            key = {"seeds": (i, 0), "high halves of seeds": (i << 32, 0), "offsets": (0, i)}[kind]
            row[:] = torch.ops.fastvae.normal(torch.tensor(key), zero.shape, torch.float32).numpy()
            continue
        if kind == "ranks":
            torch.manual_seed(1234 + i)
        row[:] = fastvae.reparameterize(zero, zero).numpy()
    return out


def test_noise_has_the_moments_of_a_normal() -> None:
    assert_sound(moments(draws(100)))


def test_noise_has_the_tails_of_a_normal() -> None:
    largest = 0.0

    def chunks() -> Iterator[Normals]:
        nonlocal largest
        for x in draws(1000):
            largest = max(largest, x.max(), -x.min())
            yield x

    assert_sound(tails(chunks()))
    assert largest <= np.sqrt(2 * np.log(2**33)) < 6.77  # no outlier: the least radius word, 0, stands for 2^-33


def test_noise_is_distributed_as_a_normal() -> None:
    assert_sound(fit(one_stream()))


def test_noise_of_neighbours_rows_and_samples_is_independent() -> None:
    samples, batch, latent = 4, 3125, 800
    zero = torch.zeros(batch, latent)
    x = fastvae.reparameterize(zero, zero, num_samples=samples).numpy().reshape(-1)
    assert_sound(neighbours(x, [1, 2, 3, 4, latent, 2 * latent, batch * latent]))
    # A lag mixes the pairs of a block, of which two share a radius and an angle.
    block = x.reshape(-1, 4)
    for i, j in combinations(range(4), 2):
        assert_sound(labelled(f"numbers {i} and {j} of a block", dependence(block[:, i], block[:, j])))


@pytest.mark.parametrize("kind", ["seeds", "high halves of seeds", "offsets", "draws", "ranks"])
def test_noise_of_consecutive_keys_is_independent(kind: str) -> None:
    x = streams(kind)
    assert_sound(fit(x.reshape(-1)))
    assert_sound(dependence(x[:-1], x[1:]))
    assert repeated_blocks(x) == 0


def test_noise_words_have_fair_bits() -> None:
    words, next_key = (_hooks.words(seed, 0, 0, 1_000_000) for seed in (7, 8))
    assert_sound(bits(words))
    assert_sound(labelled("against the next word", bits(words[:-1] ^ words[1:])))
    assert_sound(labelled("against the next key", bits(words ^ next_key)))


@pytest.mark.parametrize("p", [2.0**-24, 1 / 255, 254 / 255, 1 - 2.0**-24])
def test_noise_of_binarize_keeps_small_and_large_probabilities(p: float) -> None:
    """Uniforms are multiples of 2^-24. So 2^-24 is exact, and 1/255 off by less than 0.01 standard errors."""
    assert_sound(ones(p, p, calls=1000 if min(p, 1 - p) < 1e-3 else 100))


@pytest.mark.parametrize(
    ("statistic", "p"),
    [(1.93296, 0.1), (2.49237, 0.05), (3.87813, 0.01), (9, 1 - 0.99996046598861), (10, 1 - 0.99998618496459)],
)
def test_battery_anderson_darling_p_values_are_those_published(statistic: float, p: float) -> None:
    """Marsaglia & Marsaglia 2004, J. Stat. Software 9(2). The term comes nearer the further out it is."""
    assert anderson_darling_p_value(statistic) == pytest.approx(p, rel=0.15 if statistic < 5 else 0.04)


def copy_neighbours(x: Normals, flip: float) -> Normals:
    """One number in 100 is a copy of the one before, of which every other times ``flip``."""
    x[1::200] = x[::200]
    x[101::200] = flip * x[100::200]
    return x


def set_bit_3(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    words[::100] |= 8
    return words


# What is wrong, its p-values, and those that must tell. The numbers of draws are those of the tests above, or fewer.
DAMAGE: list[tuple[str, Callable[[], PValues], list[str]]] = [
    ("variance off by 1e-3", lambda: moments(draws(100, lambda x: x * np.float32(1.0005))), ["moment 2", "moment 4"]),
    ("skewed by 1e-3", lambda: moments(draws(100, lambda x: x + np.float32(1e-3) * (x * x - 1))), ["moment 3"]),
    ("tails cut at 5", lambda: tails(draws(100, lambda x: x.clip(-5, 5))), ["beyond +5", "beyond -5"]),
    ("mean off by 1e-2", lambda: fit(one_stream(1250, damage=lambda x: x + np.float32(1e-2))), ["KS", "AD"]),
    ("rounded to 1/64", lambda: fit(one_stream(1250, damage=lambda x: np.round(x * 64) / 64)), ["KS"]),
    ("copies", lambda: neighbours(one_stream(damage=lambda x: copy_neighbours(x, 1)), [1]), ["lag 1: x by x"]),
    (
        "copies with signs",
        lambda: neighbours(one_stream(damage=lambda x: copy_neighbours(x, -1)), [1]),
        ["lag 1: x^2 by x^2"],
    ),
    ("a bit set too often", lambda: bits(set_bit_3(_hooks.words(7, 0, 0, 1_000_000))), ["bit 3"]),
    ("least probability doubled", lambda: ones(2.0**-23, 2.0**-24, calls=1000), ["ones"]),
]


@pytest.mark.parametrize(("p_values", "telling"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_battery_rejects_damage(p_values: Callable[[], PValues], telling: list[str]) -> None:
    found = p_values()
    assert all(found[name] < LEAST for name in telling), found


def test_battery_finds_a_block_that_comes_twice() -> None:
    x = one_stream()
    x[-4:] = x[4:8]
    assert repeated_blocks(x) == 1
