//! `sidekey audit`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{CliError, Format, path_for_display, print};
use crate::audit::{self, Link, LogId, Report, Requirements, VerifyError};

/// Verify audit logs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Verify that no record of an audit log was changed, removed, added or moved.
    ///
    /// Exits with 3 if the log was tampered with, and with 1 if it can't be read.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Files of the log, oldest first.
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Verify record MACs with the 32-byte key in this file.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Expect MACs only from this record on; the hash chain alone protects earlier records.
    #[arg(
        long,
        value_name = "SEQ",
        requires = "key",
        conflicts_with = "several_chains"
    )]
    keyed_from: Option<u64>,
    /// Require a record noted elsewhere, for example from a sidecar's /status.
    #[arg(long, value_name = "SEQ:HASH", value_parser = Link::from_str)]
    anchor: Vec<Link>,
    /// Require that the records belong to this log; its id is in /status. Repeat it for several.
    #[arg(long, value_name = "ID", value_parser = LogId::from_str)]
    log: Vec<LogId>,
    /// Accept the damage that this record reports (`log.damaged`), because its cause is known.
    #[arg(long, value_name = "SEQ")]
    accept: Vec<u64>,
    /// Accept several chains, such as a standard output log that restarts with each process.
    #[arg(long)]
    several_chains: bool,
}

#[derive(Serialize)]
struct Verified {
    records: u64,
    first: Option<u64>,
    log: Option<String>,
    last: Option<u64>,
    hash: Option<String>,
    /// Whether MACs were verified: of every record, or from `keyed_from` on.
    keyed: bool,
    keyed_from: Option<u64>,
    /// Whether FILE.head was present, which reveals a truncated log.
    has_head: bool,
    torn_lines: u64,
    ends_torn: bool,
}

impl Command {
    pub(super) fn run(self, format: Format) -> Result<(), CliError> {
        match self {
            Self::Verify(arguments) => arguments.run(format),
        }
    }
}

impl Verify {
    fn run(self, format: Format) -> Result<(), CliError> {
        let key = self
            .key
            .as_deref()
            .map(audit::read_key)
            .transpose()
            .map_err(CliError::failed)?;
        let requirements = Requirements {
            key: key.as_ref(),
            keyed_from: self.keyed_from.unwrap_or(0),
            anchors: &self.anchor,
            several_chains: self.several_chains,
            logs: &self.log,
            accepted: &self.accept,
        };
        let report = audit::verify(&self.file, &requirements).map_err(|error| match error {
            VerifyError::Unreadable { .. } => CliError::failed(error),
            broken => CliError::broken(broken.to_string()),
        })?;
        let Report {
            records,
            first,
            log,
            last,
            torn_lines,
            ends_torn,
            has_head,
        } = report;
        let (keyed, keyed_from) = (key.is_some(), self.keyed_from);
        let hash = last.map(|last| last.to_hex());
        let last = last.map(|last| last.seq);
        let verified = Verified {
            records,
            first,
            log: log.map(|log| log.to_string()),
            last,
            hash,
            keyed,
            keyed_from,
            has_head,
            torn_lines,
            ends_torn,
        };
        print(format, &verified, || describe(&verified, &self.file))
    }
}

fn describe(verified: &Verified, files: &[PathBuf]) -> String {
    let files = files
        .iter()
        .map(|file| path_for_display(file))
        .collect::<Vec<_>>()
        .join(", ");
    let (Some(first), Some(last), Some(hash)) = (verified.first, verified.last, &verified.hash)
    else {
        let no_head = if verified.has_head {
            ""
        } else {
            ", and no head file that shows whether there were any"
        };
        return format!("{files}: no records{no_head}\n");
    };
    let verdict = if verified.has_head {
        "complete"
    } else {
        "consistent"
    };
    let mut text =
        format!("{files}: records {first} to {last} are {verdict}\nlast record: {last}:{hash}\n");
    if let Some(log) = &verified.log {
        text.push_str(&format!("log: {log}\n"));
    }
    if !verified.has_head {
        text.push_str("warning: no head file (FILE.head): truncation would go undetected\n");
    }
    if first > 1 {
        text.push_str(&format!(
            "warning: the records before {first} are not in these files\n"
        ));
    }
    if verified.torn_lines > 0 {
        text.push_str(&format!(
            "{} incomplete lines, as left by a crash\n",
            verified.torn_lines
        ));
    }
    if let Some(seq) = verified.keyed_from {
        text.push_str(&format!(
            "the key authenticates records from {seq} on; earlier ones could be forged\n"
        ));
    }
    if !verified.keyed {
        text.push_str(
            "warning: without --key, anyone with write access could have forged the log\n",
        );
    }
    text
}
