"""What tells one table's data from another's, for the note of a checkpoint."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable

_SAMPLED_ROWS = 1024


def identity(table: ClipTable) -> dict[str, Any]:
    """Rows, a fingerprint of columns and values, and the content hash of the store.

    Where a table lies does not count, nor whether it was saved. Values are looked at in 1,024 rows spread over the
    whole, so that tens of millions take no longer: an edit of a single row may pass.
    """
    rows = np.unique(np.linspace(0, len(table) - 1, _SAMPLED_ROWS).round().astype(np.int64))
    digest = hashlib.sha256()
    for name in sorted(table.columns):
        column = table.arrow(name)
        digest.update(f"{name}: {column.type}\n".encode())
        # As values and not as bytes, which depend on how a table was cut into batches.
        digest.update(repr(column.take(pa.array(rows)).to_pylist()).encode())
    return {
        "rows": len(table),
        "columns": sorted(table.columns),
        "fingerprint": digest.hexdigest()[:16],
        "store": None if table.store is None else open_store(table.store).content_hash,
    }
