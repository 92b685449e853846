"""What the package asks of a network, whichever it is.

A network is a Flax module for one image. Its last layer is an `nn.Dense` called `head`, whose input are the
image's features. Collections beside `params`, such as the frozen statistics of a batch norm, are constants:
they are neither trained nor noised.
"""

import dataclasses
import functools
from contextlib import ExitStack
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxcxr.models import lora, stage_statistics, thumbnail
from jaxcxr.models.thumbnail import Interceptor

HEAD = "head"
"""Name of the last layer."""
LAST_MAP = "last_map"
"""Name, among Flax's intermediates, of the map of which the features are the mean."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the channels of ImageNet, on a scale from 0 to 1: what most published
weights were trained with.
"""


@dataclasses.dataclass(frozen=True)
class Input:
    """What a network makes of a grey image, and which sizes it takes.

    Attributes:
        mean, std: of each channel, on a scale from 0 (black) to 1 (white); their number is that of the
            channels. A grey image is copied to all of them, and each copy is normalised by its own.
        multiple: the side in pixels is a multiple of this.
        least: smallest side in pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple: int = 1
    least: int = 16

    def normalised(self, image: Any) -> Float[Array, "h w c"]:
        """The image as the first layer sees it: (grey / 255 - mean) / std.

        Args:
            image: [h, w] grey values from 0 to 255, of any type; or [h, w, channels] normalised already.
        """
        given = jnp.asarray(image, jnp.float32)
        if given.ndim == 3:
            return given
        grey = given[..., None] / 255.0
        return (grey - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def fits(self, size: int) -> bool:
        """Whether images of `size` x `size` pixels can be given to the network."""
        return size >= self.least and size % self.multiple == 0


class Network(nn.Module):
    """The base class of every network: `__call__` takes one image and gives the logits of its findings.

    Attributes:
        n_findings: number of logits.
        dtype: of convolutions, products and activations; parameters, norms' sums, head and logits are
            float32.
        remat: see `ModelConfig`; read by the code that differentiates the network.
        lora_rank: rank of the factors beside its kernels (`lora`); 0 for none.
        thumbnail: side in pixels of the small image that the head sees beside the features (`thumbnail`); 0
            for none.
        stage_statistics: whether the head sees mean and spread of the maps of `STAGES`, too
            (`stage_statistics`).
        LAST_STAGE: what the names of the modules of the last stage begin with, for the scope `last_stage`.
        STAGES: names of the modules that end a stage, the last one left out; none where there are no
            statistics to see.
    """

    n_findings: int
    dtype: Any = dataclasses.field(default=jnp.float32, kw_only=True)
    remat: bool = dataclasses.field(default=False, kw_only=True)
    lora_rank: int = dataclasses.field(default=0, kw_only=True)
    thumbnail: int = dataclasses.field(default=0, kw_only=True)
    stage_statistics: bool = dataclasses.field(default=False, kw_only=True)

    LAST_STAGE: ClassVar[tuple[str, ...]] = ()
    STAGES: ClassVar[tuple[str, ...]] = ()

    @property
    def input(self) -> Input:
        """What the network makes of a grey image: three copies with ImageNet's normalisation, unless it says
        otherwise.
        """
        return Input(*IMAGENET)

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Random parameters, and constants; see Flax. With factors where `lora_rank` asks for them."""
        init = functools.partial(super().init, rngs, *args, **kwargs)
        with self._shown(args):
            if not self.lora_rank:
                return init()
            key = rngs["params"] if isinstance(rngs, dict) else rngs
            return lora.init_with_factors(init, self.lora_rank, key, HEAD)

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, looking: Interceptor | None = None, **kwargs: Any) -> Any:
        """The logits of an image by given parameters; see Flax. `looking` intercepts what the layers get."""
        with self._shown(args) as shown:
            if looking is not None:
                shown.enter_context(nn.intercept_methods(looking))
            if not self.lora_rank:
                return super().apply(variables, *args, **kwargs)
            with nn.intercept_methods(lora.added):
                return super().apply(variables, *args, **kwargs)

    @nn.nowrap
    def _shown(self, args: tuple[Any, ...]) -> ExitStack:
        """While this is open, the head sees the statistics of stages and the thumbnail, too, if the network
        has them.
        """
        shown = ExitStack()
        if self.stage_statistics:
            look = stage_statistics.shown_to(HEAD, self.STAGES)
            shown.enter_context(nn.intercept_methods(look))
        if self.thumbnail:
            look = thumbnail.shown_to(HEAD, self._grey(args[0]), self.thumbnail)
            shown.enter_context(nn.intercept_methods(look))
        return shown

    @nn.nowrap
    def _grey(self, image: Any) -> Any:
        """[h, w] grey values from 0 to 255, also of an image that is normalised already."""
        if jnp.ndim(image) == 2:
            return image
        return 255.0 * (image[..., 0] * self.input.std[0] + self.input.mean[0])

    @nn.nowrap
    def seen_parts(self, params: Any, size: int) -> tuple[int, ...]:
        """How many numbers the head sees of each part of an image of `size` pixels: features, mean and
        standard deviation of each stage, thumbnail.
        """
        stages = ()
        if self.stage_statistics:
            found = stage_statistics.channels(self, params, size, self.STAGES)
            stages = tuple(count for count in found for _ in ("mean", "deviation"))
        more = (*stages, self.thumbnail**2) if self.thumbnail else stages
        return (params["params"][HEAD]["kernel"].shape[0] - sum(more), *more)

    def pooled(self, last: Float[Array, "h w c"]) -> Float[Array, "c"]:
        """Features as the mean over the places of the last map, which is kept for whoever asks
        (`saliency.activation_map`).
        """
        self.sow("intermediates", LAST_MAP, last)
        return last.astype(jnp.float32).mean(axis=(0, 1))


def with_rows(params: PyTree, head: str, rows: int) -> PyTree:
    """Parameters of a network whose head sees its features alone as those of one whose head sees more: zeros
    are added to the kernel of the layer called `head` until it has so many rows.
    """
    kernel = np.asarray(params["params"][head]["kernel"])
    more = np.zeros((rows - len(kernel), kernel.shape[1]), kernel.dtype)
    grown = {**params["params"][head], "kernel": jnp.asarray(np.concatenate([kernel, more]))}
    return {**params, "params": {**params["params"], head: grown}}
