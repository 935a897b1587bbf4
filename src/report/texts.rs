//! What the model says with a prompt, patched, and without a patch.

use serde::Serialize;

use crate::message::one_line;
use crate::verify::{Kind, Record, Step};

/// A prompt and the texts after it.
#[derive(Debug, Serialize)]
pub(super) struct Text {
    pub(super) prompt: String,
    /// One for each text that the model writes with the prompt: compute types may differ.
    pub(super) contextual: Vec<Contextual>,
}

/// What the model writes with the prompt, and what kinds have to say to it.
#[derive(Debug, Serialize)]
pub(super) struct Contextual {
    /// In which compute types, and on which backends.
    pub(super) computed: Vec<String>,
    pub(super) said: Said,
    pub(super) patched: Vec<Said>,
    pub(super) no_patch: Vec<Said>,
}

/// Tokens that several kinds say.
#[derive(Debug, Serialize)]
pub(super) struct Said {
    pub(super) kinds: Vec<String>,
    pub(super) tokens: Vec<Token>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Token {
    /// With control characters escaped; `#` and the number where it is not known.
    pub(super) text: String,
    /// Whether it is another one than with the prompt.
    pub(super) differs: bool,
}

impl Text {
    pub(super) fn new(
        record: &Record,
        prompt: usize,
        token: &dyn Fn(u32) -> Option<String>,
    ) -> Self {
        // A span has one step more than the others, which would keep the same texts apart.
        let tokens = record.setting.tokens;
        let of_prompt = |step: &&Step| step.prompt == prompt && step.step < tokens;
        let runs = record.runs.iter().map(|run| {
            let steps: Vec<_> = run.steps.iter().filter(of_prompt).collect();
            (run.kind, steps)
        });
        let runs = runs.filter(|(_, steps)| !steps.is_empty());
        let texts = grouped(runs, |(_, steps)| ids(steps, |step| Some(step.next)));
        let contextual = texts.into_iter().map(|(next, runs)| {
            let said = |kinds: Vec<Kind>, ids: &Ids| Said::new(kinds, ids, &next, token);
            let groups = |id: fn(&Step) -> Option<u32>| {
                let runs = runs.iter().cloned();
                let groups = grouped(runs, |(_, steps)| ids(steps, id)).into_iter();
                let groups = groups.filter(|(ids, _)| !ids.is_empty());
                groups.map(|(ids, runs)| said(kinds(&runs), &ids)).collect()
            };
            let mut computed: Vec<_> = runs.iter().map(|(kind, _)| computed(*kind)).collect();
            computed.sort();
            computed.dedup();
            Contextual {
                computed,
                said: said(kinds(&runs), &next),
                patched: groups(|step| Some(step.patched.top)),
                no_patch: groups(|step| step.no_patch().map(|reduced| reduced.top)),
            }
        });
        Self {
            prompt: record.setting.prompts[prompt].clone(),
            contextual: contextual.collect(),
        }
    }
}

fn computed(kind: Kind) -> String {
    format!("{} {}", kind.applied_on, kind.dtype)
}

/// A token at each step.
type Ids = Vec<(usize, u32)>;

fn ids(steps: &[&Step], id: fn(&Step) -> Option<u32>) -> Ids {
    let ids = steps.iter().map(|step| Some((step.step, id(step)?)));
    ids.flatten().collect()
}

fn kinds(runs: &[(Kind, Vec<&Step>)]) -> Vec<Kind> {
    runs.iter().map(|(kind, _)| *kind).collect()
}

/// Items with the same key together, in the order of the first ones.
fn grouped<T, K: PartialEq>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> Vec<(K, Vec<T>)> {
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for item in items {
        let key = key(&item);
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups
}

impl Said {
    fn new(kinds: Vec<Kind>, ids: &Ids, next: &Ids, token: &dyn Fn(u32) -> Option<String>) -> Self {
        let shown = |&(step, id): &(usize, u32)| Token {
            text: match token(id) {
                // Vocabularies write a space so.
                Some(text) => one_line(&text.replace('▁', " "), usize::MAX),
                None => format!("#{id} "),
            },
            differs: !next.contains(&(step, id)),
        };
        Self {
            kinds: kinds.iter().map(Kind::to_string).collect(),
            tokens: ids.iter().map(shown).collect(),
        }
    }
}
