//! What a rollout does outside.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    keyring::WaveSelector,
    model::KekUri,
    rollout::{
        order::{Approval, Order},
        strategy::BackUp,
    },
};

/// What is to be done. Actions are done in order; the event that each causes is the next one.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make a change, at most once for the state's mark.
    Write(Write),
    /// Hint sidecars at the newest generation.
    Push,
    /// Ask sidecars and location.
    Observe,
    /// Let these sidecars prove that they have the version.
    Prove {
        /// The version.
        version: u32,
        /// The sidecars.
        sidecars: Vec<String>,
    },
    /// Wake the machine at this time.
    Sleep {
        /// The time.
        until: Timestamp,
    },
}

/// A change that the signer makes.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Make, verify and record a backup.
    BackUp(BackUp),
    /// Create a version.
    Generate {
        /// Its KEKs; empty for those of the newest version.
        keks: Vec<KekUri>,
        /// Whether it ends another rollout: a compromise doesn't wait.
        preempts: bool,
    },
    /// Take a version that exists.
    Adopt {
        /// The version.
        version: u32,
    },
    /// Make the version the primary of a wave.
    Activate {
        /// The version.
        version: u32,
        /// The wave.
        wave: WaveSelector,
    },
    /// Make the version the primary everywhere and flag the compromised one.
    Replace {
        /// The compromised version.
        compromised: u32,
        /// The version.
        version: u32,
    },
    /// Disable a version.
    Disable {
        /// The version.
        version: u32,
        /// The approvals, if the plan asks for them.
        authorization: Option<Box<Authorization>>,
    },
    /// Destroy a version.
    Destroy {
        /// The version.
        version: u32,
        /// The approvals, if the plan asks for them.
        authorization: Option<Box<Authorization>>,
    },
    /// Give every wave its former primary, and remove the mark.
    RollBack {
        /// The former primaries.
        former: BTreeMap<WaveSelector, u32>,
        /// The version that they replace, if it is known.
        version: Option<u32>,
    },
    /// Remove the mark.
    End,
}

/// An order with its approvals, for the signer to check.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// The order.
    pub order: Order,
    /// Its approvals.
    pub approvals: Vec<Approval>,
}
