//! Why a reader doesn't take a manifest.

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
    /// A genuine ancestor of the base: a copy that lags, or a store that was rolled back.
    #[error(
        "the location holds generation {found}, an earlier generation than {held}: a copy that \
         lags, or a store that was rolled back; `keyring recover` writes the newest one back"
    )]
    Behind {
        /// The generation found.
        found: u64,
        /// The generation of the base.
        held: u64,
    },
    /// Older than the base and not one of its ancestors, or older than `min_generation`.
    #[error(
        "the manifest went back to generation {found}, below {least}; restore the newest one \
         (`keyring recover`)"
    )]
    WentBack {
        /// The generation found.
        found: u64,
        /// The lowest accepted generation.
        least: u64,
    },
    /// Two manifests with one generation differ.
    #[error(
        "generation {0} exists with different content: conflicting writes or tampering; \
         `keyring recover` lists both branches"
    )]
    Forked(u64),
    /// A known version is missing.
    #[error("version {0} is missing; a destroyed version leaves a tombstone")]
    Vanished(u32),
    /// A destroyed version is present again.
    #[error("version {0} was destroyed and is present again")]
    Resurrected(u32),
    /// The check value or succession key of a version changed.
    #[error("version {0} has a different check value or succession key: its key was replaced")]
    KeyReplaced(u32),
    /// The testament of a version appeared, vanished or changed after the fact.
    #[error("the testament of version {0} doesn't fit the generation that is already known")]
    TestamentChanged(u32),
    /// A compromised version is no longer flagged.
    #[error("version {0} was marked as compromised, and no longer is")]
    FlagCleared(u32),
    /// The base is not one of the manifest's ancestors.
    #[error(
        "generation {generation} doesn't descend from the known generation {held}: it was written \
         on another branch, such as a rolled-back store; `keyring recover` lists both branches"
    )]
    NotDescended {
        /// The generation found.
        generation: u64,
        /// The generation of the base.
        held: u64,
    },
    /// A decision that the base has is missing.
    #[error("an activation of version {0} is missing")]
    ActivationRemoved(u32),
    /// A version that the base flags as compromised is activated.
    #[error("version {0} is marked as compromised, and is activated again")]
    CompromisedActivated(u32),
    /// Versions were destroyed without a testament.
    #[error(
        "{} destroyed without a testament, as by `keyring destroy --lost`; if that was \
         intended, set `accept_lost` to {:?} for this keyring, or sign the manifest",
        list(.0),
        .0
    )]
    LostVersion(Vec<u32>),
    /// A version that the base trusts is no longer listed.
    #[error(
        "version {0}, which is not destroyed in the manifest that is trusted here, was trimmed \
         since; to take the manifest as new, set `anchor`, remove the cached copy in \
         `refresh.cache_dir` and restart (a command: remove its file in --state-dir and pass \
         --first-time)"
    )]
    TooFarBehind(u32),
    /// The version that the config trusts is no longer listed.
    #[error(
        "version {0}, the `anchor` in the config, was trimmed from the manifest; set `anchor` to \
         the one that `keyring status` prints"
    )]
    AnchorTrimmed(u32),
    /// A word or a testament doesn't verify.
    #[error(
        "the word or testament of version {0} doesn't verify: the manifest was not written by a \
         holder of its key"
    )]
    Unauthenticated(u32),
    /// No trusted version vouches for the manifest.
    #[error("no version that is trusted here vouches for the manifest")]
    NotVouched,
    /// A fresh reader could not unwrap any version.
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
            Self::Behind { .. } => "behind",
            Self::WentBack { .. } => "went_back",
            Self::Forked(_) => "forked",
            Self::Vanished(_)
            | Self::Resurrected(_)
            | Self::KeyReplaced(_)
            | Self::TestamentChanged(_)
            | Self::FlagCleared(_)
            | Self::NotDescended { .. }
            | Self::ActivationRemoved(_)
            | Self::CompromisedActivated(_) => "diverged",
            Self::LostVersion(_) => "lost_version",
            Self::TooFarBehind(_) | Self::AnchorTrimmed(_) => "too_far_behind",
            Self::Unauthenticated(_) | Self::NotVouched => "unauthenticated",
            Self::Unsigned => "unsigned",
            Self::NoPrimary(_) => "no_primary",
            Self::NothingUnwrapped(_) | Self::PrimaryUnavailable { .. } => "kek_unavailable",
        }
    }
}

fn list(versions: &[u32]) -> String {
    match versions {
        [one] => format!("version {one} was"),
        many => {
            let many: Vec<String> = many.iter().map(u32::to_string).collect();
            format!("versions {} were", many.join(", "))
        }
    }
}
