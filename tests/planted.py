"""Caches of rows that a test writes by hand, so that every figure of them is known."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import RESPONSES, SHARD_SCHEMA, token_counts, total_tokens
from reflogp.data_schemas.manifest import Counts, Manifest
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.cache.row_ids import RowIds, packed
from reflogp.stages.cache.write_shard import describe, write_shard

Row = dict[str, Any]
Mask = Sequence[bool] | None
_IDS = ("prompt_ids", *(f"{name}_ids" for name in RESPONSES))
_MASKS = [f"{name}_mask" for name in RESPONSES]
HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>"


def row(
    prompt: list[int],
    chosen: list[int] | None,
    rejected: list[int] | None,
    *,
    logps: tuple[float, float] = (-1.0, -1.0),
    kl: list[int] | None = None,
    masks: tuple[Mask, Mask, Mask] = (None, None, None),
    cut: bool = False,
    confidence: float | None = None,
    kept: dict[str, str | None] | None = None,
) -> Row:
    """One row; each token of a response has the log-prob that `logps` says.

    `masks` are those of chosen, rejected and KL completion; what they leave out has 0.
    """
    found: Row = {"prompt_ids": prompt, "prompt_truncated": False, "confidence": confidence}
    found["kept"] = kept and [{"name": name, "value": value} for name, value in kept.items()]
    responses = zip(RESPONSES, (chosen, rejected, kl), (*logps, -1.0), masks, strict=True)
    for side, ids, logp, mask in responses:
        values = None if ids is None else np.full(len(ids), logp, np.float32)
        if values is not None and mask is not None:
            values[~np.array(mask)] = 0
        found |= {
            f"{side}_ids": ids,
            f"{side}_mask": None if mask is None else list(mask),
            f"{side}_truncated": cut and ids is not None,
            f"ref_{side}_logps": None if values is None else values.tolist(),
            f"ref_{side}_logp_sum": None if values is None else float(values.sum(dtype=np.float64)),
        }
    return found


def plant(folder: Path, rows: Sequence[Row], like: Manifest, *, shards: int = 2) -> Path:
    """Seal a cache of these rows in `folder`; the manifest says else what `like` says."""
    ids = RowIds()
    records = []
    totals = Counter[str]()
    whole = [
        one | {
            "source_row": number,
            "row_id": ids.assign(*(
                None if one[name] is None else packed(one[name])
                for name in _IDS if one[name] or name != "kl_ids"
            ), masks=[one[name] and bytes(one[name]) for name in _MASKS]),
        }
        for number, one in enumerate(rows)
    ]  # fmt: skip
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        path = folder / f"shard-{number:05d}.parquet"
        some = [whole[i] for i in part]
        table = pa.Table.from_pylist(some, SHARD_SCHEMA)
        write_shard(table, path)
        totals.update(token_counts(table), rows=len(some))
        records.append(describe(path, rows=len(some), tokens=total_tokens(table)))
    with Quarantine(folder / "quarantine.parquet"):
        pass
    paired = all(one["chosen_ids"] and one["rejected_ids"] for one in rows)
    counts = Counts(
        **totals,
        truncated=sum(one["chosen_truncated"] or one["rejected_truncated"] for one in rows),
        rescued=0, template_diverged=0, quarantined_by_reason={},
    )  # fmt: skip
    keep = [one["name"] for one in rows[0]["kept"] or ()]
    update = {
        "rules": like.rules | ({"keep": keep} if keep else {}),
        "kind": "paired" if paired else "unpaired",
        "shards": records,
        "quarantine": describe(folder / "quarantine.parquet", rows=0, tokens=0),
        "counts": counts,
        "source": like.source.model_copy(update={"rows": len(rows)}),
    }
    manifests.write(folder, like.model_copy(update=update))
    return folder


@pytest.fixture(scope="session")
def ids_of(checkpoint):
    """Text to token ids, with the tokenizer of the reference."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="session")
def faulty(cache, tmp_path_factory, ids_of) -> Path:
    """40 pairs; chosen is longer in 34 of the 38 that differ in length."""
    plain = [
        row([100 + i], list(range(200 + i, 212 + i)), list(range(400 + i, 406 + i)),
            logps=(-1.0 - i / 100, -2.0), confidence=1.0)
        for i in range(30)
    ]  # fmt: skip
    near = [9] * 20
    faults = [
        plain[0],  # twice: two duplicates
        plain[0],
        row([103], plain[3]["rejected_ids"], plain[3]["chosen_ids"], confidence=1.0),  # and swapped
        row([10], [*near, 1], [*near, 2], confidence=-1.0),  # similarity 40 / 42
        row([11], [*near, 1], [*near, 3], logps=(-1.0, -1.02), confidence=0.0),
        row([12], list(range(300, 312)), list(range(500, 506)), cut=True, confidence=1.0),
        row([13], list(range(300, 312)), list(range(510, 516)), cut=True, confidence=1.0),
        row([14], list(range(320, 332)), ids_of(HOSTILE), logps=(-1.0, -90.0), confidence=1.0),
        row([15], [600, 601, 602], [700, 701, 702, 703], confidence=2.0),
        row([16], [610, 611, 612], [710, 711, 712, 713], confidence=2.0),
    ]
    folder = tmp_path_factory.mktemp("faulty")
    return plant(folder, plain + faults, manifests.read(cache), shards=3)


@pytest.fixture(scope="session")
def unpaired(cache, tmp_path_factory) -> Path:
    """12 good responses and 4 bad ones; one of them is both, and one is there twice."""
    good = [row([i], list(range(i, i + 9)), None, kl=[i + 1, 1]) for i in range(11)]
    bad = [row([50 + i], None, list(range(i, i + 4)), kl=[i, 2]) for i in range(3)]
    rows = [*good, *bad, good[1], row([2], None, good[2]["chosen_ids"], kl=[3])]
    return plant(tmp_path_factory.mktemp("unpaired"), rows, manifests.read(cache))
