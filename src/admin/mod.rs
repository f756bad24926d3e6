//! Administration of stored keyrings: unwrap every version, verify, change, authenticate,
//! compare-and-swap.
//!
//! Plaintext data keys pass through here between generation or unwrapping and key derivation.

mod access;
mod backup;
mod base;
mod change;
mod clocks;
mod envelope;
mod error;
mod evidence;
mod in_rollout;
mod payload;
mod present;
mod probe;
mod recover;
mod restore;
mod rewrap;
mod unwrap;

pub use self::{
    access::{Admin, Signing},
    backup::{Backup, Proof},
    base::{Bases, Memory},
    change::Takeover,
    clocks::StampStep,
    envelope::{DecryptWith, EncryptFor, EnvelopeError, Passphrase, recipient, recipients_in},
    error::AdminError,
    evidence::{ask_fleet, ask_ledger, require_unasked},
    probe::{Probe, Purpose, probe},
    recover::{Recovered, Recovery},
    restore::{Restored, Restoring},
    rewrap::KekChange,
};
