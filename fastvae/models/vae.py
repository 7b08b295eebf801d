"""The variational auto-encoder: an encoder and a decoder around a Gaussian code, by default the tutorial's two MLPs.

Shapes: B is the batch, E = ``data_shape`` the event (one image) of D numbers, L = ``latent_dim``. MLPs are given the
event flattened; other networks and callers use it in its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.layers import Activation
from fastvae.models.convolutional import Norm
from fastvae.models.latent import Joins, LatentVariableModel, VAEOutput
from fastvae.models.likelihood import LikelihoodName
from fastvae.models.networks import Preset, encoder_mlp, initialise_as_doersch, mlp
from fastvae.objectives import Gradient
from fastvae.ops import ELBO


class VAE(LatentVariableModel):
    """A variational auto-encoder with a standard normal prior and a diagonal Gaussian Q(z|x).

    Args:
        data_shape: the event E, as one size or a sequence of sizes, e.g. ``784`` or ``(28, 28)``.
        hidden: widths of the MLP encoder's hidden layers, by default (1000, 500, 250); the decoder has the same in
            reverse. It may be empty.
        latent_dim: L, the size of the code z.
        likelihood: the distribution of x given z. For pixels in [0, 1]: ``"bernoulli"`` or ``"continuous-bernoulli"``.
            For uint8 images as 256 levels: ``"discretized-logistic"``. For real numbers: ``"gaussian"`` or
            ``"laplace"``. For counts: ``"binomial"`` with a total; ``"poisson"`` with a rate for each element; and,
            with means that are shares of the row's sum, ``"negative-binomial"``, ``"zinb"`` (zero-inflated negative
            binomial) and ``"multinomial"``.
        sigma: standard deviation of the Gaussian likelihood or scale of the Laplace one, in units of the data (for
            uint8 images, of pixels in [0, 1]). It weighs reconstruction against KL. The other likelihoods do not use
            it.
        learn_sigma: whether sigma is a parameter whose initial value is ``sigma``.
        total: number of trials of the binomial likelihood, the largest count that is possible. The other likelihoods
            have no total.
        activation: activation of the MLP's hidden layers: ``"relu"``, the default, or ``"tanh"``.
        preset: ``"doersch"`` for the network of the tutorial's code. It takes mu from after the encoder's last ReLU and
            log sigma from before it, and has sparse initial weights
            (:func:`fastvae.models.networks.initialise_as_doersch`). With the default sizes it has the tutorial's
            2,844,844 parameters.
        encoder: a module of your own instead of the built-in network, from ``[B, *E]`` to ``[B, 2L]``: mu, then logvar.
            It is given numbers in the dtype of its weights.
        decoder: a module of your own, from ``[N, L]`` to ``[N, *E]`` or ``[N, D]``. For a likelihood with two numbers
            for each element it goes to ``[N, 2, *E]`` or ``[N, 2 D]``. N is B, or K * B for K samples of each code.
            Give both modules or neither. They are run once on a batch of two when the model is made: this initialises
            lazy modules, and shapes that do not fit are an error.
        network: the built-in network, ``"mlp"`` or ``"conv"``, which is :func:`fastvae.models.convolutional`, for
            images ``(C, H, W)`` or ``(H, W)``. It may also name a function of your own, ``"package.module:function"``,
            which is imported, called with ``data_shape`` and ``latent_dim``, and returns an encoder and a decoder as
            above. A model with such a name can be built again from its ``config``.
        conv_width: ``width`` of ``"conv"``, 32 by default.
        conv_depth: ``depth`` of ``"conv"``, 1 by default.
        conv_norm: ``norm`` of ``"conv"``, ``"group"`` by default, ``"batch"`` or ``"none"``.

    If the decoder is an ``nn.Sequential`` that ends in ``nn.Linear``, or in that and an ``nn.Unflatten`` to E, it is
    run through :func:`fastvae.linear_sigmoid_cross_entropy` (Bernoulli), :func:`fastvae.linear_multinomial_nll` or
    :func:`fastvae.linear_negative_binomial_nll`, which never keep all of its results. The losses call ``decoder``, not
    ``decode``, so that overriding ``decode`` in a subclass does not change them. In a model of MLPs, the attribute
    ``decoder`` may be replaced by any module from ``[..., L]`` to ``[..., D]``.

    Every batch ``x`` is ``[B, *E]``: uint8 is read as x/255, bool as 0 or 1, other integers and floating-point numbers
    as they are (in [0, 1] for the Bernoulli likelihood). For a likelihood of counts, a uint8 is the count itself, and
    the encoder is given log(1 + x), or x / total if there is a total. MLPs also take compressed rows
    (``torch.sparse_csr``) of counts, except for the binomial likelihood, and make no dense copy of them.

    Raises:
        ValueError: a size is not a positive integer; a likelihood, network, activation or preset is unknown; sigma is
            not positive and finite; the likelihood has no sigma to be learned or no total, or lacks its total; the
            preset has no hidden ReLU layers; an option belongs to another network; only one module of your own is
            given, or one does not fit (the message names both shapes); or as for :func:`fastvae.models.convolutional`.
        ImportError: there is no such module or function.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C; the sizes are those of Doersch 2016
    (arXiv:1606.05908), sec. 4.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = 784,
        hidden: Sequence[int] | None = None,
        latent_dim: int = 30,
        *,
        likelihood: LikelihoodName = "bernoulli",
        sigma: float = 1.0,
        learn_sigma: bool = False,
        total: int | None = None,
        activation: Activation | None = None,
        preset: Preset | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        network: str = "mlp",
        conv_width: int | None = None,
        conv_depth: int | None = None,
        conv_norm: Norm | None = None,
    ) -> None:
        options = {
            "hidden": hidden,
            "activation": activation,
            "preset": preset,
            "conv_width": conv_width,
            "conv_depth": conv_depth,
            "conv_norm": conv_norm,
        }
        own = encoder, decoder
        super().__init__(data_shape, latent_dim, likelihood, sigma, learn_sigma, total, network, own, options)
        whole = self._whole_networks(own)
        if whole is not None:
            self.encoder, self.decoder = whole
            return
        activation = self._options["activation"]
        self.encoder = encoder_mlp(self.pixels, self.hidden, self.latent_dim, activation, preset)
        self.decoder = mlp(
            self.latent_dim, *reversed(self.hidden), self.output.outputs * self.pixels, activation=activation
        )
        if preset == "doersch":
            initialise_as_doersch(self)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, which JSON can hold: ``VAE(**model.config)``.

        Modules of your own are not among them: add them as in ``VAE(**model.config, encoder=..., decoder=...)``.
        """
        return {"data_shape": list(self.data_shape), **self._config()}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of Q(z|x).

        Args:
            x: ``[B, *E]``.

        Returns:
            ``(mu, logvar)``, each ``[B, L]``, which are views of one tensor.

        Raises:
            ValueError: the shape of ``x`` is not ``[B, *E]`` (the message names both), or its dtype is complex or
                quantised.
        """
        numbers = self._as_input(x)
        mu, logvar = self.encoder(numbers.flatten(1) if self.network == "mlp" else numbers).chunk(2, -1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of P(x|z).

        Args:
            z: ``[..., L]``; any leading dimensions, e.g. ``[K, B, L]``.

        Returns:
            ``[..., *E]``: logits (Bernoulli, continuous Bernoulli, binomial), log rates (Poisson), logits of shares
            (negative binomial, multinomial) or means (Gaussian, Laplace). ``[..., 2, *E]``: logits of shares and logits
            of zeros (ZINB), or means and unconstrained log scales (discretised logistic).

        Raises:
            ValueError: the last dimension of ``z`` is not L.
        """
        self._check_code(z)
        return self._decoded(z, None)

    def nll(self, z: Tensor, x: Tensor) -> Tensor:
        """-log P(x|z). Bernoulli logits take the memory of :func:`fastvae.linear_sigmoid_cross_entropy`.

        Args:
            z: ``[B, L]`` or ``[K, B, L]``.
            x: ``[B, *E]``.

        Returns:
            ``[B]`` or ``[K, B]``, nats.

        Raises:
            ValueError: a shape is none of those, or the sizes of the batches differ.
        """
        return self._nll(z, None, x, "none")

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.encoder], [self.decoder]

    def _moments(self, x: Tensor, joins: Joins | None) -> tuple[Tensor, Tensor]:
        return self.encode(x)

    def _to_decode(self, z: Tensor, joins: Joins | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return self.decoder, (z if self.network == "mlp" else z.reshape(-1, self.latent_dim),)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, draw one z from Q(z|x) and decode it.

        Args:
            x: ``[B, *E]``.
            generator: the source of the noise, by default torch's own.

        Raises:
            ValueError: as for ``encode``.
        """
        return self._pass(x, None, generator)

    def loss(
        self,
        x: Tensor,
        beta: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
        *,
        sigma: float | Tensor | None = None,
        free_bits: float = 0.0,
    ) -> ELBO:
        """The negative ELBO of a batch, from one sample of z for each of its elements.

        Args:
            x: ``[B, *E]``. The operators read it as it is, so that uint8 images are never copied as floats
                for the reconstruction term.
            beta: weight of the KL term, a number or a 0-d tensor. With a weight other than 1 the loss is not the
                negative ELBO.
            generator: the source of the noise, by default torch's own.
            sigma: a number or a 0-d tensor that replaces the model's own sigma, as in a schedule (Gaussian and Laplace
                likelihoods).
            free_bits: nats that each dimension of z may carry without a gradient that reduces them. With free bits the
                loss has :func:`fastvae.objectives.free_bits` in place of the KL divergence.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats. Without free bits, ``loss = reconstruction + beta *
            kl``. ``kl`` is always the full KL divergence.

        Raises:
            ValueError: as for ``encode``, or ``sigma`` is given for a likelihood without one.

        Source: Doersch 2016, eq. 5 with eq. 7 and 10; beta as in Higgins et al. 2017, eq. 4.
        """
        return self._loss(x, None, beta, sigma, free_bits, generator)

    def importance_weighted_loss(
        self,
        x: Tensor,
        num_samples: int,
        *,
        gradient: Gradient = "iwae",
        sigma: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ELBO:
        """Minus the importance-weighted bound of a batch, which is tighter than the ELBO.

        Args:
            x: ``[B, *E]``.
            num_samples: K, the number of samples of z for each element.
            gradient: the gradient estimator, as for :func:`fastvae.objectives.importance_weighted_loss`.
            sigma: as for ``loss``.
            generator: the source of the noise, by default torch's own.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats. The last two are the terms of the ELBO with the same
            samples and carry no gradient.

        Raises:
            ValueError: as for ``loss``, or K is below 1, or ``gradient`` is unknown.

        Source: Burda et al. 2015 (arXiv:1509.00519), eq. 8.
        """
        return self._log_weights_loss(x, None, num_samples, gradient, sigma, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
    ) -> Tensor:
        """Decode ``n`` draws of the prior N(0, I), without gradients.

        Args:
            n: number of draws, 0 or more.
            generator: the source of the noise, by default torch's own.
            library: the sum of each row, ``[n]`` or one for all, for likelihoods whose means are shares of it. The
                default, 1, returns the shares themselves.
            mean: whether to return the expected x given each code, rather than a draw of x.

        Returns:
            ``[n, *E]``: means or draws in units of the data, which for uint8 images are those of x/255. The means of
            the Bernoulli likelihood are probabilities.

        Raises:
            ValueError: ``n`` is negative, a library is given for a likelihood that has none, or is missing for draws of
                one that has.
        """
        if n < 0:
            raise ValueError(f"n must be 0 or more, not {n}")
        return self._made(self.decode(self._prior([n], generator)), library, mean, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mode of Q(z|x), z = mu, without gradients.

        Args:
            x: ``[B, *E]``.

        Returns:
            ``[B, *E]``: means, as for ``sample``. If they are shares of a library, it is the row sums of ``x``.

        Raises:
            ValueError: as for ``encode``.
        """
        mu, _ = self.encode(x)
        return self.output.mean(self.decode(mu), library=self.output.library(x))
