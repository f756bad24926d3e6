//! Commands on backups and recoveries.

use std::{io::IsTerminal, path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{
    keks::anchored,
    keyring::{Done, Sidecars, Target, changed},
    output::{Failure, Format, render},
    shown,
};
use crate::{
    admin::{Backup, Lock, Opener, Passphrase, Proof, Restoring, recipient, recipients_in},
    keyring::Document,
    model::{KekUri, KeyringName, SignerKey},
};

/// How a backup is opened.
#[derive(Debug, Args)]
struct Opening {
    /// Open it with the age identities in this file, as age-keygen writes it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Open it with the passphrase that is this file's first line; /dev/fd/N is a file descriptor. Without it, a terminal asks.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("file").args(["to", "verify"]).required(true)))]
pub(super) struct BackUp {
    #[command(flatten)]
    pub(super) target: Target,
    /// Write the backup to this new file.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Show that the backup in this file opens and belongs to the keyring, and record it.
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    /// Encrypt it for this age recipient, age1…, instead of with a passphrase.
    #[arg(long, short, value_name = "RECIPIENT", conflicts_with_all = ["passphrase_file", "verify"])]
    recipient: Vec<String>,
    /// Encrypt it for the age recipients in this file, one a line.
    #[arg(long, short = 'R', value_name = "FILE", conflicts_with_all = ["passphrase_file", "verify"])]
    recipients_file: Vec<PathBuf>,
    #[command(flatten)]
    opening: Opening,
    /// Write nothing to the manifest. Then `keyring destroy` doesn't know of the backup.
    #[arg(long)]
    no_record: bool,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    pub(super) target: Target,
    /// The backup.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    opening: Opening,
    /// Wrap every version under this KEK from now on; several are failover for each other. Without any, those that the manifest names
    /// must still open.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
    #[command(flatten)]
    sidecars: Box<Sidecars>,
    /// There is no live sidecar to ask for a newer manifest. An empty location needs this, or --sidecar.
    #[arg(long, conflicts_with = "sidecar")]
    no_sidecar: bool,
    /// If there is a newer manifest than the backup's, keep it, and give its versions the backup's keys.
    #[arg(long)]
    onto_newer: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("fleet").args(["sidecar"]).required(true)))]
pub(super) struct Recover {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    sidecars: Box<Sidecars>,
    /// The keyring's name, if its manifest is gone.
    #[arg(long, value_parser = KeyringName::from_str)]
    name: Option<KeyringName>,
    /// Demand a signature by one of these, written `ed25519:BASE64`.
    #[arg(long, value_name = "KEY", value_parser = SignerKey::from_str)]
    trusted_signer: Vec<SignerKey>,
}

#[derive(Serialize)]
struct BackedUp<'a> {
    file: String,
    sha256: String,
    keyring: &'a KeyringName,
    /// The generation in the backup.
    generation: u64,
    newest_version: u32,
    /// Whether its holder was shown to open it, and not its content alone.
    verified: bool,
    /// The generation that records it.
    recorded_in: Option<u64>,
}

impl Opening {
    fn opener(&self) -> Result<Opener, Failure> {
        match &self.identity {
            Some(file) => Ok(Opener::from_identity_file(file).map_err(failed)?),
            None => Ok(Opener::Passphrase(self.passphrase(false)?)),
        }
    }

    fn passphrase(&self, is_new: bool) -> Result<Passphrase, Failure> {
        if let Some(file) = &self.passphrase_file {
            return Passphrase::from_file(file).map_err(failed);
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "there is no terminal to ask for a passphrase; give --passphrase-file FILE, which may be /dev/fd/N",
            ));
        }
        let passphrase = ask("Passphrase of the backup: ")?;
        if is_new && !passphrase.equals(&ask("The same again: ")?) {
            return Err(Failure::failed("the two passphrases differ"));
        }
        Ok(passphrase)
    }
}

fn ask(prompt: &str) -> Result<Passphrase, Failure> {
    let text = rpassword::prompt_password(prompt)
        .map_err(|error| Failure::failed(format!("can't ask for the passphrase: {error}")))?;
    Ok(Passphrase::new(&zeroize::Zeroizing::new(text)))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

impl BackUp {
    pub(super) async fn run(self, format: Format) -> Result<Done, Failure> {
        let lock = self.lock()?;
        let (opening, records) = (self.opening, !self.no_record);
        let admin = self.target.admin()?;
        if records {
            admin.can_record().await?;
        }
        let (file, backup) = match (self.to, self.verify) {
            (Some(file), _) => {
                let Some(lock) = lock else {
                    unreachable!("made above for a new backup")
                };
                let opener = opening
                    .identity
                    .as_ref()
                    .map(|file| Opener::from_identity_file(file).map_err(failed))
                    .transpose()?;
                let backup = admin.back_up(&file, &lock, opener.as_ref()).await?;
                (file, backup)
            }
            (None, Some(file)) => {
                let opener = opening.opener()?;
                let backup = admin.verify_backup(&file, &opener).await?;
                (file, backup)
            }
            (None, None) => return Err(Failure::usage("give --to FILE, or --verify FILE")),
        };
        let verified = backup.proof == Proof::Holder;
        let recorded = if records && verified {
            let advice = format!(
                "the backup {} is whole; to record it: keyring backup LOCATION --verify FILE",
                shown(&file)
            );
            Some(
                admin
                    .record(&backup)
                    .await
                    .map_err(|error| Failure::from(error).with_advice(&advice))?,
            )
        } else {
            None
        };
        report(format, &shown(&file), &backup, recorded.as_ref(), records)
    }

    /// What a new backup is encrypted for.
    fn lock(&self) -> Result<Option<Lock>, Failure> {
        if self.to.is_none() {
            return Ok(None);
        }
        let mut recipients = Vec::new();
        for text in &self.recipient {
            recipients.push(recipient(text).map_err(failed)?);
        }
        for file in &self.recipients_file {
            let found = recipients_in(file).map_err(failed)?;
            if found.is_empty() {
                return Err(Failure::failed(format!(
                    "{}: no recipient is in it",
                    shown(file)
                )));
            }
            recipients.extend(found);
        }
        if recipients.is_empty() {
            if self.opening.identity.is_some() {
                return Err(Failure::usage(
                    "--identity shows that a recipient can open the backup, so give --recipient, too",
                ));
            }
            return Ok(Some(Lock::Passphrase(self.opening.passphrase(true)?)));
        }
        Ok(Some(Lock::Recipients(recipients)))
    }
}

fn report(
    format: Format,
    file: &str,
    backup: &Backup,
    recorded: Option<&Document>,
    wanted: bool,
) -> Result<Done, Failure> {
    let name = backup.keyring();
    let report = BackedUp {
        file: file.to_owned(),
        sha256: backup.record.sha256_hex(),
        keyring: name,
        generation: backup.record.generation,
        newest_version: backup.record.newest_version,
        verified: backup.proof == Proof::Holder,
        recorded_in: recorded.map(|document| document.manifest().generation),
    };
    let output = render(format, &report, || {
        let newest = report.newest_version;
        let mut text = format!(
            "{name}: {file} holds generation {} with versions up to {newest}\nSHA-256 {}\n",
            report.generation, report.sha256
        );
        text.push_str(&match (report.recorded_in, report.verified) {
            (Some(generation), _) => format!("it opens, and generation {generation} records that\n"),
            (None, true) => "it opens; nothing records that, so `keyring destroy` doesn't know of it\n".into(),
            (None, false) => {
                let how = if wanted { "; to record it: keyring backup LOCATION --verify FILE --identity FILE" } else { "" };
                format!("its content was read back, but nobody has shown that he can open it, so it is not recorded{how}\n")
            }
        });
        text
    })?;
    Ok(Done {
        keyring: Some(name.to_string()),
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

impl Restore {
    pub(super) async fn run(self, format: Format) -> Result<Done, Failure> {
        let keks = anchored(&self.kek)?;
        let opener = self.opening.opener()?;
        let admin = self.target.admin()?;
        let restored = admin
            .restore(&Restoring {
                file: &self.from,
                opener: &opener,
                keks: &keks,
                sidecars: &(*self.sidecars).into(),
                no_sidecar: self.no_sidecar,
                onto_newer: self.onto_newer,
            })
            .await?;
        let what = match (restored.kept_newer, keks.is_empty()) {
            (true, _) => "the newer manifest is kept, with the backup's keys",
            (false, true) => "the backup is restored, under the KEKs that it names",
            (false, false) => "the backup is restored, under other KEKs",
        };
        changed(
            format,
            &admin,
            &restored.document,
            None,
            &with_damage(what, restored.damage.as_deref()),
        )
    }
}

fn with_damage(what: &str, damage: Option<&str>) -> String {
    match damage {
        Some(damage) => format!("{what}; what stood there was no manifest ({damage})"),
        None => what.to_owned(),
    }
}

impl Recover {
    pub(super) async fn run(self, format: Format) -> Result<Done, Failure> {
        let admin = self.target.admin()?;
        let fleet = (*self.sidecars).into();
        let recovered = admin
            .recover(self.name.as_ref(), &fleet, &self.trusted_signer)
            .await?;
        for passed in &recovered.passed_over {
            eprintln!("sidekey: passed over, because it is not authentic: {passed}");
        }
        let what = match &recovered.from {
            Some(sidecar) => format!("the manifest that {sidecar} has in force is in place again"),
            None => "the newest manifest is in place already".into(),
        };
        changed(
            format,
            &admin,
            &recovered.document,
            None,
            &with_damage(&what, recovered.damage.as_deref()),
        )
    }
}
