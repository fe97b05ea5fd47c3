"""What a run on a CPU leaves behind is given back."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.loop import host_memory

_KERNELS = """
import sys, torch
from reflogp.stages.train.loop.host_memory import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
torch.set_num_threads(1)
layer = torch.nn.Linear(256, 256, dtype=torch.bfloat16)
with torch.no_grad():
    for length in range(1, 400):
        layer(torch.ones(length, 256, dtype=torch.bfloat16))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def resident_kib(*arguments: str) -> int:
    # without what an earlier test that trained has set
    unset = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    command = [sys.executable, "-c", _KERNELS, *arguments]
    done = subprocess.run(command, env=unset, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 kernels here"
)
def test_kernels_of_many_lengths_do_not_add_up():
    assert resident_kib("all") - resident_kib("few") > 20 * 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_free_memory_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    # as numbers of Python are too small for it: blocks of C's own heap, the last of which stays
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(ctypes.c_size_t(100_000)) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:
        libc.free(ctypes.c_void_p(block))
    held = resident()
    host_memory.give_back()
    assert held - resident() > 80_000_000 // 4096
    libc.free(ctypes.c_void_p(blocks[-1]))


def test_where_the_c_library_cannot_nothing_happens(monkeypatch):
    monkeypatch.setattr(host_memory, "_malloc_trim", lambda: None)
    host_memory.give_back()


@pytest.mark.parametrize(("lora_r", "times"), [(0, 6), (4, 0)])
def test_runs_of_all_weights_give_back_in_the_passes_beside_gradients(
    cache, console, tmp_path, monkeypatch, lora_r, times
):
    given_back = []
    monkeypatch.setattr(
        "reflogp.stages.train.loop.trainer.give_back", lambda: given_back.append(True)
    )
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # as it was when the test ends
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    run_train(
        TrainConfig(
            cache=cache, output=tmp_path, lora_r=lora_r, batch_size=3, accumulation=4, epochs=1,
            checkpoint_steps=0,
        ),
        console,
    )  # fmt: skip
    # of 24 pairs: two steps of four passes, the first of which has none beside it
    assert len(given_back) == times
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
