//! `context-patch compile --report`.

use std::path::Path;

use context_patch::Result;
use context_patch::model::Model;
use context_patch::patch::SavedPatch;
use context_patch::patch::compile::{Compiled, Prompt, Survey};
use context_patch::report::{CompiledPrompt, write_compiled};
use context_patch::tensor::Element;

use super::progress::counting;

/// Stands for a query, to see what the template puts around one.
const PLACE: &str = "QUERY";

/// Lets the queries that were left out be answered, and makes the page.
pub(super) fn write<E: Element>(
    dir: &Path,
    model: &Model,
    prompt: &Prompt<'_>,
    saved: &SavedPatch,
    compiled: &Compiled,
    worth: &[(&'static str, String)],
    survey: &Survey,
) -> Result<()> {
    // With the prompt, under the patch, and bare.
    let tokens = 3 * survey.answered() * prompt.answer_tokens;
    let bar = counting("tokens of answers", tokens);
    let answers = survey.answers::<E>(model, prompt, || bar.inc(1))?;
    bar.finish_and_clear();
    let decode = |tokens: &[u32]| prompt.tokenizer.decode(tokens).unwrap_or_default();
    let [_, bare] = prompt.query(PLACE)?;
    let template = decode(&bare);
    let (before, behind) = template.rsplit_once(PLACE).unwrap_or_default();
    let page = CompiledPrompt {
        model: &saved.model,
        model_hash: &saved.model_hash,
        dtype: saved.dtype,
        context: prompt.context,
        compiled,
        worth,
        survey,
        answers: &answers,
    };
    let query = |text: &str| {
        let inner = text.strip_prefix(before);
        let inner = inner.and_then(|text| text.strip_suffix(behind));
        inner.unwrap_or(text).to_owned()
    };
    Ok(write_compiled(&page, decode, query, dir)?)
}
