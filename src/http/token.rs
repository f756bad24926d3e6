//! The bearer token of the TCP listener (RFC 6750).

use std::path::{Path, PathBuf};

use hyper::{HeaderMap, header::AUTHORIZATION};
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::{
    crypto::equal_in_constant_time,
    files::{Allowed, read_private},
    wire::Code,
};

const MIN_LEN: usize = 32;
const MAX_LEN: usize = 4096;

/// A token. Zeroized on drop; has no `Debug`.
pub(crate) struct Token(Zeroizing<Vec<u8>>);

/// A token file that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct TokenError {
    path: PathBuf,
    reason: String,
}

impl Token {
    /// Reads a token file: one line of 32 to 4096 visible characters, not accessible to others.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenError> {
        let failed = |reason: String| TokenError {
            path: path.to_owned(),
            reason,
        };
        let what = "the token (`listen.token_file`)";
        let mut bytes = read_private(path, what, Allowed::OwnerAndGroup, MAX_LEN + 1)
            .map_err(|error| failed(error.to_string()))?;
        let length = bytes.trim_ascii_end().len();
        bytes.truncate(length);
        if !(MIN_LEN..=MAX_LEN).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(failed(format!(
                "a token must be one line of {MIN_LEN} to {MAX_LEN} visible characters; \
                 generate one with: openssl rand -hex 32"
            )));
        }
        Ok(Self(bytes))
    }

    /// Checks the `Authorization` header in constant time.
    ///
    /// # Errors
    /// [`Code::Unauthorized`]
    pub(crate) fn verify(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match bearer(headers) {
            Some(token) if equal_in_constant_time(token, &self.0) => Ok(()),
            _ => Err(Problem::new(
                Code::Unauthorized,
                "send `Authorization: Bearer TOKEN` with the token in `listen.token_file`",
            )),
        }
    }
}

/// The token that a request presents (RFC 6750, section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn accepts_only_the_whole_token() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let text = "0123456789abcdef0123456789abcdef";
        std::fs::write(&file, format!("{text}\n")).expect("write");
        let token = Token::load(file.path()).expect("token");
        let verify = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("value"));
            token.verify(&headers)
        };
        verify(&format!("Bearer {text}")).expect("right");
        verify(&format!("bearer {text}")).expect("the scheme is case-insensitive");
        for wrong in [
            format!("Bearer {text}0"),
            format!("Bearer {}", &text[1..]),
            format!("Basic {text}"),
            "Bearer ".into(),
            "é".into(),
        ] {
            assert_eq!(verify(&wrong).expect_err(&wrong).code, Code::Unauthorized);
        }
        assert_eq!(
            token.verify(&HeaderMap::new()).expect_err("none").code,
            Code::Unauthorized
        );
    }

    #[test]
    fn rejects_short_tokens_and_files_open_to_others() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(&file, "short").expect("write");
        assert!(
            Token::load(file.path())
                .err()
                .expect("refused")
                .to_string()
                .contains("32 to 4096")
        );
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(
            Token::load(file.path())
                .err()
                .expect("refused")
                .to_string()
                .contains("chmod o=")
        );
    }
}
