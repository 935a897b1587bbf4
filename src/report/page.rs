//! The page about a verification.

use std::fmt::Write;

use super::chart::Look;
use super::data::{Figures, Panel};
use super::escaped::escaped;
use super::figures::{QUANTITIES, distribution, per_layer, per_step};
use super::html::{self, code, counted, definitions, document, figure, table};
use super::texts::{Contextual, Said, Text};
use super::thumbnails::thumbnails;
use crate::message::IoError;
use crate::verify::{Record, Table};
use crate::vision::Picture;

/// The whole page.
///
/// # Errors
///
/// [`IoError`] where a chart cannot be laid out, or a picture not be made small.
pub(super) fn page(
    record: &Record,
    pictures: &[Picture],
    figures: &Figures,
) -> Result<String, IoError> {
    let title = format!("Verification of {}", escaped(&record.setting.model));
    let parts = [
        head(record, &title),
        thumbnails(&record.setting, pictures)?,
        overview(record),
        steps(figures)?,
        distributions(figures)?,
        layers(figures)?,
        texts(figures),
        controls(record),
    ];
    Ok(document(&title, &parts.concat()))
}

/// What was verified, the verdict, and where it comes from.
fn head(record: &Record, title: &str) -> String {
    let setting = &record.setting;
    let missing = record.missing().map(|(count, first)| {
        let missing = match count {
            1 => "1 step is missing".into(),
            _ => format!("{count} steps are missing"),
        };
        format!("Not finished: {missing}, the first is {first}.\n")
    });
    let good = record.findings().is_empty() && missing.is_none();
    let verdict = missing.unwrap_or_default() + &record.verdict() + "\n" + &matching(record, good);
    let verdict: Vec<_> = verdict.lines().map(escaped).collect();
    let machines = record.machines.iter().map(|machine| {
        format!(
            "{}{}, {}, {}, {} threads",
            machine
                .cpu
                .as_deref()
                .map_or_else(String::new, |cpu| format!("{cpu}, ")),
            machine.arch,
            machine.os,
            machine.level,
            machine.threads,
        )
    });
    let mut facts = vec![
        ("model", escaped(&setting.model)),
        ("hash of its weights", code(&setting.model_hash)),
        ("hash of config.json", code(&setting.config_hash)),
        ("context-patch", escaped(&setting.version)),
        ("command", code(&setting.command())),
    ];
    facts.extend(machines.map(|machine| ("machine", escaped(&machine))));
    let (prompts, kinds) = (setting.prompts.len(), setting.kinds.len());
    format!(
        "<h1>{title}</h1>\n<p>The patched model, which does not see the prompt, against the model that sees it: {} tokens after each \
         of {}, in {}. The context that stays: {}; positions: {}.</p>\n\
         <p class=\"verdict{}\">{}</p>\n{}",
        setting.tokens,
        counted(prompts, "prompt"),
        counted(kinds, "kind"),
        setting.keep,
        setting.positions,
        if good { "" } else { " broken" },
        verdict.join("\n"),
        definitions(&facts),
    )
}

/// How many tokens are the same, and, where every bound holds, why others need not be.
fn matching(record: &Record, good: bool) -> String {
    let steps = || record.runs.iter().flat_map(|run| &run.steps);
    let same = steps().filter(|step| step.patched.same_top).count();
    let why = if good && same < steps().count() {
        "; in the others two tokens are so close that the bound cannot tell them apart"
    } else {
        ""
    };
    format!(
        "{same} of {} tokens are those that the model writes with the prompt{why}.",
        steps().count()
    )
}

fn overview(record: &Record) -> String {
    format!(
        "<h2>All kinds</h2>\n<p>A kind is a solver, a compute type and how the patch is applied. <i>tokens</i>: how many are the same as with the \
         prompt; <i>L∞</i>: the largest difference of any logit; <i>of bound</i>: the largest share of the derived tolerance that is used; <i>hidden \
         error</i>: of a layer's output, relative to its largest number.</p>\n{}",
        verified(&record.figures()),
    )
}

fn controls(record: &Record) -> String {
    format!(
        "<h2>Controls, which must fail</h2>\n<p>Without the patch, or without one part of it, the logits must be far off.</p>\n{}",
        verified(&record.controls()),
    )
}

fn verified(figures: &Table) -> String {
    table(&figures.header, &figures.rows)
}

/// The markers of all kinds in some panels.
fn legend(panels: &[Panel]) -> String {
    let mut items: Vec<(Look, String)> = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        let item = (series.look(), format!("{} {}", series.solver, series.form));
        if !items.contains(&item) {
            items.push(item);
        }
    }
    html::legend(&items)
}

fn of(panel: &Panel) -> String {
    format!("{} {}", escaped(&panel.platform), panel.dtype)
}

fn steps(figures: &Figures) -> Result<String, IoError> {
    let mut charts = legend(&figures.panels);
    for panel in &figures.panels {
        let _ = write!(
            charts,
            "<p class=\"name\">{}</p>\n<div class=\"charts two\">\n{}</div>\n",
            of(panel),
            per_step(panel)?.concat()
        );
    }
    let caption = "Each marker is a token. All must be below the line “bound”, which is derived, and far below “no patch”, the model \
        without one. A red cross is a token that differs from the one with the prompt. In the grey band at the bottom are exact zeros: no bit of any logit differs.";
    Ok(format!(
        "<h2>Step by step</h2>\n{}",
        figure("steps", caption, charts)
    ))
}

fn distributions(figures: &Figures) -> Result<String, IoError> {
    let mut charts = String::new();
    for (platform, panels) in figures.platforms() {
        let name = escaped(platform);
        let chart = distribution(platform, &panels)?;
        let _ = write!(charts, "<p class=\"name\">{name}</p>\n{chart}");
    }
    let caption = "How L∞ is distributed over the tokens; a bar as high as its row is all of them. In colour with the patch, in grey without: the \
        further apart, the more the patch does. At the right, how many tokens are the same as with the prompt.";
    Ok(format!(
        "<h2>Distribution, and tokens that match</h2>\n{}",
        figure("wide", caption, charts)
    ))
}

fn layers(figures: &Figures) -> Result<String, IoError> {
    let mut charts = legend(&figures.panels);
    for quantity in &QUANTITIES {
        let mut row = String::new();
        for panel in &figures.panels {
            if let Some(chart) = per_layer(panel, quantity)? {
                let _ = write!(
                    row,
                    "<div><p class=\"name\">{}, {}</p>\n{chart}</div>\n",
                    quantity.name,
                    of(panel)
                );
            }
        }
        let _ = write!(charts, "<div class=\"charts three\">\n{row}</div>\n");
    }
    let caption = "The median over the steps (with markers) and the worst (thin line). The error of a hidden state stays near the rounding of the compute \
        type where each layer is solved for its own output; a span only has the last layer right. ΔW is relative to the weights it changes, \
        in the Frobenius norm; a layer that is left as it is has 0. Kinds that never change a part are not in its charts.";
    Ok(format!(
        "<h2>Layer by layer</h2>\n{}",
        figure("layers", caption, charts)
    ))
}

fn texts(figures: &Figures) -> String {
    let texts: Vec<_> = figures.texts.iter().enumerate().map(text).collect();
    format!(
        "<h2>Texts</h2>\n<p>At each step all passes take in the token that the model wrote with the prompt, and say the next one. Underlined in \
         red: another token than with the prompt. Line breaks and other control characters are escaped (<code>\\n</code>). \
         A pass of the span sees the tokens of the answer so far, too; the token that it has beyond the others is not shown.</p>\n{}",
        texts.concat()
    )
}

fn text((prompt, text): (usize, &Text)) -> String {
    let blocks: Vec<_> = text.contextual.iter().map(contextual).collect();
    format!(
        "<h3>Prompt {}</h3>\n<p class=\"prompt\">{}</p>\n{}",
        prompt + 1,
        escaped(&text.prompt),
        blocks.concat()
    )
}

fn contextual(text: &Contextual) -> String {
    let (all, computed) = (text.said.kinds.len(), text.computed.join(", "));
    let kinds = |text: &Said| match text.kinds.len() {
        count if count == all && all > 1 => format!("all {all} kinds in {computed}"),
        _ => text.kinds.join(", "),
    };
    let column = |name: &str, texts: &mut dyn Iterator<Item = &Said>| {
        let boxes = texts.fold(String::new(), |boxes, text| {
            boxes + &said(name, text, &kinds(text))
        });
        format!("<div>{boxes}</div>\n")
    };
    format!(
        "<div class=\"texts\">\n{}{}{}</div>\n",
        column("With the prompt", &mut std::iter::once(&text.said)),
        column("Patched", &mut text.patched.iter()),
        column("Without a patch", &mut text.no_patch.iter()),
    )
}

/// A text, and which kinds say it.
fn said(name: &str, text: &Said, kinds: &str) -> String {
    let tokens = text.tokens.iter().fold(String::new(), |tokens, token| {
        let text = escaped(&token.text);
        if token.differs {
            tokens + &format!("<mark>{text}</mark>")
        } else {
            tokens + &text
        }
    });
    format!(
        "<div class=\"said\"><h4>{name}</h4><p>{tokens}</p><div class=\"kinds\">{}</div></div>\n",
        escaped(kinds)
    )
}
