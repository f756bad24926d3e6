//! Random 128-bit ids that aren't secret.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{RandomnessUnavailable, from_hex, random, to_hex};

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $malformed:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Generates a random id.
            ///
            /// # Errors
            /// [`RandomnessUnavailable`]
            pub fn generate() -> Result<Self, RandomnessUnavailable> {
                random().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
                    return Err($malformed);
                }
                from_hex(text.as_bytes()).map(Self).ok_or($malformed)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

random_id!(
    /// A keyring's random 128-bit id, written as 32 lower-case hexadecimal digits. It is not
    /// secret.
    KeyringId,
    "a keyring id is 32 lower-case hexadecimal digits"
);
random_id!(
    /// A rollout's random 128-bit id, written as 32 lower-case hexadecimal digits.
    RolloutId,
    "a rollout id is 32 lower-case hexadecimal digits"
);
random_id!(
    /// A process's random 128-bit id, drawn at its start and written as 32 lower-case hexadecimal
    /// digits.
    InstanceId,
    "an instance is 32 lower-case hexadecimal digits"
);

impl KeyringId {
    /// Returns the first four bytes, which every ciphertext carries.
    pub fn tag(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }
}
