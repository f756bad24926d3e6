use std::path::PathBuf;

use jiff::Timestamp;

use super::envelope::EnvelopeError;
use crate::{
    backend::BackendError,
    crypto::RandomnessUnavailable,
    keyring::{ManifestError, Refusal, Rejection},
    model::Location,
};

/// A keyring could not be created, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The location failed, or a KEK could not wrap.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The manifest is invalid.
    #[error("{location}: {error}")]
    Manifest {
        /// The manifest's location.
        location: Location,
        /// The reason.
        error: ManifestError,
    },
    /// The manifest's authentication failed.
    #[error("{location}: {error}")]
    Unauthentic {
        /// The manifest's location.
        location: Location,
        /// The reason.
        error: Rejection,
    },
    /// What the location holds doesn't follow from what the command already trusts.
    #[error("{location} doesn't follow from the manifest that {holder} holds: {error}")]
    Untrusted {
        /// The manifest's location.
        location: Location,
        /// Who holds the trusted manifest.
        holder: String,
        /// The reason.
        error: Box<Rejection>,
    },
    /// The command trusts nothing about the keyring yet.
    #[error(
        "{location}: this is the first change from here, so nothing shows that generation \
         {generation} is the newest and genuine. Compare with the fleet by --sidecar URL, with a \
         trusted copy by --base FILE, or accept exactly this manifest: --first-time {digest}"
    )]
    NoBase {
        /// The manifest's location.
        location: Location,
        /// The generation found.
        generation: u64,
        /// The digest of the manifest found.
        digest: String,
    },
    /// A trusted manifest can't be read or remembered.
    #[error("{}: {reason}", .file.display())]
    Base {
        /// The file.
        file: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A command with a signing key would sign a manifest that no known signer has signed.
    #[error(
        "{location}: generation {generation} has no signature by the --sign-key or a \
         --trusted-signer, and signing its successor would make it trusted; if it is genuine: \
         --adopt-unsigned {digest}"
    )]
    NotSigned {
        /// The manifest's location.
        location: Location,
        /// The generation found.
        generation: u64,
        /// The digest of the manifest found.
        digest: String,
    },
    /// The clock differs from that of a sidecar, of the location or of a KEK.
    #[error(
        "the clock of this machine says {ours}, and that of {holder} says {theirs}; waiting times \
         count by it, so correct it, or vouch for it with --trust-clock"
    )]
    ClockDiffers {
        /// Whose clock.
        holder: String,
        /// Its time.
        theirs: Timestamp,
        /// This machine's time.
        ours: Timestamp,
    },
    /// There is no other clock to compare with.
    #[error(
        "waiting times count by the clock of this machine, and there is none to compare it with; \
         name a sidecar with --sidecar URL, or vouch for the clock with --trust-clock"
    )]
    NoClock,
    /// The manifest's stamp is in the future.
    #[error(
        "{location}: the manifest was written at {stamp}, and the time is {now}: the clock of its \
         writer was ahead, or this one is behind. To stamp it with the present time, start waiting \
         times that lie in the future again and keep the present primaries: --repair-time"
    )]
    FromTheFuture {
        /// The manifest's location.
        location: Location,
        /// Its stamp.
        stamp: Timestamp,
        /// This machine's time.
        now: Timestamp,
    },
    /// The change would produce a manifest that no reader accepts.
    #[error("nothing was written, because no sidecar would accept the result: {0}")]
    Unreadable(String),
    /// The change would violate an invariant.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No KEK could unwrap these versions.
    #[error(
        "changing a keyring requires unwrapping every version, but {}\n\
         with a backup that has the version: --from-backup FILE; if all its KEKs are permanently \
         lost: keyring destroy --lost",
        list(.0)
    )]
    NotUnwrapped(Vec<(u32, String)>),
    /// No KEK could unwrap a version whose proofs are to be checked.
    #[error(
        "what sidecars prove about version {version} can't be checked, because it can't be \
         unwrapped: {reason}"
    )]
    NoProofKey {
        /// The version.
        version: u32,
        /// The errors of its KEKs.
        reason: String,
    },
    /// No KEK could unwrap these versions for a backup, which must be complete.
    #[error(
        "a backup requires unwrapping every version, but {}\n\
         to try every KEK of every version: keyring verify",
        list(.0)
    )]
    BackupIncomplete(Vec<(u32, String)>),
    /// The KEKs in a restored manifest can't unwrap these versions.
    #[error(
        "the KEKs in the manifest can't unwrap every version; give others with --kek URI: {}",
        list(.0)
    )]
    NeedsKeks(Vec<(u32, String)>),
    /// The wraps that a version would have can't be unwrapped.
    #[error("version {version} is unchanged, because its new wraps can't be unwrapped: {reasons}")]
    Unproven {
        /// The version.
        version: u32,
        /// The errors of its KEKs.
        reasons: String,
    },
    /// The manifest is signed, and there is no key to sign the change.
    #[error(
        "{0}: the manifest is signed; give --sign-key FILE to sign the change, or --unsigned to \
         drop the signature"
    )]
    WouldDropSignature(Location),
    /// A backup file can't be written, read or verified.
    #[error("{}: {reason}", .file.display())]
    Backup {
        /// The file.
        file: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A backup can't be encrypted or decrypted.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The system lacks randomness or memory, or a TLS file can't be used.
    #[error("{0}")]
    System(String),
}

impl From<RandomnessUnavailable> for AdminError {
    fn from(error: RandomnessUnavailable) -> Self {
        Self::System(error.to_string())
    }
}

fn list(failed: &[(u32, String)]) -> String {
    failed
        .iter()
        .map(|(version, reason)| format!("version {version} failed: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}
