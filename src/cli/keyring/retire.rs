use clap::Args;

use crate::{
    admin::{AdminError, ask_fleet, require_unasked},
    cli::{
        output::{CliError, Format},
        record::Completed,
        target::{Target, changed},
    },
    keyring::{self, Evidence, Loss, PrimaryPeriod, primary_period},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct VersionArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// Version to change.
    #[arg(long)]
    pub(super) version: u32,
}

impl VersionArgs {
    pub(super) async fn enable(self, format: Format) -> Result<Completed, CliError> {
        let version = self.version;
        let admin = self.target.admin()?;
        let document = admin
            .change(|current, now| keyring::enable(current, version, now))
            .await?;
        let message = format!("version {version} enabled");
        changed(format, &admin, &document, Some(version), &message)
    }

    pub(super) async fn compromise(self, format: Format) -> Result<Completed, CliError> {
        let version = self.version;
        let admin = self.target.admin()?;
        let document = admin
            .change(|current, now| keyring::compromise(current, version, now))
            .await?;
        let manifest = document.manifest();
        let message = match primary_period(&manifest.activations, version, manifest.updated_at) {
            PrimaryPeriod::CurrentOrScheduled => format!(
                "version {version} marked as compromised, but it is, or is scheduled to become, \
                 the primary of a wave; replace it with `keyring rotate --activate now`"
            ),
            PrimaryPeriod::Never | PrimaryPeriod::Ended(_) => {
                format!("version {version} marked as compromised; it never encrypts again")
            }
        };
        changed(format, &admin, &document, Some(version), &message)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Disable {
    #[command(flatten)]
    pub(super) on: VersionArgs,
    /// Disable the version without evidence, for this reason; sidecars then only show the time.
    #[arg(long = "override", value_name = "REASON")]
    pub(super) override_reason: Option<String>,
}

impl Disable {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let version = self.on.version;
        let fleet = self.on.target.fleet();
        let admin = self.on.target.admin()?;
        let evidence = match self.override_reason {
            Some(reason) => Evidence::Override(reason),
            None => {
                let current = admin.read().await?;
                // If the keyring changes after this, the reports name an older generation and
                // `disable` refuses them.
                let evidence = ask_fleet(&fleet, current.manifest(), version, admin.now()).await;
                let evidence = Evidence::Fleet(evidence.map_err(CliError::failed)?);
                // Before the sidecars are asked for more: a refusal names what each one lacks.
                keyring::disable(&current, version, &evidence, admin.now())
                    .map_err(AdminError::from)?;
                evidence
            }
        };
        admin.require_clock().await?;
        let document = admin
            .change(|current, now| keyring::disable(current, version, &evidence, now))
            .await?;
        let message = format!("version {version} disabled; `keyring enable` reverses this");
        changed(format, &admin, &document, Some(version), &message)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Destroy {
    #[command(flatten)]
    pub(super) target: Target,
    /// Version to destroy; with --lost, repeat it for every version that is lost.
    #[arg(long, required = true)]
    pub(super) version: Vec<u32>,
    /// Confirm with the phrase that the refusal names, for example if there is no backup.
    #[arg(long, value_name = "PHRASE")]
    pub(super) confirm: Option<String>,
    /// Destroy the version although it was asked for since it was disabled, or sidecars can't say,
    /// for this reason.
    #[arg(long = "override", value_name = "REASON", conflicts_with = "lost")]
    pub(super) override_reason: Option<String>,
    /// Skip the waiting time, because every KEK of the version is permanently lost.
    #[arg(long)]
    lost: bool,
    /// Make this version the primary of every wave, if a lost version is any wave's primary.
    #[arg(long, value_name = "VERSION", requires = "lost")]
    successor: Option<u32>,
}

impl Destroy {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let fleet = self.target.fleet();
        let admin = self.target.admin()?;
        let confirm = self.confirm.as_deref();
        let document = if self.lost {
            let loss = Loss {
                versions: &self.version,
                confirm,
                successor: self.successor,
            };
            admin.declare_lost(loss).await?
        } else {
            let [version] = self.version[..] else {
                return Err(CliError::usage(
                    "give --version once, unless they are --lost",
                ));
            };
            if self.override_reason.is_none() {
                let current = admin.read().await?;
                require_unasked(&fleet, current.manifest(), version, admin.now()).await?;
            }
            admin.destroy(version, confirm).await?
        };
        let message = match self.version[..] {
            [version] => format!("version {version} destroyed"),
            _ => format!("{} versions destroyed", self.version.len()),
        };
        changed(
            format,
            &admin,
            &document,
            self.version.first().copied(),
            &message,
        )
    }
}
