"""What is being judged: the one place that knows a task's outputs and loss.

A task turns the network's logits into a loss, into probabilities and into the
scores that an explanation differentiates. Three exist:

  quality   two logits (adequate, inadequate), softmax
  grade     three logits (good, usable, reject), softmax; EyeQ's labels
  criteria  four logits (a fault of focus, illumination, image field,
            artifacts), sigmoids; the verdict is the noisy-or of the four and
            is supervised too; BRSet's labels

Batches are dicts whose labels are int32 with -1 where absent: `quality` [b],
`grade` [b], `criteria` [b, 4]. A head that locates landmarks also learns from
`landmarks` float32 [b, 5] (optic disc x, y, disc diameter, fovea x, y in shares
of the image's side), NaN where unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from scipy import special

from iqa_jax import errors
from iqa_jax import labels as L
from iqa_jax.models import evidence, heads

_NAMES = ('quality', 'grade', 'criteria')
# The verdict's log-odds as targets, and what a map of them is evidence for.
MARGINS = {
  'margin': 'inadequate over adequate',
  'adequate_margin': 'adequate over inadequate',
}
_EPS = 1e-6


def evidence_for(target: str) -> str:
  """Returns in words what a map of one of `Task.targets` is evidence for."""
  return MARGINS.get(target, target.replace('_', ' '))


@dataclasses.dataclass(frozen=True)
class Task:
  """One way of judging a photograph; hashable, so it can be a static argument.

  Attributes:
    name: 'quality', 'grade' or 'criteria'.
    usable: what EyeQ's Usable counts as in the binary verdict.
    loss_name: 'cross_entropy' or 'focal' (Lin et al. 2017, eq. 4).
    focal_gamma: focusing parameter of the focal loss.
    label_smoothing: share of the label spread evenly over the classes.
    class_weights: one weight a class (softmax tasks) or one weight of the
      positive class a criterion (criteria task, then the verdict's weight of
      the positive class as a fifth); () for none.
    verdict_weight: weight of the verdict's loss beside the mean over the
      criteria (criteria task only).
    landmark_weight: weight of the landmarks' error in disc diameters (of heads
      that locate them).
    cell_weight: weight of the cells' cross-entropy (of heads of evidence).
    ranking_weight: weight of the ranking of each photograph's cells (likewise).
    cause_weight: weight of the causes' cross-entropy (likewise).
    verdict_teaches_cells: whether the gradient of verdict and causes reaches
      the cells (likewise), or stays in the head.
  """

  name: str = 'quality'
  usable: str = 'inadequate'
  loss_name: str = 'cross_entropy'
  focal_gamma: float = 2.0
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()
  verdict_weight: float = 1.0
  landmark_weight: float = 1.0
  cell_weight: float = 3.0
  ranking_weight: float = 0.0
  cause_weight: float = 0.5
  verdict_teaches_cells: bool = True

  def __post_init__(self) -> None:
    errors.one_of('task', self.name, _NAMES)
    errors.one_of('usable=', self.usable, L.USABLE)
    errors.one_of('loss', self.loss_name, ('cross_entropy', 'focal'))
    if self.class_weights and len(self.class_weights) != self._num_weights:
      raise ValueError(
        f'task {self.name} takes {self._num_weights} class weights, '
        f'got {len(self.class_weights)}'
      )

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    table: Mapping[str, np.ndarray] | None = None,
  ) -> Task:
    """Returns the task that `config.task` describes.

    Args:
      config: a run's configuration.
      table: labels of the training examples, which 'balanced' class weights
        are computed from; None leaves the weights out (they matter to the
        loss only).

    Raises:
      ValueError: a field is none of its choices.
    """
    c = config.task
    errors.one_of('class_weights', c.class_weights, ('none', 'balanced'))
    task = cls(
      name=c.name,
      usable=c.usable,
      loss_name=c.loss,
      focal_gamma=c.focal_gamma,
      label_smoothing=c.label_smoothing,
      verdict_weight=c.verdict_weight,
      landmark_weight=c.landmark_weight,
      cell_weight=c.cell_weight,
      ranking_weight=c.ranking_weight,
      cause_weight=c.cause_weight,
      verdict_teaches_cells=c.verdict_teaches_cells,
    )
    if c.class_weights == 'none' or table is None:
      return task
    weights = task.balanced_weights(table)
    return dataclasses.replace(task, class_weights=weights)

  @property
  def _num_weights(self) -> int:
    return 5 if self.name == 'criteria' else self.num_outputs

  @property
  def outputs(self) -> tuple[str, ...]:
    """The names of the logits, in order."""
    return {'quality': L.QUALITY, 'grade': L.GRADES, 'criteria': L.CRITERIA}[
      self.name
    ]

  @property
  def num_outputs(self) -> int:
    return len(self.outputs)

  @property
  def targets(self) -> tuple[str, ...]:
    """What can be explained: every logit, then the verdict's two margins."""
    return (*self.outputs, *MARGINS)

  def scores(self, logits: jax.Array) -> jax.Array:
    """Returns the explainable scores [b, len(targets)] of logits [b, k].

    The margin is the verdict's log-odds, positive towards inadequate. For the
    quality task it is logit(inadequate) - logit(adequate). Usable speaks for
    neither where it is excluded. The adequate margin is the margin's negative.
    """
    margin = self.margin(logits)[:, None]
    return jnp.concatenate([logits, margin, -margin], axis=1)

  def margin(self, logits: jax.Array) -> jax.Array:
    """Returns the log-odds [b] that the photograph is inadequate."""
    if self.name == 'criteria':
      # Noisy-or: P(adequate) = prod(1 - p_i), so log P(adequate) is a sum.
      log_adequate = -jax.nn.softplus(logits).sum(axis=1)
      log_adequate = jnp.minimum(log_adequate, -_EPS)
      return jnp.log(-jnp.expm1(log_adequate)) - log_adequate
    positive, negative = self._verdict_columns
    return jax.nn.logsumexp(logits[:, positive], axis=1) - jax.nn.logsumexp(
      logits[:, negative], axis=1
    )

  def log_odds(self, logits: np.ndarray) -> np.ndarray:
    """Returns `margin` in float64, [b], by NumPy: what ranks photographs.

    The float32 probability of one is 1 from log-odds of 17 on, so it ties what
    the logits tell apart. NaN where a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    logits = np.where(np.isfinite(logits).all(axis=1)[:, None], logits, np.nan)
    if self.name == 'criteria':
      log_adequate = special.log_expit(-logits).sum(axis=1)
      log_adequate = np.minimum(log_adequate, -np.finfo(np.float64).tiny)
      return np.log(-np.expm1(log_adequate)) - log_adequate
    positive, negative = self._verdict_columns
    return special.logsumexp(logits[:, positive], axis=1) - (
      special.logsumexp(logits[:, negative], axis=1)
    )

  def mean_log_odds(self, odds: np.ndarray) -> np.ndarray:
    """Returns the log-odds [n] of the mean probability of odds [members, n]."""
    if len(odds) == 1:
      return odds[0]
    inadequate = special.logsumexp(special.log_expit(odds), axis=0)
    return inadequate - special.logsumexp(special.log_expit(-odds), axis=0)

  @property
  def _verdict_columns(self) -> tuple[list[int], list[int]]:
    """The logits that speak for inadequate, and those for adequate."""
    if self.name == 'quality':
      return [L.INADEQUATE], [L.ADEQUATE]
    graded = [L.quality_of_grade(g, self.usable) for g in range(3)]
    return (
      [g for g, q in enumerate(graded) if q == L.INADEQUATE],
      [g for g, q in enumerate(graded) if q == L.ADEQUATE],
    )

  def p_inadequate(self, logits: jax.Array) -> jax.Array:
    """Returns the probability [b] that the photograph is inadequate."""
    return jax.nn.sigmoid(self.margin(logits))

  def probabilities(self, logits: jax.Array) -> jax.Array:
    """Returns the probability [b, k] of every output."""
    if self.name == 'criteria':
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=1)

  def likelihoods(self, logits: jax.Array) -> jax.Array:
    """Returns the probability [b, len(targets)] that goes with each score."""
    p = self.p_inadequate(logits)[:, None]
    return jnp.concatenate([self.probabilities(logits), p, 1 - p], axis=1)

  def predicted_targets(
    self, p_inadequate: np.ndarray | jax.Array, threshold: float
  ) -> np.ndarray | jax.Array:
    """Returns the index [b] into `targets` that explains each verdict.

    It is the margin towards the verdict. A single logit of a softmax would
    not do: what is added to all of them changes its map and no probability.
    And the likeliest of several grades or criteria need not be what makes the
    photograph inadequate. Given JAX's arrays it can be traced.
    """
    xp = jnp if isinstance(p_inadequate, jax.Array) else np
    return xp.where(
      xp.asarray(p_inadequate) >= threshold,
      self.targets.index('margin'),
      self.targets.index('adequate_margin'),
    )

  def loss(
    self, logits: jax.Array, batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns each example's loss [b] and weight [b], both float32.

    The loss of a batch is sum(loss * weight) / sum(weight) over real examples.
    Unlabelled examples (and, of the criteria, unlabelled columns) weigh 0.
    """
    logits = logits.astype(jnp.float32)
    if self.name == 'criteria':
      return self._criteria_loss(logits, batch)
    label = batch[self.name]
    known = (label >= 0).astype(jnp.float32)
    onehot = jax.nn.one_hot(label, self.num_outputs)
    smooth = optax.smooth_labels(onehot, self.label_smoothing)
    loss = optax.softmax_cross_entropy(logits, smooth)
    if self.loss_name == 'focal':
      p_true = (jax.nn.softmax(logits) * onehot).sum(axis=1)
      loss *= (1.0 - p_true) ** self.focal_gamma
    weight = known
    if self.class_weights:
      weight = known * (onehot @ jnp.asarray(self.class_weights))
    return loss, weight

  def landmark_loss(
    self, found: jax.Array, batch: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Returns what each example's landmarks add to its loss, float32 [b].

    The mean error of its known coordinates in disc diameters, weighted; 0
    where none is known.

    Args:
      found: float32 [b, 5], as `batch['landmarks']`.
      batch: see the module.
    """
    truth = batch['landmarks']
    diameter = truth[:, 2:3]
    known = jnp.isfinite(truth) & (diameter > 0)
    # No NaN may enter: its gradient would survive the mask.
    error = jnp.abs(found - jnp.where(known, truth, found))
    error /= jnp.where(diameter > 0, diameter, 1.0)
    count = jnp.maximum(known.sum(axis=1), 1)
    return self.landmark_weight * error.sum(axis=1) / count

  def evidence_loss(
    self, found: heads.Found, batch: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Returns what a head of evidence adds to each example's loss, [b].

    The cross-entropy of its cells where faults are known to be, or not to be;
    how far those with a fault fail to stand out; and the cross-entropy of the
    causes it tells of the photograph as a whole.

    Args:
      found: what the pass told (heads.found).
      batch: with 'cause' and 'fault' of pipeline.batches.
    """
    if found.cells is None:
      raise ValueError('this head has no cells')
    logits, share = found.cells
    local = list(evidence.local(logits.shape[-1]))
    cause = batch['cause'][:, None, None, :]
    fault = batch['fault'].astype(jnp.float32) / 255.0
    if fault.ndim == 3:  # of whichever criterion it is
      fault = fault[..., None]
    truth = jnp.where(cause == 0, 0.0, jnp.where(cause == 2, fault, -1.0))
    logits = logits[..., local]
    cells = self.cell_weight * evidence.cell_loss(logits, truth, share)
    if self.ranking_weight:
      ranking = evidence.ranking_loss(logits, truth, share)
      cells += self.ranking_weight * ranking
    known = batch['cause'] >= 0
    told = optax.sigmoid_binary_cross_entropy(
      found.cause, (batch['cause'] > 0).astype(jnp.float32)
    )
    told = (told * known).sum(1) / jnp.maximum(known.sum(1), 1)
    return cells + self.cause_weight * told

  def right(
    self, logits: jax.Array, batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns which examples [b] are labelled, and which of them called right.

    Both are bool. The likeliest class is called; of criteria, the verdict at
    a probability of 0.5.
    """
    if self.name == 'criteria':
      label, called = batch['quality'], self.margin(logits) >= 0
    else:
      label, called = batch[self.name], logits.argmax(axis=1)
    known = label >= 0
    return known, known & (called == label)

  def _criteria_loss(
    self, logits: jax.Array, batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    label = jnp.concatenate(
      [batch['criteria'], batch['quality'][:, None]], axis=1
    )
    odds = jnp.concatenate([logits, self.margin(logits)[:, None]], axis=1)
    known = (label >= 0).astype(jnp.float32)
    truth = (label == 1).astype(jnp.float32)
    smooth = truth * (1 - self.label_smoothing) + self.label_smoothing / 2
    terms = optax.sigmoid_binary_cross_entropy(odds, smooth)
    if self.loss_name == 'focal':
      p_true = jax.nn.sigmoid(jnp.where(truth > 0, odds, -odds))
      terms *= (1.0 - p_true) ** self.focal_gamma
    if self.class_weights:
      positive = jnp.asarray(self.class_weights)
      terms *= jnp.where(truth > 0, positive, 1.0)
    share = jnp.asarray([0.25] * 4 + [self.verdict_weight]) * known
    total = share.sum(axis=1)
    loss = (terms * share).sum(axis=1) / jnp.maximum(total, _EPS)
    return loss, (total > 0).astype(jnp.float32)

  def balanced_weights(
    self, table: Mapping[str, np.ndarray]
  ) -> tuple[float, ...]:
    """Returns class weights inverse to the frequencies in `table`.

    Softmax tasks: n / (k * n_c), scikit-learn's 'balanced'. Criteria: negative
    over positive count of each criterion and of the verdict, at most 100.
    """
    if self.name == 'criteria':
      columns = [*np.asarray(table['criteria']).T, np.asarray(table['quality'])]
      ratios = [(c == 0).sum() / max((c == 1).sum(), 1) for c in columns]
      return tuple(float(min(max(r, 1.0), 100.0)) for r in ratios)
    label = np.asarray(table[self.name])
    counts = np.bincount(label[label >= 0], minlength=self.num_outputs)
    if not counts.all():
      missing = [n for n, c in zip(self.outputs, counts, strict=True) if not c]
      raise errors.InvalidValue(f'no training example of class {missing[0]!r}')
    return tuple(float(w) for w in counts.sum() / (len(counts) * counts))
