//! From a TOML file to [`Settings`], or to everything that is wrong with it.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::{
    Confirm, Keyring, Limits, Listen, Log, LogFormat, Ops, Refresh, Rule, Runtime, Settings, Tcp,
    Timeouts,
    audit::audit,
    backends::backends,
    reader::{Notes, Read, Section, Value},
    render::renders,
    secrets::{known_secret, secrets},
    tls::tls,
};
use crate::model::{
    KekPattern, KekScope, KeyringName, Location, NamePattern, Operation, Span, Wave,
};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read, or isn't UTF-8.
    #[error("can't read {}: {cause}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file was read but isn't valid.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Everything that is wrong with a config file, at least one thing. Displayed one per line: `FILE:LINE: KEY: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The problems by line.
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

/// One thing that is wrong, displayed `LINE: KEY: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; of something that is missing, the line of the table that should hold it.
    pub line: usize,
    /// The dotted path, such as `keyring[1].location`, with indexes from 0; empty for a syntax error.
    pub key: String,
    /// What is wrong and what would be right, on one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, message } = self;
        if key.is_empty() {
            write!(f, "{line}: {message}")
        } else {
            write!(f, "{line}: {key}: {message}")
        }
    }
}

/// Reads and parses a config file; see [`parse`].
///
/// # Errors
///
/// The file can't be read, or isn't valid.
pub fn load(file: &Path) -> Result<Settings, LoadError> {
    let text = fs::read_to_string(file).map_err(|cause| LoadError::Unreadable {
        file: file.to_owned(),
        cause,
    })?;
    Ok(parse(file, &text)?)
}

/// Parses the text of a config file. Relative paths in it become absolute: they are resolved against the folder of `file`, which
/// itself need not exist. User and group names are looked up on this machine.
///
/// # Errors
///
/// All that is wrong at once. Only after a syntax error are settings not called missing, since it may have swallowed them.
pub fn parse(file: &Path, text: &str) -> Result<Settings, Problems> {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    let notes = Notes::new(text, &syntax_errors);
    let settings = Section::file(&notes, table.get_ref(), |root| {
        settings(root, &folder(file))
    });
    match (settings, notes.into_problems()) {
        (Ok(settings), items) if items.is_empty() => Ok(settings),
        (_, items) => Err(Problems {
            file: file.to_owned(),
            items,
        }),
    }
}

fn folder(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.parent().map(Path::to_owned).unwrap_or_default()
}

fn settings(root: &Section<'_>, folder: &Path) -> Read<Settings> {
    let wave = wave(root);
    let mut has_tcp = false;
    let listen = root.section("listen", |section| {
        has_tcp = section.has("tcp");
        listen(section, folder)
    });
    let ops = root.section("ops", |section| ops(section, folder));
    let limits = root.section("limits", limits);
    let timeouts = root.section("timeouts", timeouts);
    let log = root.section("log", log);
    let refresh = root.section("refresh", |section| refresh(section, folder));
    let runtime = root.section("runtime", runtime);
    let audit = root.section("audit", |section| audit(section, folder));
    let backends = backends(root, folder);
    let mut named = Vec::new();
    let keyrings = keyrings(root, folder, &mut named);
    let mut secret_names = Vec::new();
    let secrets = secrets(root, folder, &mut secret_names);
    if let (Ok(limits), Ok(secrets)) = (&limits, &secrets)
        && !secrets.is_empty()
        && limits.body_memory < Limits::JSON_COST * secrets.value_bytes
    {
        root.problem("limits.body_memory must be at least three times secrets.value_bytes");
    }
    let renders = renders(root, folder, secrets.as_ref().ok());
    if named.is_empty() && secret_names.is_empty() && !root.has("keyring") && !root.has("secret") {
        root.absence(
            "keyring",
            "at least one [[keyring]] or [[secret]] is required",
        );
    }
    let policy = root.sections("policy", |section| {
        rule(section, &named, &secret_names, has_tcp)
    });
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
        backends: backends?,
        keyrings: keyrings?,
        secrets: secrets?,
        renders: renders?,
        policy: policy?,
    })
}

fn wave(root: &Section<'_>) -> Read<Wave> {
    match root.optional("wave") {
        Some(value) => value.parsed(),
        None => "standard"
            .parse()
            .map_err(|why| root.problem(&format!("the default wave: {why}"))),
    }
}

fn listen(section: &Section<'_>, folder: &Path) -> Read<Listen> {
    let socket = section
        .required("socket")
        .and_then(|value| socket(&value, folder));
    let mode = section.or("mode", 0o660, mode);
    let owner = section.maybe("owner", name_or_id);
    let group = section.maybe("group", name_or_id);
    let tcp = tcp(section, folder);
    Ok(Listen {
        socket: socket?,
        mode: mode?,
        owner: owner?,
        group: group?,
        tcp: tcp?,
    })
}

fn socket(value: &Value<'_>, folder: &Path) -> Read<PathBuf> {
    /// `sun_path` of unix(7) has 108 bytes, of which the last is NUL.
    const LONGEST: usize = 107;

    let path = path(value, folder)?;
    match path.as_os_str().len() {
        0..=LONGEST => Ok(path),
        length => Err(value.problem(format_args!(
            "{} has {length} bytes; a socket's path has at most {LONGEST}",
            path.display()
        ))),
    }
}

pub(super) fn path(value: &Value<'_>, folder: &Path) -> Read<PathBuf> {
    value.some_text().map(|text| folder.join(text))
}

pub(super) fn mode(value: &Value<'_>) -> Read<u32> {
    if !value.is_text() {
        return Err(value.unexpected("a string of octal digits such as \"0660\""));
    }
    let digits = value.text()?;
    if digits.is_empty() || !digits.bytes().all(|b| matches!(b, b'0'..=b'7')) {
        return Err(value.problem("expected octal digits such as \"0660\""));
    }
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| value.problem("must be from \"0000\" to \"0777\": permission bits only"))
}

/// Every id but the greatest, which chown(2) takes for "leave as it is".
const IDS: RangeInclusive<u32> = 0..=u32::MAX - 1;

fn name_or_id(value: &Value<'_>) -> Read<String> {
    if value.is_integer() {
        value.integer(IDS).map(|id| id.to_string())
    } else {
        name(value).map(str::to_owned)
    }
}

/// A user's or a group's name, where there could have been a number.
fn name<'t>(value: &Value<'t>) -> Read<&'t str> {
    if value.is_text() {
        value.some_text()
    } else {
        Err(value.unexpected("a string or an integer"))
    }
}

fn tcp(section: &Section<'_>, folder: &Path) -> Read<Option<Tcp>> {
    let tls = tls(section, folder);
    match (section.optional("tcp"), section.optional("token_file")) {
        (None, None) => match tls? {
            None => Ok(None),
            Some(_) => {
                Err(section.absence("tcp", "is required with listen.tls, which is for TCP alone"))
            }
        },
        (None, Some(token_file)) => Err(token_file.absence("has no use without listen.tcp")),
        (Some(address), token_file) => {
            let address = loopback(&address);
            let missing = || section.absence("token_file", "is required with listen.tcp");
            let token_file = token_file
                .ok_or_else(missing)
                .and_then(|value| path(&value, folder));
            Ok(Some(Tcp {
                address: address?,
                token_file: token_file?,
                tls: tls?,
            }))
        }
    }
}

fn loopback(value: &Value<'_>) -> Read<SocketAddr> {
    match address(value)? {
        address if address.ip().is_loopback() => Ok(address),
        address => Err(value.problem(format_args!("{} is not a loopback address", address.ip()))),
    }
}

fn address(value: &Value<'_>) -> Read<SocketAddr> {
    let text = value.text()?;
    text.parse()
        .map_err(|_| value.problem("write an IP address and a port such as \"127.0.0.1:8200\""))
}

fn ops(section: &Section<'_>, folder: &Path) -> Read<Ops> {
    let listen = section.or("listen", SocketAddr::from(([127, 0, 0, 1], 9464)), address);
    let tls = tls(section, folder);
    Ok(Ops {
        listen: listen?,
        tls: tls?,
    })
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn limits(section: &Section<'_>) -> Read<Limits> {
    let default = Limits::default();
    let body = section.or("body", default.body, |value| value.size(1..=16 * MIB));
    let json_body = section.or("json_body", default.json_body, |value| {
        value.size(KIB..=64 * MIB)
    });
    // A faulty body bounds nothing, so that one mistake isn't reported twice.
    let item = Limits::ITEM_COST * (body.unwrap_or(1) + KIB) + Limits::FLOW_COST;
    let longest_body = item.max(Limits::JSON_COST * json_body.unwrap_or(1));
    let body_memory = section.or("body_memory", default.body_memory, |value| {
        body_memory(value, longest_body)
    });
    let batch_items = section.or("batch_items", default.batch_items, |value| {
        value.integer(1..=100_000)
    });
    let connections = section.or("connections", default.connections, |value| {
        value.integer(1..=100_000)
    });
    let header_bytes = section.or("header_bytes", default.header_bytes, |value| {
        value.size(8 * KIB..=MIB)
    });
    let streams = section.or("streams", default.streams, |value| {
        value.integer(1..=10_000)
    });
    Ok(Limits {
        body: body?,
        json_body: json_body?,
        body_memory: body_memory?,
        batch_items: batch_items?,
        connections: connections?,
        header_bytes: header_bytes?,
        streams: streams?,
    })
}

fn body_memory(value: &Value<'_>, longest_body: usize) -> Read<usize> {
    match value.size(1..=1024 * MIB)? {
        bytes if bytes >= longest_body => Ok(bytes),
        _ => {
            Err(value
                .problem("must hold the longest body: at least twice limits.body and 194 KiB, and three times limits.json_body"))
        }
    }
}

/// The least length of time that isn't none.
const INSTANT: Duration = Duration::from_nanos(1);

fn timeouts(section: &Section<'_>) -> Read<Timeouts> {
    let up_to_a_day = |value: &Value<'_>| value.duration(INSTANT..=Span::from_days(1).0);
    let default = Timeouts::default();
    let header = section.or("header", default.header, up_to_a_day);
    let body = section.or("body", default.body, up_to_a_day);
    let idle = section.or("idle", default.idle, up_to_a_day);
    let drain = section.or("drain_timeout", default.drain, up_to_a_day);
    Ok(Timeouts {
        header: header?,
        body: body?,
        idle: idle?,
        drain: drain?,
    })
}

fn log(section: &Section<'_>) -> Read<Log> {
    let default = Log::default();
    let format = section.or("format", default.format, |value| {
        value.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    let filter = section.or("level", default.filter, filter);
    Ok(Log {
        format: format?,
        filter: filter?,
    })
}

/// Directives come back without the space around them: tracing-subscriber 0.3.23 reads one with space before it wrongly, and
/// panics on some such text.
fn filter(value: &Value<'_>) -> Read<String> {
    let filter = value
        .some_text()?
        .split(',')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(",");
    match EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(why) => Err(value.problem(format_args!(
            "write a level such as \"info\" or a tracing filter: {why}"
        ))),
    }
}

fn refresh(section: &Section<'_>, folder: &Path) -> Read<Refresh> {
    /// The longest that a [`Span`] can be.
    const LONGEST: Duration = Span::from_days(36_525).0;

    let more_than_none = |value: &Value<'_>| value.duration(INSTANT..=LONGEST);
    let default = Refresh::default();
    let poll = section.or("poll", default.poll, |value| {
        value.duration(Duration::from_millis(100)..=LONGEST)
    });
    let read_timeout = section.or("read_timeout", default.read_timeout, more_than_none);
    let kek_timeout = section.or("kek_timeout", default.kek_timeout, more_than_none);
    let unknown_interval = section.or("unknown_interval", default.unknown_interval, more_than_none);
    let miss_ttl = section.or("miss_ttl", default.miss_ttl, more_than_none);
    let manifest_bytes = section.or("manifest_bytes", default.manifest_bytes, |value| {
        value.size(KIB..=256 * MIB)
    });
    let max_backoff = section.or("max_backoff", default.max_backoff, more_than_none);
    let cache_dir = section.maybe("cache_dir", |value| path(value, folder));
    let hedge = section.or("hedge", default.hedge, more_than_none);
    Ok(Refresh {
        poll: poll?,
        read_timeout: read_timeout?,
        kek_timeout: kek_timeout?,
        unknown_interval: unknown_interval?,
        miss_ttl: miss_ttl?,
        manifest_bytes: manifest_bytes?,
        max_backoff: max_backoff?,
        hedge: hedge?,
        cache_dir: cache_dir?,
    })
}

fn runtime(section: &Section<'_>) -> Read<Runtime> {
    let workers = section.maybe("workers", |value| value.integer(1..=256));
    Ok(Runtime { workers: workers? })
}

/// A keyring's name as it stands in the file, valid or not, and its line.
type Named<'t> = (&'t str, usize);

fn keyrings<'t>(
    root: &Section<'t>,
    folder: &Path,
    named: &mut Vec<Named<'t>>,
) -> Read<Vec<Keyring>> {
    root.sections("keyring", |section| keyring(section, folder, named))
}

fn keyring<'t>(section: &Section<'t>, folder: &Path, named: &mut Vec<Named<'t>>) -> Read<Keyring> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, named));
    let location = section
        .required("location")
        .and_then(|value| location(&value, folder));
    let confirm = section.or("confirm", Confirm::Read, |value| {
        value.choice(&[("read", Confirm::Read), ("stamp", Confirm::Stamp)])
    });
    let min_generation = section.or("min_generation", 0, |value| value.integer(0..=u64::MAX));
    let trusted_signers = section.or("trusted_signers", Vec::new(), |value| {
        value.list(|item| item.parsed())
    });
    let needs_keks = trusted_signers.as_ref().is_ok_and(Vec::is_empty);
    let keks = keks(section, folder, needs_keks);
    let wave = section.maybe("wave", Value::parsed);
    Ok(Keyring {
        name: name?,
        location: location?,
        keks: keks?,
        confirm: confirm?,
        min_generation: min_generation?,
        trusted_signers: trusted_signers?,
        wave: wave?,
    })
}

fn new_name<'t>(value: &Value<'t>, named: &mut Vec<Named<'t>>) -> Read<KeyringName> {
    let text = value.text()?;
    if let Some((_, line)) = named.iter().find(|(name, _)| *name == text) {
        return Err(value.problem(format_args!(
            "the keyring {text:?} is on line {line} already"
        )));
    }
    named.push((text, value.line()));
    value.parsed()
}

fn location(value: &Value<'_>, folder: &Path) -> Read<Location> {
    match value.parsed()? {
        Location::File(path) => Ok(Location::File(folder.join(path))),
        elsewhere => Ok(elsewhere),
    }
}

/// Without signers, only the KEKs vouch for who wrote a manifest, so they must be known.
fn keks(section: &Section<'_>, folder: &Path, needed: bool) -> Read<KekScope> {
    match section.optional("keks") {
        Some(value) => {
            let pattern = |item: Value<'_>| item.parsed().map(|pattern: KekPattern| pattern.anchored(folder));
            let patterns = value.list(pattern)?;
            if patterns.is_empty() {
                return Err(value.problem("names no KEK, so nothing could be opened"));
            }
            Ok(KekScope::Only(patterns))
        }
        None if needed => Err(section.absence(
            "keks",
            "is required without trusted_signers: list the KEKs that may open this keyring, such as local:/etc/sidekey/kek or aws-kms:*",
        )),
        None => Ok(KekScope::Any),
    }
}

fn rule(
    section: &Section<'_>,
    named: &[Named<'_>],
    secrets: &[(NamePattern, usize)],
    has_tcp: bool,
) -> Read<Rule> {
    // Either kind of thing, or both; what is done with keyrings has to be said.
    let is_of_keyrings =
        section.has("keyrings") || section.has("operations") || !section.has("secrets");
    let keyrings = if is_of_keyrings {
        section.required("keyrings").map(Some)
    } else {
        Ok(None)
    };
    let keyrings = keyrings.and_then(|value| {
        value.map_or(Ok(Some(Vec::new())), |value| {
            selection(&value, |item| known_name(item, named))
        })
    });
    let operations = if is_of_keyrings {
        section.required("operations").map(Some)
    } else {
        Ok(None)
    };
    let operations = operations
        .and_then(|value| value.map_or(Ok(Some(Vec::new())), |value| selection(&value, operation)));
    let secrets = section.or("secrets", Vec::new(), |value| rule_secrets(value, secrets));
    let uids = section.or("uids", Vec::new(), |value| value.list(|item| uid(&item)));
    let gids = section.or("gids", Vec::new(), |value| value.list(|item| gid(&item)));
    let token = section.or("token", false, |value| token(value, has_tcp));
    if let (Ok(uids), Ok(gids), Ok(false)) = (&uids, &gids, &token)
        && uids.is_empty()
        && gids.is_empty()
    {
        return Err(section.problem("names nobody: give uids, gids or token = true"));
    }
    let implied = || {
        Operation::ALL
            .into_iter()
            .filter(|operation| operation.is_implied())
            .collect()
    };
    let operations = operations?.unwrap_or_else(implied);
    Ok(Rule {
        keyrings: keyrings?,
        operations,
        secrets: secrets?,
        uids: uids?,
        gids: gids?,
        token: token?,
    })
}

/// Stands for every name.
const EVERY: &str = "*";

/// A list of at least one name; none if it is, or holds, [`EVERY`].
fn selection<T>(
    value: &Value<'_>,
    mut read: impl FnMut(&Value<'_>) -> Read<T>,
) -> Read<Option<Vec<T>>> {
    if value.is(EVERY) {
        return Ok(None);
    }
    if !value.is_array() {
        return Err(value.unexpected("an array or \"*\""));
    }
    let items = value.list(|item| {
        if item.is(EVERY) {
            Ok(None)
        } else {
            read(&item).map(Some)
        }
    })?;
    if items.is_empty() {
        return Err(value.problem("names nothing; write \"*\" for all"));
    }
    Ok(items.into_iter().collect())
}

/// The patterns of a rule; [`EVERY`] is one.
fn rule_secrets(value: &Value<'_>, secrets: &[(NamePattern, usize)]) -> Read<Vec<NamePattern>> {
    if value.is(EVERY) {
        return value.parsed().map(|every| vec![every]);
    }
    if !value.is_array() {
        return Err(value.unexpected("an array or \"*\""));
    }
    let patterns = value.list(|item| {
        if item.is(EVERY) {
            item.parsed()
        } else {
            known_secret(&item, secrets)
        }
    })?;
    if patterns.is_empty() {
        return Err(value.problem("names nothing; write \"*\" for all"));
    }
    Ok(patterns)
}

fn known_name(value: &Value<'_>, named: &[Named<'_>]) -> Read<KeyringName> {
    let text = value.text()?;
    if !named.iter().any(|(name, _)| *name == text) {
        return Err(value.absence(format_args!("there is no keyring {text:?}")));
    }
    value.parsed()
}

fn operation(value: &Value<'_>) -> Read<Operation> {
    value.choice(&Operation::ALL.map(|operation| (operation.as_str(), operation)))
}

pub(super) fn uid(value: &Value<'_>) -> Read<u32> {
    if value.is_integer() {
        return value.integer(IDS);
    }
    let name = name(value)?;
    let user = uzers::get_user_by_name(name);
    user.map(|user| user.uid())
        .ok_or_else(|| value.problem(format_args!("this machine has no user {name:?}")))
}

pub(super) fn gid(value: &Value<'_>) -> Read<u32> {
    if value.is_integer() {
        return value.integer(IDS);
    }
    let name = name(value)?;
    let group = uzers::get_group_by_name(name);
    group
        .map(|group| group.gid())
        .ok_or_else(|| value.problem(format_args!("this machine has no group {name:?}")))
}

fn token(value: &Value<'_>, has_tcp: bool) -> Read<bool> {
    match value.boolean()? {
        true if !has_tcp => Err(value.absence("needs listen.tcp: only TCP callers show a token")),
        token => Ok(token),
    }
}

#[cfg(test)]
mod tests;
