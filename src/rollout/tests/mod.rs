//! Rollouts of a simulated keyring: the keyring's own functions, and sidecars that lag, die and
//! come back. Nothing else is real, so that every fault can be met at every step.

mod approvals;
mod assessment;
mod crashes;
mod faults;
mod reports;
mod simulation;
mod starts;
mod strategies;
mod verbs;
mod whole;
