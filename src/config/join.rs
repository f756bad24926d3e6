//! `[hub]`: the hub that the sidecar joins.

use std::path::PathBuf;

use super::reader::{Parsed, Section, Value};
use crate::model::HubUrl;

/// The longest name of a sidecar or workload, in bytes: that of a DNS name.
const LONGEST_NAME: usize = 253;

/// The hub that the sidecar joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Hub {
    /// Where the hub is.
    pub url: HubUrl,
    /// What the fleet calls this sidecar.
    pub name: String,
    /// The workload that it serves.
    pub workload: String,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How the sidecar identifies itself.
    pub login: HubLogin,
}

/// How a sidecar identifies itself to its hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubLogin {
    /// Not at all, which only a hub on this machine without TLS accepts.
    Anonymous,
    /// With the bearer token (RFC 6750) in a file.
    Token(PathBuf),
    /// With a client certificate.
    Certificate {
        /// The certificate chain (PEM), leaf first.
        certificate: PathBuf,
        /// Its private key (PEM).
        key: PathBuf,
    },
}

/// Reads the `hub` table, if there is one.
pub(super) fn hub(root: &Section<'_>) -> Parsed<Option<Hub>> {
    root.maybe("hub", |value| {
        let hub = value.section(table);
        if cfg!(feature = "tls") {
            hub
        } else {
            Err(value.problem("this build lacks TLS (feature `tls`)"))
        }
    })
}

fn table(section: &Section<'_>) -> Parsed<Hub> {
    let url: Parsed<HubUrl> = section.required("url").and_then(|value| value.parsed_uri());
    let own = section.maybe("name", name);
    let workload = section.required("workload").and_then(|value| name(&value));
    let ca_file = section.maybe("ca_file", Value::path);
    let login = login(section, url.as_ref().is_ok_and(|url| !url.is_tls()));
    Ok(Hub {
        url: url?,
        name: own?.map_or_else(|| host_name(section), Ok)?,
        workload: workload?,
        ca_file: ca_file?,
        login: login?,
    })
}

fn name(value: &Value<'_>) -> Parsed<String> {
    let name = value.string()?;
    if name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(value.problem(format_args!(
            "must have at most {LONGEST_NAME} bytes and no control characters"
        )));
    }
    Ok(name)
}

/// The name of this machine or pod (uname(2)).
fn host_name(section: &Section<'_>) -> Parsed<String> {
    let name = rustix::system::uname();
    match name.nodename().to_str() {
        Ok(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(section.missing("name", "is required: this machine has no host name")),
    }
}

fn login(section: &Section<'_>, is_plain: bool) -> Parsed<HubLogin> {
    let token = section.optional("token_file");
    let certificate = section.optional("certificate_file");
    let key = section.optional("key_file");
    match (token, certificate, key) {
        (None, None, None) if is_plain => Ok(HubLogin::Anonymous),
        (None, None, None) => Err(section.missing(
            "token_file",
            "is required, or certificate_file with key_file: the hub must know who reports",
        )),
        (Some(token), None, None) => token.path().map(HubLogin::Token),
        (Some(token), _, _) => {
            Err(token.problem("can't be combined with certificate_file and key_file"))
        }
        (None, Some(certificate), None) => Err(certificate.missing("requires hub.key_file")),
        (None, None, Some(key)) => Err(key.missing("requires hub.certificate_file")),
        (None, Some(certificate), Some(_)) if is_plain => {
            Err(certificate.problem("has no effect without TLS; use an https URL"))
        }
        (None, Some(certificate), Some(key)) => {
            let (certificate, key) = (certificate.path(), key.path());
            Ok(HubLogin::Certificate {
                certificate: certificate?,
                key: key?,
            })
        }
    }
}
