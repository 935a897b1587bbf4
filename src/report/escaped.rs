//! Text in HTML.

use crate::message::one_line;

/// Text as it stands in HTML and XML, on one line: control characters are escaped as in Rust, for none of them is allowed.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in one_line(text, usize::MAX).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
