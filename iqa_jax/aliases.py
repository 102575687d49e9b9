"""Names that say more than Any does, for what is nested or comes from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# Dicts, lists, tuples and dataclasses, nested, with arrays as leaves.
PyTree: TypeAlias = Any
# A network's, by collection: 'params' and, with BatchNorm, 'batch_stats'.
Variables: TypeAlias = Mapping[str, PyTree]
# A JSON object: numbers, texts, None, lists and further objects by name.
Record: TypeAlias = dict[str, Any]
