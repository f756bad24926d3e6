use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde::Serialize;

use crate::{
    admin::{self, DecryptWith, EncryptFor, Proof, recipient, recipients_in},
    cli::{
        decrypt_args::DecryptArgs,
        output::{CliError, Format, path_for_display, render},
        record::Completed,
        target::Target,
    },
    keyring::Document,
    model::KeyringName,
};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("file").args(["to", "verify"]).required(true)))]
pub(in crate::cli) struct Backup {
    #[command(flatten)]
    pub(super) target: Target,
    /// Write the backup to this file, which must not exist.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Verify that this backup can be decrypted and belongs to the keyring, and record it.
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    /// Encrypt the backup for this age recipient (age1…) instead of with a passphrase.
    #[arg(
        long,
        short,
        value_name = "RECIPIENT",
        conflicts_with_all = ["passphrase_file", "verify"]
    )]
    recipient: Vec<String>,
    /// Encrypt the backup for the age recipients in this file, one per line.
    #[arg(
        long,
        short = 'R',
        value_name = "FILE",
        conflicts_with_all = ["passphrase_file", "verify"]
    )]
    recipients_file: Vec<PathBuf>,
    #[command(flatten)]
    decryption: DecryptArgs,
    /// Leave the manifest unchanged; `keyring destroy` then doesn't count the backup.
    #[arg(long)]
    no_record: bool,
}

#[derive(Serialize)]
struct BackupReport<'a> {
    file: String,
    sha256: String,
    keyring: &'a KeyringName,
    /// The generation in the backup.
    generation: u64,
    newest_version: u32,
    /// Whether its holder's passphrase or identity decrypted it.
    verified: bool,
    /// The generation that records the backup.
    recorded_in: Option<u64>,
}

impl Backup {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let encrypt_for = self.encrypt_for()?;
        let (decryption, records) = (self.decryption, !self.no_record);
        let admin = self.target.admin()?;
        if records {
            admin.can_record().await?;
        }
        let (file, backup) = match (self.to, encrypt_for, self.verify) {
            (Some(file), Some(encrypt_for), _) => {
                let decrypt_with: Option<DecryptWith> = decryption.identities()?;
                let backup = admin
                    .back_up(&file, &encrypt_for, decrypt_with.as_ref())
                    .await?;
                (file, backup)
            }
            (_, _, Some(file)) => {
                let backup = admin
                    .verify_backup(&file, &decryption.decrypt_with()?)
                    .await?;
                (file, backup)
            }
            _ => return Err(CliError::usage("give --to FILE or --verify FILE")),
        };
        let file = path_for_display(&file);
        let recorded = if records && backup.proof == Proof::Holder {
            let hint = format!(
                "the backup {file} is complete; to record it: keyring backup LOCATION --verify FILE"
            );
            let recorded = admin.record(&backup).await;
            Some(recorded.map_err(|error| CliError::from(error).with_hint(&hint))?)
        } else {
            None
        };
        report(format, &file, &backup, recorded.as_ref(), records)
    }

    /// What a new backup is encrypted for; None with --verify.
    fn encrypt_for(&self) -> Result<Option<EncryptFor>, CliError> {
        if self.to.is_none() {
            return Ok(None);
        }
        let mut recipients = Vec::new();
        for text in &self.recipient {
            recipients.push(recipient(text).map_err(CliError::failed)?);
        }
        for file in &self.recipients_file {
            let found = recipients_in(file).map_err(CliError::failed)?;
            if found.is_empty() {
                let file = path_for_display(file);
                return Err(CliError::failed(format!("{file}: contains no recipient")));
            }
            recipients.extend(found);
        }
        if !recipients.is_empty() {
            return Ok(Some(EncryptFor::Recipients(recipients)));
        }
        if self.decryption.identity.is_some() {
            return Err(CliError::usage(
                "--identity verifies that a recipient can decrypt the backup; \
                 give --recipient, too",
            ));
        }
        Ok(Some(EncryptFor::Passphrase(
            self.decryption.passphrase(true)?,
        )))
    }
}

fn report(
    format: Format,
    file: &str,
    backup: &admin::Backup,
    recorded: Option<&Document>,
    should_record: bool,
) -> Result<Completed, CliError> {
    let report = BackupReport {
        file: file.to_owned(),
        sha256: backup.record.sha256_hex(),
        keyring: backup.keyring(),
        generation: backup.record.generation,
        newest_version: backup.record.newest_version,
        verified: backup.proof == Proof::Holder,
        recorded_in: recorded.map(|document| document.manifest().generation),
    };
    let output = render(format, &report, || describe(&report, should_record))?;
    Ok(Completed {
        keyring: Some(report.keyring.to_string()),
        generation: report.recorded_in.or(Some(report.generation)),
        version: None,
        details: [
            ("backup_sha256".to_owned(), report.sha256.into()),
            ("verified".to_owned(), report.verified.into()),
        ]
        .into_iter()
        .collect(),
        output,
    })
}

fn describe(report: &BackupReport<'_>, should_record: bool) -> String {
    let mut text = format!(
        "{}: {} contains generation {} with versions up to {}\nSHA-256 {}\n",
        report.keyring, report.file, report.generation, report.newest_version, report.sha256
    );
    text.push_str(&match (report.recorded_in, report.verified) {
        (Some(generation), _) => format!("verified, recorded in generation {generation}\n"),
        (None, true) => {
            "verified, but not recorded: `keyring destroy` doesn't count this backup\n".into()
        }
        (None, false) => {
            let hint = if should_record {
                "\nto record it: keyring backup LOCATION --verify FILE --identity FILE"
            } else {
                ""
            };
            format!(
                "content verified, but not recorded: no recipient has been shown to be able to \
                 decrypt it{hint}\n"
            )
        }
    });
    text
}
