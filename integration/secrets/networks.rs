//! What surrounds a provider: a proxy on the way to it, and credentials that are replaced.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use crate::support::{
    harness::{World, wait},
    served_secrets::{App, entry, launch},
    small_server::{Reply, header, serve},
};

#[test]
fn requests_to_vault_pass_through_the_proxy_of_the_environment() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let requests = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut line = String::new();
            // The tunnel is refused by closing the connection.
            let _ = BufReader::new(stream.unwrap()).read_line(&mut line);
            requests.lock().unwrap().push(line);
        }
    });
    let mut world = World::new();
    fs::write(world.path("token"), "a-token").unwrap();
    world.env.push(("HTTPS_PROXY", proxy));
    world.env.push(("NO_PROXY", "direct.invalid".into()));
    let config = "[vault]\naddress = \"https://vault.invalid:8200\"\n\
                  [vault.login]\nmethod = \"token-file\"\ntoken_file = \"token\"\n";
    let secret = entry("db", "vault-kv:secret/db", "");
    let sidecar = launch(&world, &format!("{config}{secret}"));
    wait("the proxy", || {
        let tunnel = "CONNECT vault.invalid:8200 HTTP/1.1\r\n";
        seen.lock().unwrap().iter().any(|line| line == tunnel)
    });
    sidecar.wait_log("the proxy http://127.0.0.1:");

    world
        .env
        .push(("VAULT_ADDR", "https://direct.invalid:8200".into()));
    let direct = config.replace("address = \"https://vault.invalid:8200\"\n", "");
    let before = seen.lock().unwrap().len();
    drop(sidecar);
    let sidecar = launch(&world, &format!("{direct}{secret}"));
    sidecar.wait_log("can't read the secret");
    assert!(!sidecar.log().contains("the proxy"), "{}", sidecar.log());
    let seen = seen.lock().unwrap();
    let to_direct = seen[before..]
        .iter()
        .any(|line| line.contains("direct.invalid"));
    assert!(!to_direct, "{seen:?}");
}

/// Answers as Secrets Manager does, for requests that are signed with the key of `accepted`.
fn secrets_manager(accepted: &Arc<Mutex<&'static str>>) -> String {
    let accepted = Arc::clone(accepted);
    serve(move |head| {
        let key = *accepted.lock().unwrap();
        let authorization = header(head, "authorization").unwrap_or_default();
        let (status, body) = if !authorization.contains(&format!("Credential={key}/")) {
            let expired = r#"{"__type":"ExpiredTokenException","message":"it is expired"}"#;
            ("400 Bad Request", expired.to_owned())
        } else if head.contains("BatchGetSecretValue") {
            let denied = r#"{"__type":"AccessDeniedException","Message":"no"}"#;
            ("400 Bad Request", denied.to_owned())
        } else {
            let version = "v".repeat(32);
            let value = format!(
                r#"{{"ARN":"arn:aws:secretsmanager:eu-west-1:1:secret:a-x","Name":"a",
                    "VersionId":"{version}","SecretString":"by {key}",
                    "VersionStages":["AWSCURRENT"],"CreatedDate":1}}"#
            );
            ("200 OK", value)
        };
        Reply::new(status, "Content-Type: application/x-amz-json-1.1\r\n", body)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewritten_credentials_file_is_read_once_aws_refuses_the_old_keys() {
    let accepted = Arc::new(Mutex::new("OLDKEY"));
    let url = secrets_manager(&accepted);
    let mut world = World::new();
    let file = world.path("credentials");
    let rewrite = |key: &str| {
        let text = format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = x\n\
             aws_session_token = t\n"
        );
        fs::write(&file, text).unwrap();
    };
    rewrite("OLDKEY");
    let empty = world.path("config");
    fs::write(&empty, "").unwrap();
    for (name, value) in [
        ("AWS_SHARED_CREDENTIALS_FILE", file.display().to_string()),
        ("AWS_CONFIG_FILE", empty.display().to_string()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
    ] {
        world.env.push((name, value));
    }
    let config = format!("[aws]\nendpoint = {url:?}\nregion = \"eu-west-1\"\n");
    let sidecar = launch(&world, &format!("{config}{}", entry("a", "aws-sm:a", "")));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(app.newest("a").await.1, "by OLDKEY");
    *accepted.lock().unwrap() = "NEWKEY";
    rewrite("NEWKEY");
    let by_new = |value: &str| value.contains("by NEWKEY");
    app.until("a", |answer| by_new(&String::from_utf8_lossy(&answer.body)))
        .await;
}
