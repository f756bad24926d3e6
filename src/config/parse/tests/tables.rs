use super::*;
#[cfg(feature = "tls")]
use crate::config::TlsVersion;
use crate::{
    config::{AuditSink, AzureLogin, Content, VaultLogin},
    model::KekScope,
};

#[test]
fn an_audit_log_has_one_sink() {
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

#[cfg(all(feature = "tls", feature = "https-client"))]
#[test]
fn copies_of_audit_records_go_to_distinct_collectors() {
    let forward = |more: &str| format!("[audit]\nfile = \"/log\"\n[[audit.forward]]\n{more}");
    let valid = forward(
        "to = \"syslog+tls://siem:6514\"\nca_file = \"ca\"\ncertificate_file = \"c\"\n\
         key_file = \"k\"\n[[audit.forward]]\nto = \"https://siem/a?b\"\n\
         authorization_file = \"token\"\n",
    );
    let settings = parsed(&format!("{}\n{valid}", MINIMAL.trim()));
    let forwards = settings.audit.expect("a log").forwards;
    let names: Vec<String> = forwards.iter().map(|one| one.to.to_string()).collect();
    assert_eq!(names, ["syslog+tls://siem:6514", "https://siem"]);
    assert!(forwards[0].certificate.is_some() && forwards[1].authorization_file.is_some());
    for (more, expected) in [
        ("", "audit.forward[0].to: is required"),
        (
            "to = \"siem\"",
            "audit.forward[0].to: expected syslog+tls://",
        ),
        (
            "to = \"syslog+tcp://siem:601\"\nca_file = \"ca\"",
            "audit.forward[0].ca_file: has no effect without TLS",
        ),
        (
            "to = \"syslog+tls://siem:6514\"\nkey_file = \"k\"",
            "audit.forward[0].key_file: requires certificate_file",
        ),
        (
            "to = \"syslog+tls://siem:6514\"\nauthorization_file = \"t\"",
            "audit.forward[0].authorization_file: has no effect with syslog",
        ),
        (
            "to = \"https://siem/a\"\n[[audit.forward]]\nto = \"https://siem/b\"",
            "audit: two collectors are at https://siem",
        ),
    ] {
        let found = problems_with(&forward(more));
        assert!(found.contains(expected), "{found}");
    }
    let found = problems_with("[[audit.forward]]\nto = \"https://siem/a\"");
    assert!(found.contains("audit.file: is required with"), "{found}");
}

#[cfg(not(feature = "https-client"))]
#[test]
fn a_build_without_an_http_client_forwards_to_no_url() {
    let found = problems_with("[audit]\nfile = \"/log\"\nforward = [{ to = \"https://siem\" }]");
    assert!(found.contains("this build lacks an HTTP client"), "{found}");
}

#[test]
fn a_rendered_value_is_decoded_and_trimmed_but_no_template() {
    let render = |more: &str| {
        format!(
            "[[secret]]\nname = \"a\"\nsource = \"file:a\"\n\
             [[render]]\nfile = \"/run/a\"\n{more}"
        )
    };
    let valid = render("secret = \"a\"\ndecode = \"base64\"\ntrim = \"newline\"");
    let settings = parsed(&format!("{}\n{valid}", MINIMAL.trim()));
    let Content::Secret { conversion, .. } = &settings.renders[0].content else {
        panic!("a secret")
    };
    assert!(conversion.decode_base64 && conversion.trim_newline);
    for (more, expected) in [
        (
            "secret = \"a\"\ndecode = \"hex\"",
            "render[0].decode: `decode` must be base64",
        ),
        (
            "secret = \"a\"\ntrim = \"\"",
            "render[0].trim: `trim` must be newline",
        ),
        (
            "template_text = \"\"\ntrim = \"newline\"",
            "render[0].trim: requires secret; a template has filters",
        ),
    ] {
        let problems = problems_with(&render(more));
        assert!(problems.contains(expected), "{problems}");
    }
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
    assert!(error.contains("eight times secrets.value_bytes"), "{error}");
    parse(
        Path::new("c.toml"),
        &format!("{limits}secrets.value_bytes = \"50KiB\"\n{secret}"),
    )
    .expect("enough");
}

#[cfg(feature = "tls")]
mod hub {
    use super::*;
    use crate::config::HubLogin;

    fn hub(more: &str) -> crate::config::Hub {
        let text = format!("{}\n[hub]\nworkload = \"shop\"\n{more}", MINIMAL.trim());
        parsed(&text).hub.expect("a hub")
    }

    #[test]
    fn a_sidecar_joins_one_hub_under_the_name_of_its_machine() {
        assert_eq!(parsed(MINIMAL).hub, None);
        let with_token = hub("url = \"https://hub:8443\"\ntoken_file = \"/token\"");
        assert_eq!(with_token.url.to_string(), "https://hub:8443");
        assert_eq!(with_token.login, HubLogin::Token("/token".into()));
        assert_eq!(with_token.workload, "shop");
        let host = rustix::system::uname();
        assert_eq!(Ok(with_token.name.as_str()), host.nodename().to_str());
        let named = hub(
            "url = \"https://hub:1\"\nname = \"shop-1\"\nca_file = \"/ca\"\n\
             certificate_file = \"/c\"\nkey_file = \"/k\"",
        );
        assert_eq!(named.name, "shop-1");
        assert_eq!(named.ca_file.as_deref(), Some(Path::new("/ca")));
        let login = HubLogin::Certificate {
            certificate: "/c".into(),
            key: "/k".into(),
        };
        assert_eq!(named.login, login);
        let plain = hub("url = \"http://127.0.0.1:1\"");
        assert_eq!(plain.login, HubLogin::Anonymous);
    }

    #[test]
    fn a_sidecar_says_who_it_is_in_one_way() {
        let https = "workload = \"w\"\nurl = \"https://hub:1\"\n";
        let plain = "workload = \"w\"\nurl = \"http://localhost:1\"\n";
        let long = "n".repeat(254);
        for (text, expected) in [
            (
                "url = \"https://hub:1\"\ntoken_file = \"t\"".into(),
                "hub.workload: is required",
            ),
            (
                "workload = \"w\"\ntoken_file = \"t\"".into(),
                "hub.url: is required",
            ),
            (
                "workload = \"w\"\nurl = \"http://hub:1\"".into(),
                "hub.url: plain http",
            ),
            (https.to_owned(), "hub.token_file: is required"),
            (
                format!("{https}token_file = \"t\"\nkey_file = \"k\""),
                "hub.token_file: can't be combined",
            ),
            (
                format!("{https}certificate_file = \"c\""),
                "hub.certificate_file: requires hub.key_file",
            ),
            (
                format!("{https}key_file = \"k\""),
                "hub.key_file: requires hub.certificate_file",
            ),
            (
                format!("{plain}certificate_file = \"c\"\nkey_file = \"k\""),
                "hub.certificate_file: has no effect without TLS",
            ),
            (
                format!("{plain}name = \"{long}\""),
                "hub.name: must have at most 253",
            ),
            (
                format!("{plain}name = \"a\\nb\""),
                "hub.name: must have at most 253",
            ),
        ] {
            let problems = problems_with(&format!("[hub]\n{text}"));
            assert!(problems.contains(expected), "{text}: {problems}");
        }
    }
}
