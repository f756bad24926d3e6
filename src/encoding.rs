//! Base64 as people and programs write it, and hexadecimal digits (RFC 4648).

mod hex;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

pub use hex::{from_hex, to_hex};

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_INPUT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const URL_SAFE_INPUT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
/// How many characters are decoded at once if some are left out: a multiple of four.
const BLOCK: usize = 1024;

/// Text that is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotBase64;

impl NotBase64 {
    /// What was expected, as the end of a sentence.
    pub(crate) const EXPECTED: &str =
        "not base64: expected RFC 4648 in the standard or the URL-safe alphabet, not in both";
}

/// Decodes `text` behind what `bytes` holds. On an error, `bytes` is left in any state.
///
/// Languages differ in what they write, so everything with one meaning is accepted: either
/// alphabet, with or without padding, with white space such as the line breaks of MIME (RFC 2045
/// §6.8). Bits that encode nothing must be zero, so that no other text has the same meaning.
pub(crate) fn decode_base64(text: &[u8], bytes: &mut Vec<u8>) -> Result<(), NotBase64> {
    let start = bytes.len();
    if STANDARD_INPUT.decode_vec(text, bytes).is_ok() {
        return Ok(());
    }
    bytes.truncate(start);
    let is_url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let engine = if is_url_safe {
        URL_SAFE_INPUT
    } else {
        STANDARD_INPUT
    };
    let (mut block, mut length) = (Zeroizing::new([0; BLOCK]), 0);
    for byte in text.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        if length == BLOCK {
            // Padding ends the text.
            if block.ends_with(b"=") {
                return Err(NotBase64);
            }
            engine
                .decode_vec(&block[..], bytes)
                .map_err(|_| NotBase64)?;
            length = 0;
        }
        block[length] = *byte;
        length += 1;
    }
    engine
        .decode_vec(&block[..length], bytes)
        .map_err(|_| NotBase64)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &str) -> Result<Vec<u8>, NotBase64> {
        let mut bytes = b"before".to_vec();
        decode_base64(text.as_bytes(), &mut bytes)?;
        assert!(bytes.starts_with(b"before"));
        Ok(bytes.split_off(6))
    }

    #[test]
    fn every_spelling_of_the_same_bytes_is_accepted() {
        let bytes = [251, 255, 254, 1];
        for text in [
            "+//+AQ==",
            "+//+AQ",
            "-__-AQ==",
            "-__-AQ",
            "+//+\r\nAQ==\r\n",
            " -__- AQ\n",
            "\t+//+A\n\nQ=\n=",
        ] {
            assert_eq!(decoded(text).as_deref(), Ok(&bytes[..]), "{text:?}");
        }
        assert_eq!(decoded("").as_deref(), Ok(&b""[..]));
        assert_eq!(decoded(" \n").as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn what_has_no_or_two_meanings_is_refused() {
        for text in [
            "+//-AQ", "!", "A", "AAAAA", "AQ===", "=", "AQ==AQ==", "AR", "AQ.", "é", "A\0Q",
            "A\u{a0}Q",
        ] {
            assert_eq!(decoded(text), Err(NotBase64), "{text:?}");
        }
        // Padding at the end of a block.
        let padded = format!("\n{}AQ==", "A".repeat(BLOCK - 4));
        assert!(decoded(&padded).is_ok());
        assert_eq!(decoded(&format!("{padded}AAAA")), Err(NotBase64));
    }

    proptest! {
        #[test]
        fn line_breaks_change_nothing(bytes in prop::collection::vec(any::<u8>(), 0..4000), width in 1usize..100) {
            let text = STANDARD.encode(&bytes);
            let lines = text.as_bytes().chunks(width).collect::<Vec<_>>().join(&b"\r\n"[..]);
            let mut decoded = Vec::new();
            prop_assert_eq!(decode_base64(&lines, &mut decoded), Ok(()));
            prop_assert_eq!(decoded, bytes);
        }
    }
}
