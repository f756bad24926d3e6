//! JSON as values of a template. Numbers stay as they are written.

use std::{collections::BTreeMap, fmt};

use minijinja::{Error, Value};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::values::SafeError;

/// How deep values may be nested, as in `serde_json`.
const MAX_DEPTH: usize = 128;

/// Converts a text; None if it is not JSON.
pub(super) fn value(text: &str) -> Option<Value> {
    let raw = serde_json::from_str(text).ok()?;
    Some(convert(raw, 0).unwrap_or_else(Value::from))
}

/// Converts an object; None if `bytes` is none. A member that can't be converted is an error when
/// it is used.
pub(super) fn object(bytes: &[u8]) -> Option<Value> {
    // Without the byte order mark that editors of Windows put in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let Members(members) = serde_json::from_slice(bytes).ok()?;
    let member = |(name, raw)| (name, convert(raw, 1).unwrap_or_else(Value::from));
    Some(Value::from_pairs(members.into_iter().map(member)))
}

fn convert(raw: &RawValue, depth: usize) -> Result<Value, Error> {
    let error = |message: &str| SafeError::error(format!("a member of the JSON {message}"));
    if depth > MAX_DEPTH {
        return Err(error("is nested too deeply"));
    }
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) =
                serde_json::from_str(text).map_err(|_| error("is not an object"))?;
            let pairs: Result<Vec<_>, Error> = members
                .into_iter()
                .map(|(name, raw)| Ok((name, convert(raw, depth + 1)?)))
                .collect();
            Ok(Value::from_pairs(pairs?))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> =
                serde_json::from_str(text).map_err(|_| error("is not an array"))?;
            let items: Result<Vec<Value>, Error> = items
                .into_iter()
                .map(|raw| convert(raw, depth + 1))
                .collect();
            Ok(Value::from(items?))
        }
        Some(b'"') => serde_json::from_str::<String>(text)
            .map(Value::from)
            .map_err(|_| error("is not Unicode: it contains half of a surrogate pair")),
        Some(b't') => Ok(Value::from(true)),
        Some(b'f') => Ok(Value::from(false)),
        Some(b'n') => Ok(Value::from(())),
        _ => Ok(number(text)),
    }
}

/// Converts a number. One that MiniJinja would print differently becomes text.
fn number(text: &str) -> Value {
    let whole = || text.parse::<i64>().map(Value::from);
    let long = || text.parse::<i128>().map(Value::from);
    let value = whole()
        .or_else(|_| long())
        .ok()
        .or_else(|| text.parse::<f64>().ok().map(Value::from));
    value
        .filter(|number| number.to_string() == text)
        .unwrap_or_else(|| Value::from(text))
}

/// The members of an object. The last one counts if a name is repeated; names that are not Unicode
/// are left out, because no template can write them.
struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor).map(Self)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = BTreeMap<String, &'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(Name(name)) = map.next_key()? {
            let raw = map.next_value()?;
            if let Some(name) = name {
                members.insert(name, raw);
            }
        }
        Ok(members)
    }
}

/// A member's name, if it is Unicode.
struct Name(Option<String>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Unlike `deserialize_str`, this accepts half of a surrogate pair.
        deserializer.deserialize_bytes(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Name, E> {
        Ok(Name(std::str::from_utf8(name).ok().map(str::to_owned)))
    }
}
