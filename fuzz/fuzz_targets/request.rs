//! Any bytes as the body of a request: it is read within its bounds, or refused in one line that names what is wrong.
#![no_main]

use context_patch::server::{ChatRequest, CompletionRequest, Prompt, Refusal, Settings};
use libfuzzer_sys::fuzz_target;

const VOCABULARY: usize = 1000;

fn check(settings: &Settings) {
    assert!((1..=128).contains(&settings.n));
    let sampling = &settings.sampling;
    assert!((0.0..=2.0).contains(&sampling.temperature));
    assert!((0.0..=1.0).contains(&sampling.top_p) && (0.0..=1.0).contains(&sampling.min_p));
    assert!(settings.stop.len() <= 4 && settings.stop.iter().all(|stop| !stop.is_empty()));
    let ids = sampling.logit_bias.iter().map(|(id, _)| *id as usize);
    assert!(ids.clone().is_sorted() && ids.clone().all(|id| id < VOCABULARY));
    assert!(settings.stream || !settings.include_usage);
    assert!(settings.logprobs.is_none_or(|likeliest| likeliest <= 20));
}

fn refused(refusal: &Refusal) {
    assert_eq!(refusal.status(), 400);
    let body = refusal.body();
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(message.lines().count(), 1);
}

fuzz_target!(|body: &[u8]| {
    match CompletionRequest::parse(body, VOCABULARY) {
        Ok(request) => {
            check(&request.settings);
            assert!(!request.prompts.is_empty());
            for prompt in request.prompts {
                match prompt {
                    Prompt::Text(text) => assert!(!text.is_empty()),
                    Prompt::Ids(ids) => {
                        assert!(
                            !ids.is_empty() && ids.iter().all(|id| (*id as usize) < VOCABULARY)
                        );
                    }
                }
            }
        }
        Err(refusal) => refused(&refusal),
    }
    match ChatRequest::parse(body, VOCABULARY) {
        Ok(request) => {
            check(&request.settings);
            assert!(!request.messages.is_empty());
        }
        Err(refusal) => refused(&refusal),
    }
});
