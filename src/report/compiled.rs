//! The page about a compiled prompt.

use serde::Serialize;

use super::chart::Look;
use super::curves::{Over, curves};
use super::escaped::escaped;
use super::html::{code, counted, definitions, document, figure, legend, table};
use crate::message::IoError;
use crate::patch::compile::{Answered, Compiled, Estimate, Point, Summary, Survey};
use crate::tensor::Dtype;

/// What a page about a compiled prompt is made from.
pub struct CompiledPrompt<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The content hash of its tensors.
    pub model_hash: &'a str,
    /// The compute type.
    pub dtype: Dtype,
    /// The prompt.
    pub context: &'a str,
    /// How it was compiled.
    pub compiled: &'a Compiled,
    /// What the patch is worth: sentences, and what each is about.
    pub worth: &'a [(&'static str, String)],
    /// What more queries and a higher rank would be worth.
    pub survey: &'a Survey,
    /// [`Survey::answers`].
    pub answers: &'a [Answered],
}

/// The data of the page: `figures.json`.
#[derive(Serialize)]
pub(super) struct Figures<'a> {
    estimate: Option<&'a Estimate>,
    bare: Summary,
    learning: &'a [Point],
    ranks: &'a [Point],
    answers: Vec<Text>,
}

/// A query and the answers to it.
#[derive(Serialize)]
struct Text {
    query: String,
    prompted: String,
    patched: Said,
    bare: Said,
}

#[derive(Serialize)]
struct Said {
    text: String,
    /// Whether its tokens are those that the model writes with the prompt.
    same: bool,
}

impl<'a> Figures<'a> {
    /// `decode` gives the text of tokens, and `query` what was asked of the text that the model read.
    pub(super) fn new(
        of: &CompiledPrompt<'a>,
        decode: &dyn Fn(&[u32]) -> String,
        query: &dyn Fn(&str) -> String,
    ) -> Self {
        let answers = of.answers.iter().map(|answered| {
            let said = |tokens: &Vec<u32>| Said {
                text: decode(tokens),
                same: *tokens == answered.prompted,
            };
            Text {
                query: query(&decode(&answered.query)),
                prompted: decode(&answered.prompted),
                patched: said(&answered.patched),
                bare: said(&answered.bare),
            }
        });
        Self {
            estimate: of.compiled.estimate.as_ref(),
            bare: of.survey.bare,
            learning: &of.survey.learning,
            ranks: &of.survey.ranks,
            answers: answers.collect(),
        }
    }
}

/// The whole page.
///
/// # Errors
///
/// [`IoError`] where a chart cannot be laid out.
pub(super) fn page(of: &CompiledPrompt<'_>, figures: &Figures<'_>) -> Result<String, IoError> {
    let title = format!("A prompt compiled for {}", escaped(of.model));
    let parts = [
        head(of, &title),
        learning(figures)?,
        ranks(figures)?,
        answers(figures),
    ];
    Ok(document(&title, &parts.concat()))
}

/// The prompt, what the patch is worth, and how it was made.
fn head(of: &CompiledPrompt<'_>, title: &str) -> String {
    let (compiled, recipe) = (of.compiled, &of.compiled.recipe);
    let worth = of.worth.iter();
    let worth: Vec<_> = worth
        .map(|(about, sentence)| format!("{about}: {}", escaped(sentence)))
        .collect();
    let rank = match recipe.rank {
        0 => "all there is".into(),
        rank => rank.to_string(),
    };
    let facts = [
        ("model", escaped(of.model)),
        ("hash of its weights", code(of.model_hash)),
        ("compiled from", compiled.made_from()),
        ("hash of their tokens", code(&compiled.samples_hash)),
        (
            "recipe",
            format!(
                "rank {rank}, from layer {} on, λ₀ {:e}, gain {}, weight of texts that must not change {}, in {}",
                recipe.first, recipe.lambda, recipe.gain, recipe.anchor_weight, of.dtype
            ),
        ),
        ("seed", compiled.seed.to_string()),
        ("context-patch", env!("CARGO_PKG_VERSION").into()),
    ];
    format!(
        "<h1>{title}</h1>\n<p>The model without the prompt, under a patch that was compiled from it, against the model with the prompt. \
         Every figure is of queries and texts that the patch in question was not compiled from.</p>\n\
         <p class=\"verdict\">{}</p>\n<details><summary>The prompt, {}</summary>\n<p class=\"prompt\">{}</p></details>\n{}",
        worth.join("\n"),
        counted(compiled.context.len(), "token"),
        escaped(of.context),
        definitions(&facts),
    )
}

fn learning(figures: &Figures<'_>) -> Result<String, IoError> {
    let caption = "Compiled from every eighth, fourth and second query of two thirds, two at least, and from all of them, at the rank of the \
        recipe. Where the curve still falls at its right end, more queries will help.";
    section(figures, "Learning curve", caption, Over::Queries)
}

fn ranks(figures: &Figures<'_>) -> Result<String, IoError> {
    let caption = "Compiled from all queries of two thirds. A higher rank makes a larger patch, and where queries are few it may serve others worse.";
    section(figures, "Rank", caption, Over::Rank)
}

/// A heading, and charts and a table of what grows.
fn section(
    figures: &Figures<'_>,
    heading: &str,
    caption: &str,
    over: Over,
) -> Result<String, IoError> {
    let points = match over {
        Over::Queries => figures.learning,
        Over::Rank => figures.ranks,
    };
    let charts = curves(&figures.bare, points, over)?.concat();
    let bleed = points.iter().map(|point| point.elsewhere.samples).max();
    let bleed = bleed.filter(|samples| *samples > 0);
    let mut markers = vec![(Look::SERVED, "queries left out".into())];
    markers.extend(bleed.map(|_| {
        let name = "bleed: texts left out that must not change";
        (Look::ELSEWHERE, name.to_owned())
    }));
    let tried = match bleed {
        Some(texts) => format!(" and {}", counted(texts, "text")),
        None => ", and on no text that must not change, because there is none".into(),
    };
    let queries = match figures.bare.samples {
        1 => "1 query".into(),
        queries => format!("{queries} queries"),
    };
    let caption = format!(
        "{caption} One third is left out, and all are tried on the same {queries}{tried}, so these figures differ from the estimate, which leaves \
         out every third in turn. <i>bare</i>: without prompt and patch.",
    );
    let content = format!(
        "{}<div class=\"charts two\">\n{charts}</div>\n{}",
        legend(&markers),
        tabulated(&figures.bare, points, over, bleed.is_some())
    );
    Ok(format!(
        "<h2>{heading}</h2>\n{}",
        figure("curves", &caption, content)
    ))
}

/// The figures of the charts, with columns for bleed where there is one.
fn tabulated(bare: &Summary, points: &[Point], over: Over, bleed: bool) -> String {
    let header = [
        over.name(),
        "KL a token",
        "same answers",
        "same first tokens",
        "bleed: KL a token",
        "bleed: bits",
    ];
    let columns = if bleed { 6 } else { 4 };
    let lines = points.iter().map(|point| {
        let name = over.of(point).to_string();
        line(name, &point.patched, Some(&point.elsewhere))
    });
    let lines = lines.chain([line("bare".into(), bare, None)]);
    let lines: Vec<_> = lines.map(|line| line[..columns].to_vec()).collect();
    table(&header[..columns], &lines)
}

/// A line of the table.
fn line(name: String, queries: &Summary, elsewhere: Option<&Summary>) -> Vec<String> {
    let count = |share: f64| format!("{:.0}/{}", share * queries.samples as f64, queries.samples);
    let elsewhere = elsewhere.filter(|elsewhere| elsewhere.samples > 0);
    let bleed = elsewhere.map_or(["–".into(), "–".into()], |elsewhere| {
        let [before, after] = elsewhere.bits;
        let bits = format!("{:+.1} %", 100.0 * (after - before) / before);
        [divergence(elsewhere.kl), bits]
    });
    let queries = [
        name,
        divergence(queries.kl),
        count(queries.exact),
        count(queries.first),
    ];
    queries.into_iter().chain(bleed).collect()
}

fn divergence(kl: f64) -> String {
    if kl == 0.0 || kl >= 0.001 {
        format!("{kl:.3}")
    } else {
        format!("{kl:.1e}")
    }
}

fn answers(figures: &Figures<'_>) -> String {
    let same = |of: fn(&Text) -> &Said| figures.answers.iter().filter(|text| of(text).same).count();
    let texts = figures.answers.iter().map(answer);
    let texts: Vec<_> = texts.collect();
    format!(
        "<h2>Answers</h2>\n<p>The likeliest answers to {} of the {} that were left out, under the patch from the others: {} are the same as with the prompt, \
         and {} without prompt and patch. Marked in red: what is not as with the prompt. Line breaks and other control characters are \
         escaped (<code>\\n</code>). Where the model wrote the queries itself, it is given the first half of its text, and the curves are of all of it.</p>\n{}",
        figures.answers.len(),
        figures.bare.samples,
        same(|text| &text.patched),
        same(|text| &text.bare),
        texts.concat(),
    )
}

fn answer(text: &Text) -> String {
    let prompted = said("With the prompt", &escaped(&text.prompted), "");
    let [patched, bare] = [("Compiled", &text.patched), ("Bare", &text.bare)]
        .map(|(name, answer)| held_against(name, answer, &text.prompted));
    format!(
        "<h3 class=\"query\">{}</h3>\n<div class=\"texts\">\n{prompted}{patched}{bare}</div>\n",
        escaped(&text.query)
    )
}

/// An answer, with all marked that follows the characters with which it and the `prompted` one begin.
fn held_against(name: &str, answer: &Said, prompted: &str) -> String {
    if answer.same {
        return said(name, &escaped(&answer.text), "the same");
    }
    let pairs = answer.text.chars().zip(prompted.chars());
    let common = pairs.take_while(|(a, b)| a == b);
    let common: usize = common.map(|(a, _)| a.len_utf8()).sum();
    let (begin, rest) = answer.text.split_at(common);
    let (rest, verdict) = if rest.is_empty() {
        (String::new(), "another answer: it ends sooner")
    } else {
        (format!("<mark>{}</mark>", escaped(rest)), "another answer")
    };
    said(name, &(escaped(begin) + &rest), verdict)
}

/// A box with an answer, which is HTML.
fn said(name: &str, answer: &str, verdict: &str) -> String {
    format!(
        "<div class=\"said\"><h4>{name}</h4><p>{answer}</p><div class=\"kinds\">{verdict}</div></div>\n"
    )
}
