//! One field of a value that is a JSON object.

use std::{borrow::Cow, fmt};

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
}

impl<'v> Field<'v> {
    /// Finds a field. The last one counts if a name is repeated.
    ///
    /// # Errors
    /// The value is not a JSON object, or has no such field.
    pub(super) fn find(value: &'v [u8], name: &str) -> Result<Self, NoField> {
        // Editors of Windows put a byte order mark in front, which RFC 8259 §8.1 lets us ignore.
        let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
        if value.starts_with(b"\xff\xfe") || value.starts_with(b"\xfe\xff") {
            return Err(NoField::Utf16);
        }
        let mut deserializer = serde_json::Deserializer::from_slice(value);
        FieldSeed(name)
            .deserialize(&mut deserializer)
            .and_then(|found| deserializer.end().map(|()| found))
            .map_err(|_| NoField::NotAnObject)?
            .map(Self)
            .ok_or(NoField::Missing)
    }

    /// Returns an upper bound for the length of the decoded field, in bytes.
    pub(crate) fn max_len(&self) -> usize {
        self.0.get().len()
    }

    /// Returns the text of a string, and anything else as the value contains it.
    pub(crate) fn decode(&self) -> Zeroizing<Vec<u8>> {
        #[derive(Deserialize)]
        struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

        let raw = self.0.get();
        Zeroizing::new(match serde_json::from_str(raw) {
            Ok(Text(text)) => text.into_owned().into_bytes(),
            Err(_) => raw.as_bytes().to_vec(),
        })
    }
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
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: &str, name: &str) -> Result<String, NoField> {
        let field = Field::find(value.as_bytes(), name)?;
        let decoded = field.decode();
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
    fn only_an_object_has_fields() {
        for text in ["secret", "[1]", "{", "", "{} x", "\"a\"", "null"] {
            assert_eq!(field(text, "a"), Err(NoField::NotAnObject), "{text}");
        }
    }
}
