//! A fleet file: the sidecars that a command asks, the hub that others have joined, and the keyrings
//! that it finds by name.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use super::{
    LoadError, Problems,
    keyring::{location, new_name},
    listen::host,
    parse::folder,
    reader::{Context, Parsed, Section, Value},
};
use crate::model::{CertificateName, HubUrl, KeyringName, Location, OpsUrl};

/// A whole fleet file.
#[derive(Debug, Clone, Default)]
pub struct FleetFile {
    /// The keyrings that commands find by name.
    pub keyrings: Vec<FleetKeyring>,
    /// The sidecars that are listed.
    pub sidecars: Vec<FleetSidecar>,
    /// The names under which DNS has others.
    pub discover: Vec<FleetDiscovery>,
    /// TLS settings for `https` URLs.
    pub tls: FleetTls,
    /// The hub that others have joined.
    pub hub: Option<FleetHub>,
}

/// A keyring and where its manifest is.
#[derive(Debug, Clone)]
pub struct FleetKeyring {
    /// The name, as in the manifest.
    pub name: KeyringName,
    /// Where the manifest is stored.
    pub location: Location,
}

/// A sidecar.
#[derive(Debug, Clone)]
pub struct FleetSidecar {
    /// The URL of its ops listener.
    pub url: OpsUrl,
    /// What reports call it. Default: its URL.
    pub name: Option<String>,
    /// The workload that it serves.
    pub workload: Option<String>,
}

/// A name of which every address is a sidecar.
#[derive(Debug, Clone)]
pub struct FleetDiscovery {
    /// The DNS name. Its A and AAAA records are the addresses.
    pub dns: String,
    /// The port of their ops listeners.
    pub port: u16,
    /// Whether they speak TLS.
    pub is_tls: bool,
    /// The workload that they serve.
    pub workload: Option<String>,
}

/// How sidecars with TLS are reached.
#[derive(Debug, Clone, Default)]
pub struct FleetTls {
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain and its key (PEM).
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name to expect in certificates instead of the URL's host.
    pub name: Option<CertificateName>,
}

/// A hub that sidecars have joined.
#[derive(Debug, Clone)]
pub struct FleetHub {
    /// The URL of its API.
    pub url: HubUrl,
    /// The operator's bearer token.
    pub token_file: Option<PathBuf>,
    /// How it is reached.
    pub tls: FleetTls,
}

/// Reads and parses a fleet file; see [`parse_fleet`].
///
/// # Errors
/// Fails if the file can't be read or is invalid.
pub fn load_fleet(file: &Path) -> Result<FleetFile, LoadError> {
    let text = fs::read_to_string(file).map_err(|cause| LoadError::Unreadable {
        file: file.to_owned(),
        cause,
    })?;
    Ok(parse_fleet(file, &text)?)
}

/// Parses the text of a fleet file. Relative paths are resolved against the folder of `file`.
///
/// # Errors
/// Returns all problems at once.
pub fn parse_fleet(file: &Path, text: &str) -> Result<FleetFile, Problems> {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    let context = Context::new(&folder(file), text, &syntax_errors);
    let fleet = Section::file(&context, table.get_ref(), fleet);
    match (fleet, context.into_problems()) {
        (Ok(fleet), items) if items.is_empty() => Ok(fleet),
        (_, items) => Err(Problems {
            file: file.to_owned(),
            items,
        }),
    }
}

fn fleet(root: &Section<'_>) -> Parsed<FleetFile> {
    let mut names = Vec::new();
    let keyrings = root.sections("keyring", |section| {
        let name = section
            .required("name")
            .and_then(|value| new_name(&value, &mut names));
        let location = section
            .required("location")
            .and_then(|value| location(section, &value));
        Ok(FleetKeyring {
            name: name?,
            location: location?,
        })
    });
    let members = members(root);
    if !["sidecar", "discover", "hub"]
        .iter()
        .any(|key| root.has(key))
    {
        root.missing(
            "sidecar",
            "at least one [[sidecar]] or [[discover]], or a [hub], is required",
        );
    }
    Ok(FleetFile {
        keyrings: keyrings?,
        ..members?
    })
}

/// Reads the tables that say which sidecars there are.
pub(super) fn members(root: &Section<'_>) -> Parsed<FleetFile> {
    let mut taken = BTreeMap::new();
    let sidecars = root.sections("sidecar", |section| sidecar(section, &mut taken));
    let discover = root.sections("discover", discovery);
    let tls = root.section("tls", |section| tls(section, "tls"));
    let hub = root.maybe("hub", |value| value.section(hub));
    Ok(FleetFile {
        keyrings: Vec::new(),
        sidecars: sidecars?,
        discover: discover?,
        tls: tls?,
        hub: hub?,
    })
}

fn hub(section: &Section<'_>) -> Parsed<FleetHub> {
    let url = section.required("url").and_then(|url| url.parsed_uri());
    let token_file = section.maybe("token_file", Value::path);
    let tls = tls(section, "hub");
    Ok(FleetHub {
        url: url?,
        token_file: token_file?,
        tls: tls?,
    })
}

/// `taken` are the names of earlier sidecars, and their lines.
fn sidecar(section: &Section<'_>, taken: &mut BTreeMap<String, usize>) -> Parsed<FleetSidecar> {
    let (url, name) = (section.required("url"), section.optional("name"));
    let workload = section.maybe("workload", Value::string);
    let parsed: Parsed<OpsUrl> = url
        .as_ref()
        .map_err(|error| *error)
        .and_then(|value| value.parsed_uri());
    let own = name.as_ref().map(Value::string).transpose();
    let (parsed, own) = (parsed?, own?);
    let shown = own.clone().unwrap_or_else(|| parsed.to_string());
    let value = name.or(url.ok());
    if let Some(value) = value
        && let Some(line) = taken.insert(shown.clone(), value.line())
    {
        return Err(value.problem(format_args!(
            "duplicate sidecar {shown:?}, already defined on line {line}"
        )));
    }
    Ok(FleetSidecar {
        url: parsed,
        name: own,
        workload: workload?,
    })
}

fn discovery(section: &Section<'_>) -> Parsed<FleetDiscovery> {
    let dns = section.required("dns").and_then(|value| host(&value));
    // Others may follow.
    let kind = section.or("kind", (), |value| value.choice(&[("a", ())]));
    let port = section.or("port", OpsUrl::DEFAULT_PORT, |value| {
        value.integer(1..=u16::MAX)
    });
    let is_tls = section
        .required("scheme")
        .and_then(|value| value.choice(&[("http", false), ("https", true)]));
    let workload = section.maybe("workload", Value::string);
    kind?;
    Ok(FleetDiscovery {
        dns: dns?,
        port: port?,
        is_tls: is_tls?,
        workload: workload?,
    })
}

/// `table` is the name of the section, for errors.
fn tls(section: &Section<'_>, table: &str) -> Parsed<FleetTls> {
    let ca_file = section.maybe("ca_file", Value::path);
    let certificate = section.optional("certificate_file");
    let key = section.optional("key_file");
    let name = section.maybe("name", Value::parsed);
    let client = match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), None) => {
            Err(certificate.missing(format_args!("requires {table}.key_file")))
        }
        (None, Some(key)) => Err(key.missing(format_args!("requires {table}.certificate_file"))),
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (certificate.path(), key.path());
            certificate.and_then(|certificate| Ok(Some((certificate, key?))))
        }
    };
    Ok(FleetTls {
        ca_file: ca_file?,
        client: client?,
        name: name?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/sidekey/fleet.toml";

    fn parse(text: &str) -> Result<FleetFile, String> {
        parse_fleet(Path::new(FILE), text).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_whole_file_is_read() {
        let fleet = parse(
            r#"
            [[keyring]]
            name = "orders"
            location = "keyrings/orders.json"

            [[sidecar]]
            url = "https://10.1.2.3:9464"
            name = "orders-0"
            workload = "orders"

            [[sidecar]]
            url = "http://10.1.2.4"

            [[discover]]
            dns = "sidekey.shop.svc"
            kind = "a"
            port = 9000
            scheme = "https"
            workload = "shop"

            [tls]
            ca_file = "ca.crt"
            certificate_file = "operator.crt"
            key_file = "/run/operator.key"
            name = "spiffe://example.org/ns/shop/*"

            [hub]
            url = "https://hub.example.org:9465"
            token_file = "hub.token"
            ca_file = "hub-ca.crt"
            "#,
        )
        .expect("valid");
        assert_eq!(fleet.keyrings[0].name.as_str(), "orders");
        assert_eq!(
            fleet.keyrings[0].location,
            Location::File("/etc/sidekey/keyrings/orders.json".into())
        );
        let [named, unnamed] = &fleet.sidecars[..] else {
            panic!("two sidecars")
        };
        assert_eq!(named.name.as_deref(), Some("orders-0"));
        assert_eq!(named.workload.as_deref(), Some("orders"));
        assert_eq!(unnamed.name, None);
        assert_eq!(unnamed.url.port(), 9464);
        let [found] = &fleet.discover[..] else {
            panic!("one name")
        };
        assert_eq!(
            (found.dns.as_str(), found.port, found.is_tls),
            ("sidekey.shop.svc", 9000, true)
        );
        assert_eq!(fleet.tls.ca_file, Some("/etc/sidekey/ca.crt".into()));
        assert_eq!(
            fleet.tls.client,
            Some((
                "/etc/sidekey/operator.crt".into(),
                "/run/operator.key".into()
            ))
        );
        assert!(matches!(
            fleet.tls.name,
            Some(CertificateName::UriPrefix(_))
        ));
        let hub = fleet.hub.expect("a hub");
        assert_eq!(hub.url.host(), "hub.example.org");
        assert_eq!(hub.token_file, Some("/etc/sidekey/hub.token".into()));
        assert_eq!(hub.tls.ca_file, Some("/etc/sidekey/hub-ca.crt".into()));
    }

    #[test]
    fn every_problem_is_listed_with_its_line() {
        let text = r#"[[keyring]]
name = "orders"
[[keyring]]
name = "orders"
location = "b.json"
[[sidecar]]
url = "10.1.2.3:9464"
[[sidecar]]
url = "http://10.1.2.3:9464"
wave = "canary"
[[sidecar]]
url = "http://10.1.2.4"
name = "http://10.1.2.3:9464"
[[discover]]
dns = "http://name"
kind = "srv"
[tls]
key_file = "key"
[hub]
certificate_file = "crt"
"#;
        let problems = parse(text).expect_err("invalid");
        let expected = [
            "1: keyring[0].location: is required",
            "4: keyring[1].name: duplicate keyring \"orders\", already defined on line 2",
            "7: sidecar[0].url: expected http://HOST:PORT or https://HOST:PORT",
            "10: sidecar[1].wave: unknown key; expected one of: url, name, workload",
            "13: sidecar[2].name: duplicate sidecar \"http://10.1.2.3:9464\", already defined on \
             line 9",
            "14: discover[0].scheme: is required",
            "15: discover[0].dns: expected a host name without scheme or port, such as \
             \"sidekey.prod.svc\", found \"http://name\"",
            "16: discover[0].kind: expected one of \"a\", found \"srv\"",
            "18: tls.key_file: requires tls.certificate_file",
            "19: hub.url: is required",
            "20: hub.certificate_file: requires hub.key_file",
        ];
        let lines: Vec<&str> = problems.lines().collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|line| format!("{FILE}:{line}"))
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_fleet_has_sidecars() {
        let problems = parse("").expect_err("no sidecar");
        assert!(problems.contains("or a [hub], is required"), "{problems}");
        let problems = parse("[[sidecar]]\nurl = \"http://a:b@host\"").expect_err("credentials");
        assert!(
            problems.contains("must not contain credentials"),
            "{problems}"
        );
        assert!(!problems.contains("a:b"), "{problems}");
    }
}
