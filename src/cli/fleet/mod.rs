//! `sidekey fleet`: what the sidecars of a fleet report together.

mod csv;
mod tables;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use self::{
    csv::csv,
    tables::{key_rows, sidecar_rows},
};
use super::output::{CliError, Format, columns, note, print, write_out};
use crate::fleet::{
    Fleet, FleetClient,
    inventory::{self, KeyRow, SidecarRow},
};

/// The most sidecars that an error names.
const NAMED: usize = 5;

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure
  2  invalid arguments
  3  a sidecar is unreachable, has no active manifest, or lags behind the highest generation that
     another one has active; the inventory is printed nevertheless";

/// List the sidecars of a fleet, and the key versions that they hold.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show every sidecar: its build, its waves, and how far its keyrings lag behind.
    #[command(after_help = EXIT_CODES)]
    Status(Inventory),
    /// Show every key version: its state, its roles, and how often sidecars used it.
    #[command(after_help = EXIT_CODES)]
    Keys(Inventory),
}

/// A fleet to ask, and the form of the answer.
#[derive(Debug, Args)]
pub(super) struct Inventory {
    /// TOML file that lists the sidecars to ask, or names the hub that they have joined.
    #[arg(long, value_name = "FILE", env = "SIDEKEY_FLEET")]
    fleet: PathBuf,
    /// Print comma-separated values (RFC 4180) with a heading.
    #[arg(long)]
    csv: bool,
}

/// All sidecars, as JSON.
#[derive(Serialize)]
struct Sidecars<'a> {
    sidecars: &'a [SidecarRow],
}

/// All key versions, as JSON.
#[derive(Serialize)]
struct Keys<'a> {
    keys: &'a [KeyRow],
}

impl Command {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let (Self::Status(arguments) | Self::Keys(arguments)) = &self;
        if arguments.csv && format == Format::Json {
            return Err(CliError::usage(
                "--csv and --output json exclude each other",
            ));
        }
        let fleet = Fleet::load(&arguments.fleet)?;
        let client = FleetClient::new(&fleet).map_err(CliError::failed)?;
        let answers = client.members_and_statuses().await;
        let keys = inventory::keys(&answers);
        let sidecars = inventory::sidecars(answers);
        match &self {
            Self::Status(Inventory { csv, .. }) => {
                let value = Sidecars {
                    sidecars: &sidecars,
                };
                show(format, *csv, &value, |detail| {
                    sidecar_rows(&sidecars, detail)
                })?;
            }
            Self::Keys(Inventory { csv, .. }) => {
                for row in &sidecars {
                    if let Some(reason) = &row.unreachable {
                        note(format_args!("{}: {reason}", row.sidecar));
                    }
                }
                let (value, now) = (Keys { keys: &keys }, Timestamp::now());
                show(format, *csv, &value, |detail| key_rows(&keys, now, detail))?;
            }
        }
        verdict(&sidecars)
    }
}

/// How much of a value a table shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// As much as people read.
    Short,
    /// All of it, for programs.
    Full,
}

fn show(
    format: Format,
    is_csv: bool,
    value: &impl Serialize,
    rows: impl FnOnce(Detail) -> Vec<Vec<String>>,
) -> Result<(), CliError> {
    if is_csv {
        return write_out(&csv(&rows(Detail::Full)));
    }
    print(format, value, || columns(&rows(Detail::Short)))
}

fn verdict(sidecars: &[SidecarRow]) -> Result<(), CliError> {
    let behind: Vec<&str> = sidecars
        .iter()
        .filter(|row| row.is_behind())
        .map(|row| row.sidecar.as_str())
        .collect();
    if behind.is_empty() {
        return Ok(());
    }
    let mut names = behind[..behind.len().min(NAMED)].join(", ");
    if behind.len() > NAMED {
        names.push_str(&format!(" and {} more", behind.len() - NAMED));
    }
    Err(CliError::refused(format!(
        "{} of {} sidecars are unreachable, or lag behind: {names}",
        behind.len(),
        sidecars.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, unreachable: Option<&str>) -> SidecarRow {
        SidecarRow {
            sidecar: name.into(),
            url: None,
            workload: None,
            unreachable: unreachable.map(String::from),
            build: None,
            instance: None,
            ready: None,
            hub: None,
            keyrings: Vec::new(),
        }
    }

    #[test]
    fn the_verdict_names_the_first_sidecars_that_are_behind() {
        verdict(&[row("a", None)]).expect("all are reachable");
        let mut rows: Vec<SidecarRow> = (0..7).map(|n| row(&n.to_string(), Some("why"))).collect();
        rows.push(row("a", None));
        let error = verdict(&rows).expect_err("seven are unreachable");
        assert_eq!(
            error.message(),
            "7 of 8 sidecars are unreachable, or lag behind: 0, 1, 2, 3, 4 and 2 more"
        );
    }
}
