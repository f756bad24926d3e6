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
    Confirm, Keyring, KeyringName, Limits, Listen, Location, Log, LogFormat, Operation, Ops, Refresh, Rule, Runtime, Settings,
    Span, Tcp, Timeouts, Wave,
    reader::{Notes, Read, Section, Value},
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
        if key.is_empty() { write!(f, "{line}: {message}") } else { write!(f, "{line}: {key}: {message}") }
    }
}

/// Reads and parses a config file; see [`parse`].
///
/// # Errors
///
/// The file can't be read, or isn't valid.
pub fn load(file: &Path) -> Result<Settings, LoadError> {
    let text = fs::read_to_string(file).map_err(|cause| LoadError::Unreadable { file: file.to_owned(), cause })?;
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
    let settings = Section::file(&notes, table.get_ref(), |root| settings(root, &folder(file)));
    match (settings, notes.into_problems()) {
        (Ok(settings), items) if items.is_empty() => Ok(settings),
        (_, items) => Err(Problems { file: file.to_owned(), items }),
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
    let ops = root.section("ops", ops);
    let limits = root.section("limits", limits);
    let timeouts = root.section("timeouts", timeouts);
    let log = root.section("log", log);
    let refresh = root.section("refresh", refresh);
    let runtime = root.section("runtime", runtime);
    let mut named = Vec::new();
    let keyrings = keyrings(root, folder, &mut named);
    let policy = root.sections("policy", |section| rule(section, &named, has_tcp));
    Ok(Settings {
        wave: wave?,
        listen: listen?,
        ops: ops?,
        limits: limits?,
        timeouts: timeouts?,
        log: log?,
        refresh: refresh?,
        runtime: runtime?,
        keyrings: keyrings?,
        policy: policy?,
    })
}

fn wave(root: &Section<'_>) -> Read<Wave> {
    match root.optional("wave") {
        Some(value) => value.parsed(),
        None => "standard".parse().map_err(|why| root.problem(&format!("the default wave: {why}"))),
    }
}

fn listen(section: &Section<'_>, folder: &Path) -> Read<Listen> {
    let socket = section.required("socket").and_then(|value| socket(&value, folder));
    let mode = section.or("mode", 0o660, mode);
    let owner = section.maybe("owner", name_or_id);
    let group = section.maybe("group", name_or_id);
    let tcp = tcp(section, folder);
    Ok(Listen { socket: socket?, mode: mode?, owner: owner?, group: group?, tcp: tcp? })
}

fn socket(value: &Value<'_>, folder: &Path) -> Read<PathBuf> {
    /// `sun_path` of unix(7) has 108 bytes, of which the last is NUL.
    const LONGEST: usize = 107;

    let path = path(value, folder)?;
    match path.as_os_str().len() {
        0..=LONGEST => Ok(path),
        length => {
            Err(value.problem(format_args!("{} has {length} bytes; a socket's path has at most {LONGEST}", path.display())))
        }
    }
}

fn path(value: &Value<'_>, folder: &Path) -> Read<PathBuf> {
    value.some_text().map(|text| folder.join(text))
}

fn mode(value: &Value<'_>) -> Read<u32> {
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
        .ok_or_else(|| value.problem("must be from \"0000\" to \"0777\"; a socket has permission bits only"))
}

/// Every id but the greatest, which chown(2) takes for "leave as it is".
const IDS: RangeInclusive<u32> = 0..=u32::MAX - 1;

fn name_or_id(value: &Value<'_>) -> Read<String> {
    if value.is_integer() { value.integer(IDS).map(|id| id.to_string()) } else { name(value).map(str::to_owned) }
}

/// A user's or a group's name, where there could have been a number.
fn name<'t>(value: &Value<'t>) -> Read<&'t str> {
    if value.is_text() { value.some_text() } else { Err(value.unexpected("a string or an integer")) }
}

fn tcp(section: &Section<'_>, folder: &Path) -> Read<Option<Tcp>> {
    match (section.optional("tcp"), section.optional("token_file")) {
        (None, None) => Ok(None),
        (None, Some(token_file)) => Err(token_file.absence("has no use without listen.tcp")),
        (Some(address), token_file) => {
            let address = loopback(&address);
            let missing = || section.absence("token_file", "is required with listen.tcp");
            let token_file = token_file.ok_or_else(missing).and_then(|value| path(&value, folder));
            Ok(Some(Tcp { address: address?, token_file: token_file? }))
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
    text.parse().map_err(|_| value.problem("write an IP address and a port such as \"127.0.0.1:8200\""))
}

fn ops(section: &Section<'_>) -> Read<Ops> {
    let listen = section.or("listen", SocketAddr::from(([127, 0, 0, 1], 9464)), address);
    Ok(Ops { listen: listen? })
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn limits(section: &Section<'_>) -> Read<Limits> {
    let default = Limits::default();
    let body = section.or("body", default.body, |value| value.size(1..=16 * MIB));
    let json_body = section.or("json_body", default.json_body, |value| value.size(KIB..=64 * MIB));
    // A faulty body bounds nothing, so that one mistake isn't reported twice.
    let longest_body = body.unwrap_or(1).max(json_body.unwrap_or(1));
    let body_memory = section.or("body_memory", default.body_memory, |value| body_memory(value, longest_body));
    let batch_items = section.or("batch_items", default.batch_items, |value| value.integer(1..=100_000));
    let connections = section.or("connections", default.connections, |value| value.integer(1..=100_000));
    let header_bytes = section.or("header_bytes", default.header_bytes, |value| value.size(8 * KIB..=MIB));
    let streams = section.or("streams", default.streams, |value| value.integer(1..=10_000));
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
        _ => Err(value.problem("must hold the longest body: at least as much as limits.body and limits.json_body")),
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
    Ok(Timeouts { header: header?, body: body?, idle: idle?, drain: drain? })
}

fn log(section: &Section<'_>) -> Read<Log> {
    let default = Log::default();
    let format =
        section.or("format", default.format, |value| value.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    let filter = section.or("level", default.filter, filter);
    Ok(Log { format: format?, filter: filter? })
}

/// Directives come back without the space around them: tracing-subscriber 0.3.23 reads one with space before it wrongly, and
/// panics on some such text.
fn filter(value: &Value<'_>) -> Read<String> {
    let filter = value.some_text()?.split(',').map(str::trim).collect::<Vec<_>>().join(",");
    match EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(why) => Err(value.problem(format_args!("write a level such as \"info\" or a tracing filter: {why}"))),
    }
}

fn refresh(section: &Section<'_>) -> Read<Refresh> {
    /// The longest that a [`Span`] can be.
    const LONGEST: Duration = Span::from_days(36_525).0;

    let more_than_none = |value: &Value<'_>| value.duration(INSTANT..=LONGEST);
    let default = Refresh::default();
    let poll = section.or("poll", default.poll, |value| value.duration(Duration::from_millis(100)..=LONGEST));
    let read_timeout = section.or("read_timeout", default.read_timeout, more_than_none);
    let kek_timeout = section.or("kek_timeout", default.kek_timeout, more_than_none);
    let unknown_interval = section.or("unknown_interval", default.unknown_interval, more_than_none);
    let miss_ttl = section.or("miss_ttl", default.miss_ttl, more_than_none);
    let manifest_bytes = section.or("manifest_bytes", default.manifest_bytes, |value| value.size(KIB..=256 * MIB));
    let max_backoff = section.or("max_backoff", default.max_backoff, more_than_none);
    Ok(Refresh {
        poll: poll?,
        read_timeout: read_timeout?,
        kek_timeout: kek_timeout?,
        unknown_interval: unknown_interval?,
        miss_ttl: miss_ttl?,
        manifest_bytes: manifest_bytes?,
        max_backoff: max_backoff?,
    })
}

fn runtime(section: &Section<'_>) -> Read<Runtime> {
    let workers = section.maybe("workers", |value| value.integer(1..=256));
    Ok(Runtime { workers: workers? })
}

/// A keyring's name as it stands in the file, valid or not, and its line.
type Named<'t> = (&'t str, usize);

fn keyrings<'t>(root: &Section<'t>, folder: &Path, named: &mut Vec<Named<'t>>) -> Read<Vec<Keyring>> {
    let keyrings = root.sections("keyring", |section| keyring(section, folder, named))?;
    if keyrings.is_empty() {
        return Err(root.absence("keyring", "at least one [[keyring]] is required"));
    }
    Ok(keyrings)
}

fn keyring<'t>(section: &Section<'t>, folder: &Path, named: &mut Vec<Named<'t>>) -> Read<Keyring> {
    let name = section.required("name").and_then(|value| new_name(&value, named));
    let location = section.required("location").and_then(|value| location(&value, folder));
    let confirm =
        section.or("confirm", Confirm::Read, |value| value.choice(&[("read", Confirm::Read), ("stamp", Confirm::Stamp)]));
    let min_generation = section.or("min_generation", 0, |value| value.integer(0..=u64::MAX));
    let trusted_signers = section.or("trusted_signers", Vec::new(), |value| value.list(|item| item.parsed()));
    let wave = section.maybe("wave", Value::parsed);
    Ok(Keyring {
        name: name?,
        location: location?,
        confirm: confirm?,
        min_generation: min_generation?,
        trusted_signers: trusted_signers?,
        wave: wave?,
    })
}

fn new_name<'t>(value: &Value<'t>, named: &mut Vec<Named<'t>>) -> Read<KeyringName> {
    let text = value.text()?;
    if let Some((_, line)) = named.iter().find(|(name, _)| *name == text) {
        return Err(value.problem(format_args!("the keyring {text:?} is on line {line} already")));
    }
    named.push((text, value.line()));
    value.parsed()
}

fn location(value: &Value<'_>, folder: &Path) -> Read<Location> {
    match value.parsed()? {
        Location::File(path) => Ok(Location::File(folder.join(path))),
    }
}

fn rule(section: &Section<'_>, named: &[Named<'_>], has_tcp: bool) -> Read<Rule> {
    let keyrings = section.required("keyrings").and_then(|value| selection(&value, |item| known_name(item, named)));
    let operations = section.required("operations").and_then(|value| selection(&value, operation));
    let uids = section.or("uids", Vec::new(), |value| value.list(|item| uid(&item)));
    let gids = section.or("gids", Vec::new(), |value| value.list(|item| gid(&item)));
    let token = section.or("token", false, |value| token(value, has_tcp));
    if let (Ok(uids), Ok(gids), Ok(false)) = (&uids, &gids, &token)
        && uids.is_empty()
        && gids.is_empty()
    {
        return Err(section.problem("names nobody: give uids, gids or token = true"));
    }
    let operations = operations?.unwrap_or_else(|| Operation::ALL.to_vec());
    Ok(Rule { keyrings: keyrings?, operations, uids: uids?, gids: gids?, token: token? })
}

/// Stands for every name.
const EVERY: &str = "*";

/// A list of at least one name; none if it is, or holds, [`EVERY`].
fn selection<T>(value: &Value<'_>, mut read: impl FnMut(&Value<'_>) -> Read<T>) -> Read<Option<Vec<T>>> {
    if value.is(EVERY) {
        return Ok(None);
    }
    if !value.is_array() {
        return Err(value.unexpected("an array or \"*\""));
    }
    let items = value.list(|item| if item.is(EVERY) { Ok(None) } else { read(&item).map(Some) })?;
    if items.is_empty() {
        return Err(value.problem("names nothing; write \"*\" for all"));
    }
    Ok(items.into_iter().collect())
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

fn uid(value: &Value<'_>) -> Read<u32> {
    if value.is_integer() {
        return value.integer(IDS);
    }
    let name = name(value)?;
    let user = uzers::get_user_by_name(name);
    user.map(|user| user.uid()).ok_or_else(|| value.problem(format_args!("this machine has no user {name:?}")))
}

fn gid(value: &Value<'_>) -> Read<u32> {
    if value.is_integer() {
        return value.integer(IDS);
    }
    let name = name(value)?;
    let group = uzers::get_group_by_name(name);
    group.map(|group| group.gid()).ok_or_else(|| value.problem(format_args!("this machine has no group {name:?}")))
}

fn token(value: &Value<'_>, has_tcp: bool) -> Read<bool> {
    match value.boolean()? {
        true if !has_tcp => Err(value.absence("needs listen.tcp: only TCP callers show a token")),
        token => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*, sample};

    use super::*;

    const FILE: &str = "/etc/sidekey/sidekey.toml";

    const MINIMAL: &str = r#"
        listen.socket = "sidekey.sock"
        keyring = [{ name = "orders", location = "orders.json" }]
    "#;

    const FULL: &str = r#"
wave = "canary"

[listen]
socket = "/run/sidekey/sidekey.sock"
mode = "0600"
owner = "app"
group = 1000
tcp = "[::1]:8200"
token_file = "token"

[ops]
listen = "0.0.0.0:9000"

[limits]
body = "2MiB"
json_body = 8388608
body_memory = "128MiB"
batch_items = 10
connections = 20
header_bytes = "8KiB"
streams = 30

[timeouts]
header = "1s"
body = "2s"
idle = "1m 30s"
drain_timeout = "1d"

[log]
format = "json"
level = "info,sidekey=debug"

[refresh]
poll = "100ms"
read_timeout = "3s"
kek_timeout = "4s"
unknown_interval = "5s"
miss_ttl = "6s"
max_backoff = "7s"
manifest_bytes = "32MiB"

[runtime]
workers = 2

[[keyring]]
name = "orders"
location = "orders.json"
confirm = "stamp"
min_generation = 18446744073709551615
trusted_signers = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
wave = "critical"

[[keyring]]
name = "users"
location = "file:/var/lib/users.json"

[[policy]]
keyrings = ["orders"]
operations = ["encrypt", "inspect"]
uids = [1000, "root"]
gids = ["root", 7]

[[policy]]
keyrings = ["users", "*"]
operations = "*"
token = true
"#;

    fn parsed(text: &str) -> Settings {
        parse(Path::new(FILE), text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn problems(text: &str) -> String {
        parse(Path::new("c.toml"), text).expect_err("no problem").to_string()
    }

    /// What is wrong with the minimal file once `more` follows it.
    fn problems_with(more: &str) -> String {
        problems(&format!("{}\n{more}", MINIMAL.trim()))
    }

    #[test]
    fn a_full_file_gives_every_value() {
        let s = parsed(FULL);
        assert_eq!(s.wave.as_str(), "canary");

        assert_eq!(s.listen.socket, Path::new("/run/sidekey/sidekey.sock"));
        assert_eq!((s.listen.mode, s.listen.owner.as_deref(), s.listen.group.as_deref()), (0o600, Some("app"), Some("1000")));
        let tcp = s.listen.tcp.expect("tcp");
        assert_eq!((tcp.address.to_string().as_str(), tcp.token_file.as_path()), ("[::1]:8200", Path::new("/etc/sidekey/token")));
        assert_eq!(s.ops.listen.to_string(), "0.0.0.0:9000");

        let Limits { body, json_body, body_memory, batch_items, connections, header_bytes, streams } = s.limits;
        assert_eq!((body, json_body, body_memory), (2 << 20, 8 << 20, 128 << 20));
        assert_eq!((batch_items, connections, header_bytes, streams), (10, 20, 8 << 10, 30));

        let Timeouts { header, body, idle, drain } = s.timeouts;
        assert_eq!([header, body, idle, drain].map(|d| d.as_secs()), [1, 2, 90, 86_400]);
        assert_eq!((s.log.format, s.log.filter.as_str()), (LogFormat::Json, "info,sidekey=debug"));

        let Refresh { poll, read_timeout, kek_timeout, unknown_interval, miss_ttl, manifest_bytes, max_backoff } = s.refresh;
        assert_eq!((poll, manifest_bytes), (Duration::from_millis(100), 32 << 20));
        assert_eq!([read_timeout, kek_timeout, unknown_interval, miss_ttl, max_backoff].map(|d| d.as_secs()), [3, 4, 5, 6, 7]);
        assert_eq!(s.runtime.workers, Some(2));
    }

    #[test]
    fn a_full_file_gives_its_keyrings_and_policy() {
        let s = parsed(FULL);
        let [orders, users] = &s.keyrings[..] else { panic!("{:?}", s.keyrings) };
        assert_eq!((orders.name.as_str(), orders.confirm, orders.min_generation), ("orders", Confirm::Stamp, u64::MAX));
        assert_eq!(orders.location, Location::File("/etc/sidekey/orders.json".into()));
        assert_eq!(orders.trusted_signers.iter().map(|signer| signer.0).collect::<Vec<_>>(), [[0; 32]]);
        assert_eq!(orders.wave.as_ref().map(Wave::as_str), Some("critical"));
        assert_eq!(users.location, Location::File("/var/lib/users.json".into()));

        let [named, every] = &s.policy[..] else { panic!("{:?}", s.policy) };
        assert_eq!(named.keyrings.as_deref(), Some(&[orders.name.clone()][..]));
        assert_eq!(named.operations, [Operation::Encrypt, Operation::Inspect]);
        assert_eq!((&named.uids[..], &named.gids[..], named.token), (&[1000, 0][..], &[0, 7][..], false));
        assert_eq!((every.keyrings.as_deref(), &every.operations[..], every.token), (None, &Operation::ALL[..], true));
    }

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let s = parsed(MINIMAL);
        assert_eq!((s.wave.as_str(), s.listen.mode), ("standard", 0o660));
        assert!(s.listen.owner.is_none() && s.listen.group.is_none() && s.listen.tcp.is_none());
        assert_eq!(s.ops.listen.to_string(), "127.0.0.1:9464");
        assert_eq!(format!("{:?}", s.limits), format!("{:?}", Limits::default()));
        assert_eq!(format!("{:?}", s.timeouts), format!("{:?}", Timeouts::default()));
        assert_eq!(format!("{:?}", s.log), format!("{:?}", Log::default()));
        assert_eq!(format!("{:?}", s.refresh), format!("{:?}", Refresh::default()));
        assert_eq!(s.runtime.workers, None);
        let [keyring] = &s.keyrings[..] else { panic!("{:?}", s.keyrings) };
        assert_eq!((keyring.confirm, keyring.min_generation, &keyring.wave), (Confirm::Read, 0, &None));
        assert!(keyring.trusted_signers.is_empty() && s.policy.is_empty());
    }

    #[test]
    fn all_mistakes_of_a_file_are_reported_at_once_by_line() {
        let text = r#"wave = "Canary"
[listen]
sokcet = "sidekey.sock"
mode = 660
tcp = "192.0.2.1:8200"
[limits]
body = "17MiB"
json_body = true
body_memory = "1KiB"
[timeouts]
idle = "2d"
[log]
format = "xml"
[runtime]
workers = 0
[[keyring]]
name = "orders"
location = "orders.json"
[[keyring]]
name = "orders"
location = "s3:bucket"
[[policy]]
keyrings = ["orders", "order"]
operations = "encrypt"
uids = [
  1000,
  "no such user",
  -1,
]
[[policy]]
keyrings = "*"
operations = ["seal"]
token = false
"#;
        let expected = r#"
c.toml:1: wave: a name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-' and begins with a letter or a digit
c.toml:2: listen.socket: is required
c.toml:2: listen.token_file: is required with listen.tcp
c.toml:3: listen.sokcet: unknown key; did you mean `socket`?
c.toml:4: listen.mode: expected a string of octal digits such as "0660", found an integer
c.toml:5: listen.tcp: 192.0.2.1 is not a loopback address
c.toml:7: limits.body: must be from 1 to 16MiB
c.toml:8: limits.json_body: expected an integer or a string such as "1MiB", found a boolean
c.toml:11: timeouts.idle: must be from 1ns to 1d
c.toml:13: log.format: expected "text" or "json", found "xml"
c.toml:15: runtime.workers: must be from 1 to 256
c.toml:20: keyring[1].name: the keyring "orders" is on line 17 already
c.toml:21: keyring[1].location: `s3:` is not a manifest location that this build knows; known: file:
c.toml:23: policy[0].keyrings[1]: there is no keyring "order"
c.toml:24: policy[0].operations: expected an array or "*", found a string
c.toml:27: policy[0].uids[1]: this machine has no user "no such user"
c.toml:28: policy[0].uids[2]: must be from 0 to 4294967294
c.toml:30: policy[1]: names nobody: give uids, gids or token = true
c.toml:32: policy[1].operations[0]: expected "encrypt" or "decrypt" or "rewrap" or "inspect", found "seal"
"#;
        assert_eq!(problems(text), expected.trim());
    }

    #[test]
    fn an_empty_file_is_told_what_it_needs() {
        let expected = "c.toml:1: listen.socket: is required\nc.toml:1: keyring: at least one [[keyring]] is required";
        assert_eq!(problems(""), expected);
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_or_with_the_known_ones() {
        assert_eq!(problems_with("[refersh]"), "c.toml:3: refersh: unknown key; did you mean `refresh`?");
        assert_eq!(problems_with("[ops]\n'a\tb' = 1"), "c.toml:4: ops.\"a\\tb\": unknown key; known here: listen");
    }

    #[test]
    fn a_syntax_error_has_its_line_and_doesnt_hide_other_problems() {
        let text = "[listen]\nsocket = sidekey.sock\nmode = 5\n[runtime]\nworkers = 0\n";
        let found = parse(Path::new("c.toml"), text).expect_err("no problem").items;
        assert_eq!(
            found.iter().map(|p| (p.line, p.key.as_str())).collect::<Vec<_>>(),
            [(2, ""), (3, "listen.mode"), (5, "runtime.workers"),]
        );
    }

    #[test]
    fn after_a_syntax_error_nothing_is_called_missing() {
        let found = parse(Path::new("c.toml"), "[listen\nsocket = 'a'\n").expect_err("no problem");
        assert!(found.items.iter().all(|problem| !problem.message.contains("required")), "{found}");
        assert_eq!((found.items[0].line, found.items[0].key.as_str()), (1, ""));
    }

    #[test]
    fn a_repeated_key_is_a_syntax_error_on_its_second_line() {
        assert_eq!(problems_with("[log]\nlevel = 'info'\nlevel = 'warn'"), "c.toml:5: duplicate key");
    }

    #[test]
    fn relative_paths_resolve_against_the_files_folder() {
        let s = parsed(MINIMAL);
        assert_eq!(s.listen.socket, Path::new("/etc/sidekey/sidekey.sock"));
        assert_eq!(s.keyrings[0].location, Location::File("/etc/sidekey/orders.json".into()));

        let here = std::env::current_dir().expect("working directory");
        let s = parse(Path::new("sidekey.toml"), MINIMAL).expect("settings");
        assert_eq!(s.keyrings[0].location, Location::File(here.join("orders.json")));
    }

    #[test]
    fn a_sockets_whole_path_has_at_most_107_bytes() {
        let with_socket = |length: usize| MINIMAL.replace("sidekey.sock", &"s".repeat(length - "/etc/sidekey/".len()));
        assert_eq!(parsed(&with_socket(107)).listen.socket.as_os_str().len(), 107);
        let problems = parse(Path::new(FILE), &with_socket(108)).expect_err("too long").to_string();
        assert!(problems.ends_with("has 108 bytes; a socket's path has at most 107"), "{problems}");
    }

    #[test]
    fn a_mode_is_a_string_of_octal_digits_within_the_permission_bits() {
        let with_mode = |mode: &str| format!("[[keyring]]\nname = 'a'\nlocation = 'a'\n[listen]\nsocket = 's'\nmode = {mode}");
        assert_eq!(parsed(&with_mode("'0777'")).listen.mode, 0o777);
        assert_eq!(parsed(&with_mode("'600'")).listen.mode, 0o600);
        let digits = "c.toml:6: listen.mode: expected octal digits such as \"0660\"";
        for mode in ["''", "'0o660'", "'+660'", "'0680'", "'rw-rw----'"] {
            assert_eq!(problems(&with_mode(mode)), digits, "{mode}");
        }
        for mode in ["'1777'", "'7777777777777777'"] {
            assert!(problems(&with_mode(mode)).contains("must be from \"0000\" to \"0777\""), "{mode}");
        }
    }

    #[test]
    fn a_token_needs_a_tcp_listener_and_a_tcp_listener_needs_a_token() {
        let rule = "[[policy]]\nkeyrings = '*'\noperations = '*'\ntoken = true";
        assert_eq!(problems_with(rule), "c.toml:6: policy[0].token: needs listen.tcp: only TCP callers show a token");
        let listen = |more: &str| problems(&format!("{more}\n{}", MINIMAL.trim()));
        assert_eq!(listen("listen.token_file = 't'"), "c.toml:1: listen.token_file: has no use without listen.tcp");
        assert_eq!(listen("listen.tcp = '127.0.0.1:1'"), "c.toml:1: listen.token_file: is required with listen.tcp");
    }

    #[test]
    fn body_memory_holds_at_least_the_longest_body() {
        let message = "must hold the longest body: at least as much as limits.body and limits.json_body";
        for limits in ["body_memory = '3MiB'", "body_memory = '5MiB'\njson_body = '6MiB'"] {
            assert_eq!(problems_with(&format!("[limits]\n{limits}")), format!("c.toml:4: limits.body_memory: {message}"));
        }
        let s = parsed(&format!("{}\nlimits.body_memory = '4MiB'", MINIMAL.trim()));
        assert_eq!(s.limits.body_memory, 4 << 20);
    }

    #[test]
    fn a_level_is_a_tracing_filter() {
        assert!(problems_with("log.level = 'sidekey=loud'").starts_with("c.toml:3: log.level: write a level such as \"info\""));
        assert_eq!(problems_with("log.level = ''"), "c.toml:3: log.level: must not be empty");
    }

    #[test]
    fn the_directives_of_a_level_may_have_space_around_them() {
        let s = parsed(&format!("{}\nlog.level = ' info, sidekey=debug '", MINIMAL.trim()));
        assert_eq!(s.log.filter, "info,sidekey=debug");
        assert!(problems_with("log.level = ' a\u{a42}=loud'").starts_with("c.toml:3: log.level: write a level"));
    }

    #[test]
    fn integers_beyond_any_type_are_out_of_range() {
        let workers = format!("runtime.workers = {}", "9".repeat(60));
        assert_eq!(problems_with(&workers), "c.toml:3: runtime.workers: must be from 1 to 256");
        assert_eq!(problems_with("limits.body = -1"), "c.toml:3: limits.body: must be from 1 to 16MiB");
        assert_eq!(parsed(&format!("{}\nruntime.workers = 0x10", MINIMAL.trim())).runtime.workers, Some(16));
    }

    #[test]
    fn a_keyring_table_that_isnt_an_array_is_told_how_to_become_one() {
        assert_eq!(
            problems("[listen]\nsocket = 's'\n[keyring]\nname = 'a'"),
            "c.toml:3: keyring: expected an array of tables, each headed [[keyring]], found a table"
        );
    }

    #[test]
    fn loading_names_the_file_that_cant_be_read() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("none.toml");
        let error = load(&file).expect_err("no file").to_string();
        assert!(error.starts_with(&format!("can't read {}: ", file.display())), "{error}");

        fs::write(&file, MINIMAL).expect("written");
        assert_eq!(load(&file).expect("settings").listen.socket, folder.path().join("sidekey.sock"));
        fs::write(&file, "wave = 1").expect("written");
        assert!(matches!(load(&file), Err(LoadError::Invalid(problems)) if problems.items.len() == 3));
    }

    const TEXT_KEYS: [&str; 6] = ["wave", "listen.mode", "ops.listen", "limits.body", "timeouts.idle", "log.level"];

    /// Pieces of valid files, so that random text gets past the TOML parser.
    fn almost_toml() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            sample::select(FULL.lines().collect::<Vec<_>>()).prop_map(str::to_owned),
            ("[a-z_.\"]{1,12}", "[-a-z0-9\"'\\[\\]{}=,.:_+]{0,12}").prop_map(|(key, value)| format!("{key} = {value}")),
            (sample::select(FULL.lines().collect::<Vec<_>>()), any::<sample::Index>(), any::<char>()).prop_map(
                |(line, at, c)| {
                    let mut chars: Vec<char> = line.chars().collect();
                    chars.insert(at.index(chars.len() + 1), c);
                    chars.into_iter().collect()
                }
            ),
        ];
        collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
    }

    fn check_answer(text: &str) {
        let Err(problems) = parse(Path::new("c.toml"), text) else { return };
        assert!(!problems.items.is_empty());
        assert!(problems.items.is_sorted_by_key(|problem| problem.line));
        assert!(problems.items.iter().all(|problem| (1..=text.matches('\n').count() + 1).contains(&problem.line)));
        assert_eq!(problems.to_string().split('\n').count(), problems.items.len(), "one line each");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            check_answer(&text);
        }

        #[test]
        fn almost_any_toml_is_answered(text in almost_toml()) {
            check_answer(&text);
        }

        #[test]
        fn any_level_is_answered(value in r"[ ,=\[\]{}a-f\u{a42}*\\(.|]{0,24}") {
            check_answer(&format!("log.level = '{value}'"));
        }

        #[test]
        fn any_text_of_a_setting_is_answered(key in sample::select(&TEXT_KEYS[..]), value in any::<String>()) {
            let value = value.replace(|c: char| c.is_control() || c == '\'', "");
            check_answer(&format!("{key} = '{value}'"));
        }
    }
}
