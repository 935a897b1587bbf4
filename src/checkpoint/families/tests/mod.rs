//! Configs: what each spelling means, and what is refused in which words.

mod fields;
mod multimodal;
mod published;
mod refused;
mod rotary;
mod wrong_types;

use super::*;

fn parse(json: &str) -> Result<Config> {
    Config::parse(Path::new("m/config.json"), json.as_bytes())
}

/// A config that says nothing but what it is and `fields`.
fn flat(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    format!(r#"{{"model_type": "gemma3_text"{comma} {fields}}}"#)
}

fn message(fields: &str) -> String {
    parse(&flat(fields)).unwrap_err().to_string()
}

/// A multimodal config with these fields outside and inside text_config.
fn nested(outer: &str, inner: &str) -> Result<Config> {
    let comma = if outer.is_empty() { "" } else { "," };
    parse(&format!(
        r#"{{"model_type": "gemma3"{comma} {outer}, "text_config": {{{inner}}}}}"#
    ))
}
