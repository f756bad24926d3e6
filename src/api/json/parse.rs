//! Parsing JSON requests. A body is scanned once to tell a batch from an item and to find the items
//! of a batch within its limit; then each item is parsed on its own.

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{http::problem::Problem, wire::Code};

/// A body that is valid JSON.
pub(super) enum JsonBody<'a> {
    /// Everything that is not a batch; parsing it as an item says what is wrong with it.
    Item(&'a str),
    Batch(Vec<&'a RawValue>),
}

/// A text member.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// An object with known members. Null means that a member is absent, because clients with typed
/// models write it.
pub(super) trait Item<'a>: Deserialize<'a> {
    /// The names of its members.
    const MEMBERS: &'static [&'static str];
}

macro_rules! item {
    ($(#[$doc:meta])* $name:ident { $($required:ident)? } $members:expr) => {
        $(#[$doc])*
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name<'a> {
            $(#[serde(borrow)]
            pub(super) $required: Text<'a>,)?
            #[serde(borrow, default)]
            pub(super) aad: Option<Text<'a>>,
            /// For clients with one model of items and batches.
            #[serde(default, rename = "batch")]
            _batch: Option<()>,
        }

        impl<'a> Item<'a> for $name<'a> {
            const MEMBERS: &'static [&'static str] = &$members;
        }
    };
}

item!(
    /// What is encrypted.
    PlaintextItem { plaintext } ["plaintext", "aad"]
);
item!(
    /// What is decrypted or rewrapped.
    CiphertextItem { ciphertext } ["ciphertext", "aad"]
);
item!(
    /// What a data key is bound to.
    DataKeyRequest {} ["aad"]
);

/// Parses a body, and the items of a batch as far as their bounds.
pub(super) fn body(text: &str, max_items: usize) -> Result<JsonBody<'_>, Problem> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let outline = BodySeed { max_items }
        .deserialize(&mut deserializer)
        .and_then(|outline| deserializer.end().map(|()| outline))
        .map_err(|error| invalid(format!("the body is not valid JSON{}", position(&error))))?;
    match outline {
        Outline::NotAnObject => Err(not_an_object()),
        Outline::Object { batches: 2.., .. } => Err(invalid("duplicate field `batch`")),
        Outline::Object {
            batch: None | Some(Batch::Null),
            ..
        } => Ok(JsonBody::Item(text)),
        Outline::Object {
            has_other_fields: true,
            ..
        } => Err(invalid("unknown field; expected `batch` alone")),
        Outline::Object { batch, .. } => match batch {
            Some(Batch::Items(items)) => Ok(JsonBody::Batch(items)),
            Some(Batch::TooManyItems) => Err(Problem::new(
                Code::BatchTooLarge,
                format!("a batch may have at most {max_items} items"),
            )),
            _ => Err(invalid("`batch` is not an array")),
        },
    }
}

/// Parses an object with known members.
pub(super) fn item<'a, T: Item<'a>>(item: &'a str) -> Result<T, Problem> {
    // serde would also accept an array of a struct's values.
    if !item.trim_ascii_start().starts_with('{') {
        return Err(not_an_object());
    }
    serde_json::from_str(item).map_err(|error| invalid(reason(&error, item, T::MEMBERS)))
}

pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

fn not_an_object() -> Problem {
    invalid("expected a JSON object")
}

/// Describes what is wrong with an object. Values are never quoted, because they may be secret. Nor
/// are the names of unknown members: they come from the caller, and may be misplaced secrets.
fn reason(error: &serde_json::Error, item: &str, members: &'static [&str]) -> String {
    let text = error.to_string();
    let text = text.split(" at line").next().unwrap_or_default();
    if text.starts_with("missing field") || text.starts_with("duplicate field") {
        return text.to_owned();
    }
    if !error.is_data() {
        return format!("invalid JSON{}", position(error));
    }
    match not_text(item, members) {
        Some((name, "null")) => format!("missing field `{name}`"),
        Some((name, _)) => format!("`{name}` must be a string"),
        None => format!("unknown field; expected `{}`", members.join("` or `")),
    }
}

/// Finds a member that is not a string, and its value.
fn not_text<'a>(item: &'a str, members: &'static [&str]) -> Option<(&'static str, &'a str)> {
    let all: BTreeMap<Cow<'_, str>, &'a RawValue> = serde_json::from_str(item).ok()?;
    members.iter().find_map(|name| {
        let value = all.get(*name)?.get();
        // Null is another way of leaving `aad` out.
        let is_valid = value.starts_with('"') || (*name == "aad" && value == "null");
        (!is_valid).then_some((*name, value))
    })
}

fn position(error: &serde_json::Error) -> String {
    format!(" (line {}, column {})", error.line(), error.column())
}

/// What one scan shows of a body. Only syntax errors end the scan, so that they take precedence.
enum Outline<'a> {
    NotAnObject,
    Object {
        batch: Option<Batch<'a>>,
        /// How many fields are named `batch`.
        batches: usize,
        has_other_fields: bool,
    },
}

enum Batch<'a> {
    Null,
    NotAnArray,
    TooManyItems,
    Items(Vec<&'a RawValue>),
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Batch,
    /// A member of an item.
    #[serde(rename = "plaintext", alias = "ciphertext", alias = "aad")]
    OfItem,
    #[serde(other)]
    Other,
}

/// Implements the visits of values that are neither null, an array nor an object.
macro_rules! visit_scalars {
    ($other:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($other)
        }
    };
}

struct BodySeed {
    max_items: usize,
}

impl<'de> DeserializeSeed<'de> for BodySeed {
    type Value = Outline<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BodySeed {
    type Value = Outline<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut batch, mut batches, mut has_other_fields) = (None, 0, false);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Batch => {
                    let seed = BatchSeed {
                        max_items: self.max_items,
                    };
                    batch = Some(map.next_value_seed(seed)?);
                    batches += 1;
                }
                Field::OfItem => {
                    has_other_fields |= map.next_value::<Option<IgnoredAny>>()?.is_some();
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    has_other_fields = true;
                }
            }
        }
        Ok(Outline::Object {
            batch,
            batches,
            has_other_fields,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Outline::NotAnObject)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Outline::NotAnObject)
    }

    visit_scalars!(Outline::NotAnObject);
}

struct BatchSeed {
    max_items: usize,
}

impl<'de> DeserializeSeed<'de> for BatchSeed {
    type Value = Batch<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BatchSeed {
    type Value = Batch<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            if items.len() == self.max_items {
                while sequence.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Batch::TooManyItems);
            }
            items.push(item);
        }
        Ok(Batch::Items(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Batch::NotAnArray)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Batch::Null)
    }

    visit_scalars!(Batch::NotAnArray);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(text: &str) -> String {
        let problem = body(text, 2).err().expect("rejected");
        String::from_utf8(problem.to_json()).expect("text")
    }

    #[test]
    fn finds_the_items_of_a_batch_without_parsing_them() {
        let text = r#" { "batch": [ {"plaintext": "YQ"}, [1, "\ud800", 1e999] ] } "#;
        let JsonBody::Batch(items) = body(text, 2).expect("batch") else {
            panic!("a batch")
        };
        let items: Vec<_> = items.iter().map(|item| item.get()).collect();
        assert_eq!(items, [r#"{"plaintext": "YQ"}"#, r#"[1, "\ud800", 1e999]"#]);
    }

    #[test]
    fn what_has_no_batch_is_an_item() {
        for text in ["{}", r#"{"batch": null}"#, r#"{"aad": ""}"#] {
            let JsonBody::Item(item) = body(text, 2).expect("item") else {
                panic!("an item: {text}")
            };
            assert_eq!(item, text);
        }
    }

    #[test]
    fn null_stands_for_an_absent_member() {
        for text in [
            r#"{"plaintext": "YQ", "aad": null}"#,
            r#"{"plaintext": "YQ", "batch": null}"#,
        ] {
            let item = item::<PlaintextItem<'_>>(text).expect(text);
            assert!(&*item.plaintext == "YQ" && item.aad.is_none());
        }
        assert!(item::<DataKeyRequest<'_>>(r#"{"aad": null}"#).is_ok());
        let text = r#"{"batch": [1], "plaintext": null, "ciphertext": null, "aad": null}"#;
        assert!(matches!(body(text, 2), Ok(JsonBody::Batch(items)) if items.len() == 1));
    }

    #[test]
    fn rejects_other_shapes_with_a_reason() {
        for (text, expected) in [
            ("[]", "expected a JSON object"),
            ("null", "expected a JSON object"),
            ("3", "expected a JSON object"),
            (r#"{"batch": {}}"#, "`batch` is not an array"),
            (r#"{"batch": "x"}"#, "`batch` is not an array"),
            (r#"{"batch": [], "aad": ""}"#, "unknown field"),
            (r#"{"batch": [], "x": null}"#, "unknown field"),
            (r#"{"batch": [], "batch": []}"#, "duplicate field `batch`"),
            (r#"{"batch": [1, 2, 3]}"#, "batch_too_large"),
        ] {
            let detail = detail(text);
            assert!(detail.contains(expected), "{text}: {detail}");
        }
    }

    #[test]
    fn syntax_errors_take_precedence_over_everything_else() {
        for text in [
            r#"{"batch": [1, 2, 3"#,
            r#"{"batch": [1, 2, 3]} x"#,
            r#"{"batch": {}, "x": }"#,
            r#"[1, "#,
            "",
        ] {
            let detail = detail(text);
            assert!(
                detail.contains("not valid JSON (line 1"),
                "{text}: {detail}"
            );
        }
    }

    #[test]
    fn errors_of_items_quote_no_value_and_no_unknown_name() {
        for (text, expected) in [
            (
                r#"{"plaintext": "YQ", "hunter2": 1}"#,
                "unknown field; expected `plaintext` or `aad`",
            ),
            (r#"{"aad": ""}"#, "missing field `plaintext`"),
            (
                r#"{"plaintext": "a", "plaintext": "b"}"#,
                "duplicate field `plaintext`",
            ),
            (
                r#"{"plaintext": {"hunter2": 2}}"#,
                "`plaintext` must be a string",
            ),
            (
                r#"{"plaintext": "YQ", "aad": ["hunter2"]}"#,
                "`aad` must be a string",
            ),
            (r#"{"plaintext": null}"#, "missing field `plaintext`"),
            (
                r#"{"plaintext": "YQ", "batch": ["hunter2"]}"#,
                "unknown field; expected `plaintext` or `aad`",
            ),
            (r#"{"plaintext": "YQ", "aad": "\ud800"}"#, "invalid JSON"),
            ("[\"hunter2\"]", "expected a JSON object"),
        ] {
            let problem = item::<PlaintextItem<'_>>(text).err().expect("rejected");
            let json = String::from_utf8(problem.to_json()).expect("text");
            assert!(json.contains(expected), "{text}: {json}");
            assert!(!json.contains("hunter2"), "{json}");
        }
    }
}
