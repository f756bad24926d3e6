//! The bearer token (RFC 6750) of the TCP listener.

use std::path::{Path, PathBuf};

use hyper::{HeaderMap, header::AUTHORIZATION};
use zeroize::Zeroizing;

use super::problem::{Code, Problem};
use crate::{
    crypto::equal_in_constant_time,
    files::{Allowed, read_private},
};

const LEAST: usize = 32;
const MOST: usize = 4096;

/// A token, without `Debug`, zeroized on drop.
pub(crate) struct Token(Zeroizing<Vec<u8>>);

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct TokenError {
    path: PathBuf,
    reason: String,
}

impl Token {
    /// Reads a token: one line of at least 32 visible characters in a file that nobody else can read.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenError> {
        let failed = |reason: String| TokenError {
            path: path.to_owned(),
            reason,
        };
        let what = "the token (`listen.token_file`)";
        let mut bytes = read_private(path, what, Allowed::OwnerAndGroup, MOST + 1)
            .map_err(|error| failed(error.to_string()))?;
        let length = bytes.trim_ascii_end().len();
        bytes.truncate(length);
        if !(LEAST..=MOST).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(failed(format!(
                "a token is one line of {LEAST} to {MOST} visible characters; make one with: openssl rand -hex 32"
            )));
        }
        Ok(Self(bytes))
    }

    /// Demands the token in the header `Authorization`.
    pub(crate) fn verify(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked(7));
        match given {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case(b"bearer ")
                    && equal_in_constant_time(token, &self.0) =>
            {
                Ok(())
            }
            _ => Err(Problem::new(
                Code::Unauthorized,
                "send the header Authorization: Bearer TOKEN with the token of `listen.token_file`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn lets_in_the_holder_of_the_whole_token_alone() {
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
        verify(&format!("bearer {text}")).expect("the scheme's case is free");
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
    fn refuses_files_that_hold_no_good_secret() {
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
