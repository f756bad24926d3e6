//! `sidekey rollout`: rotates a keyring over a fleet, wave by wave.

mod progress;
mod run;
mod show;
mod target;
mod verbs;
mod via_hub;

use clap::Subcommand;

use self::{
    run::Run,
    show::{Report, Show},
    target::Target,
    verbs::{Approve, Promote},
};
use super::output::{CliError, Format};
use crate::rollout::Verb;

/// Rotate a keyring over a fleet, wave by wave, and watch it.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Rotate: generate a version, distribute and prove it, then activate and soak wave by wave.
    Run(Box<Run>),
    /// Show the last rollout of a keyring: its step, what it waits for, and who runs it.
    Status(Show),
    /// Show the last rollouts of a keyring.
    List(Show),
    /// Write a report of the last rollout, or of an earlier one.
    Report(Report),
    /// Stop after the present change.
    Pause(Box<Target>),
    /// Continue a rollout that is paused, or whose process ended.
    Resume(Box<Target>),
    /// End the present soak or pause, or all of them.
    Promote(Box<Promote>),
    /// Begin the step that failed again.
    Retry(Box<Target>),
    /// Give every wave its former primary, in one generation and without a soak.
    Rollback(Box<Target>),
    /// Give a rollout up, and leave every wave as it is.
    Abort(Box<Target>),
    /// Approve the step that waits for approvals.
    Approve(Box<Approve>),
}

impl Command {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        match self {
            Self::Run(arguments) => Box::pin(arguments.run(format)).await,
            Self::Status(arguments) => arguments.status(format).await,
            Self::List(arguments) => arguments.list(format).await,
            Self::Report(arguments) => arguments.run().await,
            Self::Pause(target) => Box::pin(target.ask(Verb::Pause, format)).await,
            Self::Resume(target) => Box::pin(target.ask(Verb::Resume, format)).await,
            Self::Promote(arguments) => Box::pin(arguments.run(format)).await,
            Self::Retry(target) => Box::pin(target.ask(Verb::Retry, format)).await,
            Self::Rollback(target) => Box::pin(target.ask(Verb::Rollback, format)).await,
            Self::Abort(target) => Box::pin(target.ask(Verb::Abort, format)).await,
            Self::Approve(arguments) => Box::pin(arguments.run(format)).await,
        }
    }
}
