//! Bytes as base64, for serde.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serializer, de};

use crate::encoding::decode_base64;

pub(super) fn serialize<S: Serializer, const N: usize>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(deserializer)?;
    let expected = || de::Error::custom(format!("expected {N} bytes in base64"));
    let mut bytes = Vec::new();
    decode_base64(text.as_bytes(), &mut bytes).map_err(|_| expected())?;
    bytes.try_into().map_err(|_| expected())
}
