use futures_util::future::BoxFuture;

use crate::crypto::{Dek, WrapContext};

/// A key-encryption key. Whoever calls sets the time limit.
pub trait Kek: Send + Sync {
    /// Encrypts a data key, bound to its keyring and version.
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, KekError>>;

    /// Decrypts a wrap of this KEK.
    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, KekError>>;
}

/// Why a KEK did not wrap or unwrap: what failed, on which KEK, what to do. Never says anything of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct KekError {
    /// The kind.
    pub fault: KekFault,
    message: String,
}

impl KekError {
    /// An error whose message names the KEK and what to do.
    pub fn new(fault: KekFault, message: impl Into<String>) -> Self {
        Self {
            fault,
            message: message.into(),
        }
    }
}

/// What kind of thing is wrong with a KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KekFault {
    /// It doesn't answer, or says that it can't now: down, sealed, too slow. Trying again may help.
    Unavailable,
    /// It wants fewer requests.
    Throttled,
    /// We may not use it: no login, or no right.
    Denied,
    /// There is no such key.
    Missing,
    /// The key is there and switched off: disabled, or about to be deleted.
    Disabled,
    /// It answered, and the wrap isn't one of its own, or is bound to something else, or gave another key.
    Refused,
    /// The URI, the settings or the key's type are wrong.
    Misconfigured,
}

impl KekFault {
    /// A short stable name, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Disabled => "disabled",
            Self::Refused => "refused",
            Self::Misconfigured => "misconfigured",
        }
    }
}
