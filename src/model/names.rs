//! Names of keyrings, waves and secrets.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The reason why a name, URI or duration is invalid, as the end of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Returns the text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

text_type!(
    /// A keyring's name: 1 to 63 characters of `a-z 0-9 . _ -`, the first of which is a letter or
    /// digit. It is used in URLs, metric labels and file names.
    KeyringName,
    check_name
);
text_type!(
    /// A wave: a label of sidecars that take part in a rotation together. It has the same syntax
    /// as a [`KeyringName`].
    Wave,
    check_name
);
text_type!(
    /// A secret's name. It has the same syntax as a [`KeyringName`].
    SecretName,
    check_name
);
pub(super) use text_type;

pub(super) fn check_name(text: &str) -> Result<(), Malformed> {
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if starts_well && text.len() <= 63 && text.chars().all(allowed) {
        Ok(())
    } else {
        Err(Malformed::new(
            "a name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and begins with a letter \
             or digit",
        ))
    }
}
