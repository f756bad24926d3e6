//! Recording a command in the audit log before and after it runs.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use super::output::{CliError, note, write_out};
use crate::{
    audit::{self, Act, ActOutcome, AuditFile},
    clock::Clock,
    config::{self, AuditSink},
    model::Location,
};

/// Where a command is recorded.
#[derive(Debug, Clone, Args)]
pub(super) struct AuditArgs {
    /// Record the command in this audit log before running it; fail if that is impossible.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Authenticate audit records with the 32-byte key in this file.
    #[arg(long, value_name = "FILE", requires = "audit")]
    audit_key: Option<PathBuf>,
}

/// The result of a command: what to print, and what the audit log says about it.
#[derive(Debug, Default)]
pub(super) struct Completed {
    pub(super) keyring: Option<String>,
    pub(super) generation: Option<u64>,
    pub(super) version: Option<u32>,
    pub(super) details: Map<String, Value>,
    /// Printed only after the outcome is recorded.
    pub(super) output: String,
}

impl Completed {
    pub(super) fn print(&self) -> Result<(), CliError> {
        write_out(&self.output)
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = self.details.clone();
        if let Some(keyring) = &self.keyring {
            details.insert("keyring".into(), keyring.as_str().into());
        }
        if let Some(generation) = self.generation {
            details.insert("generation".into(), generation.into());
        }
        if let Some(version) = self.version {
            details.insert("version".into(), version.into());
        }
        details
    }
}

impl AuditArgs {
    /// Opens the log named by the flags, or else the one in the config file `config`.
    fn open(&self, config: Option<&PathBuf>) -> Result<Option<AuditFile>, CliError> {
        let settings = match (&self.audit, config) {
            (Some(file), _) => Some(config::Audit {
                sink: AuditSink::File(file.clone()),
                key_file: self.audit_key.clone(),
                forwards: Vec::new(),
            }),
            (None, Some(config)) => config::load(config)?.audit,
            (None, None) => None,
        };
        match settings
            .as_ref()
            .map(audit::open)
            .transpose()
            .map_err(CliError::failed)?
        {
            None => Ok(None),
            Some(audit::Sink::File(file)) => Ok(Some(file)),
            Some(audit::Sink::Stdout { .. }) => Err(CliError::failed(
                "the config sends audit records to standard output, which this command uses for \
                 its results; give --audit FILE",
            )),
        }
    }

    /// Runs `work` and, if an audit log is configured, records it as `name` before and after.
    pub(super) async fn around(
        &self,
        config: Option<&PathBuf>,
        name: &'static str,
        mut details: Map<String, Value>,
        work: impl Future<Output = Result<Completed, CliError>>,
    ) -> Result<(), CliError> {
        let Some(file) = self.open(config)? else {
            return work.await?.print();
        };
        // Arguments hold the operator's reasons. The only secret in them is a presigned URL's
        // query.
        let arguments = std::env::args_os()
            .skip(1)
            .map(|argument| redact(&argument.to_string_lossy()));
        details.insert("arguments".into(), arguments.collect::<Vec<_>>().into());
        if let Ok(folder) = std::env::current_dir() {
            details.insert("folder".into(), folder.display().to_string().into());
        }
        let act = Act::begin(file, name, details, Clock::system()).map_err(|error| {
            CliError::failed(error).with_hint("nothing was changed, because it can't be recorded")
        })?;
        if let Some(damage) = act.damage() {
            note(format_args!(
                "warning: the audit log was tampered with, or damaged: {}; a record says so",
                damage.describe()
            ));
        }
        let result = work.await;
        let (outcome, details) = match &result {
            Ok(completed) => (ActOutcome::Done, completed.details()),
            Err(failure) => (
                failure.outcome(),
                Map::from_iter([("error".to_owned(), failure.message().into())]),
            ),
        };
        match (act.end(outcome, details), result) {
            // Printing comes last: failed output doesn't undo the change.
            (Ok(_), Ok(completed)) => completed
                .print()
                .map_err(|failure| failure.with_hint("the change was made and recorded")),
            (Ok(_), Err(failure)) => Err(failure),
            (Err(error), Ok(completed)) => {
                let unrecorded = CliError::failed(error).with_hint(
                    "the change was made; the audit log records its start but not its outcome",
                );
                Err(match completed.print() {
                    Ok(()) => unrecorded,
                    Err(failure) => unrecorded.with_hint(failure.message()),
                })
            }
            (Err(error), Err(failure)) => {
                Err(failure.with_hint(&format!("{error}: the outcome is not recorded")))
            }
        }
    }
}

/// Drops the query of an argument that is a URL.
fn redact(argument: &str) -> String {
    match (argument.parse(), argument.split_once('=')) {
        (Ok(location @ Location::Web(_)), _) => location.to_string(),
        (_, Some((flag, value))) if flag.starts_with("--") => {
            format!("{flag}={}", redact(value))
        }
        _ => argument.to_owned(),
    }
}
