"""Test whether a trained model's explanations are true.

  python -m iqa_jax.evaluate_explanations --workdir=runs/demo
  python -m iqa_jax.evaluate_explanations --workdir=runs/eyeq \\
    --images=~/photographs --labels=labels.csv --methods=gradcam,hirescam

Writes explanations.json, explanations.md and figures: deletion, insertion,
average drop and increase, and ROAD, beside controls that know nothing of the
network; the fall of similarity when the network is destroyed from the top
down; mirror images; and planted faults of known place. Without --images the
run's own test photographs are looked for (a run on fundus_sim gets new
drawings). Every method and control costs some 70 predictions a photograph;
--examples, --steps, --methods and --baselines buy time.
"""

import os

from absl import app, flags, logging

from iqa_jax import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory')
_IMAGES = flags.DEFINE_string(
  'images', '', "folder, glob or CSV list; '' for the run's test photographs"
)
_LABELS = flags.DEFINE_string(
  'labels', None, 'CSV with labels of --images (see explain/photographs.py)'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'folder to write to (default: WORKDIR/explanations)'
)
_METHODS = flags.DEFINE_list(
  'methods',
  ['gradcam', 'gradcampp', 'hirescam', 'layercam', 'xgradcam', 'eigencam'],
  'maps to test; occlusion and rise are possible too and cost much more',
)
_LAYER = flags.DEFINE_string('layer', None, "feature point (the model's last)")
_PLACEMENT = flags.DEFINE_enum(
  'placement',
  'network',
  ['network', 'pytorch_grad_cam'],
  'where maps lie on the photographs: where the cells look, or evenly',
)
_TARGET = flags.DEFINE_string(
  'target',
  'predicted',
  'predicted (the margin towards the verdict), labelled, margin (inadequate '
  'over adequate), adequate_margin, a class or a criterion',
)
_EXAMPLES = flags.DEFINE_integer(
  'examples', 24, 'photographs at most, evenly over the labels; 0 for all'
)
_BASELINES = flags.DEFINE_list(
  'baselines', ['zero', 'blur', 'mean'], 'what replaces removed pixels'
)
_STEPS = flags.DEFINE_integer('steps', 8, 'of deletion and insertion')
_SEVERITY = flags.DEFINE_float('severity', 0.8, 'of planted faults, 0 to 1')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'photographs at a time')
_SEED = flags.DEFINE_integer('seed', 0, 'of everything that is drawn by lot')


def main() -> None:
  """Runs the study."""
  if not _WORKDIR.value:
    raise app.UsageError('--workdir is needed: a run of iqa_jax.main')

  from iqa_jax import inference, run_directory
  from iqa_jax.explain import subject
  from iqa_jax.studies import photographs, study

  workdir = os.path.expanduser(_WORKDIR.value)
  output = os.path.expanduser(
    _OUTPUT.value or os.path.join(workdir, 'explanations')
  )
  loaded = inference.load(workdir)
  found = photographs.choose(
    loaded,
    workdir,
    images=_IMAGES.value,
    labels=_LABELS.value,
    limit=_EXAMPLES.value,
    seed=_SEED.value,
  )
  result, shown = study.run(
    subject.Subject(
      loaded,
      methods=[m for m in _METHODS.value if m not in study.GRADIENT_FREE],
      layer=_LAYER.value,
      placement=_PLACEMENT.value,
      batch_size=_BATCH.value,
    ),
    found,
    target=_TARGET.value,
    gradient_free=[m for m in _METHODS.value if m in study.GRADIENT_FREE],
    baselines=_BASELINES.value,
    steps=_STEPS.value,
    severity=_SEVERITY.value,
    seed=_SEED.value,
  )
  text = study.table(result)
  run_directory.write_json(os.path.join(output, 'explanations.json'), result)
  run_directory.write_text(os.path.join(output, 'explanations.md'), text)
  study.draw(result, shown, os.path.join(output, 'figures'))
  print(text)
  logging.info('written: %s', output)


if __name__ == '__main__':
  command.run(main)
