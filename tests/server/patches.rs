//! Patches as models.

use std::thread;

use context_patch::Session;
use context_patch::model::generate::{Sampler, generate};
use context_patch::patch::{Overlay, SavedPatch};
use serde_json::json;

use super::server::{Server, patch};
use super::{MODEL, TINY, long, with};

/// What the library gives for a text under a patch.
fn patched(file: &str, prompt: &str, max_tokens: usize) -> String {
    let saved = SavedPatch::load(file.as_ref()).unwrap();
    let overlay = Overlay::new(&MODEL, &saved.patch, saved.source.form());
    let tokenizer = MODEL.checkpoint().tokenizer().unwrap();
    let prompt = tokenizer.encode(prompt).unwrap();
    let mut session = Session::<f32>::new(&MODEL).with_overlay(&overlay);
    let mut ids = Vec::new();
    let on_token = |id| -> context_patch::Result<()> {
        ids.push(id);
        Ok(())
    };
    generate(
        &mut session,
        &prompt,
        max_tokens,
        &mut Sampler::default(),
        on_token,
    )
    .unwrap();
    tokenizer.decode(&ids).unwrap()
}

#[test]
fn a_patch_is_a_model_that_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = patch(&dir);
    let server = Server::start(TINY, &["--admin", "--patch", &format!("figs={file}")]);
    let ids = || {
        let models = server.request("GET", "/v1/models", "").json();
        let models = models["data"].as_array().unwrap().clone();
        models
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["tiny", "tiny+figs"]);
    let request = json!({ "prompt": " likes", "temperature": 0, "max_tokens": 20 });
    let ask = |model: &str| server.complete(&with(request.clone(), json!({ "model": model })));
    let (base, want) = (ask("tiny").text(), patched(&file, " likes", 20));
    assert_ne!(base, want);
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true, "model": "tiny+figs" })).to_string(),
    );
    running.first_event();
    // Both in the same batch.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(ask("tiny+figs").text(), want));
            scope.spawn(|| assert_eq!(ask("tiny").text(), base));
        }
    });
    let gone = server.request("DELETE", "/v1/patches/figs", "");
    assert_eq!((gone.status, ids()), (200, vec!["tiny".into()]));
    assert_eq!(ask("tiny+figs").status, 404);
    assert!(running.rest().contains("[DONE]"));
    let load = |name: &str, file: &str| {
        let body = json!({ "name": name, "file": file }).to_string();
        server.request("POST", "/v1/patches", &body)
    };
    assert_eq!(load("again", &file).status, 201);
    assert_eq!(ask("tiny+again").text(), want);
    for (refused, why) in [
        (load("again", &file), "already"),
        (load("a/b", &file), "letters, digits"),
        (load("new", "nowhere.patch"), "cannot read nowhere.patch"),
        (load("new", &format!("{TINY}/model.safetensors")), "patch"),
    ] {
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains(why), "{refused:?}");
    }
    assert_eq!(server.request("DELETE", "/v1/patches/none", "").status, 404);
    // Nobody may where that was not allowed.
    let server = Server::start(TINY, &[]);
    let body = json!({ "name": "figs", "file": file }).to_string();
    assert_eq!(server.request("POST", "/v1/patches", &body).status, 404);
}
