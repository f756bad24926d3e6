//! What a sidecar is told, parsed and valid.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{Audit, Backends, Render, Secrets, Tls};
use crate::model::{KekScope, KeyringName, Location, NamePattern, Operation, SignerKey, Wave};

/// A whole config file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The wave that this sidecar belongs to, unless a keyring says otherwise.
    pub wave: Wave,
    /// Where applications connect.
    pub listen: Listen,
    /// Where operators connect.
    pub ops: Ops,
    /// What one caller may cost.
    pub limits: Limits,
    /// How long anybody waits.
    pub timeouts: Timeouts,
    /// What is logged, and how.
    pub log: Log,
    /// How manifests are kept fresh.
    pub refresh: Refresh,
    /// Threads.
    pub runtime: Runtime,
    /// Where the audit log goes; nowhere if none.
    pub audit: Option<Audit>,
    /// How the outside systems are reached.
    pub backends: Backends,
    /// The keyrings that are served.
    pub keyrings: Vec<Keyring>,
    /// The secrets that are served.
    pub secrets: Secrets,
    /// The files that are made of them.
    pub renders: Vec<Render>,
    /// Who may do what. Empty: whoever may open the socket may do everything.
    pub policy: Vec<Rule>,
}

/// Where applications connect.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The Unix socket's path, at most 107 bytes (`sun_path` of unix(7)).
    pub socket: PathBuf,
    /// The socket's permission bits.
    pub mode: u32,
    /// The socket's owner, by name or number; the process's own if none.
    pub owner: Option<String>,
    /// The socket's group, by name or number; the process's own if none.
    pub group: Option<String>,
    /// A loopback TCP address, for applications that can't open a socket.
    pub tcp: Option<Tcp>,
}

/// A loopback TCP listener.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// The address; always loopback.
    pub address: SocketAddr,
    /// The file that holds the bearer token (RFC 6750).
    pub token_file: PathBuf,
    /// Its certificate; in the clear if none.
    pub tls: Option<Tls>,
}

/// Where operators connect.
#[derive(Debug, Clone)]
pub struct Ops {
    /// The address of `/livez`, `/readyz`, `/metrics`, `/status` and `/manifests/{keyring}`.
    pub listen: SocketAddr,
    /// Its certificate; in the clear if none.
    pub tls: Option<Tls>,
}

/// What one caller may cost. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest octet-stream body that becomes a message; longer ones are streams.
    pub body: usize,
    /// The longest JSON body.
    pub json_body: usize,
    /// What all bodies and answers may hold together.
    pub body_memory: usize,
    /// The most items of a batch.
    pub batch_items: usize,
    /// The most connections at once, on each listener.
    pub connections: usize,
    /// The longest request head, at least 8 KiB.
    pub header_bytes: usize,
    /// The most concurrent HTTP/2 streams of a connection.
    pub streams: u32,
}

impl Limits {
    /// How many times a JSON body's length its text, its items and its answer take together.
    pub const JSON_COST: usize = 3;
    /// What working on a body while it comes holds at once: a chunk that comes, one that goes, and what the connection read ahead.
    pub const FLOW_COST: usize = 192 << 10;
    /// How many times its length a long item of a binary batch and its answer take together, besides that.
    pub const ITEM_COST: usize = 2;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            json_body: 4 << 20,
            body_memory: 64 << 20,
            batch_items: 1000,
            connections: 1024,
            header_bytes: 16 << 10,
            streams: 64,
        }
    }
}

/// How long anybody waits.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a request's head, from its first byte.
    pub header: Duration,
    /// For a request's body to come, and for its answer to be taken.
    pub body: Duration,
    /// For the next request of an open connection.
    pub idle: Duration,
    /// For requests in flight after SIGTERM.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            drain: Duration::from_secs(25),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Log {
    /// The lines' form.
    pub format: LogFormat,
    /// A level, or a filter as `tracing-subscriber` reads it.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How manifests are kept fresh.
#[derive(Debug, Clone)]
pub struct Refresh {
    /// How often a location is read without a hint. Spread by ±25 % so that a fleet doesn't read in step.
    pub poll: Duration,
    /// How long reading a location may take.
    pub read_timeout: Duration,
    /// How long one unwrap may take.
    pub kek_timeout: Duration,
    /// How long a KEK may take before the next one that wraps the same version is asked as well.
    pub hedge: Duration,
    /// The least time between two refreshes that unknown versions caused.
    pub unknown_interval: Duration,
    /// How long a version that the newest manifest doesn't name is answered for without reading again.
    pub miss_ttl: Duration,
    /// The longest manifest, in bytes.
    pub manifest_bytes: usize,
    /// Where copies of the manifests are kept; nowhere if none.
    pub cache_dir: Option<PathBuf>,
    /// The longest wait before a failed refresh is tried again.
    pub max_backoff: Duration,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(60),
            read_timeout: Duration::from_secs(10),
            kek_timeout: Duration::from_secs(10),
            hedge: Duration::from_millis(300),
            unknown_interval: Duration::from_millis(250),
            miss_ttl: Duration::from_secs(1),
            manifest_bytes: 16 << 20,
            cache_dir: None,
            max_backoff: Duration::from_secs(60),
        }
    }
}

/// Threads.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// The data plane's worker threads; one for every CPU if none.
    pub workers: Option<usize>,
}

/// A keyring that is served.
#[derive(Debug, Clone)]
pub struct Keyring {
    /// Its name, as in its manifest.
    pub name: KeyringName,
    /// Where its manifest is.
    pub location: Location,
    /// The KEKs that may open its versions.
    pub keks: KekScope,
    /// What confirms that the manifest is the one in force.
    pub confirm: Confirm,
    /// The least generation that is accepted at a fresh start.
    pub min_generation: u64,
    /// Whose signature a manifest must carry; empty: none.
    pub trusted_signers: Vec<SignerKey>,
    /// This keyring's wave, if it differs from the sidecar's.
    pub wave: Option<Wave>,
}

/// What confirms a manifest for the encrypt lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// Reading the location.
    Read,
    /// The manifest's `updated_at`, because the location is itself only a copy.
    Stamp,
}

/// Allows something to somebody. What no rule allows is forbidden, once there is a rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The keyrings; `None` is every one.
    pub keyrings: Option<Vec<KeyringName>>,
    /// The operations with those.
    pub operations: Vec<Operation>,
    /// The secrets that may be fetched.
    pub secrets: Vec<NamePattern>,
    /// User ids that it speaks for.
    pub uids: Vec<u32>,
    /// Group ids that it speaks for (the process's effective group).
    pub gids: Vec<u32>,
    /// Whether it speaks for holders of the TCP listener's token.
    pub token: bool,
}
