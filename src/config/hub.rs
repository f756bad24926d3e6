//! `hub.toml`: the settings of a hub.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Limits, LoadError, Log, Problems, Timeouts, Tls,
    listen::address,
    log::log,
    parse::{parse_with, read},
    reader::{LONGEST, MIB, Parsed, Section, Value},
    tls::tls,
};
use crate::model::{CertificateName, KeyringName, NamePattern, Span};

/// A whole config file of a hub.
#[derive(Debug, Clone, PartialEq)]
pub struct HubSettings {
    /// The address of the listener, for sidecars and operators.
    pub listen: SocketAddr,
    /// TLS. Without it, the address is loopback.
    pub tls: Option<Tls>,
    /// Where the registry and the ledger are stored.
    pub database: HubDatabase,
    /// The time between two reports of a sidecar, in seconds.
    pub report_seconds: u32,
    /// After which silence an instance is closed as lost: at least the longest encrypt lease.
    pub lost_after: Duration,
    /// What sidecars and operators share.
    pub limits: HubLimits,
    /// For requests in flight after SIGTERM.
    pub drain: Duration,
    /// What is logged, and how.
    pub log: Log,
    /// Who may report as which sidecars; at least one.
    pub identities: Vec<SidecarIdentity>,
    /// Who may read, and who may act.
    pub operators: Vec<Operator>,
    /// The workloads that use keyrings.
    pub workloads: Vec<Workload>,
}

/// A hub's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubDatabase {
    /// An SQLite file, for one replica.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres {
        /// `postgres://USER@HOST:PORT/NAME`, without a password.
        url: String,
        /// The file that holds the password.
        password_file: Option<PathBuf>,
    },
}

/// What the peers of a hub share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubLimits {
    /// The most concurrent connections.
    pub connections: usize,
    /// The most instances that have reported and not ended.
    pub instances: usize,
    /// The longest report, in bytes.
    pub report: usize,
    /// The memory that all request and response bodies share, in bytes.
    pub body_memory: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            instances: 100_000,
            report: 1 << 20,
            body_memory: 256 << 20,
        }
    }
}

impl HubLimits {
    /// The memory for a report, as a multiple of its body: the text, and what is parsed from it.
    pub const REPORT_COST: usize = 3;
}

/// How a peer of a hub shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A bearer token (RFC 6750). The file holds the SHA-256 of each token that counts.
    Token(PathBuf),
    /// A client certificate with this name.
    Certificate(CertificateName),
}

/// Who may report as which sidecars.
#[derive(Debug, Clone, PartialEq)]
pub struct SidecarIdentity {
    /// How it shows who it is.
    pub credential: Credential,
    /// The names that its sidecars may have. Empty: any.
    pub names: Vec<NamePattern>,
    /// The workloads that they may serve; at least one.
    pub workloads: Vec<NamePattern>,
}

/// A person or program that reads from a hub, or acts through it.
#[derive(Debug, Clone, PartialEq)]
pub struct Operator {
    /// What logs call it.
    pub name: String,
    /// How it shows who it is.
    pub credential: Credential,
    /// What it may do.
    pub role: HubRole,
}

/// What an operator of a hub may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubRole {
    /// Read.
    Viewer,
    /// Read, and send hints, proofs and barriers.
    Operator,
    /// Read, and approve what others do.
    Approver,
    /// What an operator may, and decide about orders and keep the state of their rollouts.
    Signer,
}

/// A workload that uses keyrings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its name, as its sidecars report it.
    pub name: String,
    /// The keyrings that it may use.
    pub keyrings: Vec<KeyringName>,
    /// The longest time between two of its runs; None if it always runs.
    pub max_interval: Option<Duration>,
}

/// Reads and parses a hub's config file; see [`parse_hub`].
///
/// # Errors
/// Fails if the file can't be read or is invalid.
pub fn load_hub(file: &Path) -> Result<HubSettings, LoadError> {
    Ok(parse_hub(file, &read(file)?)?)
}

/// Parses the text of a hub's config file. Relative paths are resolved against the folder of
/// `file`, which need not exist.
///
/// # Errors
/// Returns all problems at once.
pub fn parse_hub(file: &Path, text: &str) -> Result<HubSettings, Problems> {
    parse_with(file, text, settings)
}

fn settings(root: &Section<'_>) -> Parsed<HubSettings> {
    let tls = tls(root);
    let listen = listen(root);
    let database = database(root);
    let report_seconds = root.or("report_seconds", 30, |value| value.integer(1..=3600));
    let lost_after = root.or("lost_after", Span::from_days(30).0, |value| {
        value.duration(Span::from_days(1).0..=LONGEST)
    });
    let limits = root.section("limits", limits);
    let drain = root.or("drain_timeout", Timeouts::default().drain, |value| {
        value.duration(Span::from_secs(1).0..=Span::from_days(1).0)
    });
    let log = root.section("log", log);
    let identities = root.sections("sidecar_identity", |section| identity(root, section));
    if !root.has("sidecar_identity") {
        root.missing(
            "sidecar_identity",
            "at least one [[sidecar_identity]] is required",
        );
    }
    let mut names = BTreeMap::new();
    let operators = root.sections("operator", |section| operator(root, section, &mut names));
    let mut names = BTreeMap::new();
    let workloads = root.sections("workload", |section| workload(section, &mut names));
    Ok(HubSettings {
        listen: listen?,
        tls: tls?,
        database: database?,
        report_seconds: report_seconds?,
        lost_after: lost_after?,
        limits: limits?,
        drain: drain?,
        log: log?,
        identities: identities?,
        operators: operators?,
        workloads: workloads?,
    })
}

/// Tokens and reports are sent in the clear without TLS.
fn listen(root: &Section<'_>) -> Parsed<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], 9465));
    root.or("listen", default, |value| match address(value)? {
        address if address.ip().is_loopback() || root.has("tls") => Ok(address),
        address => Err(value.problem(format_args!(
            "{} is not a loopback address, so [tls] is required",
            address.ip()
        ))),
    })
}

fn database(root: &Section<'_>) -> Parsed<HubDatabase> {
    let folder = root.maybe("state_dir", Value::path);
    let configured = root.section("database", |section| {
        let (url, password) = (section.optional("url"), section.optional("password_file"));
        match (url, password) {
            (None, None) => Ok(None),
            (None, Some(password)) => Err(password.missing("has no effect without database.url")),
            (Some(url), password) => database_at(&url, password).map(Some),
        }
    });
    match (configured?, folder?) {
        (Some(database), _) => Ok(database),
        (None, Some(folder)) => Ok(HubDatabase::Sqlite(folder.join("hub.db"))),
        (None, None) => Err(root.missing("state_dir", "is required without database.url")),
    }
}

/// A problem doesn't quote the URL: users put passwords into URLs.
fn database_at(url: &Value<'_>, password: Option<Value<'_>>) -> Parsed<HubDatabase> {
    let text = url.nonempty_text()?;
    let password_file = password.as_ref().map(Value::path).transpose();
    if let Some(path) = text.strip_prefix("sqlite:") {
        if let Some(password) = password {
            return Err(password.problem("has no effect with SQLite"));
        }
        let path = path.strip_prefix("//").unwrap_or(path);
        return if path.is_empty() {
            Err(url.problem("expected sqlite:PATH"))
        } else {
            Ok(HubDatabase::Sqlite(url.resolved(path)))
        };
    }
    let rest = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .ok_or_else(|| url.problem("expected sqlite:PATH or postgres://USER@HOST:PORT/NAME"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let credentials = authority.rsplit_once('@').map(|(user, _)| user);
    if credentials.is_some_and(|user| user.contains(':')) || rest.contains("password=") {
        return Err(url.problem("must not contain a password; use database.password_file"));
    }
    Ok(HubDatabase::Postgres {
        url: text.to_owned(),
        password_file: password_file?,
    })
}

fn limits(section: &Section<'_>) -> Parsed<HubLimits> {
    let default = HubLimits::default();
    let connections = section.or("connections", default.connections, |value| {
        value.integer(16..=1_000_000)
    });
    let instances = section.or("instances", default.instances, |value| {
        value.integer(1..=10_000_000)
    });
    let report = section.or("report", default.report, |value| {
        value.size(64 << 10..=16 * MIB)
    });
    let longest = HubLimits::REPORT_COST * report.unwrap_or(1);
    let body_memory = section.or("body_memory", default.body_memory, |value| {
        match value.size(MIB..=64 << 30)? {
            bytes if bytes >= longest => Ok(bytes),
            _ => Err(value.problem("must be at least three times limits.report")),
        }
    });
    Ok(HubLimits {
        connections: connections?,
        instances: instances?,
        report: report?,
        body_memory: body_memory?,
    })
}

fn identity(root: &Section<'_>, section: &Section<'_>) -> Parsed<SidecarIdentity> {
    let credential = credential(root, section);
    let names = section.or("names", Vec::new(), patterns);
    let workloads = section
        .required("workloads")
        .and_then(|value| patterns(&value));
    Ok(SidecarIdentity {
        credential: credential?,
        names: names?,
        workloads: workloads?,
    })
}

fn patterns(value: &Value<'_>) -> Parsed<Vec<NamePattern>> {
    let patterns = value.list(|item| item.parsed())?;
    if patterns.is_empty() {
        return Err(value.problem("must not be empty"));
    }
    Ok(patterns)
}

fn credential(root: &Section<'_>, section: &Section<'_>) -> Parsed<Credential> {
    let token = section.optional("token_file");
    let certificate = section.optional("certificate");
    match (token, certificate) {
        (Some(token), None) => token.path().map(Credential::Token),
        (None, Some(value)) => {
            let name = value.parsed()?;
            if !root.has_nested("tls", "client_ca") {
                return Err(value.missing("has no effect without tls.client_ca"));
            }
            Ok(Credential::Certificate(name))
        }
        (None, None) => Err(section.missing("token_file", "is required without certificate")),
        (Some(_), Some(certificate)) => {
            Err(certificate.problem("excludes token_file; use another table"))
        }
    }
}

/// `taken` are the names of earlier operators, and their lines.
fn operator(
    root: &Section<'_>,
    section: &Section<'_>,
    taken: &mut BTreeMap<String, usize>,
) -> Parsed<Operator> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, "operator", taken));
    let credential = credential(root, section);
    let roles = [
        ("viewer", HubRole::Viewer),
        ("operator", HubRole::Operator),
        ("approver", HubRole::Approver),
        ("signer", HubRole::Signer),
    ];
    let role = section
        .required("role")
        .and_then(|value| value.choice(&roles));
    Ok(Operator {
        name: name?,
        credential: credential?,
        role: role?,
    })
}

fn workload(section: &Section<'_>, taken: &mut BTreeMap<String, usize>) -> Parsed<Workload> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, "workload", taken));
    let keyrings = section.required("keyrings").and_then(|value| {
        let keyrings = value.list(|item| item.parsed())?;
        if keyrings.is_empty() {
            return Err(value.problem("must not be empty"));
        }
        Ok(keyrings)
    });
    let max_interval = section.maybe("max_interval", |value| {
        value.duration(Span::from_secs(1).0..=LONGEST)
    });
    Ok(Workload {
        name: name?,
        keyrings: keyrings?,
        max_interval: max_interval?,
    })
}

fn new_name(value: &Value<'_>, what: &str, taken: &mut BTreeMap<String, usize>) -> Parsed<String> {
    let name = value.string()?;
    if let Some(line) = taken.insert(name.clone(), value.line()) {
        return Err(value.problem(format_args!(
            "duplicate {what} {name:?}, already defined on line {line}"
        )));
    }
    Ok(name)
}

impl HubLimits {
    /// Returns the limits of the listener. `connections` of it may be streams.
    pub fn listener(&self) -> Limits {
        Limits {
            connections: self.connections,
            body_memory: self.body_memory,
            streams: Self::STREAMS,
            ..Limits::default()
        }
    }

    /// Concurrent HTTP/2 requests of a connection: a stream, a report, an answer, and a few more.
    const STREAMS: u32 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/sidekey/hub.toml";

    fn parse(text: &str) -> Result<HubSettings, String> {
        parse_hub(Path::new(FILE), text).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_whole_file_is_read() {
        let hub = parse(
            r#"
            listen = "0.0.0.0:9465"
            report_seconds = 10
            lost_after = "60d"
            drain_timeout = "5s"

            [tls]
            certificate = "hub.pem"
            key = "hub.key"
            client_ca = "ca.pem"

            [database]
            url = "postgres://sidekey@db.example.com/hub"
            password_file = "db.password"

            [limits]
            connections = 100
            instances = 50
            report = "64KiB"
            body_memory = "8MiB"

            [[sidecar_identity]]
            certificate = "spiffe://example.org/ns/shop/*"
            names = ["orders-*"]
            workloads = ["orders"]

            [[operator]]
            name = "sam"
            token_file = "sam.sha256"
            role = "operator"

            [[workload]]
            name = "orders"
            keyrings = ["orders"]
            max_interval = "7d"
            "#,
        )
        .expect("valid");
        assert_eq!((hub.report_seconds, hub.limits.instances), (10, 50));
        assert_eq!(
            hub.database,
            HubDatabase::Postgres {
                url: "postgres://sidekey@db.example.com/hub".into(),
                password_file: Some("/etc/sidekey/db.password".into()),
            }
        );
        let [identity] = &hub.identities[..] else {
            panic!("one identity")
        };
        assert!(identity.names[0].covers("orders-1") && identity.workloads[0].covers("orders"));
        assert_eq!(hub.operators[0].role, HubRole::Operator);
        assert_eq!(
            hub.operators[0].credential,
            Credential::Token("/etc/sidekey/sam.sha256".into())
        );
        assert_eq!(hub.workloads[0].max_interval, Some(Span::from_days(7).0));
    }

    #[test]
    fn most_settings_have_defaults() {
        let hub = parse(
            "state_dir = \"state\"\n[[sidecar_identity]]\ntoken_file = \"t\"\nworkloads = [\"*\"]",
        )
        .expect("valid");
        assert_eq!(hub.listen.to_string(), "127.0.0.1:9465");
        assert_eq!(
            hub.database,
            HubDatabase::Sqlite("/etc/sidekey/state/hub.db".into())
        );
        assert_eq!(hub.lost_after, Span::from_days(30).0);
        assert_eq!(hub.limits, HubLimits::default());
    }

    #[test]
    fn every_problem_is_listed_with_its_line() {
        let text = r#"listen = "0.0.0.0:9465"
report_seconds = 0
lost_after = "1h"
[database]
url = "postgres://sidekey:secret@db/hub"
[[sidecar_identity]]
workloads = []
[[sidecar_identity]]
certificate = "spiffe://example.org/*"
[[operator]]
name = "sam"
token_file = "t"
role = "root"
[[operator]]
name = "sam"
token_file = "t"
certificate = "ops.example.com"
role = "viewer"
[[workload]]
name = "orders"
keyrings = []
"#;
        let problems = parse(text).expect_err("invalid");
        let expected = [
            "1: listen: 0.0.0.0 is not a loopback address, so [tls] is required",
            "2: report_seconds: must be between 1 and 3600, found 0",
            "3: lost_after: must be between 1d and 36525d, found \"1h\"",
            "5: database.url: must not contain a password; use database.password_file",
            "6: sidecar_identity[0].token_file: is required without certificate",
            "7: sidecar_identity[0].workloads: must not be empty",
            "8: sidecar_identity[1].workloads: is required",
            "9: sidecar_identity[1].certificate: has no effect without tls.client_ca",
            "13: operator[0].role: expected one of \"viewer\", \"operator\", \"approver\", \"signer\", \
             found \"root\"",
            "15: operator[1].name: duplicate operator \"sam\", already defined on line 11",
            "17: operator[1].certificate: excludes token_file; use another table",
            "21: workload[0].keyrings: must not be empty",
        ];
        let expected: Vec<String> = expected
            .iter()
            .map(|line| format!("{FILE}:{line}"))
            .collect();
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
        assert!(!problems.contains("secret"), "{problems}");
    }

    #[test]
    fn what_a_hub_needs_is_named() {
        let problems = parse("").expect_err("empty");
        assert!(problems.contains("state_dir: is required"), "{problems}");
        assert!(
            problems.contains("at least one [[sidecar_identity]]"),
            "{problems}"
        );
    }

    #[test]
    fn a_database_is_a_file_or_postgresql() {
        let database = |url: &str| {
            parse(&format!(
                "[database]\nurl = \"{url}\"\n[[sidecar_identity]]\ntoken_file = \"t\"\n\
                 workloads = [\"*\"]"
            ))
            .map(|hub| hub.database)
        };
        for url in [
            "sqlite:hub.db",
            "sqlite://hub.db",
            "sqlite:/etc/sidekey/hub.db",
        ] {
            let expected = HubDatabase::Sqlite("/etc/sidekey/hub.db".into());
            assert_eq!(database(url), Ok(expected), "{url}");
        }
        for url in [
            "sqlite:",
            "mysql://db",
            "hub.db",
            "postgres://db/hub?password=x",
        ] {
            database(url).expect_err(url);
        }
    }
}
