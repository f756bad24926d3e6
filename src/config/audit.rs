//! `[audit]`: where the audit log is written.

use std::path::PathBuf;

use super::reader::{Parsed, Section, Value};
use crate::model::Collector;

/// Where the audit log is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// The sink.
    pub sink: AuditSink,
    /// The file with the key that authenticates records. Default: records aren't authenticated.
    pub key_file: Option<PathBuf>,
    /// The collectors that get copies of a sidecar's records.
    pub forwards: Vec<AuditForward>,
}

/// A collector that gets copies of audit records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditForward {
    /// Where it is, and what it speaks.
    pub to: Collector,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A client certificate with its intermediates, and its private key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The value of the header `Authorization`, for a URL.
    pub authorization_file: Option<PathBuf>,
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
    let forwards = forwards(section);
    let (file, stdout, key_file, forwards) = (file?, stdout?, key_file?, forwards?);
    let sink = match (file, stdout) {
        (Some(_), true) => {
            return Err(section.problem("file and stdout = true are mutually exclusive"));
        }
        (Some(path), false) => AuditSink::File(path),
        (None, true) => AuditSink::Stdout,
        (None, false) if !forwards.is_empty() => {
            return Err(section.missing(
                "file",
                "is required with [[audit.forward]], unless stdout = true: a record counts once it \
                 is written here",
            ));
        }
        (None, false) if key_file.is_some() => {
            return Err(section.missing("file", "is required with key_file, unless stdout = true"));
        }
        (None, false) => return Ok(None),
    };
    Ok(Some(Audit {
        sink,
        key_file,
        forwards,
    }))
}

fn forwards(section: &Section<'_>) -> Parsed<Vec<AuditForward>> {
    let forwards = section.sections("forward", forward)?;
    for (index, forward) in forwards.iter().enumerate() {
        let name = forward.to.to_string();
        if forwards[..index]
            .iter()
            .any(|other| other.to.to_string() == name)
        {
            return Err(section.problem(&format!(
                "two collectors are at {name}; messages and metrics couldn't tell them apart"
            )));
        }
    }
    Ok(forwards)
}

fn forward(section: &Section<'_>) -> Parsed<AuditForward> {
    let to = section.required("to").and_then(|value| collector(&value));
    let ca_file = section.optional("ca_file");
    let certificate = section.optional("certificate_file");
    let key = section.optional("key_file");
    let authorization = section.optional("authorization_file");
    let to = to?;
    let unused = [&ca_file, &certificate, &key].into_iter().flatten().next();
    if let (false, Some(unused)) = (to.is_tls(), unused) {
        return Err(unused.problem("has no effect without TLS"));
    }
    if let (Collector::Syslog { .. }, Some(authorization)) = (&to, &authorization) {
        return Err(authorization.problem("has no effect with syslog; use a client certificate"));
    }
    let certificate = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.path()?, key.path()?)),
        (Some(certificate), None) => return Err(certificate.missing("requires key_file")),
        (None, Some(key)) => return Err(key.missing("requires certificate_file")),
    };
    Ok(AuditForward {
        to,
        ca_file: ca_file.map(|file| file.path()).transpose()?,
        certificate,
        authorization_file: authorization.map(|file| file.path()).transpose()?,
    })
}

fn collector(value: &Value<'_>) -> Parsed<Collector> {
    let collector = value.parsed_uri()?;
    match collector {
        Collector::Syslog { is_tls: true, .. } if !cfg!(feature = "tls") => {
            Err(value.problem("this build lacks TLS (feature `tls`)"))
        }
        Collector::Http { .. } if !cfg!(feature = "https-client") => {
            Err(value.problem("this build lacks an HTTP client (feature `https`)"))
        }
        collector => Ok(collector),
    }
}
