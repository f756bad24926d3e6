//! A token of Vault, and the response that grants or renews it.

use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::backend::{ErrorKind, error::Failure};

/// Lifetimes are capped at ten years, so that adding one to a time can't overflow.
const MAX_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A token. Zeroized on drop; deliberately has no `Debug`.
pub(super) struct Token(pub(super) Zeroizing<String>);

impl Token {
    pub(super) fn header(&self) -> Result<HeaderValue, Failure> {
        let mut value = HeaderValue::from_str(&self.0)
            .map_err(|_| Failure::new(ErrorKind::Denied, "the token has invalid characters"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How long a token is valid.
pub(super) struct TokenLife {
    pub(super) duration: Duration,
    pub(super) is_renewable: bool,
}

impl TokenLife {
    pub(super) fn new(seconds: u64, is_renewable: bool) -> Self {
        Self {
            duration: Duration::from_secs(seconds).min(MAX_LIFE),
            is_renewable,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct LoginResponse {
    pub(super) auth: Auth,
}

#[derive(Deserialize)]
pub(super) struct Auth {
    pub(super) client_token: String,
    pub(super) lease_duration: u64,
    pub(super) renewable: bool,
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_lifetime_never_overflows_a_time() {
        let TokenLife { duration, .. } = TokenLife::new(u64::MAX, true);
        assert!(Instant::now().checked_add(duration * 2).is_some());
    }
}
