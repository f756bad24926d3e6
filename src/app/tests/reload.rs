//! Another config while a sidecar runs.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use crate::{
    admin::Takeover,
    app::testing::{Client, HOUR, KekCall, OCTETS, SECOND, TestApp, World},
    backend::ErrorKind,
};

/// The config of the keyring `demo` with more settings.
fn demo(more: &str) -> String {
    format!("[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n{more}\n")
}

/// A secret that is served under its source's name.
fn secret(name: &str, more: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = \"file:{name}\"\n{more}\n")
}

/// A rule for the user of the tests.
fn rule(of: &str) -> String {
    let me = rustix::process::geteuid().as_raw();
    format!("[[policy]]\nuids = [{me}]\n{of}\n")
}

fn operations(names: &[&str]) -> String {
    rule(&format!("keyrings = \"*\"\noperations = {names:?}"))
}

async fn fetch(client: &mut Client, name: &str) -> (u16, Value) {
    let answer = client.get(&format!("/v1/secrets/{name}")).await;
    (answer.status.as_u16(), answer.json())
}

async fn config(app: &TestApp) -> Value {
    app.status().await["config"].clone()
}

#[tokio::test(start_paused = true)]
async fn rules_change_what_an_open_connection_may_do() {
    let world = World::with_demo().await;
    let both = operations(&["encrypt", "decrypt"]);
    let app = world.start_with(&both, &["demo"]).await;
    let mut client = app.client().await;
    let message = client.encrypt(b"x").await.ok().body;
    // One request has begun.
    let mut half = app.raw().await;
    let head = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nhost: s\r\n\
                content-type: application/octet-stream\r\ncontent-length: 6\r\n\
                connection: close\r\n\r\nabc";
    half.write(head).await;
    world.advance(SECOND).await;

    world.reload(&app, &operations(&["decrypt"]), &["demo"]);
    assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
    assert_eq!(client.decrypt(&message).await.ok().body, "x");
    half.write("def").await;
    let response = half.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");

    world.reload(&app, &both, &["demo"]);
    client.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_no_rule_names_any_more_is_disconnected() {
    let world = World::with_demo().await;
    let known = operations(&["encrypt", "inspect"]);
    let app = world.start_with(&known, &["demo"]).await;
    let mut client = app.client().await;
    client.encrypt(b"x").await.ok();
    let mut events = app.events(None).await;
    events.expect("demo", 1).await;
    let stranger = "[[policy]]\nkeyrings = \"*\"\noperations = \"*\"\nuids = [4294967294]\n";
    world.reload(&app, stranger, &["demo"]);
    assert!(events.event().await.is_none(), "the stream ends");
    world.advance(SECOND).await;
    let late = client.try_send(
        hyper::Method::POST,
        "/v1/keyrings/demo/encrypt",
        &[OCTETS],
        "x",
    );
    late.await.expect_err("the connection is closed");
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
    // The rules that come next apply to this connection.
    world.reload(&app, &known, &["demo"]);
    client.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_gets_the_state_of_what_it_may_see_now() {
    let world = World::with_demo().await;
    world.secret("file:db").rotate("1", "value");
    let secrets = secret("db", "required = true");
    let before = format!("{secrets}{}", operations(&["inspect"]));
    let app = world.start_with(&before, &["demo"]).await;
    let mut events = app.events(None).await;
    events.expect("demo", 1).await;
    let after = format!("{secrets}{}", rule("secrets = [\"db\"]"));
    world.reload(&app, &after, &["demo"]);
    assert_eq!(events.secret().await["secret"], "db");
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    app.wait_generation(2).await;
    world.secret("file:db").rotate("2", "value");
    assert_eq!(events.secret().await["previous"], "1", "and nothing else");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_is_added_opens_what_it_wraps() {
    let world = World::with_demo().await;
    let other = demo("keks = [\"fake:other\"]");
    let app = world.launch(&other, &[]).await;
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "kek_unavailable"
    })
    .await;
    let calls = world.main_kek().take_calls();
    // Those of the command that made the keyring.
    let is_wrap = |call: &KekCall| matches!(call, KekCall::Wrap { .. });
    assert!(calls.iter().all(is_wrap), "{calls:?}");
    world.reload(&app, &demo("keks = [\"fake:main\"]"), &[]);
    app.wait_ready().await;
    app.client().await.encrypt(b"x").await.ok();
    app.wait_metric(
        "sidekey_refreshes_total{keyring=\"demo\",trigger=\"config\",result=\"changed\"} 1",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_is_removed_is_asked_no_more() {
    let world = World::with_demo().await;
    let app = world.start_with(&demo("keks = [\"fake:main\"]"), &[]).await;
    world.store("demo").mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    world.main_kek().hang();
    app.refresh();
    app.wait_keyring("the version", |keyring| {
        keyring["active"]["generation"] == 2
    })
    .await;
    world.main_kek().take_calls();
    world.reload(&app, &demo("keks = [\"fake:other\"]"), &[]);
    app.wait_keyring("the reason", |keyring| {
        let unopened = keyring["active"]["versions"][1]["unopened"].as_str();
        unopened.is_some_and(|reason| reason.contains("not one of the allowed KEKs"))
    })
    .await;
    world.main_kek().work();
    world.advance(HOUR).await;
    assert_eq!(world.main_kek().take_calls(), []);
    // What is open stays open.
    assert_eq!(app.client().await.encrypt(b"x").await.ok().version(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_manifest_is_measured_by_changes() {
    let world = World::with_demo().await;
    let keks = "keks = [\"fake:*\"]\n";
    let app = world.start_with(&demo(keks), &[]).await;
    let mut client = app.client().await;
    world.reload(&app, &demo(&format!("{keks}min_generation = 2")), &[]);
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "went_back"
    })
    .await;
    client.encrypt(b"x").await.ok();
    let signer = "trusted_signers = [\"ed25519:Rhb7S1QDWihcPFgWzs3xieJUsZqK7640Cx1CQRUo7fo=\"]";
    world.reload(&app, &demo(&format!("{keks}{signer}")), &[]);
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "unsigned"
    })
    .await;
    world.reload(&app, &demo(keks), &[]);
    app.wait_keyring("success", |keyring| keyring["last_error"].is_null())
        .await;
    client.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_added_and_removed() {
    let world = World::new();
    let [a, b] = ["file:a", "file:b"].map(|source| world.secret(source));
    a.rotate("1", "one");
    b.rotate("1", "two");
    let only_a = secret("a", "required = true");
    let both = format!("{only_a}{}", secret("b", ""));
    let app = world.start_with(&only_a, &[]).await;
    let mut client = app.client().await;
    let mut events = app.events(None).await;
    assert_eq!(events.secret().await["secret"], "a");
    assert_eq!(fetch(&mut client, "b").await.0, 404);

    world.reload(&app, &both, &[]);
    let added = json!({ "secret": "b", "version": "1", "previous": null });
    assert_eq!(events.secret().await, added);
    assert_eq!(fetch(&mut client, "b").await.1["value"], "two");
    assert_eq!((a.fetches(), b.fetches()), (1, 1));

    world.reload(&app, &only_a, &[]);
    let removed = json!({ "secret": "b", "version": null, "previous": null });
    assert_eq!(events.secret().await, removed);
    assert_eq!(fetch(&mut client, "b").await.0, 404);
    assert_eq!(fetch(&mut client, "a").await.1["value"], "one");
    let status = app.status().await;
    assert_eq!(status["secrets"].as_array().unwrap().len(), 1);
    b.rotate("2", "three");
    world.advance(HOUR).await;
    assert_eq!(b.fetches(), 1, "it is not read any more");
    app.wait_metric("sidekey_secret_refresh_failing{secret=\"b\"} 0")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_with_a_rule_for_a_removed_secret_is_told() {
    let world = World::new();
    for source in ["file:a", "file:b"] {
        world.secret(source).rotate("1", "value");
    }
    let [a, b] = ["a", "b"].map(|name| secret(name, "required = true"));
    let before = format!("{a}{b}{}", rule("secrets = [\"a\", \"b\"]"));
    let app = world.start_with(&before, &[]).await;
    let mut events = app.events(None).await;
    for name in ["a", "b"] {
        assert_eq!(events.secret().await["secret"], name);
    }
    world.reload(&app, &format!("{a}{}", rule("secrets = [\"a\"]")), &[]);
    loop {
        let event = events.secret().await;
        if event["secret"] == "b" {
            assert_eq!(event["version"], Value::Null);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_source_takes_over_once_it_has_a_value() {
    let world = World::new();
    let [old, new] = ["file:old", "file:new"].map(|source| world.secret(source));
    old.rotate("7", "former");
    let from = |source: &str| {
        format!("[[secret]]\nname = \"db\"\nsource = \"file:{source}\"\nrequired = true\n")
    };
    let app = world.start_with(&from("old"), &[]).await;
    let mut client = app.client().await;
    assert_eq!(fetch(&mut client, "db").await.1["value"], "former");

    new.fail(ErrorKind::Unavailable);
    world.reload(&app, &from("new"), &[]);
    app.wait_secret("db", |secret| secret["last_error"].is_object())
        .await;
    assert_eq!(fetch(&mut client, "db").await.1["value"], "former");
    // The new source doesn't have it: that doesn't delete the value of the former one.
    new.work();
    world.advance(HOUR / 60).await;
    assert_eq!(fetch(&mut client, "db").await.1["value"], "former");
    new.rotate("2", "latter");
    app.wait_secret("db", |secret| secret["version"] == "2")
        .await;
    assert_eq!(fetch(&mut client, "db").await.1["value"], "latter");
    let previous = fetch(&mut client, "db?stage=previous").await.1;
    assert_eq!(previous["value"], "former");
    assert_eq!(app.secret("db").await["previous"], "7");
    let fetches = old.fetches();
    old.rotate("8", "unused");
    world.advance(HOUR).await;
    assert_eq!(old.fetches(), fetches);
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_cached_as_the_config_says_now() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "one");
    let app = world
        .start_with(&secret("db", "required = true\nrefresh = \"1d\""), &[])
        .await;
    let fetches = source.fetches();
    world.advance(HOUR).await;
    assert_eq!(source.fetches(), fetches);
    world.reload(&app, &secret("db", "refresh = \"1m\""), &[]);
    world.advance(HOUR).await;
    assert!(source.fetches() > fetches + 30, "{}", source.fetches());
    assert_eq!(app.secret("db").await["required"], false);
}

#[tokio::test(start_paused = true)]
async fn names_under_a_wildcard_follow_its_list() {
    let world = World::new();
    for name in ["a-1", "a-2"] {
        world.secret(&format!("file:a/{name}")).rotate("1", name);
    }
    let family = |allow: &str| {
        format!("[[secret]]\nname = \"*\"\nsource = \"file:a/*\"\nallow = [{allow}]\n")
    };
    let app = world.start_with(&family("\"a-*\""), &[]).await;
    let mut client = app.client().await;
    for name in ["a-1", "a-2"] {
        assert_eq!(fetch(&mut client, name).await.1["value"], name);
    }
    world.reload(&app, &family("\"a-1\""), &[]);
    assert_eq!(fetch(&mut client, "a-1").await.1["value"], "a-1");
    assert_eq!(fetch(&mut client, "a-2").await.0, 404);
    let fetches = world.secret("file:a/a-1").fetches();
    assert_eq!(fetches, 1, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn files_are_added_changed_and_left() {
    let world = World::new();
    world.secret("file:db").rotate("1", "value");
    let db = secret("db", "required = true");
    let render = |file: &str, more: &str| {
        format!("[[render]]\nfile = {file:?}\nsecret = \"db\"\ndebounce = \"0s\"\n{more}\n")
    };
    let app = world.start_with(&db, &[]).await;
    let content = |file: &str| fs::read_to_string(world.path(file)).unwrap_or_default();
    let mode = |file: &str| {
        let found = fs::metadata(world.path(file));
        found.map_or(0, |found| found.permissions().mode() & 0o777)
    };
    world.reload(&app, &format!("{db}{}", render("one", "")), &[]);
    world.wait("the file", || content("one") == "value").await;
    assert_eq!(mode("one"), 0o600);

    let both = format!(
        "{db}{}{}",
        render("one", "mode = \"0640\""),
        render("two", "")
    );
    world.reload(&app, &both, &[]);
    world
        .wait("both", || mode("one") == 0o640 && content("two") == "value")
        .await;

    world.reload(&app, &format!("{db}{}", render("two", "")), &[]);
    world.secret("file:db").rotate("2", "newer");
    world.wait("the change", || content("two") == "newer").await;
    assert_eq!(content("one"), "value", "it stays as it was");
    assert_eq!(app.status().await["renders"].as_array().unwrap().len(), 1);
    let out = world.path("two");
    let writes = format!("sidekey_render_writes_total{{file={out:?}}} 2");
    app.wait_metric(&writes).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalid_config_changes_nothing_and_says_so() {
    let world = World::with_demo().await;
    let app = world.start_with(&operations(&["encrypt"]), &["demo"]).await;
    let mut client = app.client().await;
    let before = config(&app).await;
    assert!(before["last_error"].is_null());
    assert_eq!(before["sha256"].as_str().map(str::len), Some(64));

    let invalid = format!(
        "{}[limits]\nstreams = 0\nnonsense = 1\n",
        operations(&["decrypt"])
    );
    world.reload(&app, &invalid, &["demo"]);
    client.encrypt(b"x").await.ok();
    let after = config(&app).await;
    let error = &after["last_error"];
    assert_eq!(error["code"], "config_invalid");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("streams") && message.contains("nonsense"),
        "{message}"
    );
    assert_eq!(after["sha256"], before["sha256"]);
    let metrics = app.ops("/metrics").await.1;
    for line in [
        "sidekey_config_reloads_total{result=\"failed\"} 1",
        "sidekey_config_reload_failing 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(
        world.log().contains("can't reload the config"),
        "{}",
        world.log()
    );

    world.advance(SECOND).await;
    world.reload(&app, &operations(&["decrypt"]), &["demo"]);
    assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
    let after = config(&app).await;
    assert!(after["last_error"].is_null() && after["sha256"] != before["sha256"]);
    assert_ne!(after["loaded_at"], before["loaded_at"]);
    app.wait_metric("sidekey_config_reload_failing 0").await;
    app.wait_metric("sidekey_config_reloads_total{result=\"changed\"} 1")
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_restart_is_named_until_it_is_taken_back() {
    let world = World::with_demo().await;
    let app = world.start_with(&operations(&["encrypt"]), &["demo"]).await;
    let mut client = app.client().await;
    let both = format!("{}[limits]\nstreams = 1\n", operations(&["decrypt"]));
    world.reload(&app, &both, &["demo"]);
    assert_eq!(
        client.encrypt(b"x").await.problem(),
        "forbidden",
        "it applies"
    );
    assert_eq!(
        config(&app).await["needs_restart"],
        json!(["limits.streams"])
    );
    app.wait_metric("sidekey_config_needs_restart 1").await;
    let named = "the config changed, but needs a restart: limits.streams";
    assert!(world.log().contains(named), "{}", world.log());
    // Once only.
    world.reload(&app, &both, &["demo"]);
    assert_eq!(world.log().matches(named).count(), 1);
    world.reload(&app, &operations(&["decrypt"]), &["demo"]);
    assert_eq!(config(&app).await["needs_restart"], json!([]));
    app.wait_metric("sidekey_config_needs_restart 0").await;
}

#[tokio::test(start_paused = true)]
async fn readiness_waits_for_what_the_config_requires_now() {
    let world = World::with_demo().await;
    let missing = secret("db", "required = true");
    let app = world.launch(&missing, &["demo"]).await;
    app.wait_keyring("the keyring", |keyring| keyring["active"].is_object())
        .await;
    assert_eq!(app.ops("/readyz").await.0, 503);
    world.reload(&app, "", &["demo"]);
    app.wait_ready().await;
    world
        .wait("the log", || world.log().contains("ready"))
        .await;
    // A sidecar that was ready stays so.
    world.reload(&app, &missing, &["demo"]);
    assert_eq!(app.ops("/readyz").await.0, 200);
}
