"""A tiny random checkpoint of every causal model type of the library.

Sizes are given under whichever of these names a config has. Scales, and caps where a type has them, are set
away from 1: what is left out of a computation shows.
"""

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mediation.model.attention import make_changeable

KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 60_000_000  # parameters: a type whose sizes have other names is not made

SIZES = {
    420: "vocab_size vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_seq_len mamba_d_ssm",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size n_inner d_ff d_inner dff",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim attention_hidden_size "
        "lru_width",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size q_lora_rank "
        "kv_lora_rank",
    8: "head_dim v_head_dim d_head mamba_n_heads mamba_d_head mamba_d_state mamba_chunk_size chunk_size "
       "state_size mamba_num_heads mamba_head_dim ssm_state_size linear_key_head_dim linear_value_head_dim "
       "hidden_size_per_layer_input index_head_dim",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads rotary_dim "
       "num_experts num_local_experts n_routed_experts moe_num_experts qk_rope_head_dim qk_nope_head_dim "
       "sliding_window time_step_rank mamba_dt_rank linear_num_value_heads block_size",
    3: "num_hidden_layers num_layers n_layer n_layers decoder_layers index_topk",
    2: "num_key_value_heads num_experts_per_tok num_experts_per_token moe_k moe_topk encoder_layers "
       "expand_ratio linear_num_key_heads index_n_heads",
    1: "n_group topk_group n_shared_experts mamba_n_groups n_groups first_k_dense_replace "
       "moe_layer_start_index num_dense_layers",
    0: "pad_token_id bos_token_id eos_token_id decoder_start_token_id",
}
OF_NAME: dict[str, float] = {name: size for size, names in SIZES.items() for name in names.split()}
OF_NAME["encoder_layerdrop"] = 0.0
SCALE = 0.7  # where the default is 1

LATENT = {"num_key_value_heads": 4, "head_dim": 4}  # keys and values of all heads from one small vector
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv"]}
DECODER = {"is_decoder": True}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
SPECIAL = {  # where sizes alone do not fit; None takes a size back
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
                     "glm_moe_dsa", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie",
                     "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
                     "xlm-roberta", "xlm-roberta-xl"), DECODER),
    **dict.fromkeys(("granitemoehybrid", "minimax", "olmo_hybrid", "qwen3_next", "qwen3_5_text",
                     "qwen3_5_moe_text"), HYBRID),
    **{kind: {**HYBRID, **LATENT, "linear_head_dim": 8} for kind in ("bailing_hybrid", "kimi_linear")},
    **dict.fromkeys(("lfm2", "lfm3"), CONVOLUTIONS),
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {**DECODER, "attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": SECTIONS, "sliding_attention": SECTIONS}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 8,
        "altup_num_inputs": 2, "intermediate_size": [48] * 4},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {**CONVOLUTIONS, "num_dense_layers": 1},
    "longcat_flash": {**LATENT, "num_layers": 2, "num_hidden_layers": None},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax_m3_vl_text": {"index_block_size": 2, "index_topk_blocks": 2, "index_local_blocks": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention", "recurrent"],
                        "attention_window_size": 64},
    "reformer": {**DECODER, "attn_layers": ["local"] * 3, "attention_head_size": 8, "axial_pos_embds": False},
    "xmod": {**DECODER, "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["hybrid"] * 3, "attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_mem_blocks": 1,
               "mamba_ngroups": 1, "attention_head_dim": 16, "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny_config(kind: str, **settings) -> PreTrainedConfig:
    """The config of a model type with a few layers of a few numbers; with these settings besides."""
    return _tiny(CONFIG_MAPPING[kind], kind, settings)


def _tiny(config_class, kind, settings_besides=()):
    usual = config_class()
    settings = usual.to_dict()
    names = {*settings, *(usual.attribute_map or {})}
    changed = {name: size for name, size in OF_NAME.items() if name in names}
    for name, meant in (usual.attribute_map or {}).items():  # two names of one setting
        if name in changed and meant in changed:
            del changed[name]
    for name, value in settings.items():
        is_scale = any(word in name for word in ("multiplier", "scaling", "scale"))
        is_scale &= not any(word in name for word in ("rope", "routed"))
        if isinstance(value, float) and value == 1.0 and is_scale:
            changed[name] = SCALE
    for name in config_class.sub_configs or {}:
        part = getattr(usual, name, None)
        if isinstance(part, PreTrainedConfig):
            changed[name] = _tiny(type(part), type(part).model_type)
    changed |= SPECIAL.get(config_class.model_type, {}) | SPECIAL.get(kind, {}) | dict(settings_besides)
    return config_class(**{name: value for name, value in changed.items() if value is not None})


def tiny_model(kind: str, **settings):
    """A random model of a type, in float64, in which every part matters.

    Raises:
        ValueError: its sizes have names that are not known here.
    """
    config = tiny_config(kind, **settings)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **settings), attn_implementation="eager",
                                                 experts_implementation="eager").eval()
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    make_changeable(model)
    return model.double()
