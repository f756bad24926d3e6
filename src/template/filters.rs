//! What templates of files need besides MiniJinja's own filters and functions.

use base64::{Engine, engine::general_purpose::STANDARD};
use minijinja::{Environment, Error, Value, value::Serde};

use super::values::Own;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("quote", quote);
    environment.add_filter("envquote", envquote);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("b64encode", b64encode);
    environment.add_filter("b64decode", b64decode);
    environment.add_filter("fromjson", fromjson);
    environment.add_function("env", env);
}

/// One word of a POSIX shell.
fn quote(text: String) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A value in double quotes, as shells and systemd's `EnvironmentFile=` read it.
fn envquote(text: String) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// For any part of a URL. MiniJinja's own leaves slashes as they are, which end the part that a user and a password stand in.
fn urlencode(value: &Value) -> Result<String, Error> {
    Ok(minijinja::filters::urlencode(value)?.replace('/', "%2F"))
}

/// Of bytes or of text.
fn b64encode(value: &Value) -> String {
    value.as_bytes().map_or_else(
        || STANDARD.encode(value.to_string()),
        |bytes| STANDARD.encode(bytes),
    )
}

fn b64decode(text: String) -> Result<String, Error> {
    let without_breaks: String = text.split_ascii_whitespace().collect();
    let bytes = STANDARD
        .decode(without_breaks)
        .map_err(|_| Own::error("b64decode: this is not base64"))?;
    String::from_utf8(bytes).map_err(|_| Own::error("b64decode: what comes out is not text"))
}

fn fromjson(text: String) -> Result<Value, Error> {
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|_| Own::error("fromjson: this is not JSON"))?;
    Ok(Value::from(Serde(json)))
}

/// A variable of the sidecar's environment; undefined if it isn't set, or isn't text.
fn env(name: String) -> Value {
    // The system's function panics at such names.
    let is_name = !name.is_empty() && !name.contains(['=', '\0']);
    is_name
        .then(|| std::env::var(name).ok())
        .flatten()
        .map_or(Value::UNDEFINED, Value::from)
}
