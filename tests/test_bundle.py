"""The model that comes with the package, and how one is made of a run."""

import json

import jax
import numpy as np
import pytest

from iqa_jax import config as config_lib
from iqa_jax import errors, grader, models, run_directory, trained
from iqa_jax.simulation import photograph


def saved(folder, scale=1.0):
  config = config_lib.variant('bundled')
  config.model.width = 0.25
  model = models.from_config(config, 2)
  variables = models.init(model, jax.random.key(0), 64)
  variables = jax.tree.map(lambda v: np.asarray(v) * scale, variables)
  record = {
    'config': json.loads(config_lib.to_json(config)),
    'outputs': ['adequate', 'inadequate'],
    'image_size': 64,
    'step': 1,
    'source': {'source': '/home/me/runs/drawn', 'file': '/home/me/runs/drawn'},
  }
  record['config']['data']['data_dir'] = '/home/me/data'
  record['config']['model']['pretrained'] = '/home/me/runs/drawn'
  digest = run_directory.save_model(folder, variables, record)
  return variables, digest


def test_half_the_digits_give_nearly_the_same_model(tmp_path):
  variables, digest = saved(tmp_path / 'run')
  size = run_directory.save_halved(
    str(tmp_path / 'run'), str(tmp_path / 'half')
  )
  whole = (tmp_path / 'run/model').glob('*.safetensors')
  assert size < 0.6 * next(whole).stat().st_size
  loaded = run_directory.load_model(tmp_path / 'half')
  assert loaded.record['made_from'] == {'sha256': digest}
  for a, b in zip(
    jax.tree.leaves(variables), jax.tree.leaves(loaded.variables), strict=True
  ):
    assert b.dtype == np.float32
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
  assert trained.load(tmp_path / 'half').image_size == 64
  # Where things lay on the machine that trained it is nobody's business.
  text = (tmp_path / 'half/model/model.json').read_text()
  assert '/home' not in text and '"pretrained": "drawn"' in text


def test_a_weight_beyond_float16_is_named(tmp_path):
  saved(tmp_path / 'run', scale=1e7)
  with pytest.raises(errors.InvalidValue, match=r'params/.* beyond'):
    run_directory.save_halved(str(tmp_path / 'run'), str(tmp_path / 'half'))


def _bundled():
  try:
    return run_directory.bundled()
  except errors.UserError:
    return None


@pytest.mark.skipif(_bundled() is None, reason='no model in the package')
def test_the_bundled_model_tells_bad_drawings_from_good():
  """Drawn; figures on real photographs are in iqa_jax/bundled/README.md."""
  judge = grader.load()
  odds = {}
  for broken in ((), ('focus', 'illumination')):
    images = [
      photograph.draw(8_000_000 + i, 256, broken=broken).image for i in range(6)
    ]
    odds[broken] = [v.log_odds for v in judge.judge(images)]
  good, bad = odds.values()
  assert np.median(bad) > np.median(good) + 1
