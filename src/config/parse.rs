//! From a TOML file to [`Settings`], or to every problem in it.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use super::{
    Audit, Backends, Hub, Keyring, Limits, Listen, Log, Ops, Problem, Refresh, Render, Rule,
    Runtime, Secrets, Timeouts,
    audit::audit,
    backends::backends,
    join::hub,
    keyring::keyrings,
    limits::{limits, timeouts},
    listen::{listen, ops},
    log::log,
    policy::rules,
    reader::{Context, Parsed, Section, Value},
    refresh::{refresh, runtime},
    render::renders,
    secrets::secrets,
};
use crate::{files, model::Wave};

/// A whole config file.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The sidecar's wave, which a keyring can override.
    pub wave: Wave,
    /// The applications' listeners.
    pub listen: Listen,
    /// The operators' listener.
    pub ops: Ops,
    /// Limits on requests and connections.
    pub limits: Limits,
    /// Time-outs of requests and connections.
    pub timeouts: Timeouts,
    /// What is logged, and how.
    pub log: Log,
    /// How manifests are kept fresh.
    pub refresh: Refresh,
    /// Threads.
    pub runtime: Runtime,
    /// The audit log, if there is one.
    pub audit: Option<Audit>,
    /// The hub to join, if there is one.
    pub hub: Option<Hub>,
    /// How outside systems are reached.
    pub backends: Backends,
    /// The keyrings to serve.
    pub keyrings: Vec<Keyring>,
    /// The secrets to serve.
    pub secrets: Secrets,
    /// The files to render from secrets.
    pub renders: Vec<Render>,
    /// The policy's rules. Without any, every caller that can open the socket may do everything
    /// but request data keys.
    pub policy: Vec<Rule>,
}

/// An error that keeps a config file from being used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read, or isn't UTF-8.
    #[error("can't read {}: {cause}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The file's content is invalid.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Every problem of a config file; there is at least one. Displayed one per line, as
/// `FILE:LINE: KEY: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The problems, sorted by line.
    pub items: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.items.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{problem}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads and parses a config file; see [`parse`].
///
/// # Errors
/// Fails if the file can't be read or is invalid.
pub fn load(file: &Path) -> Result<Settings, LoadError> {
    Ok(parse(file, &read(file)?)?)
}

/// Reads the text of a config file, which may be a pipe.
///
/// # Errors
/// [`LoadError::Unreadable`]
pub fn read(file: &Path) -> Result<String, LoadError> {
    fs::read_to_string(file).map_err(unreadable(file))
}

/// Reads the text of a config file again. A pipe can't be: its writer would have to return.
///
/// # Errors
/// [`LoadError::Unreadable`]
pub fn read_again(file: &Path) -> Result<String, LoadError> {
    let read = || {
        let mut text = String::new();
        files::open_regular(file)?.read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(unreadable(file))
}

fn unreadable(file: &Path) -> impl FnOnce(io::Error) -> LoadError {
    move |cause| LoadError::Unreadable {
        file: file.to_owned(),
        cause,
    }
}

/// Parses the text of a config file. Relative paths are resolved against the folder of `file`,
/// which need not exist. User and group names are looked up on this machine.
///
/// # Errors
/// Returns all problems at once. After a syntax error, no setting is reported as missing, because
/// the error may have swallowed it.
pub fn parse(file: &Path, text: &str) -> Result<Settings, Problems> {
    parse_with(file, text, settings)
}

/// Parses the text of a file with `read`.
pub(super) fn parse_with<T>(
    file: &Path,
    text: &str,
    read: impl FnOnce(&Section<'_>) -> Parsed<T>,
) -> Result<T, Problems> {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    let context = Context::new(&folder(file), text, &syntax_errors);
    let settings = Section::file(&context, table.get_ref(), read);
    match (settings, context.into_problems()) {
        (Ok(settings), items) if items.is_empty() => Ok(settings),
        (_, items) => Err(Problems {
            file: file.to_owned(),
            items,
        }),
    }
}

pub(super) fn folder(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.parent().map(Path::to_owned).unwrap_or_default()
}

fn settings(root: &Section<'_>) -> Parsed<Settings> {
    let wave = wave(root);
    let listen = root.section("listen", listen);
    let has_tcp = root.has_nested("listen", "tcp");
    let ops = root.section("ops", ops);
    let limits = root.section("limits", limits);
    let timeouts = root.section("timeouts", timeouts);
    let log = root.section("log", log);
    let refresh = root.section("refresh", refresh);
    let runtime = root.section("runtime", runtime);
    let audit = root.section("audit", audit);
    let hub = hub(root);
    let backends = backends(root);
    let (keyrings, keyring_names) = keyrings(root);
    let (secrets, secret_names) = secrets(root);
    check_memory(root, &limits, &secrets);
    let renders = renders(root, secrets.as_ref().ok());
    let nothing_to_serve = keyring_names.is_empty() && secret_names.is_empty();
    if nothing_to_serve && !root.has("keyring") && !root.has("secret") {
        root.missing(
            "keyring",
            "at least one [[keyring]] or [[secret]] is required",
        );
    }
    let policy = rules(root, &keyring_names, &secret_names, has_tcp);
    Ok(Settings {
        wave: wave?,
        listen: listen?,
        ops: ops?,
        limits: limits?,
        timeouts: timeouts?,
        log: log?,
        refresh: refresh?,
        runtime: runtime?,
        audit: audit?,
        hub: hub?,
        backends: backends?,
        keyrings: keyrings?,
        secrets: secrets?,
        renders: renders?,
        policy: policy?,
    })
}

fn wave(root: &Section<'_>) -> Parsed<Wave> {
    match root.optional("wave") {
        Some(value) => Value::parsed(&value),
        None => "standard"
            .parse()
            .map_err(|error| root.problem(&format!("the default wave: {error}"))),
    }
}

/// A JSON response that holds the largest secret must fit into the memory for bodies.
fn check_memory(root: &Section<'_>, limits: &Parsed<Limits>, secrets: &Parsed<Secrets>) {
    if let (Ok(limits), Ok(secrets)) = (limits, secrets)
        && !secrets.is_empty()
        && limits.body_memory < Limits::SECRET_COST * secrets.value_bytes
    {
        root.problem("limits.body_memory must be at least eight times secrets.value_bytes");
    }
}

#[cfg(test)]
mod tests;
