//! Why a sidecar doesn't activate a manifest.

use crate::{
    crypto::KeyringId,
    model::{KeyringName, Wave},
};

/// A manifest was rejected. The previous table keeps serving (I3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The manifest of another keyring.
    #[error(
        "the manifest belongs to keyring {found} ({found_id}), not to {expected}; \
         check `location`"
    )]
    OtherKeyring {
        /// The configured name, followed by the id if one is active.
        expected: String,
        /// The name in the manifest.
        found: KeyringName,
        /// The id in the manifest.
        found_id: KeyringId,
    },
    /// Older than the active manifest, or than `min_generation`.
    #[error(
        "the manifest went back to generation {found}, below {least}; restore the newest one \
         (`GET /manifests/NAME` on the ops listener returns it)"
    )]
    WentBack {
        /// The generation found.
        found: u64,
        /// The lowest accepted generation.
        least: u64,
    },
    /// Two manifests with one generation differ.
    #[error("generation {0} exists with different content: conflicting writes or tampering")]
    Forked(u64),
    /// A known version is missing.
    #[error("version {0} is missing; a destroyed version leaves a tombstone")]
    Vanished(u32),
    /// A destroyed version is present again.
    #[error("version {0} was destroyed and is present again")]
    Resurrected(u32),
    /// The check value of a version changed.
    #[error("version {0} has a different check value: its key was replaced")]
    KeyReplaced(u32),
    /// A MAC doesn't verify.
    #[error(
        "the MAC of version {0} doesn't verify: the manifest was not written by a holder of its key"
    )]
    Unauthenticated(u32),
    /// There is no key to verify a MAC with.
    #[error("no key version could be unwrapped, so nothing proves who wrote the manifest: {0}")]
    NothingUnwrapped(String),
    /// There is no signature by a trusted signer.
    #[error("no valid signature by one of `trusted_signers`")]
    Unsigned,
    /// The sidecar could not encrypt.
    #[error("no version is activated for wave {0}")]
    NoPrimary(Wave),
    /// The primary can't be unwrapped, while the active table can encrypt.
    #[error("the primary, version {version}, could not be unwrapped: {reason}")]
    PrimaryUnavailable {
        /// The version.
        version: u32,
        /// Why its wraps failed.
        reason: String,
    },
}

impl Rejection {
    /// Returns a stable name for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherKeyring { .. } => "other_keyring",
            Self::WentBack { .. } => "went_back",
            Self::Forked(_) => "forked",
            Self::Vanished(_) | Self::Resurrected(_) | Self::KeyReplaced(_) => "inconsistent",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Unsigned => "unsigned",
            Self::NoPrimary(_) => "no_primary",
            Self::NothingUnwrapped(_) | Self::PrimaryUnavailable { .. } => "kek_unavailable",
        }
    }
}
