"""The result of a study as Markdown tables; n stands everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iqa_jax.aliases import Record
from iqa_jax.explain import faithfulness
from iqa_jax.studies import planted
from iqa_jax.studies.methods import CRITERION_MAP

_CAPTION = (
  'Pixel AUC and average precision (AP) inside the field of view, of planted '
  'faults at {severity} in photographs called adequate; "before": the AUC of '
  "the same method's map of the photograph before the fault was planted. "
  'Energy: the share of positive evidence in the fault, over its share of the '
  'field (1 is chance). Hits: the strongest evidence lies in the fault. An '
  'empty map is a miss. Brackets: 95 % intervals by patient, of shares '
  "Wilson's with the design effect, else Student's t on the scale of the "
  'logit or logarithm.'
)


def overview(results: Iterable[Record]) -> str:
  """Returns one table of all networks and methods, for print.

  Args:
    results: of study.run, of one network each.
  """
  lines: list[str] = []
  for result in results:
    if 'planted' not in result:
      why = 'no photograph is called adequate'
      if 'planted' not in result['parts']:
        why = 'no faults were planted'
      lines += [f'{_network(result)}: {why}.', '']
      continue
    found = result['planted']
    groups = found['groups']
    seen = '' if result['seen_in_training'] else 'not '
    lines += [
      f'**{_network(result)}**, gradients at {result["layer"]}: '
      f'{groups["named"]["local_kinds"]} named kinds of fault ({seen}in '
      f'training) and {groups["unfamiliar"]["local_kinds"]} unfamiliar ones '
      f'(never in training), each in {_n(found)}; deletion, insertion and '
      f'ROAD: {_n(result["photographs"])}. P(inadequate) rises in '
      f'{_share(groups["named"]["rises"])} and '
      f'{_share(groups["unfamiliar"]["rises"])}.',
      '',
    ]
    of_groups = [groups[group]['measures'] for group in planted.GROUPS]
    removed = result.get('measures', {})
    of_all: list[Record] = [
      next((removed[m] for m in removed if m.startswith(what)), {})
      for what in ('deletion', 'insertion', 'road')
    ]
    names = ordered(dict.fromkeys(n for m in of_groups for n in m['auc']))
    head = ['AUC', 'before', 'AP', 'energy', 'hits']
    lines += table(
      [
        'map',
        *(f'{h}, named' for h in head),
        *(f'{h}, unfamiliar' for h in head),
        'deletion',
        'insertion',
        'ROAD',
      ],
      [_cells(name, of_groups, of_all) for name in names],
    )
    lines.append('')
  return '\n'.join(lines)


def _cells(
  name: str, of_groups: Sequence[Record], of_all: Sequence[Record]
) -> list[str]:
  """Returns a method's row: measures of each group of faults, then of all."""
  cells = [name]
  for measured in of_groups:
    for measure, digits, compact in (
      ('auc', 2, False),
      ('auc_before', 2, True),
      ('average_precision', 2, True),
      ('energy_over_area', 1, False),
      ('hits', 2, False),
    ):
      value = measured[measure].get(name)
      cells.append(told(value, digits=digits, compact=compact))
  return cells + [told(found.get(name), compact=True) for found in of_all]


def report(result: Record, severity: float) -> str:
  """Returns everything that study.run measured, as Markdown."""
  photographs = result['photographs']
  lines = [
    '# Are the explanations true?',
    '',
    f'{_n(photographs)} ({photographs["source"]}; '
    f'{len(photographs["skipped"])} skipped), target {result["target"]}. '
    + _CAPTION.format(severity=f'severity {severity:g}'),
    '',
    '## In one table',
    '',
    overview([result]),
  ]
  lines += _planted(result)
  lines += _pixels(result)
  lines += _removal(result)
  lines += _randomised(result)
  lines += _positional(result)
  parts = ', '.join(f'{k} {v:.0f} s' for k, v in result['seconds'].items())
  lines += ['', '## Cost', '', f'{parts}.']
  return '\n'.join(lines) + '\n'


def _planted(result: Record) -> list[str]:
  if 'planted' not in result:
    return []
  found = result['planted']
  local = [k for k in found['kinds'].values() if 'measures' in k]
  names = ordered(dict.fromkeys(n for k in local for n in k['measures']['auc']))
  lines = [
    '## Kind by kind',
    '',
    f'Pixel AUC, each kind in {_n(found)}; area: share of the field.',
    '',
  ]
  rows = []
  for kind, of_kind in [*found['kinds'].items(), *found['groups'].items()]:
    auc = of_kind.get('measures', {}).get('auc', {})
    rows.append(
      [
        f'**{kind}**' if kind in found['groups'] else kind,
        of_kind.get('criterion', ''),
        told(of_kind['area'], compact=True),
        _share(of_kind['rises']),
        _share(of_kind['turns']),
        *(told(auc.get(n), compact=True) for n in names),
      ]
    )
  head = ['fault', 'criterion', 'area', 'P rises', 'verdict turns']
  lines += table([*head, *names], rows)
  return [
    *lines,
    '',
    'Faults that fill the field have no place in it that a map could find.',
    '',
  ]


def _pixels(result: Record) -> list[str]:
  if 'pixels' not in result:
    return []
  lines = [
    '## Labelled pixels',
    '',
    'Bad against good pixels (usable ones left out), and usable and bad '
    'against good, of photographs that have both. A criterion: photographs '
    'that fail it and no other with a place.',
    '',
  ]
  rows = []
  for name, found in result['pixels'].items():
    for method in ordered(found['auc']):
      cells = (
        told(found[m][method])
        for m in (
          'auc', 'average_precision', 'auc_usable', 'average_precision_usable',
        )
      )  # fmt: skip
      rows.append(
        [
          name,
          _n(found['auc'][method]),
          told(found['bad'], compact=True),
          method,
          *cells,
        ]
      )
  head = ['photographs', 'n', 'bad', 'map', 'AUC', 'AP']
  return [
    *lines,
    *table([*head, 'AUC, usable too', 'AP, usable too'], rows),
    '',
  ]


def _removal(result: Record) -> list[str]:
  if 'measures' not in result:
    return []
  first = next(iter(result['measures'].values()))
  names = ordered(first)
  rows = [
    [measure, *(told(of_measure[n]) for n in names)]
    for measure, of_measure in result['measures'].items()
  ]
  empty = ', '.join(f'{k} {v}' for k, v in result['empty'].items())
  return [
    '## Removing and showing pixels',
    '',
    f'{_n(first[names[0]])}. Deletion and average drop: less is better. '
    'Insertion, average increase and ROAD: more is better. Outside: the share '
    'of positive evidence outside the field, which is '
    f'{told(result["outside_area"], compact=True)} of the frame.',
    '',
    *table(['measure', *names], rows),
    '',
    f'Empty maps (no positive evidence): {empty}.',
    '',
  ]


def _randomised(result: Record) -> list[str]:
  if 'randomisation' not in result:
    return []
  parts = list(next(iter(result['randomisation'].values()), {}))
  rows = []
  for kind in ('spearman', 'ssim'):
    for method, found in result['randomisation'].items():
      cells = [told(found[part][kind], compact=True) for part in parts]
      mirrored = told(result['flip'][method][kind], compact=True)
      rows.append([f'{method} {kind}', *cells, mirrored])
  return [
    '## Destroying the network from the top down',
    '',
    f"Similarity to the whole network's map; it must fall. "
    f'{_n(result["photographs"])}.',
    '',
    *table(['method', *parts, 'mirrored'], rows),
    '',
  ]


def _positional(result: Record) -> list[str]:
  found = result['positional']
  lines = ['## Positional faults', '', found['note'], '']
  if 'energy_at_rim' not in found:
    return [*lines, 'No photograph is labelled with this fault alone.']
  shares = ', '.join(
    f'{k} {told(v)}' for k, v in found['energy_at_rim'].items()
  )
  return [
    *lines,
    f'{found["n"]} photographs, {found["called_inadequate"]} called '
    f'inadequate. Evidence at the rim: {shares}; its area '
    f'{told(found["rim_area"])}.',
  ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table."""
  return [
    '| ' + ' | '.join(cells) + ' |'
    for cells in (head, ['---'] * len(head), *rows)
  ]


def told(
  found: Record | None, *, digits: int = 2, compact: bool = False
) -> str:
  """Returns a mean and its interval in words; '-' where there is none."""
  if not found or found['mean'] is None:
    return '-'
  mean = f'{found["mean"]:.{digits}f}'
  if compact or found['low'] is None or found['high'] is None:
    return mean
  return f'{mean} ({found["low"]:.{digits}f}-{found["high"]:.{digits}f})'


def _share(found: Record) -> str:
  return (
    f'{found["mean"]:.0%} ({100 * found["low"]:.0f}-{100 * found["high"]:.0f})'
  )


def _n(found: Record) -> str:
  """Returns how many photographs of how many patients."""
  return f'{found["n"]} photographs of {found["n_patients"]} patients'


def _network(result: Record) -> str:
  return f'{result["network"]}, head {result["head"]}'


def ordered(found: Iterable[str]) -> list[str]:
  """Returns maps in order: the head's own, other methods, controls."""
  last = faithfulness.CONTROLS
  order = {CRITERION_MAP: 0.5, 'evidence': 0}
  names = [n for n in found if n not in last]
  names.sort(key=lambda n: order.get(n, 1))
  return [*names, *(n for n in last if n in found)]
