//! What is made of a secret's value, or of one of its fields, before it is handed out.

use zeroize::Zeroizing;

use super::Malformed;
use crate::encoding::{NotBase64, decode_base64};

const DECODE: (&str, &str) = ("decode", "base64");
const TRIM: (&str, &str) = ("trim", "newline");

/// Steps between a value and what its reader wants; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversion {
    /// Decode base64. Stores of text keep bytes, such as a key store, in this form.
    pub decode_base64: bool,
    /// Remove one line break from the end, after decoding. Editors and `echo` put it there.
    pub trim_newline: bool,
}

impl Conversion {
    /// Whether values stay as they are.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Sets a parameter: `decode=base64` or `trim=newline`. Returns whether there is one of this
    /// name.
    ///
    /// # Errors
    /// The parameter has another value, or was set before.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool, Malformed> {
        let (is_set, (key, only)) = match key {
            "decode" => (&mut self.decode_base64, DECODE),
            "trim" => (&mut self.trim_newline, TRIM),
            _ => return Ok(false),
        };
        if value != only {
            return Err(Malformed::new(format!("`{key}` must be {only}")));
        }
        if std::mem::replace(is_set, true) {
            return Err(Malformed::new(format!("`{key}` is repeated")));
        }
        Ok(true)
    }

    /// The parameters that are set.
    pub(crate) fn parameters(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let decode = self.decode_base64.then_some(DECODE);
        decode.into_iter().chain(self.trim_newline.then_some(TRIM))
    }

    /// Converts a value.
    ///
    /// # Errors
    /// The value is to be decoded and is not base64.
    pub(crate) fn apply(
        self,
        mut value: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, NotBase64> {
        if self.decode_base64 {
            // Large enough from the start: a buffer that grows leaves copies behind.
            let mut decoded = Zeroizing::new(Vec::with_capacity(value.len() / 4 * 3 + 3));
            decode_base64(&value, &mut decoded)?;
            value = decoded;
        }
        if self.trim_newline && value.last() == Some(&b'\n') {
            value.pop();
            if value.last() == Some(&b'\r') {
                value.pop();
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversion(parameters: &[(&str, &str)]) -> Conversion {
        let mut conversion = Conversion::default();
        for (key, value) in parameters {
            assert_eq!(conversion.set(key, value), Ok(true));
        }
        assert_eq!(conversion.parameters().collect::<Vec<_>>(), parameters);
        conversion
    }

    fn apply(parameters: &[(&str, &str)], value: &[u8]) -> Result<Vec<u8>, NotBase64> {
        let value = Zeroizing::new(value.to_vec());
        let converted = conversion(parameters).apply(value)?;
        Ok(converted.to_vec())
    }

    #[test]
    fn one_line_break_at_the_end_is_removed() {
        for (value, expected) in [
            ("pw\n", "pw"),
            ("pw\r\n", "pw"),
            ("pw\n\n", "pw\n"),
            ("pw", "pw"),
            ("pw\r", "pw\r"),
            ("\n", ""),
            ("", ""),
            ("a\nb", "a\nb"),
        ] {
            let trimmed = apply(&[TRIM], value.as_bytes());
            assert_eq!(trimmed.as_deref(), Ok(expected.as_bytes()), "{value:?}");
            let same = apply(&[], value.as_bytes());
            assert_eq!(same.as_deref(), Ok(value.as_bytes()));
        }
    }

    #[test]
    fn base64_is_decoded_before_a_line_break_is_removed() {
        assert_eq!(
            apply(&[DECODE], b"AP+A\n").as_deref(),
            Ok(&[0, 255, 128][..])
        );
        assert_eq!(apply(&[DECODE], b"cHcK\n").as_deref(), Ok(&b"pw\n"[..]));
        let both = [DECODE, TRIM];
        assert_eq!(apply(&both, b"cHcK\n").as_deref(), Ok(&b"pw"[..]));
        assert_eq!(apply(&both, b"secret!"), Err(NotBase64));
    }

    #[test]
    fn parameters_have_one_value_each() {
        let mut conversion = Conversion::default();
        assert_eq!(conversion.set("stage", "current"), Ok(false));
        assert!(conversion.set("decode", "hex").is_err());
        assert!(conversion.set("trim", "").is_err());
        assert!(conversion.is_none());
        assert_eq!(conversion.set("trim", "newline"), Ok(true));
        assert!(conversion.set("trim", "newline").is_err(), "twice");
    }
}
