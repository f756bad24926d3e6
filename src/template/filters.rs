//! Filters and functions in addition to MiniJinja's own.

use base64::{Engine, engine::general_purpose::STANDARD};
use minijinja::{Environment, Error, State, Value};

use super::{json, values::SafeError};
use crate::encoding::{NotBase64, decode_base64};

/// How many bytes of JSON are read in one step.
const JSON_BYTES_PER_STEP: u64 = 4;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("quote", quote);
    environment.add_filter("envquote", envquote);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("b64encode", b64encode);
    environment.add_filter("b64decode", b64decode);
    environment.add_filter("fromjson", fromjson);
    environment.add_function("env", env);
}

/// Quotes one word for a POSIX shell.
fn quote(text: String) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Puts a value in double quotes, as shells and systemd's `EnvironmentFile=` read it.
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

/// Encodes for any part of a URL. MiniJinja's own filter keeps slashes, which would end the part
/// with the user and the password.
fn urlencode(value: &Value) -> Result<String, Error> {
    Ok(minijinja::filters::urlencode(value)?.replace('/', "%2F"))
}

/// Encodes bytes or text.
fn b64encode(value: &Value) -> String {
    value.as_bytes().map_or_else(
        || STANDARD.encode(value.to_string()),
        |bytes| STANDARD.encode(bytes),
    )
}

fn b64decode(text: String) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    decode_base64(text.as_bytes(), &mut bytes).map_err(|NotBase64| {
        SafeError::error(format!("b64decode: the input is {}", NotBase64::EXPECTED))
    })?;
    String::from_utf8(bytes).map_err(|_| SafeError::error("b64decode: the result is not text"))
}

fn fromjson(state: &State<'_, '_>, text: String) -> Result<Value, Error> {
    // Short numbers take up to a dozen times as much memory as their text.
    state.consume_fuel(text.len() as u64 / JSON_BYTES_PER_STEP)?;
    json::value(&text).ok_or_else(|| SafeError::error("fromjson: the input is not JSON"))
}

/// Returns a variable of the sidecar's environment; undefined if it is not set or not UTF-8.
fn env(name: &str) -> Value {
    // `std::env::var` panics on other names.
    let is_name = !name.is_empty() && !name.contains(['=', '\0']);
    is_name
        .then(|| std::env::var(name).ok())
        .flatten()
        .map_or(Value::UNDEFINED, Value::from)
}
