//! The base64 alphabets of the API.

use base64::{
    alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// For output: standard, with padding (RFC 4648 §4).
pub(super) const STANDARD: GeneralPurpose = base64::engine::general_purpose::STANDARD;
/// For input: standard, with or without padding, because languages differ in what they write.
pub(super) const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
