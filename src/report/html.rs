//! What pages are made of: HTML that is XML too.

use std::fmt::{Display, Write};

use super::chart::{Look, swatch};
use super::escaped::escaped;

const STYLE: &str = include_str!("style.css");

/// A whole page; `title` and `body` are HTML.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
    )
}

/// Names and what they stand for, which is HTML.
pub(super) fn definitions(facts: &[(&str, String)]) -> String {
    let facts = facts.iter().fold(String::new(), |mut all, (name, fact)| {
        // Writing to a string cannot fail.
        let _ = writeln!(all, "<dt>{name}</dt><dd>{fact}</dd>");
        all
    });
    format!("<dl>\n{facts}</dl>\n")
}

pub(super) fn code(text: &str) -> String {
    format!("<code>{}</code>", escaped(text))
}

/// A count and its noun.
pub(super) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Lines of cells under a header. The first column names the line.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |cells: &mut dyn Iterator<Item = &str>, tag: &str| {
        cells.fold(String::new(), |all, cell| {
            format!("{all}<{tag}>{}</{tag}>", escaped(cell))
        })
    };
    let header = cells(&mut header.iter().copied(), "th");
    let rows = rows.iter().fold(String::new(), |all, row| {
        let row = cells(&mut row.iter().map(String::as_str), "td");
        format!("{all}<tr>{row}</tr>\n")
    });
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

/// What the markers of series stand for.
pub(super) fn legend(items: &[(Look, String)]) -> String {
    let items = items.iter().fold(String::new(), |mut all, (look, name)| {
        let _ = writeln!(all, "<li>{}{}</li>", swatch(*look), escaped(name));
        all
    });
    format!("<ul class=\"legend\">\n{items}</ul>\n")
}

/// A figure: what to see, and charts.
pub(super) fn figure(class: &str, caption: &str, content: impl Display) -> String {
    format!("<figure class=\"{class}\">\n<figcaption>{caption}</figcaption>\n{content}</figure>\n")
}
