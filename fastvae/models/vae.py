"""The variational auto-encoder: an encoder and a decoder around a Gaussian code, by default the tutorial's two MLPs.

Shapes: B is the batch, E = ``data_shape`` the event (one image) of D numbers, L = ``latent_dim``. MLPs see the event
flattened; other networks, and callers, see it in its shape.
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
        hidden: widths of the MLP's hidden layers in the encoder, by default (1000, 500, 250); the decoder has the same
            in reverse. May be empty.
        latent_dim: L, the size of the code z.
        likelihood: the distribution of x given z. Of pixels in [0, 1]: ``"bernoulli"`` or ``"continuous-bernoulli"``.
            Of uint8 images as 256 levels: ``"discretized-logistic"``. Of real numbers: ``"gaussian"`` or ``"laplace"``.
            Of counts: ``"binomial"`` with a total; ``"poisson"`` with a rate for each element; and, with means that are
            shares of the row's sum, ``"negative-binomial"``, ``"zinb"`` (zero-inflated negative binomial) and
            ``"multinomial"``.
        sigma: standard deviation of the Gaussian likelihood or scale of the Laplace one, in units of the data (uint8
            images: of pixels in [0, 1]). It weighs reconstruction against KL; the others have no use for it.
        learn_sigma: whether sigma is a parameter, with ``sigma`` its first value.
        total: number of trials of the binomial likelihood, the largest count that is possible. The others have none.
        activation: the MLP's, of its hidden layers: ``"relu"``, the default, or ``"tanh"``.
        preset: ``"doersch"`` for the network of the tutorial's code: mu from after the last ReLU of the encoder and
            log sigma from before it, sparse initial weights (:func:`fastvae.models.networks.initialise_as_doersch`).
            With the other arguments as they are, it has the tutorial's 2,844,844 parameters.
        encoder: a module of your own in place of the built-in network, from ``[B, *E]`` to ``[B, 2L]``: mu beside
            logvar. It is given numbers in the dtype of its weights.
        decoder: a module of your own, from ``[N, L]`` to ``[N, *E]`` or ``[N, D]``, or ``[N, 2, *E]`` or
            ``[N, 2 D]`` for a likelihood of two numbers for each element; N is B, or K * B for K samples of
            each code. Give both modules, or neither. They are run once on a batch of two when the model is made: lazy
            modules are initialised, and shapes that do not fit are an error.
        network: the built-in network, ``"mlp"`` or ``"conv"``. The latter is
            :func:`fastvae.models.convolutional`, for images ``(C, H, W)`` or ``(H, W)``. Or the name of a function of
            your own, ``"package.module:function"``, which is imported and called with ``data_shape`` and ``latent_dim``
            and returns an encoder and a decoder as above: a model of such a name is built again from its ``config``.
        conv_width: ``width`` of ``"conv"``, 32 by default.
        conv_depth: ``depth`` of ``"conv"``, 1 by default.
        conv_norm: ``norm`` of ``"conv"``, ``"group"`` by default, ``"batch"`` or ``"none"``.

    A decoder that is an ``nn.Sequential`` and ends in ``nn.Linear``, or in that and an ``nn.Unflatten`` to E, is run
    through :func:`fastvae.linear_sigmoid_cross_entropy` (Bernoulli), :func:`fastvae.linear_multinomial_nll` or
    :func:`fastvae.linear_negative_binomial_nll`, which never keep all of its results. The losses go through
    ``decoder``, not through a ``decode`` that a subclass overrides. The attribute ``decoder`` of a model of MLPs may be
    replaced by any module from ``[..., L]`` to ``[..., D]``.

    Wherever a batch ``x`` is taken, it is ``[B, *E]``: uint8 read as x/255, bool read as 0 or 1, other integers and
    floating-point numbers read as they are (in [0, 1] for the Bernoulli likelihood). For a likelihood of counts a uint8
    is the count itself; the encoder is then given log(1 + x), or x / total where there is a total. MLPs take compressed
    rows (``torch.sparse_csr``) of counts too, but for the binomial likelihood, and make no dense copy of them.

    Raises:
        ValueError: a size that is no positive integer, an unknown likelihood, network, activation or preset, a sigma
            that is not positive and finite, a sigma to be learned or a total that the likelihood has not, no total for
            the binomial one, a preset without hidden ReLU layers, options of another network than the model has, only
            one module of your own or one that does not fit (the message names both shapes), and as
            :func:`fastvae.models.convolutional`.
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
        """The arguments that build this model again: ``VAE(**model.config)``; plain enough for JSON.

        Modules of your own are not among them: ``VAE(**model.config, encoder=..., decoder=...)``.
        """
        return {"data_shape": list(self.data_shape), **self._config()}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of Q(z|x).

        Args:
            x: ``[B, *E]``.

        Returns:
            ``(mu, logvar)``, each ``[B, L]``: two views of one tensor.

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
            (negative binomial, multinomial) or means (Gaussian, Laplace). ``[..., 2, *E]``: logits of shares beside
            those of zeros (ZINB), or means beside what becomes log scales (discretised logistic).

        Raises:
            ValueError: the last dimension of ``z`` is not L.
        """
        self._check_code(z)
        return self._decoded(z, None)

    def nll(self, z: Tensor, x: Tensor) -> Tensor:
        """-log P(x|z), with the memory of :func:`fastvae.linear_sigmoid_cross_entropy` for the logits (Bernoulli).

        Args:
            z: ``[B, L]`` or ``[K, B, L]``.
            x: ``[B, *E]``.

        Returns:
            ``[B]`` or ``[K, B]``, nats.

        Raises:
            ValueError: a shape that is none of those, or batches of two sizes.
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
            ValueError: as ``encode``.
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
            x: ``[B, *E]``; the operators read it as it is, so that uint8 images are never copied as floats
                for the reconstruction term.
            beta: weight of the KL term, a number or a 0-d tensor; other than 1 it is no longer the ELBO.
            generator: the source of the noise, by default torch's own.
            sigma: stands in for the model's own (Gaussian and Laplace likelihoods), as in a schedule; a number or a 0-d
                tensor.
            free_bits: nats that each dimension of z may carry without a gradient that drives it to fewer: the
                loss has :func:`fastvae.objectives.free_bits` in place of the KL divergence.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats; without free bits ``loss = reconstruction + beta *
            kl``, and the KL that is returned is the whole one always.

        Raises:
            ValueError: as ``encode``; a sigma for a likelihood without one.

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
        """Minus the importance-weighted bound of a batch, tighter than the ELBO.

        Args:
            x: ``[B, *E]``.
            num_samples: K, samples of z for each element.
            gradient: the estimator, of :func:`fastvae.objectives.importance_weighted_loss`.
            sigma: as for ``loss``.
            generator: the source of the noise, by default torch's own.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats; the last two are those of the ELBO with the same
            samples, and have no gradient.

        Raises:
            ValueError: as ``loss``; K below 1, or an unknown gradient.

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
        """Decode ``n`` draws of the prior N(0, I). No gradient flows.

        Args:
            n: how many, 0 or more.
            generator: the source of the noise, by default torch's own.
            library: the sum of each row, ``[n]`` or one for all, for likelihoods whose means are shares of it. With 1,
                the default, shares themselves are returned.
            mean: whether to return the expected x given each code, or a draw of x.

        Returns:
            ``[n, *E]``: means, those of the Bernoulli likelihood being probabilities, or draws. Counts are counts, and
            uint8 images are read as x/255.

        Raises:
            ValueError: ``n`` is negative; a library that the likelihood has not, or none for draws of one that has.
        """
        if n < 0:
            raise ValueError(f"n must be 0 or more, not {n}")
        return self._made(self.decode(self._prior([n], generator)), library, mean, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mode of Q(z|x), z = mu. No gradient flows.

        Args:
            x: ``[B, *E]``.

        Returns:
            ``[B, *E]``: means, as for ``sample``; where they are shares of a library, of that of ``x``.

        Raises:
            ValueError: as ``encode``.
        """
        mu, _ = self.encode(x)
        return self.output.mean(self.decode(mu), library=self.output.library(x))
