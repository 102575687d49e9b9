"""Test whether a trained model's explanations are true.

  python -m iqa_jax.evaluate_explanations --workdir=runs/demo
  python -m iqa_jax.evaluate_explanations --workdir=runs/vgg16,runs/resnet50 \\
    --images=~/photographs --labels=labels.csv --methods=all

Writes explanations.json, explanations.md and figures: faults of known place,
planted into photographs called adequate, of kinds that training may show and
of kinds that nothing learns from; labelled pixels (--pixel_labels); deletion,
insertion, drop, increase and ROAD; the fall of similarity when the network is
destroyed from the top down; mirror images; all beside controls that know
nothing of the network. Several runs make one table (overview.md).

Without --images the run's own test photographs are looked for (a run on
fundus_sim gets new drawings, whose pixels are known). The default, 20
photographs, takes about 2800 passes through the network, up to 10 minutes on 2
cores, by VGG16 at 224 px or eyeq_evidence at 448. More buys: --examples
narrower intervals; --steps=16 smoother curves (8 times the passes of deletion
and insertion); --baselines=zero,blur,mean whether they depend on what replaces
pixels (3 times); occlusion 197 and rise 512 passes a photograph twice, for
itself and for one planted fault (hours; minutes on a GPU), with --parts=planted
once.
"""

import os

from absl import app, flags, logging

from iqa_jax import command

_WORKDIR = flags.DEFINE_list('workdir', [], 'run directory, or several')
_IMAGES = flags.DEFINE_string(
  'images', '', "folder, glob or CSV list; '' for the run's test photographs"
)
_LABELS = flags.DEFINE_string(
  'labels', None, 'CSV with labels of --images (see studies/label_table.py)'
)
_PIXEL_LABELS = flags.DEFINE_string(
  'pixel_labels',
  None,
  'folder of indexed PNGs, one a photograph, of the same stem, as in FunPiQ: 0 '
  'background, 1 good, 2 usable, 3 bad; photographs without are left out',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'folder to write to (default: WORKDIR/explanations)'
)
_WRITE_PLANTED = flags.DEFINE_string(
  'write_planted',
  None,
  'also write the planted faults and their --pixel_labels to this folder',
)
_METHODS = flags.DEFINE_list(
  'methods',
  ['evidence', *(_GRADIENT := [
    'gradcam', 'gradcampp', 'hirescam', 'layercam', 'xgradcam', 'eigencam',
  ])],
  'maps to test, or all; evidence: the own map of a head that has one (else it '
  'is left out); occlusion and rise are possible too and cost much more',
)  # fmt: skip
_PARTS = flags.DEFINE_list(
  'parts',
  ['planted', 'pixels', 'removal', 'randomisation'],
  'what to do: planted faults; labelled pixels; deletion, insertion and ROAD; '
  'destroyed networks. Planted faults alone halve what occlusion and rise cost',
)
_LAYER = flags.DEFINE_string(
  'layer',
  None,
  "feature point that gradients look at (the model's last; of a head of "
  'evidence the features that it looks at)',
)
_PLACEMENT = flags.DEFINE_enum(
  'placement',
  'network',
  ['network', 'pytorch_grad_cam'],
  'where maps lie on the photographs: where the cells look, or evenly',
)
_TARGET = flags.DEFINE_string(
  'target',
  'margin',
  'margin (inadequate over adequate), adequate_margin, predicted (the margin '
  'towards the verdict), labelled, a class or a criterion',
)
_EXAMPLES = flags.DEFINE_integer(
  'examples', 20, 'photographs at most, evenly over the labels; 0 for all'
)
_BASELINES = flags.DEFINE_list(
  'baselines', ['mean'], 'what replaces removed pixels: zero, blur, mean'
)
_STEPS = flags.DEFINE_integer('steps', 3, 'of deletion and insertion')
_SEVERITY = flags.DEFINE_float('severity', 0.8, 'of planted faults, 0 to 1')
# Half of the examples, about as many as get faults: no batch is filled up.
_BATCH = flags.DEFINE_integer('batch_size', 10, 'photographs at a time')
_SEED = flags.DEFINE_integer('seed', 0, 'of everything that is drawn by lot')


def main() -> None:
  """Runs the study."""
  if not _WORKDIR.value:
    raise app.UsageError('--workdir is needed: a run of iqa_jax.main')

  from iqa_jax import run_directory
  from iqa_jax.studies import show

  workdirs = [os.path.expanduser(w) for w in _WORKDIR.value]
  output = os.path.expanduser(
    _OUTPUT.value or os.path.join(workdirs[0], 'explanations')
  )
  results = []
  for number, workdir in enumerate(workdirs):
    folder = output if len(workdirs) == 1 else f'{output}/{number}'
    results.append(_study(workdir, folder))
  if len(results) > 1:
    text = show.overview(results)
    run_directory.write_text(os.path.join(output, 'overview.md'), text)
    print(text)


def _study(workdir: str, output: str) -> dict:
  """Studies one run, writes what was found to `output`, and returns it."""
  from iqa_jax import run_directory, trained
  from iqa_jax.models import evidence
  from iqa_jax.studies import (
    figures,
    methods,
    photographs,
    planted,
    show,
    study,
  )
  from iqa_jax.studies import subject as subject_lib

  loaded = trained.load(workdir)
  found = photographs.choose(
    loaded,
    workdir,
    images=_IMAGES.value,
    labels=_LABELS.value,
    pixel_labels=os.path.expanduser(_PIXEL_LABELS.value or '') or None,
    limit=_EXAMPLES.value,
    seed=_SEED.value,
  )
  names = list(methods.NAMES) if _METHODS.value == ['all'] else _METHODS.value
  layer = _LAYER.value
  if isinstance(loaded.model.head, evidence.Head):
    layer = layer or evidence.POINTS[0]
  else:
    names = [name for name in names if name != subject_lib.OWN]
  subject = subject_lib.Subject(
    loaded,
    methods=[m for m in names if m not in methods.GRADIENT_FREE],
    layer=layer,
    placement=_PLACEMENT.value,
    batch_size=_BATCH.value,
  )
  if _WRITE_PLANTED.value:
    clean = study.clean_of(subject, found, subject.logits(found.images))
    where = os.path.expanduser(_WRITE_PLANTED.value)
    count = planted.write(where, clean, _SEVERITY.value, _SEED.value)
    logging.info('written: %d planted faults to %s', count, where)
  result, shown = study.run(
    subject,
    found,
    parts=_PARTS.value,
    target=_TARGET.value,
    gradient_free=[m for m in names if m in methods.GRADIENT_FREE],
    baselines=_BASELINES.value,
    steps=_STEPS.value,
    severity=_SEVERITY.value,
    seed=_SEED.value,
  )
  run_directory.write_json(os.path.join(output, 'explanations.json'), result)
  text = show.report(result, _SEVERITY.value)
  run_directory.write_text(os.path.join(output, 'explanations.md'), text)
  figures.draw(result, shown, os.path.join(output, 'figures'))
  print(text)
  logging.info('written: %s', output)
  return result


if __name__ == '__main__':
  command.run(main)
