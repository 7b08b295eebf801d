"""The noise: known answers, and one stream for one key. Its quality: test_noise_quality.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import SEED, noise, noise_key

import fastvae
from fastvae import _hooks, reference

# Counter (4 words), key (2 words) and result: the lines "philox4x32 10" of kat_vectors, the known-answer file in
# Random123, the library of Philox's authors (Salmon et al. 2011; github.com/DEShawResearch/random123).
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: list[int], key: list[int], result: list[int]) -> None:
    seed, offset, block = key[0] | key[1] << 32, counter[2] | counter[3] << 32, counter[0] | counter[1] << 32
    assert _hooks.words(seed, offset, block, 1).tolist() == result
    assert reference.philox_words(seed, offset, block, 1).tolist() == result


def test_philox_words_match_reference_over_many_blocks() -> None:
    args = (0x123456789ABCDEF0, 0xFEDCBA9876543210, 2**32 - 500, 1000)  # the counter's carry in the middle
    assert np.array_equal(_hooks.words(*args), reference.philox_words(*args))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 1000), (2, 5000), (1000, 3), (4, 3, 9, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_of_element_i_is_number_i_of_the_stream(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    zero = torch.zeros(shape, dtype=dtype)
    torch.manual_seed(5)
    actual = fastvae.reparameterize(zero, zero)
    # Relative to at most 6.8: the radius is within a few ulp, sine and cosine within 1.2e-7.
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual.double(), noise(shape), rtol=0, atol=tolerance)


def test_noise_of_binarize_is_word_i_of_the_stream() -> None:
    """Pixel i is 1 where the upper 24 bits of word i, as a fraction, are less than its probability."""
    p = torch.cat([torch.rand(3000), torch.rand(3000) * 2**-10, 1 - torch.rand(3000) * 2**-10]).reshape(9, 1000)
    torch.manual_seed(SEED)
    drawn = fastvae.binarize(p)
    fraction = (reference.philox_words(*noise_key(), 0, p.numel() // 4) >> 8) / 2.0**24
    assert np.array_equal(drawn.numpy().reshape(-1), fraction < p.double().numpy().reshape(-1))


def test_noise_is_the_same_for_any_dtype_samples_and_operator() -> None:
    zero = torch.zeros(6, 35)
    expected = noise((6, 35)).float()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(5)
        z = fastvae.reparameterize(zero.to(dtype), zero.to(dtype))
        torch.testing.assert_close(z, expected.to(dtype), rtol=2**-7 if dtype != torch.float32 else 0, atol=2e-6)
    torch.manual_seed(5)
    z, _ = fastvae.sample_kl(zero, zero)
    torch.testing.assert_close(z, expected, rtol=0, atol=2e-6)
    torch.manual_seed(5)
    z = fastvae.reparameterize(zero[:2], zero[:2], num_samples=3)
    torch.testing.assert_close(z.reshape(6, 35), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_noise_is_one_stream_for_any_number_of_threads(threads: int) -> None:
    zero = torch.zeros(500, 777)
    before = torch.get_num_threads()
    torch.manual_seed(5)
    expected = fastvae.reparameterize(zero, zero)
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        assert torch.equal(fastvae.reparameterize(zero, zero), expected)
    finally:
        torch.set_num_threads(before)


def test_noise_compiled_is_the_eager_noise() -> None:
    torch._dynamo.reset()
    zero = torch.zeros(10, 20)
    compiled = torch.compile(lambda m, v: fastvae.reparameterize(m, v), fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    eager = [fastvae.reparameterize(zero, zero) for _ in range(2)]
    torch.manual_seed(5)
    again = [compiled(zero, zero) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(eager, again, strict=True))
    assert not torch.equal(eager[0], eager[1])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_noise_of_two_draws_differs_when_compiled_with_gradients(backend: str) -> None:
    """Calls with the same arguments must not be merged, nor one that goes unused be dropped."""
    torch._dynamo.reset()
    mu, logvar = torch.randn(3, 50, requires_grad=True), torch.randn(3, 50, requires_grad=True)

    def draws(mu: torch.Tensor, logvar: torch.Tensor) -> list[torch.Tensor]:
        pixels = torch.full((3, 50), 0.5)
        fastvae.reparameterize(mu, logvar)
        outputs = []
        for _ in range(2):
            outputs += [fastvae.reparameterize(mu, logvar), fastvae.sample_kl(mu, logvar)[0]]
            outputs.append(fastvae.binarize(pixels).float())
        return outputs

    with torch._inductor.config.patch(fallback_random=True):  # keeps the order of independent draws
        torch.manual_seed(5)
        compiled = torch.compile(draws, fullgraph=True, backend=backend)(mu, logvar)
    # Inductor of torch 2.11 runs independent draws in another order.
    if backend != "inductor" or torch.__version__ >= (2, 13):
        torch.manual_seed(5)
        for a, b in zip(compiled, draws(mu, logvar), strict=True):
            assert torch.equal(a, b)
    for i, a in enumerate(compiled):
        assert not any(torch.equal(a, b) for b in compiled[i + 1 :])


def test_noise_of_a_given_generator() -> None:
    zero = torch.zeros(3, 4)
    state = torch.get_rng_state()
    first = fastvae.reparameterize(zero, zero, generator=torch.Generator().manual_seed(1))
    again = fastvae.reparameterize(zero, zero, generator=torch.Generator().manual_seed(1))
    other = fastvae.reparameterize(zero, zero, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
