"""What an export is asked to do, and how it may end."""

from __future__ import annotations

import dataclasses

from iqa_jax import errors, runtimes
from iqa_jax.explain import overlay
from iqa_jax.export import manifest
from iqa_jax.judging import advice
from iqa_jax.photograph import placement

SCALINGS = ('image', 'logit', 'dataset')
DEFAULT_OUTPUTS = ('overlay', 'panel', 'npz')


class ExportError(errors.UserError):
  """The export can't go on; the message says what to do."""


class Interrupted(errors.Interrupted):
  """A signal ended the export early."""

  def __init__(self, number: int, done: int, total: int):
    super().__init__(
      number,
      f'stopped with {done} of {total} photographs done; the same command '
      'goes on',
    )


@dataclasses.dataclass(frozen=True)
class Options:
  """What an export is to do; see the flags of export_heatmaps.

  Attributes:
    workdir: run directory of the model.
    images: folder, file, glob pattern or CSV list.
    output: the output directory.
    root: what the paths of a list are relative to; None for its folder.
    outputs: some of manifest.KINDS.
    method: of cam.METHODS; None as the run's configuration says.
    layer: feature point; None likewise.
    target: 'predicted' or one of the task's targets; None likewise.
    placement: of placement.NAMES, how maps lie on the photographs.
    scaling: one of SCALINGS; None for 'logit' of heads of evidence, 'image' of
      others.
    color_max: what the top of the colour bar stands for ('logit': in logits;
      'dataset': in raw units); 0 for the default.
    language: of the advice, one of advice.LANGUAGES.
    check_fundus: whether pictures of something else get no verdict.
    colors: one of overlay.COLORS.
    opacity: of the strongest evidence, 0 to 1.
    quality: of JPEGs, 1 to 95.
    max_side: of overlays and contours, in pixels; 0 for the original's.
    contact_sheet: whether to make one.
    sheet_limit: most photographs on it; of more a fixed random sample.
    sheet_page: photographs a page.
    batch_size: over all devices; 0 for 8 a processor, 32 an accelerator.
    workers: processes that decode and draw; 0 for one a core.
    memory_gb: bound of the photographs that all workers keep decoded.
    shard_index: which shard this process does.
    num_shards: how many there are.
    overwrite: replace an export of other settings, drop photographs that are
      no longer named.
    progress: whether to show a bar.
    compilation_cache: folder of compiled programs; '' for none.
    runtime: of runtimes.NAMES, what computes.
  """

  workdir: str
  images: str
  output: str
  root: str | None = None
  outputs: tuple[str, ...] = DEFAULT_OUTPUTS
  method: str | None = None
  layer: str | None = None
  target: str | None = None
  placement: str = 'network'
  scaling: str | None = None
  color_max: float = 0.0
  language: str = 'en'
  check_fundus: bool = True
  colors: str = 'viridis'
  opacity: float = 0.55
  quality: int = 90
  max_side: int = 0
  contact_sheet: bool = True
  sheet_limit: int = 20_000
  sheet_page: int = 300
  batch_size: int = 0
  workers: int = 0
  memory_gb: float = 2.0
  shard_index: int = 0
  num_shards: int = 1
  overwrite: bool = False
  progress: bool = True
  compilation_cache: str = ''
  runtime: str = 'jax'


@dataclasses.dataclass
class Summary:
  """What an export did.

  Attributes:
    total: photographs of this shard.
    skipped: of them, complete before.
    statuses: status -> photographs, of the whole shard.
    seconds: processor time by stage: decode, prepare, network, render, encode.
      The network's is that of this process meanwhile.
    wall_s: time of the pipeline, start-up excluded.
    first_s: seconds from the start to the first finished photograph.
  """

  total: int = 0
  skipped: int = 0
  statuses: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  wall_s: float = 0.0
  first_s: float | None = None


def check(options: Options) -> None:
  """Raises InvalidValue where an option is none that it may be."""
  unknown = [o for o in options.outputs if o not in manifest.KINDS]
  if unknown or not options.outputs:
    raise errors.InvalidValue(
      f'--outputs={",".join(options.outputs)}: expected some of '
      f'{", ".join(manifest.KINDS)}'
    )
  overlay.palette(options.colors)
  errors.one_of('--language=', options.language, advice.LANGUAGES)
  if options.scaling is not None:
    errors.one_of('--scaling=', options.scaling, SCALINGS)
  errors.one_of('--placement=', options.placement, placement.NAMES)
  runtimes.check(options.runtime)
  for name, low, high in (
    ('opacity', 0, 1),
    ('quality', 1, 95),
    ('num_shards', 1, 100_000),
    ('shard_index', 0, options.num_shards - 1),
    ('memory_gb', 0, 10_000),
    ('max_side', 0, 100_000),
    ('color_max', 0, 1e30),
    ('sheet_page', 1, 10_000),
    ('sheet_limit', 1, 10_000_000),
    ('batch_size', 0, 100_000),
    ('workers', 0, 1024),
  ):
    value = getattr(options, name)
    if not low <= value <= high:
      raise errors.InvalidValue(
        f'--{name}={value} is not within {low} to {high}'
      )
