"""Explain many photographs: pictures, raw maps, a manifest, a contact sheet.

  python -m iqa_jax.export_heatmaps --images=photographs --output=heatmaps
  python -m iqa_jax.export_heatmaps --workdir=runs/demo --images=photographs \\
    --output=heatmaps

--images takes a folder (with all below it), a file, a glob pattern in quotes,
or a CSV list with a column `path`, `image`, `filename` or `image_id` whose
entries are relative to the list or to --root. JPEG, PNG, TIFF; DICOM with
pip install 'iqa_jax[dicom]'.

The output directory gets a picture of each kind of --outputs a photograph,
manifest.csv with a row for every photograph whatever became of it, and
index.html to browse. The same command again does what is missing: new, changed
and failed photographs. Large exports are divided by --num_shards and
--shard_index, one process each, and put together by --merge.

Exit codes: 0 done (photographs that can't be read are in the manifest), 1 an
error that the last line explains, 130 or 143 interrupted (SIGINT, SIGTERM):
what was under way is finished, the manifest written, the same command goes on.

Research use only: a map shows where the network found evidence, not what is
wrong with a photograph.
"""

import dataclasses
import os

from absl import app, flags, logging

from iqa_jax import command, runtimes
from iqa_jax.aliases import Record

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'run directory of the model (default: the one that comes with iqa_jax, '
  'trained on simulated photographs only)',
)
_IMAGES = flags.DEFINE_string(
  'images', None, 'folder, file, glob pattern or CSV list'
)
flags.DEFINE_string(
  'root', None, "what a list's paths are relative to (default: its folder)"
)
_OUTPUT = flags.DEFINE_string('output', None, 'output directory')
_OUTPUTS = flags.DEFINE_list(
  'outputs',
  ['overlay', 'panel', 'npz'],
  'what to write of each photograph: overlay (at its own size), contour (lines '
  'of equal evidence instead of colour), panel (photograph and overlay with '
  'verdict and colour bar), npz (the raw map, and how it lies on the '
  'photograph)',
)
flags.DEFINE_enum(
  'method',
  None,
  ['gradcam', 'gradcampp', 'hirescam', 'layercam', 'xgradcam', 'eigencam'],
  "how to explain (default: the run's configuration)",
)
flags.DEFINE_string(
  'layer', None, "feature point to explain (default: the run's, or the last)"
)
flags.DEFINE_string(
  'target',
  None,
  'what to explain: predicted (the margin towards the verdict), margin '
  '(inadequate over adequate), adequate_margin (the reverse), or the name '
  "of a class or criterion (default: the run's configuration)",
)
flags.DEFINE_enum(
  'placement',
  'network',
  ['network', 'pytorch_grad_cam'],
  'where a map lies on its photograph: network (each cell where it looks), or '
  'pytorch_grad_cam (as that library draws it: cells share the picture evenly)',
)
flags.DEFINE_enum(
  'scaling',
  None,
  ['image', 'logit', 'dataset'],
  'what the colours mean (default: logit of heads of evidence, else image): '
  'image (from none to the most in each photograph), or '
  'the same in all photographs: logit (what the logit would be if all of the '
  'photograph looked like this place; of gradcam, hirescam and xgradcam at the '
  'layer that a linear head averages, for a class or criterion), dataset (raw '
  'values)',
)
flags.DEFINE_float(
  'color_max',
  0.0,
  'value at the top of the colour bar of --scaling=logit (0: 5 logits) or '
  'dataset (0: taken from a sample of the photographs)',
)
flags.DEFINE_enum(
  'colors',
  'viridis',
  ['viridis', 'inferno', 'jet'],
  'colour map; jet covers the whole picture, like the pictures of earlier work',
)
flags.DEFINE_enum(
  'language',
  'en',
  ['en', 'pt'],
  'of the advice to photographers, from models that know causes',
)
flags.DEFINE_bool(
  'check_fundus',
  True,
  'give pictures that show no fundus a status instead of a verdict',
)
flags.DEFINE_float('opacity', 0.55, 'of the strongest evidence')
flags.DEFINE_integer('quality', 90, 'of JPEG files, 1 to 95')
flags.DEFINE_integer(
  'max_side', 0, "longest side of overlays and contours; 0: the photograph's"
)
flags.DEFINE_bool('contact_sheet', True, 'make index.html')
flags.DEFINE_integer(
  'sheet_limit',
  20_000,
  'photographs on the contact sheet; of more it shows a fixed random sample',
)
flags.DEFINE_integer('sheet_page', 300, 'photographs on a page')
flags.DEFINE_integer(
  'batch_size', 0, 'over all devices; 0: 8 a processor, 32 an accelerator'
)
flags.DEFINE_integer(
  'workers', 0, 'processes that decode and draw; 0: one a core'
)
flags.DEFINE_float(
  'memory_gb',
  2.0,
  'photographs kept decoded until they are drawn, by all workers together; '
  'beyond that they are decoded twice',
)
flags.DEFINE_enum(
  'runtime',
  'jax',
  runtimes.NAMES,
  'what computes: jax, or on a processor another that may be faster (extras '
  'onnx and openvino); openvino_bfloat16 gives other numbers',
)
flags.DEFINE_integer('shard_index', 0, 'which shard to do')
flags.DEFINE_integer('num_shards', 1, 'how many shards there are')
_MERGE = flags.DEFINE_bool(
  'merge', False, 'put the finished shards together: manifest, contact sheet'
)
flags.DEFINE_bool(
  'overwrite',
  False,
  'replace an export of another model or other settings, or drop photographs '
  'that --images no longer names',
)
flags.DEFINE_bool('progress', True, 'show a progress bar')
flags.DEFINE_string(
  'compilation_cache',
  os.path.join('~', '.cache', 'iqa_jax', 'xla'),
  'folder of compiled programs, kept between runs; empty for none. Must not be '
  'writable by others: compiled code is loaded from it',
)


def main() -> None:
  """Checks the flags and exports, or merges."""
  needed = [_OUTPUT] if _MERGE.value else [_IMAGES, _OUTPUT]
  for flag in needed:
    if not flag.value:
      text = flags.FLAGS[flag.name].help
      raise app.UsageError(f'--{flag.name} is needed: {text}')
  # It tells of every platform that it does not find.
  logging.get_absl_logger().manager.getLogger('jax').setLevel('WARNING')

  from iqa_jax import run_directory
  from iqa_jax.export import run
  from iqa_jax.export.options import Options

  workdir = os.path.expanduser(_WORKDIR.value or '')
  if not workdir and not _MERGE.value:
    workdir = run_directory.bundled()
    logging.info(
      'no --workdir: the bundled model judges, which learned from simulated '
      'photographs only'
    )
  # Every option is a flag of its name.
  values: Record = {
    f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Options)
  }
  options = Options(
    **values
    | {
      'workdir': workdir,
      'images': _IMAGES.value or '',
      'output': os.path.expanduser(_OUTPUT.value or ''),
      'outputs': tuple(_OUTPUTS.value),
    }
  )
  if _MERGE.value:
    count = run.merge(options)
    logging.info('%s: %d photographs', options.output, count)
    return
  summary = run.run(options)
  logging.info(
    '%s: %d photographs (%s)',
    options.output,
    summary.total,
    ', '.join(f'{n} {status}' for status, n in summary.statuses.items()),
  )


if __name__ == '__main__':
  command.run(main)
