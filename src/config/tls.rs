//! The `tls` table of a listener.

use std::path::PathBuf;

use super::reader::{Parsed, Section, Value};
use crate::model::CertificateName;

/// A listener's certificate, and which clients may connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// The certificate chain (PEM), leaf first.
    pub certificate: PathBuf,
    /// The certificate's private key (PEM).
    pub key: PathBuf,
    /// Which client certificates are required. Default: none.
    pub clients: Option<TlsClients>,
    /// The oldest accepted version of TLS.
    pub min_version: TlsVersion,
}

/// Which client certificates are required.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsClients {
    /// The certificates (PEM) of the authorities that may issue them.
    pub ca: PathBuf,
    /// The names of which a certificate must have one. Empty: any name is accepted.
    pub names: Vec<CertificateName>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// Reads a listener's `tls` table, if it has one.
pub(super) fn tls(section: &Section<'_>) -> Parsed<Option<Tls>> {
    section.maybe("tls", |value| {
        let tls = value.section(table);
        if cfg!(feature = "tls") {
            tls
        } else {
            Err(value.problem("this build lacks TLS (feature `tls`)"))
        }
    })
}

fn table(section: &Section<'_>) -> Parsed<Tls> {
    let certificate = section
        .required("certificate")
        .and_then(|value| value.path());
    let key = section.required("key").and_then(|value| value.path());
    let ca = section.maybe("client_ca", Value::path);
    let names = section.maybe("client_names", |value| {
        names(value, section.has("client_ca"))
    });
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let min_version = section.or("min_version", TlsVersion::V1_3, |value| {
        value.choice(&versions)
    });
    let (ca, names) = (ca?, names?);
    let clients = ca.map(|ca| TlsClients {
        ca,
        names: names.unwrap_or_default(),
    });
    Ok(Tls {
        certificate: certificate?,
        key: key?,
        clients,
        min_version: min_version?,
    })
}

fn names(value: &Value<'_>, has_ca: bool) -> Parsed<Vec<CertificateName>> {
    let names = value.list(|item| item.parsed())?;
    if !has_ca {
        return Err(value.missing("has no effect without client_ca"));
    }
    if names.is_empty() {
        return Err(value.problem(
            "must not be empty; omit it to accept every certificate that client_ca issued",
        ));
    }
    Ok(names)
}
