//! The Jinja environment that transformers renders chat templates in.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};

use super::globals::{cycler, joiner};
use super::json::tojson;
use super::methods::{self, lines, pad, strip, width_of};
use super::python::{arguments, text, wrong};

/// What minijinja has and Jinja2 does not.
const NOT_IN_JINJA: ([&str; 5], [&str; 3]) = (
    ["bool", "chain", "lines", "split", "zip"],
    ["endingwith", "safe", "startingwith"],
);

/// Filters of Jinja2 for web pages, for debugging, or that draw at random.
const UNSUPPORTED: [&str; 8] = [
    "filesizeformat",
    "pprint",
    "random",
    "striptags",
    "urlencode",
    "urlize",
    "wordwrap",
    "xmlattr",
];

type Arguments = Rest<ValueOrKwargs>;

/// The environment, without a template; it stops after `fuel` steps.
pub(super) fn environment(fuel: u64) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    env.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(fuel));
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| {
        // Undefined values and strings need no other text than they have.
        match value.kind() {
            ValueKind::Number | ValueKind::Seq | ValueKind::Map => Ok(out.write_str(&text(value))?),
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
    for name in NOT_IN_JINJA.0 {
        env.remove_filter(name);
    }
    for name in NOT_IN_JINJA.1 {
        env.remove_test(name);
    }
    env.remove_global("debug");
    for name in UNSUPPORTED {
        let refuse = move |_: Arguments| -> Result<Value, Error> {
            Err(wrong(&format!("the filter {name} is not supported")))
        };
        env.add_filter(name, refuse);
    }
    add_filters(&mut env);
    add_sorting_filters(&mut env);
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    env.add_test("sequence", is_sequence);
    env.add_function("raise_exception", raise_exception);
    env.add_function("cycler", cycler);
    env.add_function("joiner", joiner);
    Ok(env)
}

fn add_filters(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| text(value));
    for name in ["default", "d"] {
        env.add_filter(name, default);
    }
    for name in ["escape", "e", "forceescape"] {
        env.add_filter(name, escape);
    }
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("trim", trim);
    env.add_filter("indent", indent);
    env.add_filter("center", center);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", |value: &Value| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        text(value)
            .split(|c| !word(c))
            .filter(|w| !w.is_empty())
            .count()
    });
}

/// Filters of minijinja that take by name alone what Jinja2 takes by position, too, or the other way round.
fn add_sorting_filters(env: &mut Environment<'_>) {
    env.add_filter("sort", |state: &State, value: Value, rest: Arguments| {
        let names = ["reverse", "case_sensitive", "attribute"];
        filters::sort(state, value, by_name("sort", rest, names)?)
    });
    env.add_filter("dictsort", |value: &Value, rest: Arguments| {
        let names = ["case_sensitive", "by", "reverse"];
        filters::dictsort(value, by_name("dictsort", rest, names)?)
    });
    const COMPARED: [&str; 2] = ["case_sensitive", "attribute"];
    env.add_filter("unique", |state: &State, value: Value, rest: Arguments| {
        filters::unique(state, value, by_name("unique", rest, COMPARED)?)
    });
    env.add_filter("min", |state: &State, value: Value, rest: Arguments| {
        filters::min(state, value, by_name("min", rest, COMPARED)?)
    });
    env.add_filter("max", |state: &State, value: Value, rest: Arguments| {
        filters::max(state, value, by_name("max", rest, COMPARED)?)
    });
    env.add_filter("batch", |state: &State, value: Value, rest: Arguments| {
        let [count, fill] = arguments("batch", &rest.into_values(), ["linecount", "fill_with"])?;
        filters::batch(state, value, count.unwrap_or_default().try_into()?, fill)
    });
    env.add_filter("slice", |state: &State, value: Value, rest: Arguments| {
        let [count, fill] = arguments("slice", &rest.into_values(), ["slices", "fill_with"])?;
        filters::slice(state, value, count.unwrap_or_default().try_into()?, fill)
    });
}

/// A filter's arguments, given by position or by name, by name.
fn by_name<const N: usize>(
    filter: &str,
    rest: Arguments,
    names: [&str; N],
) -> Result<Kwargs, Error> {
    let values = arguments(filter, &rest.into_values(), names)?;
    let named = names.into_iter().zip(values);
    Ok(named
        .filter_map(|(name, value)| Some((name, value?)))
        .collect())
}

/// What templates call to refuse a conversation.
fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(wrong(&text(message)))
}

fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

fn default(value: &Value, rest: Arguments) -> Result<Value, Error> {
    let [default, boolean] =
        arguments("default", &rest.into_values(), ["default_value", "boolean"])?;
    let boolean = boolean.is_some_and(|v| v.is_true());
    if value.is_undefined() || (boolean && !value.is_true()) {
        Ok(default.unwrap_or_else(|| "".into()))
    } else {
        Ok(value.clone())
    }
}

fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut escaped = String::new();
    for c in text(value).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Value::from_safe_string(escaped)
}

/// Python's reading of a number within a text: white space around it, single underscores between its digits.
fn digits(text: &str) -> String {
    let text = strip(text, None, "strip");
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        text.into()
    } else {
        text.replace('_', "")
    }
}

fn int(value: &Value, rest: Arguments) -> Result<Value, Error> {
    let [default, base] = arguments("int", &rest.into_values(), ["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    let number = match value.kind() {
        ValueKind::Undefined => return Err(wrong("an undefined value is no number")),
        ValueKind::String => {
            let digits = digits(value.as_str().unwrap_or_default());
            let whole = parse_int(&digits, base);
            whole.or_else(|| digits.parse().ok().and_then(truncated))
        }
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => truncated(f64::try_from(value.clone())?),
        _ => None,
    };
    Ok(number.or(default).unwrap_or_else(|| 0.into()))
}

fn parse_int(digits: &str, base: u32) -> Option<Value> {
    let unsigned = digits.trim_start_matches(['+', '-']);
    let sign = &digits[..digits.len() - unsigned.len()];
    let prefix = |radix: u32, letter: char| {
        let rest = unsigned.strip_prefix('0')?;
        let rest = rest.strip_prefix([letter, letter.to_ascii_uppercase()])?;
        (base == 0 || base == radix).then_some((radix, rest))
    };
    let prefixed = prefix(16, 'x')
        .or_else(|| prefix(8, 'o'))
        .or_else(|| prefix(2, 'b'));
    let (radix, number) = prefixed.unwrap_or((if base == 0 { 10 } else { base }, unsigned));
    if !(2..=36).contains(&radix) || sign.len() > 1 || number.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{number}"), radix)
        .ok()
        .map(Value::from)
}

/// A float's whole part, where it is finite.
fn truncated(number: f64) -> Option<Value> {
    let whole = number.trunc();
    (whole.abs() < 1e38).then(|| Value::from(whole as i128))
}

fn float(value: &Value, rest: Arguments) -> Result<Value, Error> {
    let [default] = arguments("float", &rest.into_values(), ["default"])?;
    let number = match value.kind() {
        ValueKind::Undefined => return Err(wrong("an undefined value is no number")),
        ValueKind::String => digits(value.as_str().unwrap_or_default()).parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    Ok(number
        .map(Value::from)
        .or(default)
        .unwrap_or_else(|| 0.0.into()))
}

fn trim(value: &Value, rest: Arguments) -> Result<String, Error> {
    let [chars] = arguments("trim", &rest.into_values(), ["chars"])?;
    let chars = chars.filter(|v| !v.is_none());
    Ok(strip(
        &text(value),
        chars.as_ref().and_then(Value::as_str),
        "strip",
    )
    .into())
}

fn indent(value: &Value, rest: Arguments) -> Result<String, Error> {
    let values = rest.into_values();
    let [width, first, blank] = arguments("indent", &values, ["width", "first", "blank"])?;
    let is_true = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let indention = match width {
        None => " ".repeat(4),
        Some(text) if text.kind() == ValueKind::String => text.to_string(),
        Some(width) => " ".repeat(width_of(&width)?),
    };
    let Some(text) = value.as_str().filter(|_| value.kind() == ValueKind::String) else {
        return Err(wrong("indent takes a string"));
    };
    let (first, blank) = (is_true(first), is_true(blank));
    let mut out = String::new();
    // A newline at the end begins one more line, which is empty.
    let text = format!("{text}\n");
    for (i, (line, _)) in lines(&text).enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn center(value: &Value, rest: Arguments) -> Result<String, Error> {
    let [width] = arguments("center", &rest.into_values(), ["width"])?;
    let width = width.map_or(Ok(80), |w| width_of(&w))?;
    Ok(pad(&text(value), width, " ", "center"))
}

fn truncate(value: &Value, rest: Arguments) -> Result<String, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, killwords, end, leeway] = arguments("truncate", &rest.into_values(), names)?;
    let length = length.map_or(Ok(255), |v| width_of(&v))?;
    let leeway = leeway
        .filter(|v| !v.is_none())
        .map_or(Ok(5), |v| width_of(&v))?;
    let end = end.map_or_else(|| "...".into(), |v| text(&v));
    let text = text(value);
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| wrong("truncate to less than its end"))?;
    if text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let kept: String = text.chars().take(kept).collect();
    if killwords.is_some_and(|v| v.is_true()) {
        return Ok(kept + &end);
    }
    Ok(kept
        .rsplit_once(' ')
        .map_or(&*kept, |(words, _)| words)
        .to_owned()
        + &end)
}
