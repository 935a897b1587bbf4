//! A picture of what a model says when it is asked in several ways: a panel for each, with bars for the likeliest words.

use std::fmt::Write;

use super::escaped::escaped;

/// One way to ask, and the likeliest words that follow.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is above the panel.
    pub title: String,
    /// What the model reads, in two lines.
    pub reads: [String; 2],
    /// The words and their probabilities, the likeliest first.
    pub words: Vec<(String, f64)>,
}

/// The sizes below are pixels.
const PANEL: usize = 268;
const MARGIN: usize = 20;
/// From one bar to the next.
const LINE: usize = 24;
/// Where the first bar's word stands.
const FIRST: usize = 118;
/// Where bars begin in a panel, and how long one of probability 1 is.
const BAR: usize = 82;
const LENGTH: f64 = 126.0;
/// The most characters of a line of what is read, and of a word.
const MOST: (usize, usize) = (36, 10);

/// Light, or dark where the reader's other pages are; the card behind it goes with it, whatever it is shown on.
const STYLE: &str = "\
.card { fill: #fff; stroke: #d0d7de } .ink { fill: #1f2328 } .faint { fill: #59636e } .bar { fill: #afb8c1 } .answer { fill: #009e73 }
@media (prefers-color-scheme: dark) {
  .card { fill: #0d1117; stroke: #3d444d } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .bar { fill: #656c76 } .answer { fill: #2fbf92 }
}
text { font: 14px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif } .title { font-size: 16px; font-weight: 600 }
.right { text-anchor: end } .strong { font-weight: 700 }
";

/// The picture as SVG, for light and dark pages. The likeliest word of the first panel is in colour in all of them.
/// The same answers give the same bytes.
pub fn picture(answers: &[Answer]) -> String {
    let lines = answers.iter().map(|answer| answer.words.len()).max();
    let (width, height) = (
        MARGIN + answers.len() * (PANEL + MARGIN),
        FIRST + lines.unwrap_or(0) * LINE,
    );
    let said = |answer: &Answer| answer.words.first().cloned();
    let right = answers.first().and_then(said).map(|(word, _)| word);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         <title>The likeliest next words</title>\n<desc>{}</desc>\n<style>\n{STYLE}</style>\n\
         <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
        escaped(&description(answers)),
        width - 1,
        height - 1,
    );
    for (i, answer) in answers.iter().enumerate() {
        panel(
            &mut svg,
            MARGIN + i * (PANEL + MARGIN),
            answer,
            right.as_deref(),
        );
    }
    svg + "</svg>\n"
}

/// A probability as a label: none or all only where it is.
pub fn chance(p: f64) -> String {
    match 100.0 * p {
        percent if percent > 0.0 && percent < 1.0 => "< 1 %".into(),
        percent if percent > 99.0 && percent < 100.0 => "> 99 %".into(),
        percent => format!("{percent:.0} %"),
    }
}

fn panel(svg: &mut String, x: usize, answer: &Answer, right: Option<&str>) {
    let [first, second] = answer.reads.each_ref().map(|line| cut(line, MOST.0));
    // Writing to a string cannot fail.
    let _ = write!(
        svg,
        "<text class=\"title ink\" x=\"{x}\" y=\"36\">{}</text>\n\
         <text class=\"faint\" x=\"{x}\" y=\"62\">{first}</text>\n<text class=\"faint\" x=\"{x}\" y=\"82\">{second}</text>\n",
        escaped(&answer.title),
    );
    for (i, (word, p)) in answer.words.iter().enumerate() {
        let y = FIRST + i * LINE;
        let (bar, strong) = if right == Some(word.as_str()) {
            ("answer", " strong")
        } else {
            ("bar", "")
        };
        let length = (LENGTH * p).max(1.0);
        let _ = writeln!(
            svg,
            "<text class=\"ink right{strong}\" x=\"{}\" y=\"{y}\">{}</text>\
             <rect class=\"{bar}\" x=\"{}\" y=\"{}\" width=\"{length:.1}\" height=\"14\" rx=\"2\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"{y}\">{}</text>",
            x + BAR - 8,
            cut(word, MOST.1),
            x + BAR,
            y - 12,
            (x + BAR) as f64 + length + 8.0,
            escaped(&chance(*p)),
        );
    }
}

/// What there is to see, in words.
fn description(answers: &[Answer]) -> String {
    let said = answers.iter().map(|answer| {
        let words = answer.words.iter();
        let words = words.map(|(word, p)| format!("{word} {}", chance(*p)));
        let reads = answer.reads.join(" ");
        let words: Vec<_> = words.collect();
        format!("{} ({}): {}.", answer.title, reads.trim(), words.join(", "))
    });
    said.collect::<Vec<_>>().join(" ")
}

/// At most so many characters, escaped.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return escaped(text);
    }
    let start: String = text.chars().take(most - 1).collect();
    escaped(&format!("{start}…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_gives_xml() {
        let answer = |word: &str| Answer {
            title: "with <it>".into(),
            reads: ["a & b ".repeat(20), "\u{1}\"'".into()],
            words: vec![(word.into(), 1.0), ("<eos>".repeat(9), 0.0)],
        };
        let svg = picture(&[answer("x"), answer("]]>")]);
        let parsed = roxmltree::Document::parse(&svg).unwrap();
        let bars = parsed
            .descendants()
            .filter(|node| node.has_tag_name("rect"));
        assert_eq!(bars.count(), 1 + 2 * 2);
        assert_eq!(picture(&[]).matches("<text").count(), 0);
    }

    #[test]
    fn none_and_all_are_said_only_where_they_are() {
        let said = [0.0, 0.0004, 0.0306, 0.9949, 0.9996, 1.0].map(chance);
        assert_eq!(said, ["0 %", "< 1 %", "3 %", "> 99 %", "> 99 %", "100 %"]);
    }
}
