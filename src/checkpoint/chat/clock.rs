//! `strftime_now`: the date and time that templates write into a prompt.

use jiff::civil::DateTime;
use jiff::fmt::strtime;

/// `time` as Python's `strftime` writes it for a time without a zone, in the C locale.
pub(super) fn format(time: DateTime, format: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        // The directive ends at its first letter, or at a second percent sign.
        let letter = rest[at + 1..].find(|c: char| c.is_ascii_alphabetic() || c == '%');
        let Some(letter) = letter.map(|l| at + 1 + l) else {
            rest = &rest[at..];
            break;
        };
        let directive = &rest[at..=letter];
        match directive {
            "%f" => out += &format!("{:06}", time.subsec_nanosecond() / 1000),
            "%z" | "%Z" => {}
            "%c" => out += &self::format(time, "%a %b %e %H:%M:%S %Y")?,
            "%x" => out += &self::format(time, "%m/%d/%y")?,
            "%X" => out += &self::format(time, "%H:%M:%S")?,
            "%r" => out += &self::format(time, "%I:%M:%S %p")?,
            _ => {
                let text = strtime::format(directive, time);
                out += &text.map_err(|_| format!("strftime_now does not know {directive}"))?;
            }
        }
        rest = &rest[letter + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
