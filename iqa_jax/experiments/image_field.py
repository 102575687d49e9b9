"""Can a network judge the image field? Where the truth is a measurement.

  python -m iqa_jax.experiments.image_field

Four heads on the same small convolutional trunk learn BRSet's image-field rule
from the same simulated photographs for the same number of steps:

  average      global average, one linear layer
  flatten      all positions, one hidden layer
  coordinates  as average, with x and y as two more input channels
  landmarks    models/heads.py's: optic disc and fovea by spatial soft-argmax
               (Levine et al. 2016) and the disc's diameter; the rule is then
               measured (field.py) with arcades of the typical shape

The landmark head learns from landmarks, the others from verdicts. Prints a
line a head and seed: AUC, recall and specificity of inadequate fields, the
error rate within --near disc diameters of the threshold and beyond, and, for
landmarks, the median errors in disc diameters; for average, what its maps
show: the share of the evidence for inadequate (Grad-CAM, positive part, of
inadequate fields) within 1 DD of the field's edge, where the rule is decided,
beside that zone's share of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from absl import flags

from iqa_jax import command
from iqa_jax.aliases import PyTree, Variables

if TYPE_CHECKING:
  from flax import linen as nn
  import jax
  import numpy as np

# See `draw`.
Data: TypeAlias = 'Mapping[str, Any]'
# Margins, landmarks and maps; see `fit`.
Prediction: TypeAlias = (
  'tuple[np.ndarray, np.ndarray | None, np.ndarray | None]'
)

_TRAIN = flags.DEFINE_integer('train', 2000, 'photographs to learn from')
_TEST = flags.DEFINE_integer('test', 600, 'photographs to test on')
_SIZE = flags.DEFINE_integer('field_size', 64, 'side in pixels')
_EPOCHS = flags.DEFINE_integer('epochs', 20, 'of every head')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'runs of every head')
_NEAR = flags.DEFINE_float('near', 0.25, 'what counts as near, in DD')
HEADS = ('average', 'flatten', 'coordinates', 'landmarks')
_HEADS = flags.DEFINE_multi_enum('heads', HEADS, HEADS, 'which to compare')
_FIRST_SEED = 6_000_000  # apart from every split of fundus_sim
_BATCH = 32


def main() -> None:
  train = draw(_FIRST_SEED, _TRAIN.value, _SIZE.value)
  test = draw(_FIRST_SEED + 500_000, _TEST.value, _SIZE.value)
  for seed in range(_SEEDS.value):
    for head in _HEADS.value:
      predict = fit(head, train, seed, _EPOCHS.value)
      print(f'{head:12s} seed {seed}  {judge(predict(test), test)}', flush=True)


def draw(first: int, count: int, size: int) -> Data:
  """Draws photographs, every second one with an inadequate image field.

  Returns:
    'image' uint8 [n, size, size, 3]; 'landmarks' float32 [n, 5] in pixels;
    'margin' float [n], DD to the threshold, negative where inadequate; 'view',
    the fields.
  """
  import numpy as np
  import tqdm

  from iqa_jax.simulation import photograph

  drawn = [
    photograph.draw(first + i, size, broken=('image_field',) if i % 2 else ())
    for i in tqdm.trange(count, desc='drawing', disable=None)
  ]
  return {
    'image': np.stack([d.image for d in drawn]),
    'landmarks': np.stack([d.landmarks for d in drawn]),
    'margin': np.array([d.measurement.margin for d in drawn]),
    'view': [d.view for d in drawn],
  }


def fit(
  head: str, data: Data, seed: int, epochs: int
) -> Callable[[Data], Prediction]:
  """Trains one head.

  Returns:
    A function from data to the predicted margin [n], negative where
    inadequate, the landmarks [n, 5] in pixels or None, and of the head
    'average' its maps of evidence for inadequate [n, h, w], else None.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  size = data['image'].shape[1]
  model = _network(head)
  variables = model.init(jax.random.key(seed), _scaled(data['image'][:1]))
  count = len(data['image'])
  steps = epochs * (count // _BATCH)
  # Without warm-up and clipping some seeds learned nothing at all.
  rate = optax.warmup_cosine_decay_schedule(0, 1e-3, steps // 10, steps)
  optimiser = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4)
  )

  def loss(
    variables: Variables,
    image: jax.Array,
    margin: jax.Array,
    landmarks: jax.Array,
  ) -> jax.Array:
    out = model.apply(variables, _scaled(image))[0]
    if head == 'landmarks':
      return jnp.abs(out - landmarks / size).mean() * 20
    return optax.sigmoid_binary_cross_entropy(out[:, 0], margin < 0).mean()

  @jax.jit
  def step(
    variables: Variables, state: PyTree, *batch: jax.Array
  ) -> tuple[Variables, PyTree]:
    gradient = jax.grad(loss)(variables, *batch)
    updates, state = optimiser.update(gradient, state, variables)
    return optax.apply_updates(variables, updates), state

  state = optimiser.init(variables)
  rng = np.random.default_rng(seed)
  for _ in range(epochs):
    order = rng.permutation(count)[: count // _BATCH * _BATCH]
    for at in order.reshape(-1, _BATCH):
      batch = [data[k][at] for k in ('image', 'margin', 'landmarks')]
      variables, state = step(variables, state, *batch)
  apply = jax.jit(lambda image: model.apply(variables, _scaled(image)))
  return lambda other: _predict(head, apply, other)


def _predict(
  head: str, apply: Callable[[jax.Array], PyTree], data: Data
) -> Prediction:
  """Returns what a trained head says of `data`, see `fit`."""
  import numpy as np

  from iqa_jax.simulation import field

  parts = [
    apply(data['image'][i : i + 100]) for i in range(0, len(data['image']), 100)
  ]
  out, maps = (np.concatenate(part) for part in zip(*parts, strict=True))
  if head != 'landmarks':
    return -out[:, 0], None, maps if head == 'average' else None
  found = out * data['image'].shape[1]
  margins = [
    field.measure(view, f, field.typical_arcades(f)).margin
    for view, f in zip(data['view'], found, strict=True)
  ]
  # A landmark above or below the field has no distance at all.
  return np.maximum(margins, -20), found, None


def judge(prediction: Prediction, data: Data) -> str:
  """Returns how good predicted margins and landmarks are, as text."""
  import numpy as np
  from sklearn import metrics

  margin, found, maps = prediction
  truth, called = data['margin'] < 0, margin < 0
  near = np.abs(data['margin']) < _NEAR.value
  wrong = truth != called
  text = (
    f'AUC {metrics.roc_auc_score(truth, -margin):.3f}  '
    f'recall {called[truth].mean():.3f}  '
    f'specificity {(~called[~truth]).mean():.3f}  '
    f'error near {wrong[near].mean():.3f} (n={near.sum()})  '
    f'beyond {wrong[~near].mean():.3f}'
  )
  if maps is not None:
    share, area = _near_the_edge(maps[truth], data, np.flatnonzero(truth))
    text += f'  evidence near the edge {share:.2f} (area {area:.2f})'
  if found is None:
    return text
  true = data['landmarks']
  error = (found - true) / true[:, 2:3]
  disc, fovea = np.hypot(*error.T[:2]), np.hypot(*error.T[3:])
  return (
    f'{text}  disc {np.median(disc):.2f} DD, fovea {np.median(fovea):.2f} DD, '
    f'diameter {np.median(np.abs(error[:, 2])):.1%}'
  )


def _near_the_edge(
  maps: np.ndarray, data: Data, at: np.ndarray
) -> tuple[float, float]:
  """Returns mean shares of evidence and of area within 1 DD of the edge."""
  import numpy as np
  from scipy import ndimage

  size, (h, w) = data['image'].shape[1], maps.shape[1:]
  grid = np.arange(size) + 0.5
  shares, areas = [], []
  for positive, i in zip(np.maximum(maps, 0), at, strict=True):
    inside = data['view'][i].inside(grid[None], grid[:, None])
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    zone = inside & (depth <= data['landmarks'][i, 2])
    # How much of each cell of the map is field, and is the zone.
    inside, zone = (
      m.reshape(h, size // h, w, size // w).mean((1, 3)) for m in (inside, zone)
    )
    areas.append(zone.sum() / inside.sum())
    if (positive * inside).any():
      shares.append((positive * zone).sum() / (positive * inside).sum())
  return float(np.mean(shares or [np.nan])), float(np.mean(areas))


def _scaled(image: jax.Array | np.ndarray) -> jax.Array:
  import jax.numpy as jnp

  return jnp.asarray(image, jnp.float32) / 127.5 - 1


def _network(head: str) -> nn.Module:
  from flax import linen as nn
  import jax.numpy as jnp

  from iqa_jax.models import heads

  def grid(x: jax.Array) -> jax.Array:
    """x and y of every position, in 0..1, float32 [h, w, 2]."""
    h, w = x.shape[1:3]
    rows, columns = (jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w
    return jnp.stack(jnp.meshgrid(columns, rows), -1)

  class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
      if head == 'coordinates':
        where = jnp.broadcast_to(grid(x), (*x.shape[:3], 2))
        x = jnp.concatenate([x, 2 * where - 1], -1)
      for width, stride in ((16, 2), (32, 2), (64, 1), (64, 2), (64, 1)):
        x = nn.Conv(width, (3, 3), stride, use_bias=False)(x)
        x = nn.relu(nn.GroupNorm(8)(x))
      if head == 'landmarks':
        return heads.Locator()(x), x[..., 0]
      if head == 'flatten':
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(1)(x), x[:, 0]
      last = nn.Dense(1)
      # Linear behind an average: the mean of this map is the logit, and less
      # its bias it is Grad-CAM's.
      evidence = last(x)[..., 0]
      logit = last(x.mean((1, 2)))
      return logit, evidence - last(jnp.zeros(x.shape[-1]))

  return Network()


if __name__ == '__main__':
  command.run(main)
