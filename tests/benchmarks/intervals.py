"""The patient-clustered bootstrap of EyeQ's test split: 16,249 images.

All metrics of a binary verdict in every resample, of simulated scores and
patients with one or two eyes. A naive loop over scikit-learn stands beside it,
timed on a few resamples and multiplied.
"""

from __future__ import annotations

import sys

import numpy as np

from tests.benchmarks import common


def run(
  *,
  smoke: bool = False,
  images: int = 16249,
  resamples: int = 2000,
  repeats: int = 3,
) -> list[common.Row]:
  """Times all resamples of our bootstrap, and some of the loop's."""
  from iqa_jax.evaluation import intervals, metrics, resampling

  if smoke:
    images, resamples, repeats = 500, 50, 1
  rng = np.random.default_rng(0)
  truth = (rng.random(images) < 0.48).astype(int)
  p = 1 / (1 + np.exp(-rng.normal(3 * truth - 1.5, 1.5)))
  patient = (np.arange(images) * 0.7415).astype(int)
  called = p >= 0.5

  def ours():
    intervals.binary(truth, p, called, resampling.Resamples(patient, resamples))

  looped = 3
  column = resampling.Resamples(patient).column

  def loop():
    draws = np.random.default_rng(0)
    for _ in range(looped):
      drawn = draws.integers(0, column.max() + 1, column.max() + 1)
      times = np.bincount(drawn, minlength=column.max() + 1)[column]
      again = np.repeat(np.arange(images), times)
      metrics.binary(truth[again], p[again], called[again])

  times = common.alternate({'ours': ours, 'loop': loop}, repeats=repeats)
  return [
    common.Row(
      f'{resamples} resamples of {images} images, all metrics',
      times['ours'],
      's',
      peer='loop over scikit-learn',
      peer_values=[t / looped * resamples for t in times['loop']],
      target='under 10 s',
      note=f'the loop: {looped} resamples, multiplied',
    )
  ]


if __name__ == '__main__':
  sys.exit(common.main(run))
