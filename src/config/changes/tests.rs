use std::path::Path;

use super::*;
use crate::config::parse;

/// A config with every table, as tables and their lines.
const BASE: &[(&str, &[&str])] = &[
    ("", &["wave = \"standard\""]),
    (
        "[listen]",
        &[
            "socket = \"s\"",
            "tcp = \"127.0.0.1:8200\"",
            "token_file = \"token\"",
        ],
    ),
    ("[ops]", &[]),
    ("[limits]", &[]),
    ("[timeouts]", &[]),
    ("[log]", &[]),
    ("[audit]", &["file = \"audit.log\""]),
    (
        "[hub]",
        &[
            "url = \"http://127.0.0.1:1\"",
            "name = \"a\"",
            "workload = \"shop\"",
        ],
    ),
    ("[refresh]", &[]),
    ("[runtime]", &[]),
    ("[secrets]", &[]),
    ("[aws]", &[]),
    ("[azure]", &[]),
    ("[vault]", &[]),
    ("[web]", &[]),
    ("[local]", &[]),
    ("[pkcs11]", &[]),
    ("[backends]", &[]),
    (
        "[[keyring]]",
        &[
            "name = \"demo\"",
            "location = \"demo.json\"",
            "keks = [\"local:kek\"]",
        ],
    ),
    ("[[secret]]", &["name = \"db\"", "source = \"file:db\""]),
    (
        "[[secret]] # family",
        &[
            "name = \"a-*\"",
            "source = \"file:a/*\"",
            "allow = [\"a-*\"]",
        ],
    ),
    ("[[render]]", &["file = \"out\"", "secret = \"db\""]),
    (
        "[[policy]]",
        &[
            "keyrings = \"*\"",
            "operations = [\"encrypt\"]",
            "uids = [1]",
        ],
    ),
];

const SIGNER: &str = "trusted_signers = [\"ed25519:Rhb7S1QDWihcPFgWzs3xieJUsZqK7640Cx1CQRUo7fo=\"]";

const FORWARD: &str = "forward = [{ to = \"syslog+tcp://siem:601\" }]";

/// A line of a table that differs, and the names of what needs a restart: none if it applies.
const CASES: &[(&str, &str, &[&str])] = &[
    ("", "wave = \"canary\"", &["wave"]),
    ("[listen]", "socket = \"t\"", &["listen.socket"]),
    ("[listen]", "mode = \"0600\"", &["listen.mode"]),
    ("[listen]", "owner = \"root\"", &["listen.owner"]),
    ("[listen]", "group = \"root\"", &["listen.group"]),
    (
        "[listen]",
        "refuse_writable_folder = true",
        &["listen.refuse_writable_folder"],
    ),
    ("[listen]", "tcp = \"127.0.0.1:1\"", &["listen.tcp"]),
    ("[listen]", "token_file = \"other\"", &["listen.tcp"]),
    (
        "[listen]",
        "tls = { certificate = \"c\", key = \"k\" }",
        &["listen.tcp"],
    ),
    ("[ops]", "listen = \"127.0.0.1:1\"", &["ops.listen"]),
    ("[ops]", "hosts = [\"sidekey\"]", &["ops.hosts"]),
    (
        "[ops]",
        "tls = { certificate = \"c\", key = \"k\" }",
        &["ops.tls"],
    ),
    ("[limits]", "body = \"2MiB\"", &["limits.body"]),
    ("[limits]", "json_body = \"2MiB\"", &["limits.json_body"]),
    (
        "[limits]",
        "body_memory = \"65MiB\"",
        &["limits.body_memory"],
    ),
    ("[limits]", "batch_items = 1", &["limits.batch_items"]),
    ("[limits]", "connections = 1", &["limits.connections"]),
    (
        "[limits]",
        "header_bytes = \"8KiB\"",
        &["limits.header_bytes"],
    ),
    ("[limits]", "streams = 1", &["limits.streams"]),
    ("[timeouts]", "header = \"1s\"", &["timeouts.header"]),
    ("[timeouts]", "body = \"1s\"", &["timeouts.body"]),
    ("[timeouts]", "idle = \"1s\"", &["timeouts.idle"]),
    (
        "[timeouts]",
        "drain_timeout = \"1s\"",
        &["timeouts.drain_timeout"],
    ),
    ("[log]", "format = \"json\"", &["log.format"]),
    ("[log]", "level = \"debug\"", &[]),
    ("[audit]", "file = \"other.log\"", &["audit"]),
    ("[audit]", "key_file = \"key\"", &["audit"]),
    ("[audit]", FORWARD, &[]),
    ("[hub]", "url = \"http://127.0.0.1:2\"", &["hub"]),
    ("[hub]", "token_file = \"other\"", &["hub"]),
    ("[refresh]", "poll = \"1s\"", &["refresh.poll"]),
    (
        "[refresh]",
        "read_timeout = \"1s\"",
        &["refresh.read_timeout"],
    ),
    (
        "[refresh]",
        "kek_timeout = \"1s\"",
        &["refresh.kek_timeout"],
    ),
    (
        "[refresh]",
        "unknown_interval = \"1s\"",
        &["refresh.unknown_interval"],
    ),
    ("[refresh]", "miss_ttl = \"2s\"", &["refresh.miss_ttl"]),
    ("[refresh]", "hedge = \"1s\"", &["refresh.hedge"]),
    (
        "[refresh]",
        "max_backoff = \"1s\"",
        &["refresh.max_backoff"],
    ),
    ("[refresh]", "cache_dir = \"cache\"", &["refresh.cache_dir"]),
    (
        "[refresh]",
        "manifest_bytes = \"1MiB\"",
        &["refresh.manifest_bytes"],
    ),
    ("[runtime]", "workers = 1", &["runtime.workers"]),
    ("[secrets]", "refresh = \"1s\"", &[]),
    ("[secrets]", "previous_ttl = \"1s\"", &[]),
    ("[secrets]", "stale_if_error = \"1s\"", &[]),
    ("[secrets]", "rotate_after = \"1s\"", &[]),
    ("[secrets]", "revoke = true", &[]),
    ("[secrets]", "miss_ttl = \"1s\"", &["secrets.miss_ttl"]),
    (
        "[secrets]",
        "force_interval = \"2s\"",
        &["secrets.force_interval"],
    ),
    (
        "[secrets]",
        "value_bytes = \"1KiB\"",
        &["secrets.value_bytes"],
    ),
    ("[secrets]", "wild_names = 1", &["secrets.wild_names"]),
    ("[aws]", "region = \"eu-west-1\"", &["aws"]),
    ("[azure]", "login = \"cli\"", &["azure"]),
    ("[vault]", "address = \"https://vault\"", &["vault"]),
    ("[web]", "ca_file = \"ca\"", &["web"]),
    ("[local]", "passphrase_file = \"p\"", &["local"]),
    ("[pkcs11]", "module = \"m.so\"", &["pkcs11"]),
    ("[backends]", "local_keks = true", &["backends.local_keks"]),
    (
        "[backends]",
        "plain_http = [\"vault\"]",
        &["backends.plain_http"],
    ),
    ("[[keyring]]", "keks = [\"local:other\"]", &[]),
    ("[[keyring]]", "min_generation = 2", &[]),
    ("[[keyring]]", SIGNER, &[]),
    ("[[keyring]]", "accept_lost = [1]", &[]),
    (
        "[[keyring]]",
        "name = \"other\"",
        &["keyring demo (removed)", "keyring other (added)"],
    ),
    (
        "[[keyring]]",
        "location = \"other.json\"",
        &["keyring demo: location"],
    ),
    (
        "[[keyring]]",
        "confirm = \"stamp\"",
        &["keyring demo: confirm"],
    ),
    ("[[keyring]]", "wave = \"canary\"", &["keyring demo: wave"]),
    ("[[secret]]", "source = \"file:other\"", &[]),
    ("[[secret]]", "required = true", &[]),
    ("[[secret]]", "refresh = \"1s\"", &[]),
    ("[[secret]] # family", "allow = [\"a-1\"]", &[]),
    ("[[render]]", "file = \"other\"", &[]),
    ("[[render]]", "field = \"a\"", &[]),
    ("[[render]]", "mode = \"0640\"", &[]),
    ("[[policy]]", "uids = [2]", &[]),
    ("[[policy]]", "operations = [\"decrypt\"]", &[]),
    ("[[policy]]", "secrets = [\"db\"]", &[]),
];

/// The settings of [`BASE`] with other lines.
fn settings(changes: &[(&str, &str)]) -> Settings {
    let key = |line: &str| line.split(" =").next().expect("a key").to_owned();
    let mut text = String::new();
    for (table, lines) in BASE {
        let own: Vec<&str> = changes
            .iter()
            .filter(|(changed, _)| changed == table)
            .map(|(_, line)| *line)
            .collect();
        let is_kept = |line: &&&str| own.iter().all(|other| key(other) != key(line));
        let kept = lines.iter().filter(is_kept).copied();
        let lines: Vec<&str> = [*table]
            .into_iter()
            .chain(kept)
            .chain(own.iter().copied())
            .collect();
        text += &(lines.join("\n") + "\n");
    }
    parse(Path::new("/etc/sidekey.toml"), &text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_setting_is_either_taken_over_or_named() {
    let running = settings(&[]);
    for (table, line, names) in CASES {
        let wanted = settings(&[(table, line)]);
        assert_ne!(running, wanted, "{table} {line} is no change");
        let changes = changes(&running, wanted.clone());
        assert_eq!(changes.needs_restart, *names, "{table} {line}");
        let expected = if names.is_empty() { &wanted } else { &running };
        assert_eq!(changes.settings, *expected, "{table} {line}");
        let again = super::changes(&changes.settings, wanted);
        assert_eq!(again.needs_restart, *names, "{line}: named until a restart");
        let back = super::changes(&changes.settings, running.clone());
        assert!(
            back.needs_restart.is_empty(),
            "{line}: nothing left to name"
        );
    }
}

#[test]
fn what_applies_is_taken_over_although_something_else_needs_a_restart() {
    let running = settings(&[]);
    let policy = ("[[policy]]", "uids = [2]");
    let log = ("[log]", "level = \"debug\"");
    let wanted = settings(&[policy, log, ("[limits]", "streams = 1")]);
    let changes = changes(&running, wanted);
    assert_eq!(changes.needs_restart, ["limits.streams"]);
    assert_eq!(changes.settings, settings(&[policy, log]));
}

#[test]
fn secrets_and_renders_wait_for_the_backends_that_they_may_be_meant_for() {
    let running = settings(&[]);
    let policy = ("[[policy]]", "uids = [2]");
    let wanted = settings(&[
        policy,
        ("[vault]", "address = \"https://other\""),
        ("[[secret]]", "source = \"vault-kv:secret/db\""),
        ("[[render]]", "mode = \"0640\""),
    ]);
    let changes = changes(&running, wanted);
    assert_eq!(changes.needs_restart, ["vault", "secret", "render"]);
    assert_eq!(changes.settings, settings(&[policy]));
}

#[test]
fn keyrings_may_come_in_another_order() {
    let keyring = |name: &str| Keyring {
        name: name.parse().expect("a name"),
        ..settings(&[]).keyrings[0].clone()
    };
    let of = |names: &[&str]| Settings {
        keyrings: names.iter().map(|name| keyring(name)).collect(),
        ..settings(&[])
    };
    let changes = changes(&of(&["a", "b"]), of(&["b", "a"]));
    assert!(changes.needs_restart.is_empty());
    assert_eq!(changes.settings, of(&["a", "b"]));
}
