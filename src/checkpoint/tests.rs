use std::fs;

use super::*;

const CONFIG: &str = r#"{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
    "vocab_size": 8, "eos_token_id": [1, 3]}"#;

/// One tensor `norm.weight` of one f32.
fn weights() -> Bytes {
    let header = r#"{"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut data = (header.len() as u64).to_le_bytes().to_vec();
    data.extend(header.as_bytes());
    data.extend(1_f32.to_le_bytes());
    data.into()
}

/// A checkpoint in memory with these files besides config and weights.
fn in_memory(files: &[(&str, &str)]) -> Result<Checkpoint> {
    let own = [
        ("config.json", Bytes::from_static(CONFIG.as_bytes())),
        ("model.safetensors", weights()),
    ];
    let files = files
        .iter()
        .map(|(name, text)| (*name, Bytes::copy_from_slice(text.as_bytes())));
    Checkpoint::from_files("tiny", own.into_iter().chain(files))
}

#[test]
fn a_directory_and_memory_give_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights()).unwrap();
    let name = dir.path().to_str().unwrap();
    let disk = Checkpoint::open(name, Access::Mapped).unwrap();
    let memory = in_memory(&[]).unwrap();
    assert_eq!(disk.config(), memory.config());
    assert_eq!(
        disk.tensors().content_hash(),
        memory.tensors().content_hash()
    );
    assert_eq!((disk.name(), memory.name()), (name, "tiny"));
    assert_eq!((disk.dir(), memory.dir()), (Some(dir.path()), None));
    assert_eq!(
        disk.file("config.json").unwrap().unwrap(),
        CONFIG.as_bytes()
    );
    assert_eq!(disk.file("other").unwrap(), None);
}

#[test]
fn ends_are_those_of_generation_config_json() {
    assert_eq!(in_memory(&[]).unwrap().eos_token_ids(), [1, 3]);
    let with = |json| in_memory(&[("generation_config.json", json)]);
    let ids = |json| with(json).unwrap().eos_token_ids().to_vec();
    let none: [u32; 0] = [];
    assert_eq!(ids(r#"{"eos_token_id": 5}"#), [5]);
    assert_eq!(ids(r#"{"eos_token_id": [3, 6]}"#), [3, 6]);
    // Where it says nothing of ends, there are none.
    for json in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": []}"#] {
        assert_eq!(ids(json), none, "{json}");
    }
    // What no token can be ends nothing.
    assert_eq!(ids(r#"{"eos_token_id": [106, 7, -1, 99999999999]}"#), [7]);
    assert_eq!(ids(r#"{"eos_token_id": 7, "temperature": NaN}"#), [7]);
    // A file that is no JSON is as none.
    for json in ["", "{", "\u{feff}{\"eos_token_id\": 7}"] {
        assert_eq!(ids(json), [1, 3], "{json:?}");
    }
    for (json, rest) in [
        (
            r#"{"eos_token_id": "7"}"#,
            r#"eos_token_id must be a token id or a list of them, not "7""#,
        ),
        ("[7]", "the top level must be an object, not a list"),
    ] {
        let message = with(json).unwrap_err().to_string();
        assert_eq!(message, format!("tiny/generation_config.json: {rest}"));
    }
}

#[test]
fn config_json_may_name_the_weights() {
    let with = |files: &[(&str, Bytes)], named: &str| {
        let config = CONFIG.replace('{', &format!(r#"{{"transformers_weights": {named}, "#));
        let config = ("config.json", Bytes::from(config));
        let files = files.iter().cloned().chain([config]);
        Checkpoint::from_files("tiny", files).map_err(|error| error.to_string())
    };
    let other = [("other.safetensors", weights())];
    let found = with(&other, r#""other.safetensors""#).unwrap();
    assert!(found.tensors().contains("model.norm.weight"));
    let usual = [("model.safetensors", weights())];
    assert!(with(&usual, "null").is_ok());
    for named in [
        "other.bin",
        "../other.safetensors",
        "a/other.safetensors",
        "",
    ] {
        assert_eq!(
            with(&other, &format!("{named:?}")).unwrap_err(),
            format!(
                "tiny/config.json: transformers_weights is {named}, but must be a .safetensors file or .safetensors.index.json beside config.json"
            )
        );
    }
    let message = with(&usual, "1").unwrap_err();
    assert_eq!(
        message,
        "tiny/config.json: transformers_weights must be a string, not 1"
    );

    // On disk, the index of another name too.
    let dir = tempfile::tempdir().unwrap();
    let config = CONFIG.replace(
        '{',
        r#"{"transformers_weights": "x.safetensors.index.json", "#,
    );
    fs::write(dir.path().join("config.json"), config).unwrap();
    let index = r#"{"weight_map": {"norm.weight": "y.safetensors"}}"#;
    fs::write(dir.path().join("x.safetensors.index.json"), index).unwrap();
    fs::write(dir.path().join("y.safetensors"), weights()).unwrap();
    let found = Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped).unwrap();
    assert!(found.tensors().contains("model.norm.weight"));
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("config.json");
    std::os::unix::fs::symlink("../../blobs/none", &link).unwrap();
    assert_eq!(
        Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} is a link to a file that is not there; fetch it again",
            link.display()
        )
    );
}

#[test]
fn a_directory_without_config_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} has no config.json; give the directory of a Hugging Face checkpoint",
            dir.path().display()
        )
    );
}

#[test]
fn missing_files_are_named() {
    let none: [(&str, Bytes); 0] = [];
    assert!(matches!(
        Checkpoint::from_files("tiny", none),
        Err(Error::NoConfig { .. })
    ));
    let config = [("config.json", Bytes::from_static(CONFIG.as_bytes()))];
    assert!(matches!(
        Checkpoint::from_files("tiny", config),
        Err(Error::NoWeights { .. })
    ));
    assert_eq!(
        in_memory(&[]).unwrap().tokenizer().unwrap_err().to_string(),
        "tiny has no tokenizer.json; copy the model's own there, or give token ids instead of text"
    );
    for files in [&[][..], &[("tokenizer_config.json", "{}")]] {
        assert_eq!(
            in_memory(files)
                .unwrap()
                .chat_template()
                .unwrap_err()
                .to_string(),
            "tiny has no chat template (no chat_template.jinja, and no chat_template in tokenizer_config.json); use an instruction-tuned checkpoint, or leave out --chat"
        );
    }
}

#[test]
fn the_chat_template_comes_from_either_file() {
    let config = r#"{"bos_token": "<s>", "chat_template": "{{ bos_token }}1"}"#;
    let render = |files: &[(&str, &str)]| {
        let template = in_memory(files).unwrap().chat_template().unwrap();
        template.render(&[Message::user("x")]).unwrap()
    };
    assert_eq!(render(&[("tokenizer_config.json", config)]), "<s>1");
    let jinja = ("chat_template.jinja", "{{ bos_token }}2");
    assert_eq!(render(&[("tokenizer_config.json", config), jinja]), "<s>2");
    assert_eq!(render(&[jinja]), "<bos>2");
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
}
