"""The journal outlives what happens to it; the manifest is safe to open."""

from __future__ import annotations

import csv

import pytest

from iqa_jax.export import manifest
from iqa_jax.export.journal import Journal, ManifestError, merged, open_finished

SETTINGS = {'checkpoint': 'abc', 'num_shards': 1, 'logits': ['a', 'b']}


def row(name: str, **more):
  return {'path': name, 'status': 'ok', **more}


def journal_file(folder):
  return next((folder / 'journal').iterdir())


def test_goes_on_where_it_was_cut(tmp_path):
  with Journal(tmp_path, 0, SETTINGS) as journal:
    journal.append([row('a'), row('b\udcff')])
    journal.append([row('a', width=3)])
  path = journal_file(tmp_path)
  whole = path.read_bytes()
  first = len(whole.splitlines(keepends=True)[0])
  for cut in range(len(whole)):
    path.write_bytes(whole[:cut])
    with Journal(tmp_path, 0, SETTINGS) as journal:
      known = whole[:cut].count(b'\n') - 1
      assert len(journal) == max(min(known, 2), 0)
      journal.append([row('c', note='x')])
      assert journal.read('c')['note'] == 'x'
      if cut == len(whole) - 1:
        assert journal.read('a') == row('a')
    with Journal(tmp_path, 0, SETTINGS) as journal:
      assert 'c' in journal
    assert path.stat().st_size >= first


def test_damaged_line_costs_only_itself(tmp_path):
  with Journal(tmp_path, 0, SETTINGS) as journal:
    journal.append([row('a'), row('b'), row('c')])
  path = journal_file(tmp_path)
  lines = path.read_bytes().splitlines(keepends=True)
  lines[2] = b'\x00' * 5 + b'[[[\n'
  path.write_bytes(b''.join(lines))
  with Journal(tmp_path, 0, SETTINGS) as journal:
    assert journal.keys() == ['a', 'c']
    assert journal.read('c') == row('c')


def test_other_settings_are_refused_or_replaced(tmp_path):
  with Journal(tmp_path, 0, SETTINGS) as journal:
    journal.append([row('a')])
  other = {**SETTINGS, 'checkpoint': 'xyz'}
  with pytest.raises(ManifestError, match="'abc' there, 'xyz' now"):
    Journal(tmp_path, 0, other)
  with Journal(tmp_path, 0, SETTINGS) as journal:
    assert 'a' in journal  # the refusal has not harmed it
  with Journal(tmp_path, 0, other, overwrite=True) as journal:
    assert not len(journal)
    journal.append([row('b')])
  with Journal(tmp_path, 0, other, overwrite=True) as journal:
    assert 'b' in journal  # and goes on, if stopped, without starting anew


def test_replaced_export_leaves_nothing_behind(tmp_path):
  """Whatever comes next, even a kill: no row, page or picture of before."""
  output = tmp_path / 'out'
  with Journal(output, 0, SETTINGS) as journal:
    journal.append(
      [
        row('a', files={'overlay': ['overlay/a.jpg', 1]}),
        row('b', files={'panel': ['../mine.jpg', 1], 'npz': ['notes.txt', 1]}),
        row('c', files={'npz': ['npz/../../mine.jpg', 1]}),
      ]
    )
  gone = ['manifest.csv', 'index.html', 'index-2.html', 'overlay/a.jpg',
          'manifest-00001-of-00002.csv']  # fmt: skip
  stays = ['notes.txt', '../mine.jpg', 'overlay/other.jpg']
  for name in (*gone, *stays):
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text('x')
  other = {**SETTINGS, 'checkpoint': 'xyz'}
  with pytest.raises(ManifestError):
    Journal(output, 0, other)
  assert all((output / name).exists() for name in (*gone, *stays))
  Journal(output, 0, other, overwrite=True).close()
  assert [name for name in gone if (output / name).exists()] == []
  assert all((output / name).exists() for name in stays)


def test_other_number_of_shards_is_other_settings(tmp_path):
  Journal(tmp_path, 0, SETTINGS).close()
  two = {**SETTINGS, 'num_shards': 2}
  with pytest.raises(ManifestError, match='num_shards'):
    Journal(tmp_path, 1, two)
  Journal(tmp_path, 1, two, overwrite=True).close()
  assert len(list((tmp_path / 'journal').iterdir())) == 1


def test_one_writer_a_shard(tmp_path):
  with (
    Journal(tmp_path, 0, SETTINGS),
    pytest.raises(ManifestError, match='in use'),
  ):
    Journal(tmp_path, 0, SETTINGS)
  Journal(tmp_path, 0, SETTINGS).close()


def test_merge_wants_every_shard_finished(tmp_path):
  settings = {**SETTINGS, 'num_shards': 2}
  with pytest.raises(ManifestError, match='shard 0 of 2 has not run'):
    open_finished(tmp_path, 2)
  with Journal(tmp_path, 0, settings) as journal:
    journal.append([row('b')])
    journal.finish()
  with pytest.raises(ManifestError, match='shard 1 of 2 has not run'):
    open_finished(tmp_path, 2)
  with Journal(tmp_path, 1, settings) as journal:
    journal.append([row('a')])
  with pytest.raises(ManifestError, match='shard 1 of 2 is unfinish'):
    open_finished(tmp_path, 2)
  with Journal(tmp_path, 1, settings) as journal:
    journal.finish()
  journals, found = open_finished(tmp_path, 2)
  assert found == settings
  assert [r['path'] for r in merged(journals)] == ['a', 'b']
  for journal in journals:
    journal.close()
  with Journal(tmp_path, 1, settings) as journal:
    journal.forget(['a'])
    assert not journal.finished


def test_forgotten_stays_forgotten(tmp_path):
  with Journal(tmp_path, 0, SETTINGS) as journal:
    journal.append([row('a'), row('b')])
    journal.forget(['a', 'never'])
  with Journal(tmp_path, 0, SETTINGS) as journal:
    assert journal.keys() == ['b']


def test_manifest_of_hostile_names(tmp_path):
  names = ['=1+1.jpg', '+a', '-b', '@c', '\td', 'e,"f"\n.jpg', 'g\udcff', '数']
  count = manifest.write(
    tmp_path / 'm.csv',
    [
      row(name, raw_min=-0.5, p_calibrated=None, empty_map=True)
      for name in names
    ],
    ['a', 'inadequate'],
  )
  assert count == len(names)
  with open(tmp_path / 'm.csv', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  for found, name in zip(rows, names, strict=True):
    # No spreadsheet runs it, and it still names the same file.
    assert found['path'][0] not in '=+-@\t\r'
    assert found['path'].removeprefix('./') == name.replace('\udcff', '\\udcff')
    assert found['raw_min'] == '-0.5'
    assert found['p_calibrated'] == ''
    assert found['empty_map'] == '1'
  header = list(rows[0])
  assert len(header) == len(set(header))
  assert header[0] == 'path' and header[-1] == 'runtime'
