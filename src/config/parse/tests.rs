use std::time::Duration;

use proptest::{collection, prelude::*, sample};

use super::*;
#[cfg(feature = "tls")]
use crate::config::TlsVersion;
use crate::{
    config::{AzureLogin, Backends, Confirm, LogFormat, VaultLogin},
    model::{KekScope, Location, Operation},
};

const FILE: &str = "/etc/sidekey/sidekey.toml";

const MINIMAL: &str = r#"
        listen.socket = "sidekey.sock"
        keyring = [{ name = "orders", location = "orders.json", keks = ["local:kek"] }]
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
hedge = "8s"
cache_dir = "copies"
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
keks = ["local:keks/*", "aws-kms:alias/users"]

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
    parse(Path::new("c.toml"), text)
        .expect_err("no problem")
        .to_string()
}

/// Returns the problems of the minimal file followed by `more`.
fn problems_with(more: &str) -> String {
    problems(&format!("{}\n{more}", MINIMAL.trim()))
}

#[test]
fn a_full_file_sets_every_value() {
    let s = parsed(FULL);
    assert_eq!(s.wave.as_str(), "canary");

    assert_eq!(s.listen.socket, Path::new("/run/sidekey/sidekey.sock"));
    assert_eq!(
        (
            s.listen.mode,
            s.listen.owner.as_deref(),
            s.listen.group.as_deref()
        ),
        (0o600, Some("app"), Some("1000"))
    );
    let tcp = s.listen.tcp.expect("tcp");
    assert_eq!(
        (tcp.address.to_string().as_str(), tcp.token_file.as_path()),
        ("[::1]:8200", Path::new("/etc/sidekey/token"))
    );
    assert_eq!(s.ops.listen.to_string(), "0.0.0.0:9000");

    let Limits {
        body,
        json_body,
        body_memory,
        batch_items,
        connections,
        header_bytes,
        streams,
    } = s.limits;
    assert_eq!(
        (body, json_body, body_memory),
        (2 << 20, 8 << 20, 128 << 20)
    );
    assert_eq!(
        (batch_items, connections, header_bytes, streams),
        (10, 20, 8 << 10, 30)
    );

    let Timeouts {
        header,
        body,
        idle,
        drain,
    } = s.timeouts;
    assert_eq!(
        [header, body, idle, drain].map(|d| d.as_secs()),
        [1, 2, 90, 86_400]
    );
    assert_eq!(
        (s.log.format, s.log.filter.as_str()),
        (LogFormat::Json, "info,sidekey=debug")
    );

    let Refresh {
        poll,
        read_timeout,
        kek_timeout,
        unknown_interval,
        miss_ttl,
        manifest_bytes,
        max_backoff,
        hedge,
        cache_dir,
    } = s.refresh;
    assert_eq!(cache_dir.as_deref(), Some(Path::new("/etc/sidekey/copies")));
    assert_eq!(
        (poll, manifest_bytes),
        (Duration::from_millis(100), 32 << 20)
    );
    assert_eq!(
        [
            read_timeout,
            kek_timeout,
            unknown_interval,
            miss_ttl,
            max_backoff,
            hedge
        ]
        .map(|d| d.as_secs()),
        [3, 4, 5, 6, 7, 8]
    );
    assert_eq!(s.runtime.workers, Some(2));
}

#[test]
fn an_audit_log_has_one_sink() {
    use crate::config::AuditSink;
    let audit = |more: &str| parsed(&format!("{}\n[audit]\n{more}", MINIMAL.trim())).audit;
    assert!(audit("").is_none());
    let file = audit("file = \"/log\"\nkey_file = \"/key\"").expect("a log");
    assert_eq!(
        (file.sink, file.key_file.as_deref()),
        (AuditSink::File("/log".into()), Some(Path::new("/key")))
    );
    assert_eq!(
        audit("stdout = true").expect("a log").sink,
        AuditSink::Stdout
    );
    let both = problems_with("[audit]\nfile = \"/log\"\nstdout = true");
    assert!(
        both.contains("audit: file and stdout = true are mutually exclusive"),
        "{both}"
    );
    let neither = problems_with("[audit]\nkey_file = \"/key\"");
    assert!(
        neither.contains("audit.file: is required with key_file"),
        "{neither}"
    );
}

#[test]
fn a_full_file_defines_keyrings_and_policy() {
    let s = parsed(FULL);
    let [orders, users] = &s.keyrings[..] else {
        panic!("{:?}", s.keyrings)
    };
    assert_eq!(
        (orders.name.as_str(), orders.confirm, orders.min_generation),
        ("orders", Confirm::Stamp, u64::MAX)
    );
    assert_eq!(
        orders.location,
        Location::File("/etc/sidekey/orders.json".into())
    );
    assert_eq!(
        orders
            .trusted_signers
            .iter()
            .map(|signer| signer.0)
            .collect::<Vec<_>>(),
        [[0; 32]]
    );
    assert_eq!(orders.wave.as_ref().map(Wave::as_str), Some("critical"));
    let kek = |uri: &str| users.keks.covers(&uri.parse().expect("URI"));
    assert!(
        kek("local:/etc/sidekey/keks/one")
            && kek("aws-kms:alias/users")
            && !kek("aws-kms:alias/orders")
    );
    assert_eq!(orders.keks, KekScope::Any);
    assert_eq!(users.location, Location::File("/var/lib/users.json".into()));

    let [named, every] = &s.policy[..] else {
        panic!("{:?}", s.policy)
    };
    assert_eq!(named.keyrings.as_deref(), Some(&[orders.name.clone()][..]));
    assert_eq!(named.operations, [Operation::Encrypt, Operation::Inspect]);
    assert_eq!(
        (&named.uids[..], &named.gids[..], named.token),
        (&[1000, 0][..], &[0, 7][..], false)
    );
    // An operation that hands out a key must be named.
    let implied = [
        Operation::Encrypt,
        Operation::Decrypt,
        Operation::Rewrap,
        Operation::Inspect,
    ];
    assert_eq!(
        (
            every.keyrings.as_deref(),
            &every.operations[..],
            every.token
        ),
        (None, &implied[..], true)
    );
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let s = parsed(MINIMAL);
    assert_eq!((s.wave.as_str(), s.listen.mode), ("standard", 0o660));
    assert!(s.listen.owner.is_none() && s.listen.group.is_none() && s.listen.tcp.is_none());
    assert_eq!(s.ops.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(
        format!("{:?}", s.limits),
        format!("{:?}", Limits::default())
    );
    assert_eq!(
        format!("{:?}", s.timeouts),
        format!("{:?}", Timeouts::default())
    );
    assert_eq!(format!("{:?}", s.log), format!("{:?}", Log::default()));
    assert_eq!(
        format!("{:?}", s.refresh),
        format!("{:?}", Refresh::default())
    );
    assert_eq!(s.runtime.workers, None);
    let [keyring] = &s.keyrings[..] else {
        panic!("{:?}", s.keyrings)
    };
    assert_eq!(
        (keyring.confirm, keyring.min_generation, &keyring.wave),
        (Confirm::Read, 0, &None)
    );
    assert!(keyring.trusted_signers.is_empty() && s.policy.is_empty());
}

#[test]
fn all_problems_of_a_file_are_reported_at_once_by_line() {
    let text = r#"wave = "Canary"
[listen]
sokcet = "sidekey.sock"
mode = 660
tcp = "192.0.2.1:8200"
[limits]
body = "17MiB"
json_body = true
body_memory = "1MiB"
[timeouts]
idle = "2d"
[log]
format = "xml"
[runtime]
workers = 0
[[keyring]]
name = "orders"
location = "orders.json"
keks = ["local:kek"]
[[keyring]]
name = "orders"
location = "s4:bucket"
keks = ["local:*kek"]
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
    let expected = "
c.toml:1: wave: invalid value \"Canary\": a name has 1 to 63 characters of a-z, 0-9, '.', '_' and \
'-', and begins with a letter or digit
c.toml:2: listen.socket: is required
c.toml:2: listen.token_file: is required with listen.tcp
c.toml:3: listen.sokcet: unknown key; did you mean `socket`?
c.toml:4: listen.mode: expected a string of octal digits such as \"0660\", found an integer
c.toml:5: listen.tcp: 192.0.2.1 is not a loopback address; use 127.0.0.1 or [::1]
c.toml:7: limits.body: must be between 1 and 16MiB, found \"17MiB\"
c.toml:8: limits.json_body: expected an integer or a string such as \"1MiB\", found a boolean
c.toml:11: timeouts.idle: must be between 1ns and 1d, found \"2d\"
c.toml:13: log.format: expected \"text\" or \"json\", found \"xml\"
c.toml:15: runtime.workers: must be between 1 and 256, found 0
c.toml:21: keyring[1].name: duplicate keyring \"orders\", already defined on line 17
c.toml:22: keyring[1].location: unknown scheme `s4:` of a manifest location; expected one of \
file:, vault-kv:, aws-sm:, s3://, https://
c.toml:23: keyring[1].keks[0]: `*` is only allowed at the end, after `:` or `/`
c.toml:25: policy[0].keyrings[1]: unknown keyring \"order\"; no [[keyring]] has this name
c.toml:26: policy[0].operations: expected an array or \"*\", found a string
c.toml:29: policy[0].uids[1]: no such user: \"no such user\"
c.toml:30: policy[0].uids[2]: must be between 0 and 4294967294, found -1
c.toml:32: policy[1]: matches no caller; set uids, gids or token = true
c.toml:34: policy[1].operations[0]: expected one of \"encrypt\", \"decrypt\", \
\"rewrap\", \"data-key\", \"inspect\", found \"seal\"
";
    assert_eq!(problems(text), expected.trim());
}

#[test]
fn an_empty_file_lacks_a_socket_and_something_to_serve() {
    let expected = "c.toml:1: listen.socket: is required\n\
                    c.toml:1: keyring: at least one [[keyring]] or [[secret]] is required";
    assert_eq!(problems(""), expected);
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_key_or_with_all() {
    assert_eq!(
        problems_with("[refersh]"),
        "c.toml:3: refersh: unknown key; did you mean `refresh`?"
    );
    assert_eq!(
        problems_with("[ops]\n'a\tb' = 1"),
        "c.toml:4: ops.\"a\\tb\": unknown key; expected one of: listen, tls"
    );
}

#[test]
fn a_syntax_error_has_its_line_and_doesnt_hide_other_problems() {
    let text = "[listen]\nsocket = sidekey.sock\nmode = 5\n[runtime]\nworkers = 0\n";
    let found = parse(Path::new("c.toml"), text)
        .expect_err("no problem")
        .items;
    assert_eq!(
        found
            .iter()
            .map(|p| (p.line, p.key.as_str()))
            .collect::<Vec<_>>(),
        [(2, ""), (3, "listen.mode"), (5, "runtime.workers"),]
    );
}

#[test]
fn after_a_syntax_error_nothing_is_reported_missing() {
    let found = parse(Path::new("c.toml"), "[listen\nsocket = 'a'\n").expect_err("no problem");
    assert!(
        found
            .items
            .iter()
            .all(|problem| !problem.message.contains("required")),
        "{found}"
    );
    assert_eq!((found.items[0].line, found.items[0].key.as_str()), (1, ""));
}

#[test]
fn a_repeated_key_is_a_syntax_error_on_its_second_line() {
    assert_eq!(
        problems_with("[log]\nlevel = 'info'\nlevel = 'warn'"),
        "c.toml:5: duplicate key"
    );
}

#[test]
fn relative_paths_resolve_against_the_files_folder() {
    let s = parsed(MINIMAL);
    assert_eq!(s.listen.socket, Path::new("/etc/sidekey/sidekey.sock"));
    assert_eq!(
        s.keyrings[0].location,
        Location::File("/etc/sidekey/orders.json".into())
    );

    let here = std::env::current_dir().expect("working directory");
    let s = parse(Path::new("sidekey.toml"), MINIMAL).expect("settings");
    assert_eq!(
        s.keyrings[0].location,
        Location::File(here.join("orders.json"))
    );
}

#[test]
fn a_sockets_whole_path_has_at_most_107_bytes() {
    let with_socket = |length: usize| {
        MINIMAL.replace("sidekey.sock", &"s".repeat(length - "/etc/sidekey/".len()))
    };
    assert_eq!(
        parsed(&with_socket(107)).listen.socket.as_os_str().len(),
        107
    );
    let problems = parse(Path::new(FILE), &with_socket(108))
        .expect_err("too long")
        .to_string();
    assert!(
        problems.ends_with("is 108 bytes long; a socket path has at most 107 bytes"),
        "{problems}"
    );
}

#[test]
fn a_mode_is_a_string_of_octal_digits_within_the_permission_bits() {
    let with_mode = |mode: &str| {
        format!(
            "[[keyring]]\nname = 'a'\nlocation = 'a'\nkeks = ['local:k']\n\
             [listen]\nsocket = 's'\nmode = {mode}"
        )
    };
    assert_eq!(parsed(&with_mode("'0777'")).listen.mode, 0o777);
    assert_eq!(parsed(&with_mode("'600'")).listen.mode, 0o600);
    for mode in ["", "0o660", "+660", "0680", "rw-rw----"] {
        assert_eq!(
            problems(&with_mode(&format!("'{mode}'"))),
            format!(
                "c.toml:7: listen.mode: expected octal digits such as \"0660\", found {mode:?}"
            ),
        );
    }
    for mode in ["'1777'", "'7777777777777777'"] {
        assert!(
            problems(&with_mode(mode)).contains("must be between \"0000\" and \"0777\""),
            "{mode}"
        );
    }
}

#[test]
fn a_token_requires_a_tcp_listener_and_the_other_way_round() {
    let rule = "[[policy]]\nkeyrings = '*'\noperations = '*'\ntoken = true";
    assert_eq!(
        problems_with(rule),
        "c.toml:6: policy[0].token: requires listen.tcp; only TCP callers present a token"
    );
    let listen = |more: &str| problems(&format!("{more}\n{}", MINIMAL.trim()));
    assert_eq!(
        listen("listen.token_file = 't'"),
        "c.toml:1: listen.token_file: has no effect without listen.tcp"
    );
    assert_eq!(
        listen("listen.tcp = '127.0.0.1:1'"),
        "c.toml:1: listen.token_file: is required with listen.tcp"
    );
}

#[test]
fn body_memory_holds_at_least_the_longest_body() {
    let message = "must hold the longest body: at least 2 * limits.body + 194 KiB, and \
                   3 * limits.json_body";
    for limits in [
        "body_memory = '11MiB'",
        "body_memory = '5MiB'\njson_body = '2MiB'",
        "body_memory = '12MiB'\nbody = '6MiB'",
    ] {
        assert_eq!(
            problems_with(&format!("[limits]\n{limits}")),
            format!("c.toml:4: limits.body_memory: {message}")
        );
    }
    let s = parsed(&format!("{}\nlimits.body_memory = '12MiB'", MINIMAL.trim()));
    assert_eq!(s.limits.body_memory, 12 << 20);
}

#[test]
fn a_level_is_a_tracing_filter() {
    assert!(
        problems_with("log.level = 'sidekey=loud'")
            .starts_with("c.toml:3: log.level: expected a level such as \"info\"")
    );
    assert_eq!(
        problems_with("log.level = ''"),
        "c.toml:3: log.level: must not be empty"
    );
}

#[test]
fn the_directives_of_a_level_may_have_space_around_them() {
    let s = parsed(&format!(
        "{}\nlog.level = ' info, sidekey=debug '",
        MINIMAL.trim()
    ));
    assert_eq!(s.log.filter, "info,sidekey=debug");
    assert!(
        problems_with("log.level = ' a\u{a42}=loud'")
            .starts_with("c.toml:3: log.level: expected a level")
    );
}

#[test]
fn integers_that_exceed_their_type_are_out_of_range() {
    let huge = "9".repeat(60);
    assert_eq!(
        problems_with(&format!("runtime.workers = {huge}")),
        format!("c.toml:3: runtime.workers: must be between 1 and 256, found {huge}")
    );
    assert_eq!(
        problems_with("limits.body = -1"),
        "c.toml:3: limits.body: must be between 1 and 16MiB, found -1"
    );
    assert_eq!(
        parsed(&format!("{}\nruntime.workers = 0x10", MINIMAL.trim()))
            .runtime
            .workers,
        Some(16)
    );
}

#[test]
fn keks_are_required_unless_signers_vouch_for_the_manifest() {
    let keyring = |more: &str| {
        format!("listen.socket = 's'\n[[keyring]]\nname = 'a'\nlocation = 'a'\n{more}")
    };
    assert!(
        problems(&keyring(""))
            .starts_with("c.toml:2: keyring[0].keks: is required without trusted_signers")
    );
    assert_eq!(
        problems(&keyring("keks = []")),
        "c.toml:5: keyring[0].keks: must list at least one KEK"
    );
    let signed = parsed(&keyring(
        "trusted_signers = ['ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=']",
    ));
    assert_eq!(signed.keyrings[0].keks, KekScope::Any);
}

#[test]
fn a_keyring_that_is_no_array_is_told_the_syntax() {
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
    assert!(
        error.starts_with(&format!("can't read {}: ", file.display())),
        "{error}"
    );

    fs::write(&file, MINIMAL).expect("written");
    assert_eq!(
        load(&file).expect("settings").listen.socket,
        folder.path().join("sidekey.sock")
    );
    fs::write(&file, "wave = 1").expect("written");
    assert!(matches!(load(&file), Err(LoadError::Invalid(problems)) if problems.items.len() == 3));
}

const TEXT_KEYS: [&str; 6] = [
    "wave",
    "listen.mode",
    "ops.listen",
    "limits.body",
    "timeouts.idle",
    "log.level",
];

/// Lines of valid files, so that random text gets past the TOML parser.
fn almost_toml() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        sample::select(FULL.lines().collect::<Vec<_>>()).prop_map(str::to_owned),
        ("[a-z_.\"]{1,12}", "[-a-z0-9\"'\\[\\]{}=,.:_+]{0,12}")
            .prop_map(|(key, value)| format!("{key} = {value}")),
        (
            sample::select(FULL.lines().collect::<Vec<_>>()),
            any::<sample::Index>(),
            any::<char>()
        )
            .prop_map(|(line, at, c)| {
                let mut chars: Vec<char> = line.chars().collect();
                chars.insert(at.index(chars.len() + 1), c);
                chars.into_iter().collect()
            }),
    ];
    collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

fn check_answer(text: &str) {
    let Err(problems) = parse(Path::new("c.toml"), text) else {
        return;
    };
    assert!(!problems.items.is_empty());
    assert!(problems.items.is_sorted_by_key(|problem| problem.line));
    assert!(
        problems
            .items
            .iter()
            .all(|problem| (1..=text.matches('\n').count() + 1).contains(&problem.line))
    );
    assert_eq!(
        problems.to_string().split('\n').count(),
        problems.items.len(),
        "one line each"
    );
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
    fn any_text_of_a_setting_is_answered(
        key in sample::select(&TEXT_KEYS[..]),
        value in any::<String>(),
    ) {
        let value = value.replace(|c: char| c.is_control() || c == '\'', "");
        check_answer(&format!("{key} = '{value}'"));
    }
}

#[test]
fn backend_sections_are_read() {
    let text = format!(
        "{}\n{}",
        MINIMAL.trim(),
        r#"
[vault]
address = "https://vault:8200"
namespace = "payments"
ca_file = "ca.pem"
client_certificate = "tls.pem"
client_key = "tls.key"
[vault.login]
method = "kubernetes"
role = "orders"
[aws]
region = "eu-west-1"
fips = true
[azure]
login = "managed-identity"
authority = "https://login.microsoftonline.us"
[pkcs11]
module = "/lib/hsm.so"
[local]
passphrase_file = "passphrase"
[web]
ca_file = "/etc/ca.pem"
[backends]
plain_http = ["vault.internal"]
local_keks = true
"#
    );
    let Backends {
        vault,
        aws,
        azure,
        pkcs11,
        local,
        web,
        plain_http,
        local_keks,
    } = parsed(&text).backends;
    assert_eq!(
        vault.ca_file.as_deref(),
        Some(Path::new("/etc/sidekey/ca.pem"))
    );
    let token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token".into();
    assert_eq!(
        vault.login,
        VaultLogin::Jwt {
            mount: "kubernetes".into(),
            role: "orders".into(),
            token_file
        }
    );
    assert_eq!((aws.region.as_deref(), aws.fips), (Some("eu-west-1"), true));
    assert_eq!(
        (azure.login, azure.verify_challenge),
        (Some(AzureLogin::ManagedIdentity), true)
    );
    assert_eq!(pkcs11.module.as_deref(), Some(Path::new("/lib/hsm.so")));
    assert_eq!(
        local.passphrase_file.as_deref(),
        Some(Path::new("/etc/sidekey/passphrase"))
    );
    assert_eq!(web.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(
        (plain_http, local_keks),
        (vec!["vault.internal".to_owned()], true)
    );
}

#[test]
fn a_login_lacks_what_its_method_requires() {
    assert_eq!(
        problems_with("[vault.login]"),
        "c.toml:3: vault.login.method: is required"
    );
    let login = |more: &str| problems_with(&format!("[vault.login]\nmethod = {more}"));
    assert_eq!(
        login("'approle'"),
        "c.toml:3: vault.login.role_id: is required\n\
         c.toml:3: vault.login.secret_id_file: is required"
    );
    assert_eq!(
        login("'jwt'\ntoken_file = 't'"),
        "c.toml:3: vault.login.role: is required"
    );
    assert!(login("'token-file'\ntoken_file = 't'\nrole = 'r'").contains("unknown key"));
    assert!(login("'userpass'").contains("expected one of \"token-file\", \"approle\""));
    let pair = "c.toml:3: vault: client_certificate and client_key must be set together";
    assert_eq!(problems_with("[vault]\nclient_key = 'k'"), pair);
}

#[cfg(feature = "tls")]
#[test]
fn tls_has_a_certificate_and_a_key_and_may_require_client_names() {
    let s = parsed(&format!(
        "{MINIMAL}
        listen.tcp = \"127.0.0.1:0\"
        listen.token_file = \"token\"
        listen.tls = {{ certificate = \"tls/tls.crt\", key = \"/run/tls.key\" }}
        [ops.tls]
        certificate = \"tls.crt\"
        key = \"tls.key\"
        client_ca = \"ca.crt\"
        client_names = [\"Ops.example.com\", \"spiffe://example.org/ns/*\"]
        min_version = \"1.2\""
    ));
    let tcp = s.listen.tcp.and_then(|tcp| tcp.tls).expect("tls");
    assert_eq!(
        (tcp.certificate.as_path(), tcp.key.as_path()),
        (
            Path::new("/etc/sidekey/tls/tls.crt"),
            Path::new("/run/tls.key")
        )
    );
    assert!(tcp.clients.is_none() && tcp.min_version == TlsVersion::V1_3);
    let ops = s.ops.tls.expect("tls");
    let clients = ops.clients.expect("clients");
    assert_eq!(clients.ca, Path::new("/etc/sidekey/ca.crt"));
    let names: Vec<_> = clients.names.iter().map(ToString::to_string).collect();
    assert_eq!(
        (names, ops.min_version),
        (
            vec!["ops.example.com".into(), "spiffe://example.org/ns/*".into()],
            TlsVersion::V1_2
        )
    );
}

#[cfg(feature = "tls")]
#[test]
fn all_problems_of_tls_are_reported_at_once() {
    let found = problems_with(
        "listen.tls = { certificate = 1, key = \"\" }
        [ops.tls]
        certificat = \"tls.crt\"
        client_names = [\"*\"]
        min_version = \"1.1\"",
    );
    for expected in [
        "listen.tls.certificate: expected a string, found an integer",
        "listen.tls.key: must not be empty",
        "ops.tls.certificate: is required",
        "ops.tls.key: is required",
        "ops.tls.certificat: unknown key; did you mean `certificate`?",
        "ops.tls.client_names[0]: invalid value \"*\": expected a DNS name",
        "ops.tls.min_version: expected \"1.2\" or \"1.3\", found \"1.1\"",
    ] {
        assert!(found.contains(expected), "{expected} is not in\n{found}");
    }
    let found =
        problems_with("listen.tls = { certificate = \"c\", key = \"k\", client_names = [\"a\"] }");
    assert!(
        found.contains("listen.tls.client_names: has no effect without client_ca"),
        "{found}"
    );
    let found = problems_with("listen.tls = { certificate = \"c\", key = \"k\" }");
    assert!(
        found.contains("listen.tcp: is required with listen.tls"),
        "{found}"
    );
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_so() {
    let found = problems_with("ops.tls = { certificate = \"c\", key = \"k\" }");
    assert!(found.contains("ops.tls: this build lacks TLS"), "{found}");
}

#[test]
fn the_memory_for_bodies_must_hold_the_longest_secret() {
    let limits = "listen.socket = \"s\"\nlimits.body = \"64KiB\"\n\
                  limits.json_body = \"64KiB\"\nlimits.body_memory = \"400KiB\"\n";
    let keyring = "[[keyring]]\nname = \"a\"\nlocation = \"a.json\"\nkeks = [\"local:*\"]\n";
    parse(Path::new("c.toml"), &format!("{limits}{keyring}")).expect("no secret");
    let secret = "[[secret]]\nname = \"a\"\nsource = \"file:a\"\n";
    let error = parse(Path::new("c.toml"), &format!("{limits}{secret}"))
        .expect_err("too little")
        .to_string();
    assert!(error.contains("three times secrets.value_bytes"), "{error}");
    parse(
        Path::new("c.toml"),
        &format!("{limits}secrets.value_bytes = \"100KiB\"\n{secret}"),
    )
    .expect("enough");
}
