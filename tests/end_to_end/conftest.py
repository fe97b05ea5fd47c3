"""A LoRA adapter that is hard to get right."""

from pathlib import Path

import pytest

from tests.checkpoints import make_adapter


@pytest.fixture(scope="session")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that vLLM must heed: rank-stabilized scale, ranks and alphas that differ by module."""
    return make_adapter(
        checkpoint,
        tmp_path_factory.mktemp("adapter"),
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"down_proj": 9},
        alpha_pattern={"q_proj": 3},
    )
