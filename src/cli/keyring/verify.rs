use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use crate::{
    cli::{
        output::{CliError, Format, columns, print},
        target::ReadTarget,
    },
    model::{KekUri, KeyringName, SignerKey},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    target: ReadTarget,
    /// Require a signature by this key (`ed25519:BASE64`); repeat to accept any of several.
    #[arg(long, value_name = "KEY", value_parser = SignerKey::from_str)]
    trusted_signer: Vec<SignerKey>,
}

#[derive(Serialize)]
struct Verified<'a> {
    location: String,
    keyring: &'a KeyringName,
    generation: u64,
    wraps: Vec<WrapResult>,
}

#[derive(Serialize)]
struct WrapResult {
    version: u32,
    kek: KekUri,
    took_ms: f64,
    error: Option<String>,
}

impl Verify {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let admin = self.target.admin()?;
        let document = admin.verify(&self.trusted_signer).await?;
        let wraps = admin
            .try_wraps(&document)
            .await
            .into_iter()
            .flat_map(|(version, attempts)| {
                attempts.into_iter().map(move |attempt| WrapResult {
                    version,
                    kek: attempt.uri,
                    took_ms: attempt.took.as_secs_f64() * 1000.0,
                    error: attempt.result.err().map(|error| error.to_string()),
                })
            });
        let manifest = document.manifest();
        let verified = Verified {
            location: admin.location().to_string(),
            keyring: &manifest.name,
            generation: manifest.generation,
            wraps: wraps.collect(),
        };
        print(format, &verified, || describe(&verified))?;
        let total = verified.wraps.len();
        match verified
            .wraps
            .iter()
            .filter(|wrap| wrap.error.is_some())
            .count()
        {
            0 => Ok(()),
            failed => Err(CliError::failed(format!(
                "{failed} of {total} wraps could not be unwrapped"
            ))),
        }
    }
}

fn describe(verified: &Verified<'_>) -> String {
    let heading = ["VERSION", "KEK", "TOOK", "RESULT"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for wrap in &verified.wraps {
        rows.push(vec![
            wrap.version.to_string(),
            wrap.kek.to_string(),
            format!("{:.0} ms", wrap.took_ms),
            wrap.error.clone().unwrap_or_else(|| "ok".into()),
        ]);
    }
    format!(
        "{}: every version gave its word (generation {})\n\n{}",
        verified.keyring,
        verified.generation,
        columns(&rows)
    )
}
