//! What a compiled patch is worth, in words.

use std::time::Duration;

use context_patch::patch::compile::{Compiled, Summary};

use super::Compile;
use crate::cli::program;
use crate::cli::words::{commands, counted, figure, percent, rows, shell};

impl Compile {
    /// What someone wants to know who has just compiled a prompt, which takes so long to read.
    pub(super) fn worth(
        &self,
        compiled: &Compiled,
        reading: Duration,
    ) -> Vec<(&'static str, String)> {
        let mut said = vec![(
            "Compiled",
            format!(
                "{} of prompt, from {}",
                counted(compiled.context.len(), "token"),
                compiled.made_from(),
            ),
        )];
        if let Some(estimate) = &compiled.estimate {
            said.push(("Expect", self.expected(&estimate.patched, &estimate.bare)));
            if estimate.elsewhere.samples > 0 {
                said.push(("Elsewhere", elsewhere(&estimate.elsewhere)));
            }
            if estimate.away.samples > 0 {
                said.push(("Away", away(&estimate.away)));
            }
        }
        said.push((
            "Saves",
            format!(
                "the {} of the prompt in every request, {:.0} ms of reading here",
                counted(compiled.context.len(), "token"),
                1000.0 * reading.as_secs_f64(),
            ),
        ));
        said
    }

    /// Whether the queries are texts that were drawn: they have no end, and a whole one is hardly ever drawn twice.
    fn drawn(&self) -> bool {
        self.queries.is_none() && !self.chat
    }

    /// The share that `--at-least` asks for.
    pub(super) fn alike(&self, patched: &Summary) -> f64 {
        if self.drawn() {
            patched.tokens
        } else {
            patched.exact
        }
    }

    /// How often the patched model does on queries left out as the prompted one does.
    fn expected(&self, patched: &Summary, bare: &Summary) -> String {
        let [(patched_kl, patched), (bare_kl, bare)] = [patched, bare].map(|s| (figure(s.kl), s));
        if self.drawn() {
            return format!(
                "in texts like these the likeliest next token is the same as with the prompt at {} of the places (KL {patched_kl} a \
                 token); without prompt and patch at {} (KL {bare_kl})",
                percent(patched.tokens),
                percent(bare.tokens),
            );
        }
        format!(
            "of queries like these {} get the same answer as with the prompt ({} the same first token, KL {patched_kl} a \
             token); without prompt and patch {} (KL {bare_kl})",
            percent(patched.exact),
            percent(patched.first),
            percent(bare.exact),
        )
    }

    /// What the patch is worth, what was written, and what to do next.
    pub(super) fn text(&self, mut said: Vec<(&'static str, String)>) -> String {
        said.extend(self.export.written(self.output.as_deref()));
        let page = self.report.as_ref().map(|dir| dir.join("index.html"));
        said.extend(page.map(|page| ("Written", page.display().to_string())));
        let next = self.output.as_ref().map(|file| {
            let (program, file) = (program(), shell(&file.to_string_lossy()));
            let chat = if self.chat { " --chat" } else { "" };
            commands(&[format!(
                "{program} apply {} --patch {file}{chat} --prompt QUERY",
                self.model.shell()
            )])
        });
        rows(said) + &next.unwrap_or_default()
    }
}

/// How far texts that must not change are moved.
fn elsewhere(texts: &Summary) -> String {
    let [before, after] = texts.bits;
    format!(
        "other texts move by KL {} a token, {:+.1} % of their bits",
        figure(texts.kl),
        100.0 * (after - before) / before,
    )
}

/// How often queries of other kinds are answered as without the patch.
fn away(queries: &Summary) -> String {
    format!(
        "in answers to queries of other kinds the likeliest next token is the same as without the patch at {} of the places (KL {} a token)",
        percent(queries.tokens),
        figure(queries.kl),
    )
}
