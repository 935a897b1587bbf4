//! `--image`: what the commands make of pictures, and what they refuse in one line.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SEEING: &str = "reference/tiny-vision";
const PICTURE: &str = "reference/pictures/rgb-8.png";
const OTHER: &str = "reference/pictures/exif-6.png";
const PLACE: &str = "<start_of_image>";

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_context-patch"));
    let command = command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(arguments).output().unwrap()
}

/// What a command says in JSON, which must be done.
fn said(arguments: &[&str]) -> serde_json::Value {
    let output = run(&[arguments, &["--json"]].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ids of a prompt.
fn ids(arguments: &[&str]) -> serde_json::Value {
    let generate = ["generate", "--model", SEEING, "--max-tokens", "1"];
    said(&[&generate, arguments].concat())["prompt_ids"].clone()
}

/// The one line of what a command refuses.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(output.stdout.is_empty());
    message.trim_end().to_owned()
}

fn refused_prompt(model: &str, prompt: &str, images: &[&str]) -> String {
    let images = images.iter().flat_map(|image| ["--image", image]);
    let command = ["generate", "--model", model, "--prompt", prompt];
    refused(&command.into_iter().chain(images).collect::<Vec<_>>())
}

#[test]
fn pictures_without_a_place_stand_before_the_text() {
    let images = ["--image", PICTURE, "--image", OTHER];
    let placed = format!("{PLACE}{PLACE}Which?");
    let placed = ids(&[&["--prompt", &placed][..], &images].concat());
    assert_eq!(
        ids(&[&["--prompt", "Which?"][..], &images].concat()),
        placed
    );
    let later = format!("Which?{PLACE}{PLACE}");
    assert_ne!(ids(&[&["--prompt", &later][..], &images].concat()), placed);
    let text = ids(&["--prompt", "Which?"]);
    assert!(placed.as_array().unwrap().len() > text.as_array().unwrap().len() + 32);
}

#[test]
fn a_chat_has_the_pictures_where_messages_would_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("messages.json");
    let parts = r#"[{"type": "image"}, {"type": "text", "text": "Which?"}]"#;
    let messages = format!(r#"[{{"role": "user", "content": {parts}}}]"#);
    std::fs::write(&file, messages).unwrap();
    let messages = ids(&["--messages", file.to_str().unwrap(), "--image", PICTURE]);
    assert_eq!(
        ids(&["--chat", "--prompt", "Which?", "--image", PICTURE]),
        messages
    );
    let behind = format!("Which?{PLACE}");
    assert_ne!(
        ids(&["--chat", "--prompt", &behind, "--image", PICTURE]),
        messages
    );
}

#[test]
fn ids_have_the_pictures_in_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ids.json");
    let write = |ids: &[u64]| std::fs::write(&file, format!("{ids:?}")).unwrap();
    let hashes = |name: &str, arguments: &[&str]| {
        let hashes = dir.path().join(name);
        let hash = [
            "--hash",
            hashes.to_str().unwrap(),
            "--names",
            "lm_head",
            "pixel_values",
        ];
        said(
            &[
                &["trace", "--model", SEEING, "--image", PICTURE],
                arguments,
                &hash,
            ]
            .concat(),
        );
        std::fs::read_to_string(hashes).unwrap()
    };
    let prompt = ids(&["--prompt", "Which?", "--image", PICTURE]);
    let mut prompt: Vec<u64> = serde_json::from_value(prompt).unwrap();
    write(&prompt);
    let given = file.to_str().unwrap();
    assert_eq!(
        hashes("ids", &["--ids", given]),
        hashes("text", &["--prompt", "Which?"])
    );
    // One token of the picture less, and none.
    let image = prompt
        .windows(2)
        .find(|pair| pair[0] == pair[1] && pair[0] != 0)
        .unwrap()[0];
    let at = prompt.iter().position(|id| *id == image).unwrap();
    prompt.remove(at);
    write(&prompt);
    let trace = ["trace", "--model", SEEING, "--ids", given, "--hash", "x"];
    let cut = refused(&[&trace[..], &["--image", PICTURE]].concat());
    assert!(
        cut.contains("15 tokens of images (id 8), but 1 images (--image) take 16 each"),
        "{cut}"
    );
    let without = refused(&trace);
    assert!(
        without.contains("15 tokens of images (id 8), but 0 images"),
        "{without}"
    );
    prompt.retain(|id| *id != image);
    write(&prompt);
    let none = refused(&[&trace[..], &["--image", PICTURE]].concat());
    assert!(none.contains("0 tokens of images"), "{none}");
}

#[test]
fn what_has_no_place_or_no_picture_is_said_in_one_line() {
    let twice = format!("{PLACE}{PLACE}?");
    for (error, part) in [
        (
            refused_prompt(SEEING, &twice, &[PICTURE]),
            "the prompt has 2 × <start_of_image>, but there are 1 pictures",
        ),
        (
            refused_prompt(SEEING, PLACE, &[]),
            "the prompt has 1 × <start_of_image>, but there are 0 pictures",
        ),
        (
            refused_prompt(SEEING, PLACE, &[PICTURE, OTHER]),
            "the prompt has 1 × <start_of_image>, but there are 2 pictures",
        ),
        (
            refused_prompt("reference/tiny", "a", &[PICTURE]),
            "takes no pictures: its model_type is not gemma3",
        ),
        (
            refused_prompt("reference/checkpoints/multimodal", "a", &[PICTURE]),
            "takes no pictures: its weights have no vision_tower",
        ),
        (
            refused_prompt(SEEING, "a", &["Cargo.toml"]),
            "Cargo.toml is no picture that can be read",
        ),
        (
            refused_prompt(SEEING, "a", &["no/such.png"]),
            "cannot read no/such.png",
        ),
        (refused_prompt(SEEING, "a", &["src"]), "cannot read src"),
    ] {
        assert!(error.contains(part), "{error}");
    }
    let many = vec![PICTURE; 200];
    let many = refused_prompt(SEEING, "a", &many);
    assert!(many.contains("tokens, but the model has"), "{many}");
    let text = [
        "generate",
        "--model",
        SEEING,
        "--prompt",
        "a",
        "--pan-and-scan",
    ];
    let output = run(&text);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_patch_file_says_which_pictures_it_has_absorbed() {
    let dir = tempfile::tempdir().unwrap();
    let patch = dir.path().join("seen.patch");
    let patch = patch.to_str().unwrap();
    let context = format!("{PLACE}What colour is the circle?\nA:");
    let (context, image) = (["--context", &context], ["--image", PICTURE]);
    let command = ["patch", "--model", SEEING, "--output", patch];
    said(&[&command, &context[..], &image].concat());
    let images = said(&["inspect", patch])["images"].clone();
    let bytes = std::fs::read(root(PICTURE)).unwrap();
    let picture = context_patch::vision::Picture::decode(Path::new(PICTURE), &bytes).unwrap();
    let want = serde_json::json!([{
        "file": "rgb-8.png", "format": "png", "width": 43, "height": 61, "sha256": picture.sha256(),
    }]);
    assert_eq!(images, want);
    // What was seen is said without the picture.
    let generate = ["generate", "--model", SEEING, "--max-tokens", "1"];
    let prompt = ["--prompt", context[1]];
    let seen = said(&[&generate, &prompt[..], &image].concat());
    let apply = said(&[
        "apply",
        "--model",
        SEEING,
        "--patch",
        patch,
        "--max-tokens",
        "1",
    ]);
    assert_eq!(apply["ids"], seen["ids"]);
    assert_eq!(apply["own_input"], true);
    let text = said(&["inspect", patch]);
    assert!(text["split"]["tokens"].as_array().unwrap().len() > 16);
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
