//! What `patch` says of a patch: what was absorbed, and how it does.

use context_patch::Result;
use context_patch::checkpoint::Tokenizer;
use context_patch::patch::{self, Case, LayerReport, SavedPatch};
use context_patch::verify::{Step, Summary};
use serde_json::{Value, json};

use super::inspect;
use super::words::{counted, figure, listed, percent, quoted, rows};

/// A patch, and what came out when it was tried.
pub(super) struct Solved<'a> {
    saved: &'a SavedPatch,
    source: &'a patch::Solved,
    tried: Summary,
    /// The largest difference of a logit that is allowed.
    bound: f64,
}

impl<'a> Solved<'a> {
    pub(super) fn new(saved: &'a SavedPatch, source: &'a patch::Solved, steps: &[Step]) -> Self {
        Self {
            saved,
            source,
            tried: Summary::new(steps),
            bound: steps.iter().map(|step| step.bound).fold(0.0, f64::max),
        }
    }

    /// Whether it holds, and it takes the patch for that.
    pub(super) fn good(&self) -> bool {
        self.tried.holds && self.tried.controls_fail
    }

    /// Everything about it.
    pub(super) fn json(&self, tokenizer: &Tokenizer) -> Result<Value> {
        let mut object = inspect::object(self.saved);
        object["answer"] = json!(tokenizer.decode(self.source.split.answer())?);
        object["tried"] = json!(self.tried);
        object["bound"] = json!(self.bound);
        Ok(object)
    }

    /// What someone wants to know who has just made it.
    pub(super) fn text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let split = &self.source.split;
        let (context, kept) = (split.context(), split.kept().len());
        let absorbed = format!(
            "{} of {} of the context, {}",
            context.len() - kept,
            counted(context.len(), "token"),
            quoted(&tokenizer.decode(context)?, 100),
        );
        let mut said = vec![("Absorbed", absorbed)];
        let images = self.source.images.iter();
        said.extend(images.map(|image| ("Picture", image.to_string())));
        if kept > 0 {
            let token = |&i: &usize| tokenizer.token_text(context[i]).unwrap_or_default();
            let texts: String = split.kept().iter().map(token).collect();
            let kept = format!("{}, {}", counted(kept, "token"), quoted(&texts, 60));
            said.push(("Kept", kept));
        }
        said.push(("Patched", self.patched(tokenizer)?));
        if !split.answer().is_empty() {
            let answer = tokenizer.decode(split.answer())?;
            said.push(("Answer", quoted(answer.trim(), 200)));
        }
        said.extend(self.verdict());
        Ok(rows(said))
    }

    /// Which weights, and for what.
    fn patched(&self, tokenizer: &Tokenizer) -> Result<String> {
        let layers = self.source.report.layers.iter();
        let layers: Vec<_> = layers
            .filter(|layer| layer.case != Case::Untouched)
            .collect();
        let any = |changed: fn(&LayerReport) -> bool| layers.iter().any(|layer| changed(layer));
        let parts = [
            ("gate_proj", any(|layer| layer.delta_gate != 0.0)),
            ("up_proj", any(|layer| layer.delta_up != 0.0)),
            ("down_proj", any(|layer| layer.delta_down != 0.0)),
            (
                "the last norm",
                any(|layer| layer.scale_entries_changed > 0),
            ),
        ];
        let parts = parts.iter().filter(|(_, changed)| *changed);
        let parts: Vec<_> = parts.map(|(name, _)| *name).collect();
        let rank = layers.iter().map(|layer| layer.rank).max().unwrap_or(0);
        let queries = self.source.split.queries();
        Ok(format!(
            "{} of {} (rank {rank}), for {}, {}",
            listed(&parts),
            counted(layers.len(), "layer"),
            counted(queries.len(), "token"),
            quoted(tokenizer.decode(queries)?.trim(), 60),
        ))
    }

    /// That it holds and by how much, or what does not.
    fn verdict(&self) -> Vec<(&'static str, String)> {
        let tried = &self.tried;
        let next = match (tried.matching, tried.tokens) {
            (1, 1) => "the likeliest next token is the same".into(),
            (same, all) if same == all => format!("all {all} likeliest next tokens are the same"),
            (same, all) => format!("{same} of {all} likeliest next tokens are the same"),
        };
        let unpatched = tried
            .controls
            .first()
            .map_or(0.0, |control| control.median_linf);
        let without = format!("without the patch they are off by {}", figure(unpatched));
        let mut said = Vec::new();
        if !tried.holds {
            let (off, bound) = (figure(tried.worst_linf), figure(self.bound));
            let broken = format!("the logits are off by {off}, and {bound} is allowed; {without}");
            said.push(("BROKEN", broken));
        } else {
            let logits = match tried.worst_linf {
                0.0 => "every logit is, to the last bit".into(),
                off => format!(
                    "the logits are off by {} at most, {} of what is allowed",
                    figure(off),
                    percent(tried.worst_share_of_bound)
                ),
            };
            said.push(("Holds", format!("{next}, and {logits}; {without}")));
        }
        let out_of_reach = |layer: &LayerReport| layer.case == Case::OutOfReach;
        if self.source.report.layers.iter().any(out_of_reach) {
            let why = "a token is out of reach: the MLPs cannot say what attention said of the context. A patch for \
                       one token has no such limit";
            said.push(("", why.into()));
        }
        if !tried.controls_fail {
            let why = "the context hardly matters here; without the patch the logits are as good";
            said.push(("NO POWER", why.into()));
        }
        said
    }
}
