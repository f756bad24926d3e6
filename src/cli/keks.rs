//! Commands on the KEKs of a keyring.

use std::str::FromStr;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    keyring::{Done, Reach, Target, changed},
    output::{Failure, Format, columns, print},
};
use crate::{
    admin::KekChange,
    backend,
    model::{KekUri, KeyringName, Location, SignerKey},
};

#[derive(Debug, Args)]
pub(super) struct RewrapKek {
    #[command(flatten)]
    pub(super) target: Target,
    /// Wrap every version under this KEK, too.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str, required_unless_present_any = ["remove", "refresh", "refresh_before"])]
    add: Vec<KekUri>,
    /// Drop the wraps under this KEK.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    remove: Vec<KekUri>,
    /// Make the wraps that stay anew, after their KEKs were rotated.
    #[arg(long)]
    refresh: bool,
    /// The same for wraps made before this time alone, such as 2027-01-31T06:00:00Z: to go on where --refresh was interrupted.
    #[arg(long, value_name = "TIME", conflicts_with = "refresh")]
    refresh_before: Option<Timestamp>,
}

impl RewrapKek {
    pub(super) async fn run(self, format: Format) -> Result<Done, Failure> {
        let (add, remove) = (anchored(&self.add)?, anchored(&self.remove)?);
        let admin = self.target.admin()?;
        let refresh_before = if self.refresh {
            Some(admin.now())
        } else {
            self.refresh_before
        };
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style());
        let progress = |done: usize, of: usize| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        };
        let result = admin
            .rewrap(
                &KekChange {
                    add,
                    remove,
                    refresh_before,
                },
                progress,
            )
            .await;
        bar.finish_and_clear();
        let (document, done) = result.map_err(|error| {
            let failure = Failure::from(error);
            match refresh_before {
                Some(time) => {
                    failure.with_advice(&format!("to go on from here: --refresh-before {time}"))
                }
                None => failure,
            }
        })?;
        changed(
            format,
            &admin,
            &document,
            None,
            &format!("{done} versions have other wraps now"),
        )
    }
}

/// The same KEKs, named so that the names mean them from every folder.
pub(super) fn anchored(keks: &[KekUri]) -> Result<Vec<KekUri>, Failure> {
    keks.iter()
        .map(|kek| backend::anchored(kek).map_err(|error| Failure::failed(error.to_string())))
        .collect()
}

fn style() -> ProgressStyle {
    // The template is right, so the default is never taken.
    ProgressStyle::with_template("{bar:40} {pos}/{len} versions  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Where the manifest is.
    #[arg(value_parser = Location::from_str)]
    location: Location,
    /// Demand a signature by one of these, written `ed25519:BASE64`.
    #[arg(long, value_name = "KEY", value_parser = SignerKey::from_str)]
    trusted_signer: Vec<SignerKey>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Serialize)]
struct Verified<'a> {
    location: String,
    keyring: &'a KeyringName,
    generation: u64,
    wraps: Vec<Tried>,
}

#[derive(Serialize)]
struct Tried {
    version: u32,
    kek: KekUri,
    took_ms: f64,
    /// None if it opened.
    error: Option<String>,
}

impl Verify {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let admin = self.reach.admin(self.location)?;
        let document = admin.verify(&self.trusted_signer).await?;
        let wraps = admin
            .try_wraps(&document)
            .await
            .into_iter()
            .flat_map(|(version, attempts)| {
                attempts.into_iter().map(move |attempt| Tried {
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
        let closed = verified
            .wraps
            .iter()
            .filter(|tried| tried.error.is_some())
            .count();
        if closed > 0 {
            return Err(Failure::failed(format!(
                "{closed} of {} wraps don't open",
                verified.wraps.len()
            )));
        }
        Ok(())
    }
}

fn describe(verified: &Verified<'_>) -> String {
    let heading = ["VERSION", "KEK", "TOOK", "RESULT"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for tried in &verified.wraps {
        let result = tried.error.clone().unwrap_or_else(|| "ok".into());
        rows.push(vec![
            tried.version.to_string(),
            tried.kek.to_string(),
            format!("{:.0} ms", tried.took_ms),
            result,
        ]);
    }
    format!(
        "{}: every MAC is right (generation {})\n\n{}",
        verified.keyring,
        verified.generation,
        columns(&rows)
    )
}
