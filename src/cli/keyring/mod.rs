//! `sidekey keyring`: one file per group of subcommands.

mod backup;
mod init;
mod policy;
mod restore;
mod retire;
mod rewrap_kek;
mod rotate;
mod status;
mod trim;
mod verify;

use clap::Subcommand;
use serde_json::{Map, Value};

use self::{
    backup::Backup,
    init::Init,
    policy::ChangePolicy,
    restore::{Recover, Restore},
    retire::{Destroy, Disable, VersionArgs},
    rewrap_kek::RewrapKek,
    rotate::{Activate, Rotate},
    trim::Trim,
    verify::Verify,
};
use super::{
    output::{CliError, Format},
    record::Completed,
    target::{Place, ReadTarget, Target, changed},
};
use crate::keyring;

/// Create, change and inspect keyrings.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a keyring with version 1 as its primary.
    Init(Init),
    /// Add a version, which can decrypt everywhere before it encrypts anywhere.
    Rotate(Rotate),
    /// Make a version the primary, for every wave or one; also rolls back to an earlier version.
    Activate(Activate),
    /// Disable a version that no sidecar uses.
    Disable(Disable),
    /// Enable a disabled version.
    Enable(VersionArgs),
    /// Destroy a disabled version permanently.
    Destroy(Destroy),
    /// Mark a version as compromised, so that it can never become the primary again.
    Compromise(VersionArgs),
    /// Change periods, waiting times and class; what waits already keeps the longer time.
    Policy(ChangePolicy),
    /// Write a new generation without changes, to confirm copies of the manifest.
    Touch(Target),
    /// Show versions, states and primaries without unwrapping any key.
    Status(ReadTarget),
    /// Unwrap every version with every KEK and verify the manifest's authentication.
    Verify(Verify),
    /// Add, remove or refresh the KEKs that wrap the versions; ciphertexts stay valid.
    RewrapKek(RewrapKek),
    /// Write the manifest and all keys to an encrypted file, and verify that file.
    Backup(Backup),
    /// Drop the tombstones of versions that were destroyed long ago.
    Trim(Trim),
    /// Restore a keyring from a backup, as a new generation.
    Restore(Restore),
    /// Restore a lost or rolled-back manifest from the newest one that any sidecar serves.
    Recover(Recover),
}

impl Command {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let Some((name, place, details)) = self.audit_record() else {
            return self.perform(format).await?.print();
        };
        let (audit, config) = (place.access.audit.clone(), place.access.config().cloned());
        audit
            .around(
                config.as_ref(),
                name,
                details,
                Box::pin(self.perform(format)),
            )
            .await
    }

    /// The name and details to record before the command runs; None for read-only commands.
    fn audit_record(&self) -> Option<(&'static str, &Place, Map<String, Value>)> {
        let (name, version) = match self {
            Self::Init(_) => ("keyring.init", None),
            Self::Rotate(_) => ("keyring.rotate", None),
            Self::Activate(activate) => ("keyring.activate", Some(activate.version)),
            Self::Disable(disable) => ("keyring.disable", Some(disable.on.version)),
            Self::Enable(on) => ("keyring.enable", Some(on.version)),
            Self::Destroy(destroy) => ("keyring.destroy", destroy.version.first().copied()),
            Self::Compromise(on) => ("keyring.compromise", Some(on.version)),
            Self::Policy(_) => ("keyring.policy", None),
            Self::Touch(_) => ("keyring.touch", None),
            Self::RewrapKek(_) => ("keyring.rewrap-kek", None),
            Self::Backup(_) => ("keyring.backup", None),
            Self::Trim(_) => ("keyring.trim", None),
            Self::Restore(_) => ("keyring.restore", None),
            Self::Recover(_) => ("keyring.recover", None),
            Self::Status(_) | Self::Verify(_) => return None,
        };
        let place = match self {
            Self::Init(init) => &init.place,
            _ => &self.target()?.place,
        };
        let mut details = self.reasons();
        details.insert("location".into(), place.location.to_string().into());
        if let Some(version) = version {
            details.insert("version".into(), version.into());
        }
        Some((name, place, details))
    }

    /// What the operator states, for the audit log.
    fn reasons(&self) -> Map<String, Value> {
        let mut reasons = Map::new();
        match self {
            Self::Disable(Disable {
                override_reason: Some(reason),
                ..
            }) => {
                reasons.insert("override".into(), reason.as_str().into());
            }
            Self::Destroy(Destroy {
                confirm: Some(phrase),
                ..
            }) => {
                reasons.insert("confirmed".into(), phrase.as_str().into());
            }
            Self::Policy(change) => {
                reasons.insert("policy".into(), change.record().into());
            }
            _ => {}
        }
        if self.target().is_some_and(Target::is_despite_rollout) {
            reasons.insert("despite_rollout".into(), true.into());
        }
        reasons
    }

    /// The keyring that the command may change; None for one that creates it or only reads it.
    fn target(&self) -> Option<&Target> {
        Some(match self {
            Self::Init(_) | Self::Status(_) | Self::Verify(_) => return None,
            Self::Rotate(rotate) => &rotate.target,
            Self::Activate(activate) => &activate.target,
            Self::Disable(disable) => &disable.on.target,
            Self::Enable(on) | Self::Compromise(on) => &on.target,
            Self::Destroy(destroy) => &destroy.target,
            Self::Policy(change) => &change.target,
            Self::Touch(target) => target,
            Self::RewrapKek(rewrap) => &rewrap.target,
            Self::Backup(backup) => &backup.target,
            Self::Trim(trim) => &trim.target,
            Self::Restore(restore) => &restore.target,
            Self::Recover(recover) => &recover.target,
        })
    }

    async fn perform(self, format: Format) -> Result<Completed, CliError> {
        match self {
            Self::Init(arguments) => arguments.run(format).await,
            Self::Rotate(arguments) => arguments.run(format).await,
            Self::Activate(arguments) => arguments.run(format).await,
            Self::Disable(arguments) => arguments.run(format).await,
            Self::Enable(arguments) => arguments.enable(format).await,
            Self::Destroy(arguments) => arguments.run(format).await,
            Self::Compromise(arguments) => arguments.compromise(format).await,
            Self::Policy(arguments) => arguments.run(format).await,
            Self::Touch(target) => touch(target, format).await,
            Self::Status(target) => {
                status::run(target, format).await?;
                Ok(Completed::default())
            }
            Self::Verify(arguments) => {
                arguments.run(format).await?;
                Ok(Completed::default())
            }
            Self::RewrapKek(arguments) => arguments.run(format).await,
            Self::Backup(arguments) => arguments.run(format).await,
            Self::Trim(arguments) => arguments.run(format).await,
            Self::Restore(arguments) => arguments.run(format).await,
            Self::Recover(arguments) => arguments.run(format).await,
        }
    }
}

async fn touch(target: Target, format: Format) -> Result<Completed, CliError> {
    let admin = target.admin()?;
    let document = admin
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await?;
    changed(format, &admin, &document, None, "manifest confirmed")
}
