"""Review a trained model criterion by criterion, in figures for print.

  python -m iqa_jax.review_criteria --workdir=runs/brset
  python -m iqa_jax.review_criteria --workdir=runs/eyeq \\
    --images=~/photographs --labels=labels.csv

For adequate photographs and for each criterion that can fail (focus,
illumination, image field, artifacts): the recall, examples (the most confident
right and wrong ones, and the borderline), the mean map of the evidence with
all eyes as right eyes, and the regions where it lies. Writes review.json,
review.md and figures as PNG and PDF. Without --images the run's own test
photographs are looked for (a run on fundus_sim gets new drawings).
"""

import os

from absl import app, flags, logging

from iqa_jax import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory')
_IMAGES = flags.DEFINE_string(
  'images', '', "folder, glob or CSV list; '' for the run's test photographs"
)
_LABELS = flags.DEFINE_string(
  'labels', None, 'CSV with labels of --images (see studies/label_table.py)'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'folder to write to (default: WORKDIR/review)'
)
_METHOD = flags.DEFINE_string('method', 'gradcam', 'how maps are made')
_LAYER = flags.DEFINE_string('layer', None, "feature point (the model's last)")
_FRAME = flags.DEFINE_enum(
  'frame', 'disc', ['disc', 'field'], 'what the mean maps are centred on'
)
_EXAMPLES = flags.DEFINE_integer(
  'examples', 0, 'photographs at most, evenly over the labels; 0 for all'
)
_BATCH = flags.DEFINE_integer('batch_size', 16, 'photographs at a time')
_SEED = flags.DEFINE_integer('seed', 0, 'of what is drawn by lot')


def main() -> None:
  """Runs the review."""
  if not _WORKDIR.value:
    raise app.UsageError('--workdir is needed: a run of iqa_jax.main')

  from iqa_jax import run_directory, trained
  from iqa_jax.studies import photographs, review, review_figures, subject

  workdir = os.path.expanduser(_WORKDIR.value)
  output = os.path.expanduser(_OUTPUT.value or os.path.join(workdir, 'review'))
  loaded = trained.load(workdir)
  found = photographs.choose(
    loaded,
    workdir,
    images=_IMAGES.value,
    labels=_LABELS.value,
    limit=_EXAMPLES.value,
    seed=_SEED.value,
  )
  result, shown = review.run(
    subject.Subject(
      loaded,
      methods=[_METHOD.value],
      layer=_LAYER.value,
      batch_size=_BATCH.value,
    ),
    found,
    frame=_FRAME.value,
  )
  text = review_figures.table(result)
  run_directory.write_json(os.path.join(output, 'review.json'), result)
  run_directory.write_text(os.path.join(output, 'review.md'), text)
  review_figures.draw(result, shown, os.path.join(output, 'figures'))
  print(text)
  logging.info('written: %s', output)


if __name__ == '__main__':
  command.run(main)
