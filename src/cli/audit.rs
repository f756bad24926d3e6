//! The audit log on the command line: writing what a command does, and verifying what is there.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    keyring::Done,
    output::{Failure, Format, print},
    shown,
};
use crate::{
    audit::{self, Act, AuditFile, Demands, Link, Outcome, Report, VerifyError},
    clock::Clock,
    config::{self, AuditSink},
    model::Location,
};

/// Where a command's doings are recorded.
#[derive(Debug, Clone, Args)]
pub(super) struct Flags {
    /// Record what is done in this audit log first; without the record, nothing is done.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// The key that vouches for the records: 32 bytes.
    #[arg(long, value_name = "FILE", requires = "audit")]
    audit_key: Option<PathBuf>,
}

impl Flags {
    /// The log that the flags name, or else the config at `config`.
    fn file(&self, config: Option<&PathBuf>) -> Result<Option<AuditFile>, Failure> {
        let settings = match (&self.audit, config) {
            (Some(file), _) => Some(config::Audit {
                sink: AuditSink::File(file.clone()),
                key_file: self.audit_key.clone(),
            }),
            (None, Some(config)) => config::load(config)?.audit,
            (None, None) => None,
        };
        match settings
            .as_ref()
            .map(audit::open)
            .transpose()
            .map_err(failed)?
        {
            None => Ok(None),
            Some(audit::Sink::File(file)) => Ok(Some(file)),
            Some(audit::Sink::Stdout { .. }) => Err(Failure::failed(
                "the config sends audit records to standard output, where this command prints its results; give --audit FILE",
            )),
        }
    }

    /// Does `work`, which is called `name`, and records before and after it, if a log is named at all.
    pub(super) async fn around(
        &self,
        config: Option<&PathBuf>,
        name: &'static str,
        details: Map<String, Value>,
        work: impl Future<Output = Result<Done, Failure>>,
    ) -> Result<(), Failure> {
        let Some(file) = self.file(config)? else {
            return work.await?.print();
        };
        let mut all: Map<String, Value> = details;
        // No argument is ever a secret, but for the query of a presigned URL; and an operator's reasons stand there.
        let arguments = std::env::args_os()
            .skip(1)
            .map(|argument| recordable(&argument.to_string_lossy()));
        all.insert("arguments".into(), arguments.collect::<Vec<_>>().into());
        if let Ok(folder) = std::env::current_dir() {
            all.insert("folder".into(), folder.display().to_string().into());
        }
        let act = Act::begin(file, name, all, Clock::system()).map_err(|error| {
            failed(error).with_advice("nothing was done, because it could not be recorded")
        })?;
        let result = work.await;
        let (outcome, details) = match &result {
            Ok(done) => (Outcome::Done, done.details()),
            Err(failure) => (
                failure.outcome(),
                Map::from_iter([("error".to_owned(), failure.message().into())]),
            ),
        };
        match (act.end(outcome, details), result) {
            // Only now: an output that can't be written changes nothing of what was done.
            (Ok(_), Ok(done)) => done
                .print()
                .map_err(|failure| failure.with_advice("it was done, and the audit log says so")),
            (Ok(_), Err(failure)) => Err(failure),
            (Err(error), Ok(done)) => {
                let unrecorded = failed(error).with_advice(
                    "it was done, and the audit log says that it was begun, but not how it ended",
                );
                Err(match done.print() {
                    Ok(()) => unrecorded,
                    Err(failure) => unrecorded.with_advice(failure.message()),
                })
            }
            (Err(error), Err(failure)) => {
                Err(failure.with_advice(&format!("{error}: this outcome is not recorded")))
            }
        }
    }
}

/// An argument as it is recorded: a URL without its query.
fn recordable(argument: &str) -> String {
    match (argument.parse(), argument.split_once('=')) {
        (Ok(location @ Location::Web(_)), _) => location.to_string(),
        (_, Some((flag, value))) if flag.starts_with("--") => {
            format!("{flag}={}", recordable(value))
        }
        _ => argument.to_owned(),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

/// Work on audit logs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show that nothing in an audit log was changed, cut, added or moved. Exits 3 if something was, 1 if that can't be told.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The log's files, the oldest first.
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// The key that vouches for the records: 32 bytes.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The key came into use with this record: those before it need no MAC, and the chain alone holds them.
    #[arg(
        long,
        value_name = "SEQ",
        requires = "key",
        conflicts_with = "several_chains"
    )]
    keyed_from: Option<u64>,
    /// A record that was noted elsewhere and must be there, such as a sidecar's /status gives it.
    #[arg(long, value_name = "SEQ:HASH", value_parser = Link::from_str)]
    anchor: Vec<Link>,
    /// Chains may begin anywhere, as they do on a standard output at each start.
    #[arg(long)]
    several_chains: bool,
}

#[derive(Serialize)]
struct Verified {
    records: u64,
    first: Option<u64>,
    last: Option<u64>,
    hash: Option<String>,
    /// Whether a key vouches for it: for all of it, unless `keyed_from` says otherwise.
    keyed: bool,
    keyed_from: Option<u64>,
    /// Whether the head beside the last file was there, which shows a cut end.
    has_head: bool,
    torn_lines: u64,
    ends_torn: bool,
}

impl Command {
    pub(super) fn run(self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Verify(arguments) => arguments.run(format),
        }
    }
}

impl Verify {
    fn run(self, format: Format) -> Result<(), Failure> {
        let key = self
            .key
            .as_deref()
            .map(audit::read_key)
            .transpose()
            .map_err(failed)?;
        let demands = Demands {
            key: key.as_ref(),
            keyed_from: self.keyed_from.unwrap_or(0),
            anchors: &self.anchor,
            several_chains: self.several_chains,
        };
        let report = audit::verify(&self.file, &demands).map_err(|error| match error {
            VerifyError::Unreadable { .. } => failed(error),
            broken => Failure::broken(broken.to_string()),
        })?;
        let Report {
            records,
            first,
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
        .map(|file| shown(file))
        .collect::<Vec<_>>()
        .join(", ");
    let (Some(first), Some(last), Some(hash)) = (verified.first, verified.last, &verified.hash)
    else {
        let no_head = if verified.has_head {
            ""
        } else {
            ", and no head that tells whether there were any"
        };
        return format!("{files}: no record{no_head}\n");
    };
    let verdict = if verified.has_head {
        "are whole"
    } else {
        "follow from each other"
    };
    let mut text =
        format!("{files}: records {first} to {last} {verdict}\nthe last one is {last}:{hash}\n");
    if !verified.has_head {
        text.push_str("beside the last file lies no head (FILE.head) that says where the log ends: a cut end would not show\n");
    }
    if first > 1 {
        text.push_str(&format!(
            "what came before record {first} is not in these files\n"
        ));
    }
    if verified.torn_lines > 0 {
        text.push_str(&format!(
            "{} lines are unfinished, as a crash leaves them\n",
            verified.torn_lines
        ));
    }
    if let Some(seq) = verified.keyed_from {
        text.push_str(&format!("the key vouches for record {seq} and what follows; those before it could have been made anew\n"));
    }
    if !verified.keyed {
        text.push_str(
            "without --key: whoever can write the files could have made all of it anew\n",
        );
    }
    text
}
