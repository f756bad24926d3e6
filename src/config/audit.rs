//! `[audit]`: where the audit log goes.

use std::path::{Path, PathBuf};

use super::reader::{Read, Section};

/// Where the audit log goes.
#[derive(Debug, Clone)]
pub struct Audit {
    /// The sink.
    pub sink: AuditSink,
    /// The file that holds the key that vouches for records; none vouches if there is none.
    pub key_file: Option<PathBuf>,
}

/// What takes audit records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSink {
    /// A file.
    File(PathBuf),
    /// The process's standard output.
    Stdout,
}

pub(super) fn audit(section: &Section<'_>, folder: &Path) -> Read<Option<Audit>> {
    let path = |value: &super::reader::Value<'_>| value.some_text().map(|text| folder.join(text));
    let file = section.maybe("file", path);
    let stdout = section.or("stdout", false, |value| value.boolean());
    let key_file = section.maybe("key_file", path);
    let (file, stdout, key_file) = (file?, stdout?, key_file?);
    let sink = match (file, stdout) {
        (Some(_), true) => {
            return Err(section.problem("goes to one place: give file, or stdout = true, not both"));
        }
        (Some(path), false) => AuditSink::File(path),
        (None, true) => AuditSink::Stdout,
        (None, false) if key_file.is_some() => {
            return Err(section.absence("file", "is required with key_file, or stdout = true"));
        }
        (None, false) => return Ok(None),
    };
    Ok(Some(Audit { sink, key_file }))
}
