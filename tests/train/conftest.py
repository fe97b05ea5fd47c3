"""Caches with weights and with masks, for the tests of one process and of two."""

from pathlib import Path

import numpy as np
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.curate import run_filter
from reflogp.stages.filter.config import FilterRules
from tests.caches import rows
from tests.conftest import Silent
from tests.masks import masks_of
from tests.planted import plant


@pytest.fixture(scope="session")
def weighted(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache, weighted by length ratio."""
    folder = tmp_path_factory.mktemp("weighted")
    run_filter(cache, folder, FilterRules(weight_by="length-ratio"), Silent())
    return folder


@pytest.fixture(scope="session")
def masked(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache, with masks of every kind; some responses have none."""
    every = rows(cache)
    for number, row in enumerate(every):
        for first, side in enumerate(("chosen", "rejected")):
            ids, logps = row[f"{side}_ids"], row[f"ref_{side}_logps"]
            *kinds, _ = masks_of(len(ids))  # without the one that leaves nothing to train on
            mask = [*kinds, None][(number + first) % (len(kinds) + 1)]
            if mask is not None:
                logps = np.where(mask, np.float32(logps), 0)
                row |= {
                    f"{side}_mask": mask.tolist(),
                    f"ref_{side}_logps": logps.tolist(),
                    f"ref_{side}_logp_sum": float(logps.sum(dtype=np.float64)),
                }
    return plant(tmp_path_factory.mktemp("masked"), every, manifests.read(cache))
