//! Prompts with pictures as `Gemma3Processor` has them, which `reference/processor_golden.py` wrote.

use std::path::{Path, PathBuf};

use context_patch::Checkpoint;
use context_patch::checkpoint::Conversation;
use context_patch::vision::{Error, PanAndScan, Picture, PixelValues, Processor};
use sha2::{Digest, Sha256};

#[derive(serde::Deserialize)]
struct Case {
    processor: String,
    #[serde(default)]
    text: String,
    messages: Option<serde_json::Value>,
    pan_and_scan: bool,
    pictures: Vec<String>,
    /// None where transformers refuses it.
    ids: Option<Vec<u32>>,
    #[serde(default)]
    pixel_values: Vec<String>,
}

pub fn pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/pictures")
}

/// The SHA-256 of the numbers' bytes.
pub fn hash(values: &PixelValues) -> String {
    assert_eq!(values.values.len(), 3 * values.height * values.width);
    let bytes: Vec<u8> = values.values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Holds every prompt of the processor called `name` against what `checkpoint` makes of it: its ids, and its pixel values.
pub fn check(name: &str, checkpoint: &Checkpoint) {
    let cases = std::fs::read(pictures().join("prompts.json")).unwrap();
    let mut cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    cases.retain(|case| case.processor == name);
    let tokenizer = checkpoint.tokenizer().unwrap();
    let (mut refused, mut crops) = (0, 0);
    for case in &cases {
        let mut processor = Processor::of(checkpoint).unwrap();
        if case.pan_and_scan {
            processor = processor.with_pan_and_scan(PanAndScan::default());
        }
        let open = |file: &String| Picture::open(&pictures().join(file)).unwrap();
        let seen: Vec<_> = case.pictures.iter().map(open).collect();
        let text = match &case.messages {
            None => case.text.clone(),
            Some(messages) => {
                let json = messages.to_string();
                let conversation = Conversation::parse(Path::new("m.json"), json.as_bytes());
                let template = checkpoint.chat_template().unwrap();
                template.render(&conversation.unwrap()).unwrap()
            }
        };
        let expanded = processor.expand(&tokenizer, &text, &seen);
        let Some(want) = &case.ids else {
            let error = expanded.unwrap_err();
            assert!(matches!(error, Error::Placeholders { .. }), "{error}");
            refused += 1;
            continue;
        };
        let ids = match &case.messages {
            None => tokenizer.encode(&expanded.unwrap()),
            Some(_) => tokenizer.encode_as_written(&expanded.unwrap()),
        };
        let ids = ids.unwrap();
        assert_eq!(&ids, want, "{text:?}");
        let values = processor.pixel_values(&ids, &seen).unwrap();
        let hashes: Vec<_> = values.iter().map(hash).collect();
        assert_eq!(hashes, case.pixel_values, "{text:?}");
        crops += values.len() - seen.len();
        // The control: one picture more or less than there are tokens for.
        let more: Vec<_> = seen
            .iter()
            .cloned()
            .chain([open(&"rgb-8.png".into())])
            .collect();
        assert!(processor.pixel_values(&ids, &more).is_err());
        assert!(seen.is_empty() || processor.pixel_values(&ids, &seen[1..]).is_err());
    }
    assert!(
        cases.len() >= 10 && refused == 3 && crops == 4,
        "{refused} {crops}"
    );
}
