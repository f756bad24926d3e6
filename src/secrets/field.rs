//! One field of a value that is a JSON object.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// A field, as the value contains it.
pub struct Field<'v>(&'v RawValue);

/// Why a value has no such field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoField {
    /// The value is not a JSON object.
    NotAnObject,
    /// The value is text in UTF-16, and JSON is UTF-8 (RFC 8259 §8.1).
    Utf16,
    /// The object has no field of this name.
    Missing,
    /// The field is a string with half of a UTF-16 surrogate pair, which no UTF-8 text expresses.
    Surrogate,
}

impl NoField {
    /// Says what is wrong with the value in which `field` was looked for, as the end of a sentence.
    pub(crate) fn explain(self, field: &str) -> String {
        match self {
            Self::NotAnObject => "is not a JSON object, so it has no fields".into(),
            Self::Utf16 => "is in UTF-16, but JSON is UTF-8, so it has no fields".into(),
            Self::Missing => format!("has no field {field:?}"),
            Self::Surrogate => format!(
                "has a field {field:?} that is not Unicode: it contains half of a surrogate pair"
            ),
        }
    }
}

impl<'v> Field<'v> {
    /// Finds a field by its name, or, if there is none, by the names of nested fields with dots
    /// between them. In those, `\.` is a dot and `\\` a backslash of a name. The last one counts if
    /// a name is repeated.
    ///
    /// # Errors
    /// The value is not a JSON object, or has no such field.
    pub(super) fn find(value: &'v [u8], name: &str) -> Result<Self, NoField> {
        let value = text(value)?;
        let found = match member(value, name) {
            Err(NoField::Missing) if name.contains(['.', '\\']) => nested(value, name),
            found => found,
        };
        found.map(Self)
    }

    /// Returns every field by its name. The last one counts if a name is repeated.
    ///
    /// # Errors
    /// The value is not a JSON object.
    pub fn all(value: &'v [u8]) -> Result<BTreeMap<String, Self>, NoField> {
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_slice(text(value)?).map_err(|_| NoField::NotAnObject)?;
        Ok(fields
            .into_iter()
            .map(|(name, value)| (name, Self(value)))
            .collect())
    }

    /// Returns an upper bound for the length of the decoded field, in bytes.
    pub(crate) fn max_len(&self) -> usize {
        self.0.get().len()
    }

    /// Returns the text of a string, and anything else as the value contains it.
    ///
    /// # Errors
    /// [`NoField::Surrogate`]
    pub(crate) fn decode(&self) -> Result<Zeroizing<Vec<u8>>, NoField> {
        #[derive(Deserialize)]
        struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

        let raw = self.0.get();
        if !raw.starts_with('"') {
            return Ok(Zeroizing::new(raw.as_bytes().to_vec()));
        }
        let Text(text) = serde_json::from_str(raw).map_err(|_| NoField::Surrogate)?;
        Ok(Zeroizing::new(text.into_owned().into_bytes()))
    }
}

/// Finds a member of an object.
fn member<'v>(object: &'v [u8], name: &str) -> Result<&'v RawValue, NoField> {
    let mut deserializer = serde_json::Deserializer::from_slice(object);
    FieldSeed(name)
        .deserialize(&mut deserializer)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|_| NoField::NotAnObject)?
        .ok_or(NoField::Missing)
}

/// Finds a member of a member, and so on.
fn nested<'v>(object: &'v [u8], names: &str) -> Result<&'v RawValue, NoField> {
    let (mut object, mut name) = (object, String::new());
    let mut characters = names.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '.' => {
                object = member(object, &name)
                    .map_err(|_| NoField::Missing)?
                    .get()
                    .as_bytes();
                name.clear();
            }
            '\\' => name.push(
                characters
                    .next_if(|c| matches!(c, '.' | '\\'))
                    .unwrap_or('\\'),
            ),
            _ => name.push(character),
        }
    }
    member(object, &name).map_err(|_| NoField::Missing)
}

fn text(value: &[u8]) -> Result<&[u8], NoField> {
    // Editors of Windows put a byte order mark in front, which RFC 8259 §8.1 lets us ignore.
    let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
    if value.starts_with(b"\xff\xfe") || value.starts_with(b"\xfe\xff") {
        return Err(NoField::Utf16);
    }
    Ok(value)
}

/// Scans an object for a field without allocating.
struct FieldSeed<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_wanted) = fields.next_key_seed(NameSeed(self.0))? {
            if is_wanted {
                found = Some(fields.next_value()?);
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a field's name.
struct NameSeed<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        // Other names may have half of a surrogate pair, with which `deserialize_str` would fail.
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<bool, E> {
        Ok(name == self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: &str, name: &str) -> Result<String, NoField> {
        let field = Field::find(value.as_bytes(), name)?;
        let decoded = field.decode()?;
        assert!(decoded.len() <= field.max_len());
        Ok(String::from_utf8(decoded.to_vec()).expect("text"))
    }

    #[test]
    fn a_field_is_the_text_of_a_string_or_raw_json() {
        let value = r#"{"password":"a\"b\u00e9","port":5432,"tls":{"on":true},"none":null}"#;
        assert_eq!(field(value, "password").as_deref(), Ok("a\"b\u{e9}"));
        assert_eq!(field(value, "port").as_deref(), Ok("5432"));
        assert_eq!(field(value, "tls").as_deref(), Ok(r#"{"on":true}"#));
        assert_eq!(field(value, "none").as_deref(), Ok("null"));
        assert_eq!(field(value, "user"), Err(NoField::Missing));
    }

    #[test]
    fn numbers_are_as_they_are_written() {
        let value = r#"{"a":12345678901234567890123,"b":1.10,"c":{"d":[1e3, -0.0]}}"#;
        assert_eq!(field(value, "a").as_deref(), Ok("12345678901234567890123"));
        assert_eq!(field(value, "b").as_deref(), Ok("1.10"));
        assert_eq!(field(value, "c").as_deref(), Ok(r#"{"d":[1e3, -0.0]}"#));
        assert_eq!(field(value, "c.d").as_deref(), Ok("[1e3, -0.0]"));
    }

    #[test]
    fn a_nested_field_is_named_with_dots_unless_a_member_has_that_name() {
        let value = r#"{"a.b":1,"a":{"b":2,"c.d":{"":"e"},"x\\y":3},"tls.crt":"pem","n":null}"#;
        for (name, expected) in [
            ("a.b", Ok("1")),
            ("tls.crt", Ok("pem")),
            (r"tls\.crt", Ok("pem")),
            (r"a\.b", Ok("1")),
            (r"a.c\.d", Ok(r#"{"":"e"}"#)),
            (r"a.c\.d.", Ok("e")),
            (r"a.x\y", Ok("3")),
            (r"a.x\\y", Ok("3")),
            ("a.c.d", Err(NoField::Missing)),
            ("a.", Err(NoField::Missing)),
            (".a", Err(NoField::Missing)),
            ("n.a", Err(NoField::Missing)),
            ("tls.crt.x", Err(NoField::Missing)),
            (r"b\", Err(NoField::Missing)),
        ] {
            assert_eq!(field(value, name).as_deref(), expected.as_deref(), "{name}");
        }
    }

    #[test]
    fn half_of_a_surrogate_pair_is_an_error_of_its_own_field_alone() {
        let value =
            r#"{"half":"a\ud83d","\ud83d":"b","whole":"\ud83d\ude00","in":{"half":"\udc00"}}"#;
        assert_eq!(field(value, "half"), Err(NoField::Surrogate));
        assert_eq!(field(value, "in.half"), Err(NoField::Surrogate));
        assert_eq!(field(value, "whole").as_deref(), Ok("\u{1f600}"));
        assert_eq!(field(value, "in").as_deref(), Ok(r#"{"half":"\udc00"}"#));
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        assert_eq!(field("\u{feff}{\"a\":1}", "a").as_deref(), Ok("1"));
        assert_eq!(field("\u{feff}", "a"), Err(NoField::NotAnObject));
        for utf16 in [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}"] {
            assert_eq!(Field::find(utf16, "a").err(), Some(NoField::Utf16));
        }
    }

    #[test]
    fn names_may_be_escaped_and_the_last_of_a_name_counts() {
        assert_eq!(field(r#"{"\u0061":1}"#, "a").as_deref(), Ok("1"));
        assert_eq!(field(r#"{"a":1,"a":"2"}"#, "a").as_deref(), Ok("2"));
    }

    #[test]
    fn all_fields_are_what_each_is_alone() {
        let value = "\u{feff}{\"a\":1,\"b\":\"x\",\"\\u0061\":1e3,\"\":{}}".as_bytes();
        let all = Field::all(value).expect("an object");
        assert_eq!(all.keys().collect::<Vec<_>>(), ["", "a", "b"]);
        for (name, found) in &all {
            let alone = Field::find(value, name).expect("there");
            assert_eq!(found.decode(), alone.decode(), "{name}");
        }
        for text in ["secret", "[1]", "{", "", "{} x", "\"a\"", "null"] {
            assert_eq!(
                Field::all(text.as_bytes()).err(),
                Some(NoField::NotAnObject)
            );
        }
        assert_eq!(Field::all(b"\xff\xfe{\0}\0").err(), Some(NoField::Utf16));
    }

    #[test]
    fn only_an_object_has_fields() {
        for text in ["secret", "[1]", "{", "", "{} x", "\"a\"", "null"] {
            assert_eq!(field(text, "a"), Err(NoField::NotAnObject), "{text}");
        }
    }
}
