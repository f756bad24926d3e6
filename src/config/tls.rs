//! TLS of a listener, as the config says it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    Malformed,
    reader::{Read, Section, Value},
};

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

/// A subject alternative name of a certificate (RFC 5280 §4.2.1.6), or the beginning of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
    /// All URIs that begin with this, which ends in `/`.
    UriPrefix(String),
}

impl CertificateName {
    /// Whether it speaks of a certificate's DNS name.
    pub fn is_dns(&self, name: &str) -> bool {
        matches!(self, Self::Dns(dns) if dns.eq_ignore_ascii_case(name))
    }

    /// Whether it speaks of a certificate's URI.
    pub fn is_uri(&self, uri: &str) -> bool {
        match self {
            Self::Dns(_) => false,
            Self::Uri(own) => own == uri,
            // A segment that leads upwards would lead out of the prefix.
            Self::UriPrefix(prefix) => uri.strip_prefix(prefix.as_str()).is_some_and(|rest| {
                !rest.is_empty() && !rest.split('/').any(|segment| matches!(segment, "." | ".."))
            }),
        }
    }
}

impl FromStr for CertificateName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed::new(
                "write a DNS name such as \"ops.example.com\", a URI such as \"spiffe://example.org/ns/ops/sa/prometheus\", \
                 or the beginning of URIs with \"/*\" behind it",
            )
        };
        if !text.is_ascii()
            || text.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control())
        {
            return Err(malformed());
        }
        match text.split_once("://") {
            Some((scheme, rest)) => {
                let (path, is_prefix) = rest
                    .strip_suffix('*')
                    .map_or((rest, false), |path| (path, true));
                let is_whole = !scheme.is_empty()
                    && !path.starts_with('/')
                    && !path.is_empty()
                    && !path.contains('*');
                match (is_whole, is_prefix) {
                    (true, false) => Ok(Self::Uri(text.to_owned())),
                    (true, true) if path.ends_with('/') => {
                        Ok(Self::UriPrefix(format!("{scheme}://{path}")))
                    }
                    _ => Err(malformed()),
                }
            }
            None => {
                let is_label = |label: &str| {
                    !label.is_empty()
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                };
                if text.split('.').all(is_label) {
                    Ok(Self::Dns(text.to_ascii_lowercase()))
                } else {
                    Err(malformed())
                }
            }
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Uri(text) => f.write_str(text),
            Self::UriPrefix(prefix) => write!(f, "{prefix}*"),
        }
    }
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
