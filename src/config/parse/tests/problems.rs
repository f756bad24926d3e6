use super::*;

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
        "c.toml:4: ops.\"a\\tb\": unknown key; expected one of: listen, hosts, tls"
    );
}

#[test]
fn no_rule_can_be_for_users_that_are_not_mapped() {
    for key in ["uids", "gids"] {
        let rule = format!("[[policy]]\nkeyrings = \"*\"\noperations = \"*\"\n{key} = [1, 65534]");
        let found = problems_with(&rule);
        let expected = format!("c.toml:6: policy[0].{key}[1]: 65534 stands for every ");
        assert!(found.starts_with(&expected), "{found}");
    }
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
