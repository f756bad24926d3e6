//! `[audit]`: where the audit log is written.

use std::path::PathBuf;

use super::reader::{Parsed, Section, Value};

/// Where the audit log is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// The sink.
    pub sink: AuditSink,
    /// The file with the key that authenticates records. Default: records aren't authenticated.
    pub key_file: Option<PathBuf>,
}

/// What receives audit records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSink {
    /// A file.
    File(PathBuf),
    /// The process's standard output.
    Stdout,
}

pub(super) fn audit(section: &Section<'_>) -> Parsed<Option<Audit>> {
    let file = section.maybe("file", Value::path);
    let stdout = section.or("stdout", false, Value::boolean);
    let key_file = section.maybe("key_file", Value::path);
    let (file, stdout, key_file) = (file?, stdout?, key_file?);
    let sink = match (file, stdout) {
        (Some(_), true) => {
            return Err(section.problem("file and stdout = true are mutually exclusive"));
        }
        (Some(path), false) => AuditSink::File(path),
        (None, true) => AuditSink::Stdout,
        (None, false) if key_file.is_some() => {
            return Err(section.missing("file", "is required with key_file, unless stdout = true"));
        }
        (None, false) => return Ok(None),
    };
    Ok(Some(Audit { sink, key_file }))
}
