//! TLS of a listener, as the config says it.

use std::path::{Path, PathBuf};

use super::reader::{Read, Section, Value};
use crate::model::CertificateName;

/// A listener's certificate, and who may connect.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Our certificate (PEM), followed by those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// Which certificates clients show; none are asked for if none.
    pub clients: Option<TlsClients>,
    /// The oldest version of the protocol that is spoken.
    pub min_version: TlsVersion,
}

/// Which certificates clients show.
#[derive(Debug, Clone)]
pub struct TlsClients {
    /// Certificates (PEM) of the authorities that may issue them.
    pub ca: PathBuf,
    /// The names of which a certificate has one; empty: any will do.
    pub names: Vec<CertificateName>,
}

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// The table `tls` of a listener, if it has one.
pub(super) fn tls(section: &Section<'_>, folder: &Path) -> Read<Option<Tls>> {
    section.maybe("tls", |value| {
        let tls = value.section(|section| table(section, folder));
        if cfg!(feature = "tls") {
            tls
        } else {
            Err(value.problem("this build has no TLS (the feature `tls`)"))
        }
    })
}

fn table(section: &Section<'_>, folder: &Path) -> Read<Tls> {
    let path = |value: &Value<'_>| value.some_text().map(|text| folder.join(text));
    let certificate = section
        .required("certificate")
        .and_then(|value| path(&value));
    let key = section.required("key").and_then(|value| path(&value));
    let ca = section.maybe("client_ca", path);
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

fn names(value: &Value<'_>, has_ca: bool) -> Read<Vec<CertificateName>> {
    let names = value.list(|item| item.parsed())?;
    if !has_ca {
        return Err(value.absence("has no use without client_ca: only authorities vouch for names"));
    }
    if names.is_empty() {
        return Err(
            value.problem("names nobody; leave it out to let in every certificate of client_ca")
        );
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CertificateName {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn a_name_speaks_of_what_it_says_and_no_more() {
        assert!(name("Ops.Example.com").is_dns("ops.example.COM"));
        assert!(
            !name("ops.example.com").is_dns("x.ops.example.com")
                && !name("ops.example.com").is_uri("ops.example.com")
        );
        let exact = name("spiffe://example.org/ns/ops/sa/prometheus");
        assert!(exact.is_uri("spiffe://example.org/ns/ops/sa/prometheus"));
        assert!(
            !exact.is_uri("spiffe://example.org/ns/ops/sa/prometheus2")
                && !exact.is_dns("example.org")
        );
        let many = name("spiffe://example.org/ns/ops/*");
        assert!(
            !many.is_uri("spiffe://example.org/ns/ops/../shop/sa/a")
                && !many.is_uri("spiffe://example.org/ns/ops/./a")
        );
        assert!(many.is_uri("spiffe://example.org/ns/ops/sa/prometheus"));
        for other in [
            "spiffe://example.org/ns/ops/",
            "spiffe://example.org/ns/ops",
            "spiffe://example.org/ns/ops2/sa/x",
        ] {
            assert!(!many.is_uri(other), "{other}");
        }
        for text in [
            "ops.example.com",
            "spiffe://example.org/a",
            "spiffe://example.org/a/*",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn what_could_mean_anybody_is_no_name() {
        let texts = [
            "",
            "*",
            "*.example.com",
            "a..b",
            "a b",
            "spiffe://*",
            "spiffe:///a",
            "spiffe://a*",
            "spiffe://a/*/b",
            "é",
            "a/b",
        ];
        for text in texts {
            assert!(text.parse::<CertificateName>().is_err(), "{text}");
        }
    }
}
