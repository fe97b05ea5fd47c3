"""Whatever stands in a row of a cache whose checksums fit, it is read or refused in a line."""

import shutil
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.curate import run_diagnose, run_filter_trial
from reflogp.pipeline.run import run_integrity
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.interop.cached_reference import CachedReference
from reflogp.stages.train.data.cached_pairs import CachedPairs
from tests.conftest import Silent
from tests.mutations import fuzz, outcome
from tests.trust.forge import forge, rehash

_TOKENS = st.sampled_from([0, 5, 1023, 1024, -1, 2**31 - 1])
_IDS = st.one_of(st.none(), st.lists(_TOKENS, max_size=4))
_FLOATS = st.one_of(st.none(), st.floats(width=32))
_LOGPS = st.one_of(st.none(), st.lists(st.floats(width=32), max_size=4))
_BOOLEANS = st.booleans()
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "row_id": st.one_of(st.text(max_size=5), st.sampled_from(["0" * 32, "0" * 32 + "-1"])),
    "source_row": st.sampled_from([0, -1, 23, 24, 2**63 - 1, -(2**63)]),
    "prompt_ids": _IDS.filter(lambda ids: ids is not None),
    "prompt_truncated": _BOOLEANS,
    "confidence": _FLOATS,
    "weight": _FLOATS,
    "kept": st.sampled_from([None, [], [{"name": "a", "value": None}]]),
}
for _side in ("chosen", "rejected", "kl"):
    _VALUES |= {
        f"{_side}_ids": _IDS,
        f"ref_{_side}_logps": _LOGPS,
        f"ref_{_side}_logp_sum": _FLOATS,
    }
for _side in ("chosen", "rejected"):
    _VALUES[f"{_side}_truncated"] = _BOOLEANS


@st.composite
def changes(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """Values for some fields of a row, and whether its id is made to fit."""
    names = draw(st.lists(st.sampled_from(sorted(_VALUES)), min_size=1, max_size=3, unique=True))
    return {name: draw(_VALUES[name]) for name in names}, draw(_BOOLEANS)


@fuzz
@given(change=changes())
def test_rows(change, cache, tmp_path_factory):
    values, fits = change

    def put(rows: list[dict[str, Any]]) -> None:
        rows[0] |= values
        if fits:
            rehash(rows[0])

    folder = tmp_path_factory.mktemp("fuzz") / "forged"
    try:
        forge(cache, folder, put)
        whole = not run_integrity(folder, Silent())
        manifest = manifests.read(folder)
        for command in (
            lambda: list(each_shard(folder, manifest, lambda _, table: table.num_rows)),
            lambda: len(CachedPairs(folder, manifest, tokens=True)),
            lambda: run_diagnose(folder, None, Silent()),
            lambda: run_filter_trial(folder, FilterRules(drop_duplicates=True), Silent()),
            lambda: len(CachedReference([folder])),
        ):
            # what one command takes for sound, all of them do
            assert (outcome(command) is not None) == whole, (values, fits)
    finally:
        shutil.rmtree(folder.parent)
