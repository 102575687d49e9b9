"""How activations and gradients of a layer combine into a map, by method.

Of the maps A [h, w, c] and gradients G of the explained score:

  gradcam    sum_c mean(G_c) A_c                  Selvaraju et al. 2017
  gradcampp  Grad-CAM++, equation 19              Chattopadhay et al. 2018
  hirescam   sum_c G_c A_c                        Draelos and Carin 2020
  layercam   sum_c relu(G_c) A_c                  Jiang et al. 2021
  xgradcam   sum_c (sum G_c A_c / sum A_c) A_c    Fu et al. 2020
  eigencam   A projected on its first principal component, whatever the target
             (Muhammad and Yeasin 2020)

Arithmetic as in pytorch-grad-cam 1.5.7. EigenCAM's sign is arbitrary there;
here it is positive where the activation, summed over channels, is larger.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp


def _weighted(activations: jax.Array, weights: jax.Array) -> jax.Array:
  return jnp.einsum(
    'bhwc,bc->bhw', activations, weights, precision=lax.Precision.HIGHEST
  )


def _gradcam(a: jax.Array, g: jax.Array) -> jax.Array:
  return _weighted(a, g.mean((1, 2)))


def _gradcampp(a: jax.Array, g: jax.Array) -> jax.Array:
  total = a.sum((1, 2), keepdims=True)
  alpha = g**2 / (2 * g**2 + total * g**3 + 1e-6)
  # Where g < 0 the denominator can vanish; the weight is 0 there anyway.
  return _weighted(a, jnp.where(g > 0, g * alpha, 0).sum((1, 2)))


def _hirescam(a: jax.Array, g: jax.Array) -> jax.Array:
  return (g * a).sum(-1)


def _layercam(a: jax.Array, g: jax.Array) -> jax.Array:
  return (jax.nn.relu(g) * a).sum(-1)


def _xgradcam(a: jax.Array, g: jax.Array) -> jax.Array:
  total = a.sum((1, 2), keepdims=True)
  return _weighted(a, (g * a / (total + 1e-7)).sum((1, 2)))


def _eigencam(a: jax.Array, g: jax.Array) -> jax.Array:
  del g  # depends on the activations only
  b, h, w, c = a.shape
  flat = a.reshape(b, h * w, c)
  # Without the mean the first component would be the mean.
  flat = flat - flat.mean(1, keepdims=True)
  # The eigenvectors of the smaller of the two Gram matrices.
  wide = c > h * w
  gram = jnp.einsum(
    'bic,bjc->bij' if wide else 'bic,bid->bcd',
    flat,
    flat,
    precision=lax.Precision.HIGHEST,
  )
  values, vectors = jnp.linalg.eigh(gram)
  first = vectors[:, :, -1]
  if wide:
    # A singular value times its left vector is the projection on the right.
    projection = first * jnp.sqrt(jnp.maximum(values[:, -1:], 0))
  else:
    projection = _weighted(flat[:, None], first)[:, 0]
  along = (projection * flat.sum(2)).sum(1, keepdims=True)
  return (projection * jnp.where(along < 0, -1, 1)).reshape(b, h, w)


# From A and G, float32 [b, h, w, c], to maps [b, h, w].
COMBINE: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'gradcam': _gradcam,
  'gradcampp': _gradcampp,
  'hirescam': _hirescam,
  'layercam': _layercam,
  'xgradcam': _xgradcam,
  'eigencam': _eigencam,
}
