//! Bytes as hexadecimal digits, for serde.

use serde::{Deserialize, Deserializer, Serializer, de};

use crate::encoding::{from_hex, to_hex};

pub(super) fn serialize<S: Serializer, const N: usize>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&to_hex(bytes))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(deserializer)?;
    let expected = || de::Error::custom(format!("expected {} hexadecimal digits", 2 * N));
    from_hex(text.as_bytes()).ok_or_else(expected)
}
