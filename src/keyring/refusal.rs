//! Why a change to a keyring is refused.

use jiff::Timestamp;

use super::{Class, Rejection, State, WaveSelector};
use crate::{crypto::RolloutId, model::KeyringName};

/// An invariant forbids a change. The message says what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The version was never created.
    #[error("{keyring} has no version {version}; it has {first} to {last}")]
    NoSuchVersion {
        /// The keyring.
        keyring: KeyringName,
        /// The requested version.
        version: u32,
        /// The first version that is listed.
        first: u32,
        /// The newest version.
        last: u32,
    },
    /// The version's state doesn't allow the change.
    #[error("version {version} is {state}; {needed}")]
    WrongState {
        /// The version.
        version: u32,
        /// Its state.
        state: State,
        /// The state that the change requires.
        needed: &'static str,
    },
    /// The key may be known to others, so it must not encrypt.
    #[error(
        "version {0} is marked compromised and can't become primary; create a new one with \
         `keyring rotate`"
    )]
    Compromised(u32),
    /// A wave encrypts with the version, now or later.
    #[error(
        "version {0} is a wave's primary, or is scheduled to become one; activate another version \
         for that wave first"
    )]
    IsPrimary(u32),
    /// A wave encrypts with the lost version, now or later.
    #[error(
        "version {0} is a wave's primary, or is scheduled to become one; name the version that \
         replaces it with --successor N"
    )]
    LostPrimary(u32),
    /// A version declared lost can be unwrapped.
    #[error(
        "version {0} can be unwrapped, so it isn't lost; disable it, then destroy it after the \
         waiting times"
    )]
    NotLost(u32),
    /// Versions were declared lost, but one of their KEKs may only be unavailable.
    #[error(
        "the loss can't be confirmed: an unreachable or disabled KEK may become available again.\n\
         {}\nIf all of these are permanently lost too: --confirm '{phrase}'",
        list(.doubts)
    )]
    LossUnconfirmed {
        /// The response of each KEK that didn't report the key as missing.
        doubts: Vec<String>,
        /// The phrase that confirms the loss.
        phrase: String,
    },
    /// Another branch destroyed or flagged a primary.
    #[error(
        "another branch destroyed version {version} or marked it as compromised, and it is the \
         primary of wave {wave} on the chosen branch; choose the other branch"
    )]
    Unmergeable {
        /// The version.
        version: u32,
        /// The wave that it is the primary of.
        wave: WaveSelector,
    },
    /// No version could speak for a destroyed one.
    #[error(
        "version {0} can't be destroyed: no other version is enabled and not compromised, so \
         sidecars that know only this one could not follow; create one with `keyring rotate`"
    )]
    NoHeir(u32),
    /// No KEK could unwrap the version any more.
    #[error(
        "version {0} would be left without a KEK; add another one first \
         (`keyring rewrap-kek --add URI`)"
    )]
    LastWrap(u32),
    /// An activation can't change the past.
    #[error("{at} is in the past; an activation takes effect now or later")]
    InThePast {
        /// The requested time.
        at: Timestamp,
    },
    /// A version is disabled only on evidence (I5).
    #[error("there is no evidence that version {version} is unused:\n{}", list(.missing))]
    EvidenceMissing {
        /// The version.
        version: u32,
        /// What is missing, one line each.
        missing: Vec<String>,
    },
    /// A disabled version is destroyed only once no one asks for it (I5).
    #[error(
        "version {version} may still be needed:\n{}\nWait, or enable it again (`keyring enable`)",
        list(.missing)
    )]
    StillAskedFor {
        /// The version.
        version: u32,
        /// Who asked for it, and who can't be asked, one line each.
        missing: Vec<String>,
    },
    /// For the class of the keyring, a version without use may still be needed.
    #[error(
        "version {version} is of class {class}: that no sidecar uses it doesn't show that it isn't \
         needed. What does is {demanded}, or the word of a person who knows; record either with \
         --override 'NAME: REASON'"
    )]
    UseIsNoEvidence {
        /// The version.
        version: u32,
        /// Its class.
        class: Class,
        /// What counts instead.
        demanded: &'static str,
    },
    /// A policy would be replaced by itself.
    #[error("the policy says that already; nothing was changed")]
    PolicyUnchanged,
    /// A waiting time has not passed.
    #[error("version {version} can't be destroyed before {from}: {why}")]
    TooEarly {
        /// The version.
        version: u32,
        /// The end of the waiting time.
        from: Timestamp,
        /// Which waiting time.
        why: String,
    },
    /// Copies and sidecars may be as old as what would be trimmed.
    #[error(
        "versions are trimmed only if they were destroyed before {latest}, and {before} is later: \
         400 days and two encrypt leases must have passed"
    )]
    TrimTooRecent {
        /// The requested time.
        before: Timestamp,
        /// The latest time that is allowed.
        latest: Timestamp,
    },
    /// The first version wasn't destroyed before the requested time.
    #[error(
        "there is nothing to trim: version {first}, the first that is listed, was not destroyed \
         before {before}"
    )]
    NothingToTrim {
        /// The first version.
        first: u32,
        /// The requested time.
        before: Timestamp,
    },
    /// Destroying requires a verified backup, or the operator's confirmation.
    #[error(
        "no verified backup of version {version} is recorded, and destroying it can't be undone. \
         To destroy it anyway, add: --confirm '{phrase}'"
    )]
    NotConfirmed {
        /// The version.
        version: u32,
        /// The phrase that confirms it.
        phrase: String,
    },
    /// A backup holds a version that was declared lost.
    #[error(
        "version {version} is in the backup that was verified at {verified_at} (SHA-256 {sha256}): \
         `keyring restore` recovers it. To destroy it anyway, add: --confirm '{phrase}'"
    )]
    NotLostWithBackup {
        /// The version.
        version: u32,
        /// When the backup was verified.
        verified_at: Timestamp,
        /// The SHA-256 of the backup file, in hexadecimal digits.
        sha256: String,
        /// The phrase that confirms it.
        phrase: String,
    },
    /// A change by hand would come in the way of a rollout.
    #[error(
        "rollout {id} is active, at step {step}: let it finish or end it, or make the change \
         regardless with --despite-rollout"
    )]
    RolloutActive {
        /// The active rollout.
        id: RolloutId,
        /// How far it is.
        step: u32,
    },
    /// A rollout would go on while another one is active.
    #[error(
        "another rollout, {id}, is active, at step {step}; only one at a time changes a keyring"
    )]
    OtherRollout {
        /// The active rollout.
        id: RolloutId,
        /// How far it is.
        step: u32,
    },
    /// A rollout would go on by another plan than the one it began with.
    #[error("rollout {0} began with another plan, and a plan doesn't change")]
    OtherPlan(RolloutId),
    /// The manifest already has what a rollout would write.
    #[error(
        "rollout {id} is already at step {step}, attempt {attempt}: this one is done or out of date"
    )]
    RolloutStepDone {
        /// The rollout.
        id: RolloutId,
        /// The step found.
        step: u32,
        /// The attempt found.
        attempt: u32,
    },
    /// The rollout has ended, so it can't go on.
    #[error("rollout {0} has ended")]
    RolloutEnded(RolloutId),
    /// A wave was given another primary after the rollout that is to be rolled back.
    #[error(
        "wave {wave} was given another primary since the rollout ended; activate the version that \
         you want (`keyring activate`)"
    )]
    DecidedSince {
        /// The wave.
        wave: WaveSelector,
    },
    /// A step of a rollout lacks approvals.
    #[error("the step is not approved: {0}")]
    NotApproved(String),
    /// The rollout hasn't written anything, or ended long ago.
    #[error("the keyring knows nothing of a rollout {0}")]
    NoSuchRollout(RolloutId),
    /// A former primary can't encrypt again.
    #[error(
        "there is no way back for wave {wave}: version {version}, its former primary, {why}. Roll \
         forward instead: go on to the end, or add a new version with `keyring rotate`"
    )]
    RollForward {
        /// The wave.
        wave: WaveSelector,
        /// Its former primary.
        version: u32,
        /// Why it can't encrypt.
        why: &'static str,
    },
    /// A version would replace itself.
    #[error("version {0} can't replace itself; create another one with `keyring rotate`")]
    OwnSuccessor(u32),
    /// Two manifests of one keyring don't follow from each other.
    #[error("{0}")]
    Diverged(Rejection),
    /// Something newer than the backup exists.
    #[error(
        "{place} has generation {present}, and the backup has generation {backup}: restoring would \
         go back. If the newer manifest works, nothing needs restoring. To keep it and give its \
         versions the backup's keys: --onto-newer"
    )]
    NewerPresent {
        /// Where the newer manifest is.
        place: String,
        /// Its generation.
        present: u64,
        /// The backup's generation.
        backup: u64,
    },
    /// Nothing shows which generation is the newest.
    #[error(
        "{place} {what}, so it can't show whether the fleet has a newer generation than the \
         backup; name every live sidecar with --sidecar URL, or pass --no-sidecar if there is none"
    )]
    NoSidecarAsked {
        /// The location to restore to.
        place: String,
        /// Why it shows nothing.
        what: &'static str,
    },
    /// The backup is invalid.
    #[error("{0}")]
    NoBackup(String),
    /// The sidecars hold too little to recover from.
    #[error("{0}")]
    NotRecoverable(String),
}

fn list(items: &[String]) -> String {
    items
        .iter()
        .map(|item| format!("  - {item}"))
        .collect::<Vec<_>>()
        .join("\n")
}
