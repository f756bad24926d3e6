use std::{path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args};

use crate::{
    admin::{Recovery, Restoring},
    cli::{
        decrypt_args::DecryptArgs,
        output::{CliError, Format, note},
        record::Completed,
        target::{Target, anchored, changed},
    },
    model::{KekUri, KeyringName},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Restore {
    #[command(flatten)]
    pub(super) target: Target,
    /// Backup to restore.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    decryption: DecryptArgs,
    /// Wrap every version with this KEK from now on; repeat for failover.
    ///
    /// Without this flag, the KEKs in the manifest must still unwrap every version.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
    /// State that no live sidecar exists; an empty location requires this or --sidecar.
    #[arg(long, conflicts_with = "sidecar")]
    no_sidecar: bool,
    /// Keep a manifest newer than the backup's, and restore only its keys from the backup.
    #[arg(long)]
    onto_newer: bool,
    /// Write at least this generation, if a sidecar that can't be asked may have a newer one.
    #[arg(long, value_name = "GENERATION", default_value_t = 0)]
    at_least: u64,
}

impl Restore {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let keks = anchored(&self.kek)?;
        let decrypt_with = self.decryption.decrypt_with()?;
        let sidecars = self.target.fleet();
        let admin = self.target.admin()?;
        let restored = admin
            .restore(&Restoring {
                file: &self.from,
                decrypt_with: &decrypt_with,
                keks: &keks,
                sidecars: &sidecars,
                no_sidecar: self.no_sidecar,
                onto_newer: self.onto_newer,
                at_least: self.at_least,
            })
            .await?;
        let what = match (restored.kept_newer, keks.is_empty()) {
            (true, _) => "newer manifest kept, with the keys from the backup",
            (false, true) => "backup restored with its own KEKs",
            (false, false) => "backup restored with the given KEKs",
        };
        let message = with_damage(what, restored.damage.as_deref());
        changed(format, &admin, &restored.document, None, &message)
    }
}

fn with_damage(what: &str, damage: Option<&str>) -> String {
    match damage {
        Some(damage) => format!("{what}; replaced an invalid manifest ({damage})"),
        None => what.to_owned(),
    }
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("fleet").args(["sidecar"]).required(true)))]
pub(in crate::cli) struct Recover {
    #[command(flatten)]
    pub(super) target: Target,
    /// Name of the keyring, if its manifest is gone.
    #[arg(long, value_parser = KeyringName::from_str)]
    name: Option<KeyringName>,
    /// Continue the branch with this digest, if the manifests found are on several branches.
    #[arg(long, value_name = "DIGEST")]
    branch: Option<String>,
}

impl Recover {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let (fleet, trusted) = (self.target.fleet(), self.target.trusted_signers());
        let admin = self.target.admin()?;
        let recovered = admin
            .recover(&Recovery {
                name: self.name.as_ref(),
                fleet: &fleet,
                trusted: &trusted,
                branch: self.branch.as_deref(),
            })
            .await?;
        for skipped in &recovered.rejected {
            note(format_args!(
                "skipped a manifest that is not authentic: {skipped}"
            ));
        }
        for stranded in &recovered.stranded {
            note(format_args!(
                "this holder won't follow and needs a restart: {stranded}"
            ));
        }
        let what = match &recovered.from {
            Some(sidecar) => format!("manifest restored from {sidecar}"),
            None => "the location already has the newest manifest".into(),
        };
        let message = with_damage(&what, recovered.damage.as_deref());
        changed(format, &admin, &recovered.document, None, &message)
    }
}
