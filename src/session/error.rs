//! Why a keyring does not encrypt or decrypt.

use std::{fmt, time::Duration};

use jiff::Timestamp;

use crate::{
    crypto::{CiphertextError, RandomnessUnavailable},
    model::Wave,
};

/// Why a keyring does not encrypt or decrypt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the keyring has not been loaded yet; /readyz on the ops listener says why")]
    NotLoaded,
    #[error("no version is activated for wave {wave} yet")]
    NoPrimary { wave: Wave },
    /// A manifest declares the version's KEKs lost (I13).
    #[error(
        "key version {version} is declared lost, so it no longer encrypts; decrypting works. \
         /status on the ops listener says what the operator must decide"
    )]
    KeyLost { version: u32 },
    /// The manifest was not confirmed in time (I11).
    #[error("the manifest could not be confirmed, so encrypting stopped at {at}; decrypting works")]
    LeaseExpired { at: Timestamp },
    #[error("key version {version} {reason}; try again")]
    VersionUnavailable {
        version: u32,
        reason: UnavailableReason,
    },
    #[error("key version {version} is disabled; `sidekey keyring enable` re-enables it")]
    VersionDisabled { version: u32 },
    #[error("key version {version} was destroyed permanently")]
    VersionDestroyed { version: u32 },
    #[error(transparent)]
    Message(#[from] CiphertextError),
    #[error(transparent)]
    Randomness(#[from] RandomnessUnavailable),
}

/// Why a version may become available later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnavailableReason {
    /// The manifest has the version, but no KEK has unwrapped it.
    NotUnwrapped,
    /// The newest readable manifest lacks the version.
    Unknown,
}

impl fmt::Display for UnavailableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUnwrapped => "has not been unwrapped by its KEKs yet",
            Self::Unknown => "is not in the newest readable manifest",
        })
    }
}

impl SessionError {
    /// The key version that the error is about.
    pub(crate) fn version(&self) -> Option<u32> {
        match self {
            Self::KeyLost { version }
            | Self::VersionUnavailable { version, .. }
            | Self::VersionDisabled { version }
            | Self::VersionDestroyed { version } => Some(*version),
            _ => None,
        }
    }

    /// The time after which a retry may succeed.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotLoaded | Self::VersionUnavailable { .. } => Some(Duration::from_secs(1)),
            Self::LeaseExpired { .. } | Self::KeyLost { .. } => Some(Duration::from_secs(60)),
            _ => None,
        }
    }
}
