"""Tiny models of the families of causal language models: one table of names and dimensions.

A configuration gets the dimensions of `SIZES` under the names that it has, and what `SPECIAL` says
of its model type. Windows, chunks and the number of tokens that a sparse attention picks are 16, so
a sequence of 130 tokens is longer than all of them. The scores by which a sparse attention picks
are sums over heads that are often 0: with fewer than 16 heads many would be equal, and the choice
between equal ones is arbitrary.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

VOCABULARY, WINDOW = 96, 16
LARGEST = 5_000_000  # parameters of a model that counts as tiny
_SPREAD = 0.15

SIZES: dict[str, Any] = {
    name: size
    for size, names in (
        (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
        (WINDOW, "sliding_window attention_chunk_size attention_window_size window_size "
                 "sliding_window_size local_attention chunk_size mamba_chunk_size index_topk"),
        (1024, "max_position_embeddings n_positions max_seq_len n_ctx"),
        (_SPREAD, "initializer_range init_std embed_init_std"),
        (0, "pad_token_id unk_token_id num_kv_shared_layers"),
        (1, "bos_token_id decoder_start_token_id num_key_value_heads num_kv_heads n_group "
            "topk_group n_shared_experts num_shared_experts moe_num_shared_experts "
            "first_k_dense_replace num_dense_layers n_groups mamba_n_groups n_mamba_heads"),
        (2, "eos_token_id num_hidden_layers n_layer n_layers num_layers depth decoder_layers "
            "encoder_layers num_decoder_layers num_encoder_layers num_attention_heads num_heads "
            "n_head n_heads decoder_attention_heads encoder_attention_heads "
            "num_decoder_attention_heads num_encoder_attention_heads num_experts_per_tok "
            "num_experts_per_token moe_k moe_topk linear_num_key_heads "
            "linear_num_value_heads linear_num_heads"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts mamba_n_heads "
            "mamba_num_heads time_step_rank mamba_dt_rank mamba_d_conv linear_conv_kernel_dim"),
        (16, "index_n_heads kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim rotary_dim "
             "mamba_d_state state_size ssm_state_size hidden_size_per_layer_input "
             "router_hidden_size"),
        (32, "head_dim dim_head v_head_dim qk_head_dim attention_head_dim mamba_d_head "
             "mamba_head_dim index_head_dim linear_key_head_dim linear_value_head_dim "
             "linear_head_dim moe_intermediate_size shared_expert_intermediate_size "
             "moe_shared_expert_intermediate_size shared_intermediate_size "
             "expert_ffn_hidden_size word_embed_proj_dim"),
        (64, "hidden_size d_model n_embd dim_model embed_dim emb_dim lru_width "
             "pronunciation_embed_dim shape_embed_dim embedding_size out_hidden_size"),
        (96, "intermediate_size ffn_dim d_ff dim_ff n_inner decoder_ffn_dim encoder_ffn_dim "
             "dense_intermediate_size intermediate_size_mlp ffn_hidden_size feed_forward_size"),
        (128, "mamba_d_ssm"),
    )
    for name in names.split()
}  # fmt: skip

_LATENT: dict[str, Any] = {  # each head has its own key, made from a common latent
    "num_key_value_heads": 2
}
# the only size of a latent that vLLM's kernels for a CPU have
_DEEPSEEK: dict[str, Any] = _LATENT | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
_LOCAL: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}
_SPARSE = _LATENT | {"indexer_types": ["full", "full"]}

SPECIAL: dict[str, dict[str, Any]] = {
    "codegen": {"n_head": 4},
    "cohere2": _LOCAL | {"logit_scale": 1.0},
    "cohere": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "dbrx": {
        "attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 1, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_top_k": 2},
    },
    "deepseek_v2": _DEEPSEEK,
    # vLLM reads how the router picks
    "deepseek_v3": _DEEPSEEK | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "diffllama": {"num_key_value_heads": 2},
    "exaone4": _LOCAL,
    "gemma2": _LOCAL,
    "gemma3_text": _LOCAL,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": _LOCAL,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1},
    "lfm2": _CONVOLUTION | {"conv_dim": 64, "block_dim": 64},  # vLLM reads these
    "lfm2_moe": _CONVOLUTION,
    "llama4_text": {"no_rope_layers": [1, 0], "num_hidden_layers": 2, "attention_chunk_size": 32,
                    "num_experts_per_tok": 1},
    "longcat_flash": _LATENT | {"head_dim": 16, "zero_expert_num": 1},
    "mamba2": {"num_heads": 4},
    "mellum": _LOCAL,
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "olmo3": _LOCAL,
    "qwen3_next": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "num_buckets": 4,
                 "axial_pos_shape": [32, 32], "axial_pos_embds_dim": [32, 32], "hash_seed": 0,
                 "attention_head_size": 32, "local_attn_chunk_length": 16,
                 "lsh_attn_chunk_length": 16},
    "roc_bert": {"shape_vocab_size": VOCABULARY, "pronunciation_vocab_size": VOCABULARY},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": None},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["linear_attention", "hybrid"],
               "n_mamba_heads": 4, "adapter_rank": 4},
    "zaya": {"num_experts_per_tok": 1},
} | dict.fromkeys(
    ("axk1", "glm4_moe_lite", "kimi_linear", "minicpm3", "youtu"),
    _LATENT,
) | dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), _SPARSE)  # fmt: skip

_LLAMA_3 = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0,
                                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 32}}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # the ten most used come first
    "Llama 3": ("llama", _LLAMA_3),
    "Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Mistral": ("mistral", {}),
    "Gemma 3": ("gemma3_text", {}),
    "Gemma 2": ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0}),
    "Phi-3, Phi-4": ("phi3", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "gpt-oss": ("gpt_oss", {}),
    "OLMo 2": ("olmo2", {}),
    "Llama 2": ("llama", {}),
    "Llama 3.2": ("llama", _LLAMA_3 | {"tie_word_embeddings": True}),
    "Llama 4": ("llama4_text", {}),
    "Qwen2": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": True,
                        "max_window_layers": 1}),
    "Qwen2-MoE": ("qwen2_moe", {}),
    "Qwen3-Next": ("qwen3_next", {}),
    "Qwen3.5": ("qwen3_5_text", {}),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", {}),
    "Ministral": ("ministral", {}),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", {}),
    "Gemma 1": ("gemma", {}),
    "Gemma 3n": ("gemma3n_text", {}),
    "Gemma 4": ("gemma4_text", {}),
    "Phi-1, Phi-2": ("phi", {}),
    "Phi-3.5-MoE": ("phimoe", {}),
    "OLMo 1": ("olmo", {}),
    "OLMo 3": ("olmo3", {}),
    "OLMoE": ("olmoe", {}),
    "DeepSeek V2": ("deepseek_v2", {}),
    "DeepSeek V3": ("deepseek_v3", {}),
    "DeepSeek V3.2": ("deepseek_v32", {}),
    "GLM 4": ("glm4", {}),
    "GLM 4.5": ("glm4_moe", {}),
    "Granite 3": ("granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5,
                              "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "Granite 3 MoE": ("granitemoe", {}),
    "Granite 4": ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}),
    "LFM2": ("lfm2", {}),
    "LFM2-MoE": ("lfm2_moe", {}),
    "SmolLM3": ("smollm3", {}),
    "Falcon-H1": ("falcon_h1", {}),
    "Falcon": ("falcon", {}),
    "Falcon Mamba": ("falcon_mamba", {}),
    "Nemotron": ("nemotron", {}),
    "Nemotron-H": ("nemotron_h", {}),
    "Command R": ("cohere", {}),
    "Command A": ("cohere2", {}),
    "EXAONE 4": ("exaone4", {}),
    "StarCoder2": ("starcoder2", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-Neo": ("gpt_neo", {}),
    "GPT-NeoX, Pythia": ("gpt_neox", {}),
    "GPT-J": ("gptj", {}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "OPT": ("opt", {}),
    "BLOOM": ("bloom", {}),
    "MPT": ("mpt", {}),
    "Mamba": ("mamba", {}),
    "Mamba 2": ("mamba2", {}),
    "Jamba": ("jamba", {}),
    "Bamba": ("bamba", {}),
    "Zamba 2": ("zamba2", {}),
    "RecurrentGemma": ("recurrent_gemma", {}),
    "RWKV": ("rwkv", {}),
    "MiniMax": ("minimax", {}),
    "MiniMax M2": ("minimax_m2", {}),
    "MiniCPM3": ("minicpm3", {}),
    "Kimi Linear": ("kimi_linear", {}),
    "Hunyuan": ("hunyuan_v1_dense", {}),
    "Hunyuan-MoE": ("hunyuan_v1_moe", {}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "ERNIE 4.5 MoE": ("ernie4_5_moe", {}),
    "Seed-OSS": ("seed_oss", {}),
    "StableLM": ("stablelm", {}),
    "Apertus": ("apertus", {}),
    "Arcee": ("arcee", {}),
    "BitNet": ("bitnet", {}),
    "dots.llm1": ("dots1", {}),
    "DBRX": ("dbrx", {}),
}  # fmt: skip
MOST_USED = list(FAMILIES)[:10]


def config_of(model_type: str, **more: Any) -> PretrainedConfig:
    """A tiny configuration of a model type; `more` wins over the tables."""
    kind = CONFIG_MAPPING[model_type]
    special = SPECIAL.get(model_type, {}) | more
    known = {field.name for field in fields(kind)}
    names = getattr(kind, "attribute_map", {})
    wanted = {name: size for name, size in SIZES.items() if name in known}
    wanted = {names.get(name, name): size for name, size in wanted.items()}
    for name, part in getattr(kind, "sub_configs", {}).items():
        if name not in special and getattr(part, "model_type", "") in CONFIG_MAPPING:
            wanted[name] = config_of(part.model_type).to_dict()
    config: PretrainedConfig = kind(**wanted | special)
    return config


def make(folder: Path, config: PretrainedConfig) -> Path:
    """Save a float32 model of `config` with random weights that tell tokens and positions apart.

    Raises:
        ValueError: it would not be tiny.
    """
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters: give it smaller dimensions")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _spread(name, weight)
    model.save_pretrained(folder)
    return folder


def _spread(name: str, weight: Tensor) -> None:
    """Draw matrices and biases; norms and the constants of a recurrence keep what they begin with.

    Models begin with weights so small that every token is about as likely.
    """
    if weight.dim() >= 2 and "A_log" not in name:
        weight.normal_(0, _SPREAD)
    elif name.endswith(".bias") and not any(part in name for part in ("norm", "ln_", "dt")):
        weight.normal_(0, _SPREAD / 3)
