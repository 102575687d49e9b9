"""Names for what JAX nests: types that say more than Any does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# Dicts, lists, tuples and dataclasses, nested, with arrays as leaves.
PyTree: TypeAlias = Any
# A network's, by collection: 'params' and, with BatchNorm, 'batch_stats'.
Variables: TypeAlias = Mapping[str, PyTree]
