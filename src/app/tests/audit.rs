//! Copies of audit records for collectors.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::app::testing::{SECOND, TestApp, World};

const TOKEN: &str = "Splunk 0123456789abcdef";

/// How a collector answers.
#[derive(Clone, Copy)]
enum Habit {
    Answers(&'static str),
    /// It reads, and answers nothing.
    Hangs,
    /// It closes every connection at once.
    Closes,
}

/// A collector that takes lines of JSON by HTTP.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    habit: Habit,
    /// The heads of all requests.
    heads: Vec<String>,
    /// The bodies of those that were answered with 200.
    taken: String,
}

impl Collector {
    async fn start(habit: Habit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                habit,
                heads: Vec::new(),
                taken: String::new(),
            })),
        };
        let serving = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        collector
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn becomes(&self, habit: Habit) {
        self.state().habit = habit;
    }

    fn taken(&self) -> String {
        self.state().taken.clone()
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            if matches!(self.state().habit, Habit::Closes) {
                return;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if body.len() == length {
                    let Some(status) = self.answer(head, body) else {
                        return std::future::pending().await;
                    };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    bytes.clear();
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }

    fn answer(&self, head: String, body: &str) -> Option<&'static str> {
        let mut state = self.state();
        state.heads.push(head);
        let Habit::Answers(status) = state.habit else {
            return None;
        };
        if status == "200 OK" {
            state.taken.push_str(body);
        }
        Some(status)
    }

    /// The config of a sidecar that forwards to it.
    fn config(&self, more: &str) -> String {
        let address = self.address;
        format!("[[audit.forward]]\nto = \"http://{address}/ingest?key=k\"\n{more}\n")
    }
}

fn log(world: &World) -> String {
    fs::read_to_string(world.path("audit.log")).unwrap_or_default()
}

/// Whether these are the last records of the log, with that of a reload.
fn is_end(taken: &str, world: &World) -> bool {
    taken.contains("config.reloaded") && log(world).ends_with(taken)
}

fn with_log(forwards: &str) -> String {
    format!("[audit]\nfile = \"audit.log\"\n{forwards}")
}

/// What `/status` says of the collectors.
async fn health(app: &TestApp) -> Value {
    app.status().await["audit"]["forwards"].clone()
}

/// Lets time pass until `is_it` holds of the first collector's health, and returns that. Pauses
/// between attempts are up to 38 seconds, and files are read by real threads.
async fn eventually(
    world: &World,
    app: &TestApp,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Value {
    let mut forward = Value::Null;
    for _ in 0..600 {
        forward = health(app).await[0].clone();
        if is_it(&forward) {
            return forward;
        }
        world.advance(SECOND).await;
    }
    panic!("{what}: {forward}")
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_out_of_order_delays_nothing_and_gets_everything_later() {
    let world = World::with_demo().await;
    let token = world.path("token");
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let collector = Collector::start(Habit::Answers("503 Service Unavailable")).await;
    let config = with_log(&collector.config("authorization_file = \"token\""));
    let app = world.start_with(&config, &["demo"]).await;
    let mut client = app.client().await;
    for (habit, reason) in [
        (
            Habit::Answers("503 Service Unavailable"),
            "responded with 503",
        ),
        (Habit::Answers("401 Unauthorized"), "`authorization_file`"),
        (
            Habit::Answers("302 Found\r\nlocation: /s3cret"),
            "responded with 302",
        ),
        (
            Habit::Answers("307 Temporary Redirect\r\nlocation: /s3cret"),
            "responded with 307",
        ),
        (
            Habit::Answers("308 Permanent Redirect\r\nlocation: https://127.0.0.1:9/s3cret"),
            "responded with 308",
        ),
        (Habit::Closes, "connection"),
        (Habit::Hangs, "no response within 10s"),
    ] {
        collector.becomes(habit);
        let says = |forward: &Value| {
            let message = forward["last_error"]["message"].as_str();
            message.is_some_and(|message| message.contains(reason))
        };
        let forward = eventually(&world, &app, reason, says).await;
        assert_eq!(forward["last_error"]["code"], "audit_forward_failed");
        client.encrypt(b"x").await.ok();
    }
    let to = format!("http://{}", collector.address);
    app.wait_metric(&format!("sidekey_audit_forward_failing{{to=\"{to}\"}} 1"))
        .await;
    collector.becomes(Habit::Answers("200 OK"));
    let is_well = |forward: &Value| forward["waiting"] == 0 && forward["last_error"].is_null();
    let forward = eventually(&world, &app, "it is well", is_well).await;
    assert_eq!(collector.taken(), log(&world), "byte for byte");
    let metrics = app.ops("/metrics").await.1;
    let records = log(&world).lines().count();
    for line in [
        format!("sidekey_audit_forward_failing{{to=\"{to}\"}} 0"),
        format!("sidekey_audit_forwarded_total{{to=\"{to}\"}} {records}"),
        format!("sidekey_audit_forward_lost_total{{to=\"{to}\",reason=\"overflow\"}} 0"),
    ] {
        assert!(metrics.contains(&line), "{line} isn't in\n{metrics}");
    }
    let heads = std::mem::take(&mut collector.state().heads);
    assert!(heads.iter().all(|head| head.contains("/ingest?key=k")));
    let head = heads.last().unwrap();
    for part in [
        "post /ingest?key=k http/1.1",
        "authorization: splunk 0123456789abcdef",
        "content-type: application/x-ndjson",
    ] {
        assert!(head.contains(part), "{head}");
    }
    let shown = [world.log(), forward.to_string(), metrics].concat();
    for secret in ["0123456789abcdef", "key=k", "ingest", "s3cret"] {
        assert!(!shown.contains(secret), "{secret} is in\n{shown}");
    }
}

/// How often the log gives this reason why records can't be forwarded. Paused time may pass while a
/// busy machine answers, so there can be other reasons.
fn warnings(world: &World, reason: &str) -> usize {
    let warning = format!("can't be forwarded: {reason}");
    world.log().matches(&warning).count()
}

#[tokio::test(start_paused = true)]
async fn reasons_that_alternate_are_in_the_log_once() {
    let world = World::with_demo().await;
    let collector = Collector::start(Habit::Answers("502 Bad Gateway")).await;
    let config = with_log(&collector.config(""));
    let app = world.start_with(&config, &["demo"]).await;
    let (bad, unavailable) = (
        "the collector responded with 502",
        "the collector responded with 503",
    );
    let is_bad = |forward: &Value| forward["last_error"].to_string().contains(bad);
    for _ in 0..3 {
        for (status, reason) in [
            ("502 Bad Gateway", bad),
            ("503 Service Unavailable", unavailable),
        ] {
            collector.becomes(Habit::Answers(status));
            let says = |forward: &Value| forward["last_error"].to_string().contains(reason);
            eventually(&world, &app, reason, says).await;
        }
    }
    assert_eq!(
        (warnings(&world, bad), warnings(&world, unavailable)),
        (1, 1)
    );
    collector.becomes(Habit::Answers("200 OK"));
    let is_well = |forward: &Value| forward["last_error"].is_null();
    eventually(&world, &app, "it is well", is_well).await;
    collector.becomes(Habit::Answers("502 Bad Gateway"));
    world.reload(&app, &format!("log.level = \"debug\"\n{config}"), &["demo"]);
    eventually(&world, &app, "it fails", is_bad).await;
    assert_eq!(warnings(&world, bad), 2, "another failure is news");
}

#[tokio::test(start_paused = true)]
async fn an_idle_syslog_collector_that_is_down_is_reported_for_one_reason() {
    let world = World::with_demo().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let forward = format!("[[audit.forward]]\nto = \"syslog+tcp://{address}\"\n");
    let app = world.start_with(&with_log(&forward), &["demo"]).await;
    let (stream, _) = listener.accept().await.unwrap();
    app.wait_status("nothing waits", |status| {
        status["audit"]["forwards"][0]["waiting"] == 0
    })
    .await;
    drop((stream, listener));
    let is_refused = |forward: &Value| forward["last_error"].to_string().contains("refused");
    eventually(&world, &app, "refused", is_refused).await;
    for _ in 0..120 {
        world.advance(SECOND).await;
    }
    eventually(&world, &app, "refused", is_refused).await;
    assert_eq!(warnings(&world, "Connection refused"), 1, "{}", world.log());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_is_counted_and_costs_no_other() {
    let world = World::with_demo().await;
    let collector = Collector::start(Habit::Answers("413 Content Too Large")).await;
    let config = with_log(&collector.config(""));
    let app = world.start_with(&config, &["demo"]).await;
    app.wait_status("its records are refused", |status| {
        let forward = &status["audit"]["forwards"][0];
        forward["waiting"] == 0 && forward["lost"].as_u64() > Some(0)
    })
    .await;
    let error = health(&app).await[0]["last_error"]["message"].clone();
    let error = error.as_str().unwrap();
    assert!(error.contains("it refuses a record"), "{error}");
    assert!(world.log().contains("it refuses a record"));
    collector.becomes(Habit::Answers("200 OK"));
    world.reload(&app, &format!("log.level = \"debug\"\n{config}"), &["demo"]);
    world
        .wait("the next record", || is_end(&collector.taken(), &world))
        .await;
    let lost = log(&world).lines().count() - collector.taken().lines().count();
    assert_eq!(health(&app).await[0]["lost"], lost, "the log has them");
    let to = format!("http://{}", collector.address);
    let counted =
        format!("sidekey_audit_forward_lost_total{{to=\"{to}\",reason=\"refused\"}} {lost}");
    app.wait_metric(&counted).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_record_is_forwarded_and_a_collector_that_hangs_holds_up_no_end() {
    let world = World::with_demo().await;
    let (good, bad) = (
        Collector::start(Habit::Answers("200 OK")).await,
        Collector::start(Habit::Hangs).await,
    );
    let config = with_log(&[bad.config(""), good.config("")].concat());
    let app = world.start_with(&config, &["demo"]).await;
    world.wait("records", || !good.taken().is_empty()).await;
    world.pass_time_until(app.stop()).await;
    assert!(log(&world).contains("sidecar.stopped"));
    assert_eq!(good.taken(), log(&world));
    let says = format!("to=\"http://{}\"", bad.address);
    let line = world.log();
    let line = line
        .lines()
        .find(|line| line.contains("not forwarded any more"))
        .unwrap_or_else(|| panic!("{line}"));
    assert!(line.contains(&says), "{line}");
}

#[tokio::test(start_paused = true)]
async fn collectors_change_without_a_restart() {
    let world = World::with_demo().await;
    let (first, second) = (
        Collector::start(Habit::Answers("200 OK")).await,
        Collector::start(Habit::Answers("200 OK")).await,
    );
    let app = world.start_with(&with_log(""), &["demo"]).await;
    world.reload(&app, &with_log(&first.config("")), &["demo"]);
    world
        .wait("a record", || is_end(&first.taken(), &world))
        .await;
    let config = &app.status().await["config"];
    assert_eq!(config["needs_restart"], serde_json::json!([]));

    // Another one takes its place.
    world.reload(&app, &with_log(&second.config("")), &["demo"]);
    let both = || [first.taken(), second.taken()].concat();
    world
        .wait("a record", || {
            !second.taken().is_empty() && is_end(&both(), &world)
        })
        .await;
    let forwards = health(&app).await;
    assert_eq!(forwards.as_array().unwrap().len(), 1);

    // Another file needs a restart; an invalid collector changes nothing.
    let other = with_log(&second.config("")).replace("audit.log", "other.log");
    world.reload(&app, &other, &["demo"]);
    let config = &app.status().await["config"];
    assert_eq!(config["needs_restart"], serde_json::json!(["audit"]));
    let invalid = with_log("[[audit.forward]]\nto = \"http://siem.example/\"\n");
    world.reload(&app, &invalid, &["demo"]);
    let config = &app.status().await["config"];
    assert_eq!(config["last_error"]["code"], "config_invalid");
    let goes_on = |forward: &Value| {
        forward["to"] == forwards[0]["to"]
            && forward["waiting"] == 0
            && forward["last_error"].is_null()
    };
    eventually(&world, &app, "the collector", goes_on).await;
}
