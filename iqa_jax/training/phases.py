"""Which parameters learn in a phase, how fast, and what is frozen below them.

Staged fine-tuning is a list of phases in the configuration (config.phase).
`learning` turns one of them into a `Learning`: the paths of the parameters
that learn, the frozen prefix that no gradient passes through, and an optax
optimiser over the learning parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from iqa_jax import errors
from iqa_jax.aliases import PyTree, Record

HEAD = 'head'
Flat = Record


@dataclasses.dataclass(frozen=True)
class Learning:
  """What a phase teaches, and how.

  Attributes:
    paths: the parameters that learn, 'backbone/stage4/block0/conv1/kernel'.
    parts: the feature points and 'head' that hold them, in order: the model's
      `train` argument, so that BatchNorm and dropout act only there.
    prefix: the last stage before the first of them that can be entered; None
      when there is none. What lies up to it is a fixed function of the image.
    optimizer: optax transformation of {path: gradient}.
    schedule: learning rate of update number 0, 1, ... of this phase.
  """

  paths: frozenset[str]
  parts: tuple[str, ...]
  prefix: str | None
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule


def flatten(params: Mapping[str, PyTree]) -> Flat:
  """Returns nested parameters as {path: array}, joined by '/'."""
  return traverse_util.flatten_dict(params, sep='/')


def unflatten(flat: Flat) -> Record:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep='/')


def learning(
  phase: ml_collections.ConfigDict,
  params: Mapping[str, PyTree],
  points: Sequence[str],
  *,
  steps_per_epoch: int,
  clip_norm: float = 0.0,
  entries: Sequence[str] | None = None,
) -> Learning:
  """Returns what `phase` teaches a model.

  Args:
    phase: see config.phase.
    params: the model's parameters (or their shapes), nested.
    points: the stages of the model in order (Classifier.stages).
    steps_per_epoch: updates in an epoch; schedules count updates.
    clip_norm: largest global norm of the gradient, 0 for no clipping.
    entries: those of the stages that a pass can be entered at (Classifier.
      entries); None for all.

  Raises:
    ValueError: `phase.learns` matches no parameter, or a field of the phase
      is none of its choices; the message lists them.
  """
  flat = flatten(params)
  paths = _matches(phase.learns, flat, points)
  owned = [p for p in (*points, HEAD) if any(part_of(q) == p for q in flat)]
  parts = tuple(p for p in owned if any(part_of(q) == p for q in paths))
  below = (*points, HEAD).index(parts[0])
  entries = points if entries is None else entries
  schedule = _schedule(phase, steps_per_epoch)
  rates = {
    part: 1.0
    if part == HEAD
    else phase.backbone_scale * phase.layer_decay**depth
    for depth, part in enumerate(reversed(owned))
  }
  # One optimiser a part, each with its own update count: Adam's bias
  # correction stays right for parts that join in a later phase.
  by_part = optax.partition(
    {part: _update_rule(phase, rates[part]) for part in parts},
    lambda tree: {path: part_of(path) for path in tree},
  )
  return Learning(
    paths=paths,
    parts=parts,
    prefix=next((p for p in reversed(points[:below]) if p in entries), None),
    optimizer=optax.chain(
      optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
      by_part,
      optax.scale_by_learning_rate(schedule),
    ),
    schedule=schedule,
  )


def split(
  params: Mapping[str, PyTree], paths: frozenset[str]
) -> tuple[Flat, Flat]:
  """Returns the learning and the frozen parameters, each as {path: array}."""
  flat = flatten(params)
  learns = {path: flat[path] for path in flat if path in paths}
  return learns, {path: flat[path] for path in flat if path not in paths}


def keep_state(new: PyTree, old: PyTree) -> PyTree:
  """Returns the optimiser state `new` with what `old` knows of the same parts.

  The learning rate schedule starts anew in every phase.

  Args:
    new: initial state of the phase's optimiser.
    old: state at the end of the phase before.
  """
  known = _by_path(old[1])
  return (new[0], _overlay(new[1], known), *new[2:])


def _matches(
  learns: str, flat: Record, points: Sequence[str]
) -> frozenset[str]:
  owners = {part_of(path) for path in flat}
  names = ['all', 'backbone', *(p for p in (*points, HEAD) if p in owners)]
  terms = learns.split('+')
  if set(terms) <= set(names):
    found = {
      path
      for path in flat
      if {'all', part_of(path), path.split('/')[0]} & set(terms)
    }
  else:
    try:
      found = {path for path in flat if re.fullmatch(learns, path)}
    except re.error as error:
      raise errors.InvalidValue(
        f'learns={learns!r} is no pattern: {error}'
      ) from error
  if not found:
    raise errors.InvalidValue(
      f'learns={learns!r} matches no parameter; it takes {", ".join(names)} '
      f'(joined by +), or a regular expression over whole paths such as '
      f'{min(flat)!r}'
    )
  return frozenset(found)


def part_of(path: str) -> str:
  """Returns the feature point, or 'head', that owns a parameter's path."""
  top, *rest = path.split('/')
  return rest[0] if top in ('backbone', 'neck') else top


def _schedule(
  phase: ml_collections.ConfigDict, steps_per_epoch: int
) -> optax.Schedule:
  peak = phase.learning_rate
  total = max(round(phase.epochs * steps_per_epoch), 1)
  warmup = min(round(phase.warmup_epochs * steps_per_epoch), total)
  rest = max(total - warmup, 1)
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(peak, rest),
    'linear': lambda: optax.linear_schedule(peak, 0.0, rest),
  }
  errors.one_of('schedule', phase.schedule, after)
  if not warmup:
    return after[phase.schedule]()
  # The first update is not wasted on a rate of 0.
  rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([rise, after[phase.schedule]()], [warmup])


def _update_rule(
  phase: ml_collections.ConfigDict, rate: float
) -> optax.GradientTransformation:
  decay = (
    optax.add_decayed_weights(
      phase.weight_decay, mask=lambda tree: jax.tree.map(_decays, tree)
    )
    if phase.weight_decay
    else optax.identity()
  )
  rules = {
    # As torch: decoupled for AdamW, part of the gradient for the others.
    'adamw': lambda: (optax.scale_by_adam(), decay),
    'adam': lambda: (decay, optax.scale_by_adam()),
    'sgd': lambda: (decay, optax.trace(phase.momentum)),
  }
  errors.one_of('optimizer', phase.optimizer, rules)
  return optax.chain(*rules[phase.optimizer](), optax.scale(rate))


def _decays(leaf: jax.Array) -> bool:
  # Biases and BatchNorm's scales and offsets are vectors.
  return np.ndim(leaf) > 1


def _by_path(tree: PyTree) -> Flat:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _overlay(tree: PyTree, known: Flat) -> PyTree:
  def choose(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    old = known.get(jax.tree_util.keystr(path))
    return leaf if old is None or jnp.shape(old) != jnp.shape(leaf) else old

  return jax.tree_util.tree_map_with_path(choose, tree)
