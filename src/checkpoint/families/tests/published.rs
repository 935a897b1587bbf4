//! Configs as they are published, and what they leave out.

use super::{flat, parse};
use crate::checkpoint::Rope;

const GEMMA_270M: &str = r#"{
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": 1,
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640, "intermediate_size": 2048, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": null,
    "rope_theta": 1000000.0, "sliding_window": 512, "_sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "use_bidirectional_attention": false, "vocab_size": 262144}"#;

#[test]
fn old_spelling_of_the_270m() {
    let config = parse(GEMMA_270M).unwrap();
    assert_eq!(config.vocab_size, 262_144);
    assert_eq!((config.hidden_size, config.intermediate_size), (640, 2048));
    assert_eq!(
        (config.num_attention_heads, config.num_key_value_heads),
        (4, 1)
    );
    assert_eq!((config.head_dim, config.num_hidden_layers), (256, 18));
    assert_eq!(config.max_position_embeddings, 32_768);
    assert_eq!((config.norm_eps(), config.scaling(0)), (1e-6, 1.0 / 16.0));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 1.0)));
    assert_eq!(config.rope(4), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.bos_token_id, Some(2));
    assert_eq!(config.eos_token_ids, [1]);
    assert!(config.tie_word_embeddings);
    let windows = (0..18).map(|layer| config.window(layer));
    let expected = |layer| ![5, 11, 17].contains(&layer);
    assert!(windows.eq((0..18).map(|layer| expected(layer).then_some(512))));
}

#[test]
fn new_spelling_says_the_same() {
    let kinds = |i| {
        if i % 6 == 5 {
            "\"full_attention\""
        } else {
            "\"sliding_attention\""
        }
    };
    let kinds: Vec<_> = (0..18).map(kinds).collect();
    let new = GEMMA_270M
        .replace(
            r#""rope_local_base_freq": 10000.0, "rope_scaling": null,"#,
            "",
        )
        .replace(
            r#""rope_theta": 1000000.0"#,
            r#""rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}"#,
        )
        .replace(
            r#""_sliding_window_pattern": 6"#,
            &format!(r#""layer_types": [{}]"#, kinds.join(",")),
        );
    assert_ne!(new, GEMMA_270M);
    assert_eq!(parse(&new).unwrap(), parse(GEMMA_270M).unwrap());
}

#[test]
fn what_is_left_out_has_hugging_faces_defaults() {
    let config = parse(&flat("")).unwrap();
    assert_eq!(config.vocab_size, 262_208);
    assert_eq!((config.hidden_size, config.intermediate_size), (2304, 9216));
    assert_eq!(
        (config.num_attention_heads, config.num_key_value_heads),
        (8, 4)
    );
    assert_eq!((config.head_dim, config.num_hidden_layers), (256, 26));
    assert_eq!(
        (config.window(0), config.max_position_embeddings),
        (Some(4096), 131_072)
    );
    assert_eq!((config.norm_eps(), config.scaling(0)), (1e-6, 1.0 / 16.0));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 1.0)));
    assert_eq!(config.rope(0), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.bos_token_id, Some(2));
    assert!(config.eos_token_ids.is_empty() && !config.multimodal);
    assert_eq!(config.blocks.len(), 26);
    assert!(config.tie_word_embeddings);
}

#[test]
fn the_text_part_of_the_published_4b() {
    let config = parse(
        r#"{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
            "eos_token_id": [1, 106], "image_token_index": 262144, "model_type": "gemma3",
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
                "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}}"#,
    )
    .unwrap();
    assert_eq!((config.hidden_size, config.num_hidden_layers), (2560, 34));
    assert_eq!((config.vocab_size, config.window(0)), (262_208, Some(1024)));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 8.0)));
    assert_eq!(config.rope(0), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.eos_token_ids, [1, 106]);
    assert!(config.multimodal);
}
