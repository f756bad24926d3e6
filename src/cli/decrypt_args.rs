use std::{io::IsTerminal, path::PathBuf};

use clap::Args;

use super::output::CliError;
use crate::admin::{DecryptWith, Passphrase};

/// How to decrypt a backup.
#[derive(Debug, Args)]
pub(super) struct DecryptArgs {
    /// Decrypt the backup with the age identities in this file, as written by age-keygen.
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
    /// Read the passphrase from the first line of this file; /dev/fd/N reads a descriptor.
    ///
    /// Without this flag and --identity, the passphrase is asked for on the terminal.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    pub(super) passphrase_file: Option<PathBuf>,
}

impl DecryptArgs {
    pub(super) fn decrypt_with(&self) -> Result<DecryptWith, CliError> {
        match self.identities()? {
            Some(decrypt_with) => Ok(decrypt_with),
            None => Ok(DecryptWith::Passphrase(self.passphrase(false)?)),
        }
    }

    pub(super) fn identities(&self) -> Result<Option<DecryptWith>, CliError> {
        self.identity
            .as_ref()
            .map(|file| DecryptWith::from_identity_file(file).map_err(CliError::failed))
            .transpose()
    }

    /// Reads or asks for the passphrase; a new one is asked for twice.
    pub(super) fn passphrase(&self, is_new: bool) -> Result<Passphrase, CliError> {
        if let Some(file) = &self.passphrase_file {
            return Passphrase::from_file(file).map_err(CliError::failed);
        }
        if !std::io::stdin().is_terminal() {
            return Err(CliError::usage(
                "no terminal to ask for a passphrase; give --passphrase-file FILE (may be \
                 /dev/fd/N)",
            ));
        }
        let passphrase = ask("Passphrase: ")?;
        if is_new && !passphrase.equals(&ask("Confirm passphrase: ")?) {
            return Err(CliError::failed("the passphrases don't match"));
        }
        Ok(passphrase)
    }
}

fn ask(prompt: &str) -> Result<Passphrase, CliError> {
    let text = rpassword::prompt_password(prompt)
        .map_err(|error| CliError::failed(format!("can't read the passphrase: {error}")))?;
    Ok(Passphrase::new(&zeroize::Zeroizing::new(text)))
}
