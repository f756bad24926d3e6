//! The database, in a file of a folder that is removed.

use std::{fs, path::Path, sync::mpsc};

use jiff::ToSpan;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use super::*;
use crate::{
    config,
    crypto::KeyringId,
    http::memory::MemoryShare,
    hub::{
        registry::{Incoming, Outcome, Refusal},
        report::Received,
    },
    ledger::{self, Cause, Code, Declared, Question, Superseded},
    telemetry::Registry,
    wire::hub::{KeyringUsage, Report, VersionUsage},
};

/// Lets a paused clock wait for real work, until this is dropped.
pub(in crate::hub) struct RealTime(#[expect(dead_code, reason = "dropped")] mpsc::Sender<()>);

impl RealTime {
    pub(super) fn begin() -> Self {
        let (end, ended) = mpsc::channel();
        // A paused clock doesn't go on by itself while a blocking job runs.
        tokio::task::spawn_blocking(move || ended.recv());
        Self(end)
    }
}

/// Opens the database of these settings.
pub(in crate::hub) async fn open(settings: &HubSettings, now: Timestamp) -> Arc<Store> {
    let metrics = StoreMetrics::new(&Registry::default());
    let store = Store::open(settings, metrics, now).await;
    store.expect("a database")
}

const CONFIG: &str = "state_dir = \"state\"\nlost_after = \"1d\"\n\
    [[sidecar_identity]]\ntoken_file = \"t\"\nworkloads = [\"shop\"]\n\
    [[workload]]\nname = \"shop\"\nkeyrings = [\"orders\"]\n";
const KEYRING: KeyringId = KeyringId([7; 16]);

struct World {
    folder: TempDir,
    /// None while no hub runs.
    store: Option<Arc<Store>>,
    now: Timestamp,
}

impl World {
    async fn new() -> Self {
        let mut world = Self {
            folder: tempfile::tempdir().expect("a folder"),
            store: None,
            now: start(),
        };
        world.start().await;
        world
    }

    fn settings(&self) -> HubSettings {
        config::parse_hub(&self.folder.path().join("hub.toml"), CONFIG).expect("valid")
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("state/hub.db")
    }

    async fn start(&mut self) {
        self.store = Some(open(&self.settings(), self.now).await);
    }

    async fn stop(&mut self) {
        self.store.take().expect("it runs").close().await;
    }

    fn store(&self) -> &Store {
        self.store.as_deref().expect("it runs")
    }

    async fn take(&self, report: Report) -> Outcome {
        let received = received(report, self.now);
        let outcomes = self.store().take(&[incoming(&received)], self.now).await;
        outcomes.expect("a database")[0]
    }

    /// Lets so much time pass, in which another replica wrote heartbeats.
    async fn watch(&mut self, span: jiff::Span) {
        self.now += span;
        let _real = RealTime::begin();
        sqlx::query("UPDATE replicas SET beat_at = $1")
            .bind(self.now.as_millisecond())
            .execute(&self.store().pool)
            .await
            .expect("a database");
        self.store().tidy(self.now).await.expect("a database");
    }

    /// What the evidence lacks after a barrier that process 1 answers with its next report.
    async fn lacks(&self, report: Option<Report>) -> Vec<Code> {
        let barrier = self.store().set_barrier(self.now).await.expect("a barrier");
        if let Some(mut report) = report {
            report.answers = Some(barrier.number);
            assert_eq!(self.take(report).await, Outcome::Taken);
        }
        let ledger = self.store().ledger_of(KEYRING, self.now).await;
        let question = Question {
            keyring: KEYRING,
            version: 1,
            class: crate::keyring::Class::Live,
            quiet_period: Span::from_days(1),
            destroy_after: None,
            encrypt_lease: Span::from_days(1),
            lost_after: self.store().lost_after,
            superseded: Some(Superseded {
                at: start(),
                generation: 3,
            }),
            barrier,
            workloads: vec![Declared {
                workload: "shop".into(),
                max_interval: None,
            }],
            further_uses: Vec::new(),
            statements: Vec::new(),
        };
        let verdict = ledger::judge(&ledger.expect("a database"), &question);
        verdict.all_reasons().map(|reason| reason.code).collect()
    }

    async fn causes(&self) -> Vec<Cause> {
        let ledger = self.store().ledger_of(KEYRING, self.now).await;
        let gaps = ledger.expect("a database").gaps;
        gaps.into_iter().map(|gap| gap.cause).collect()
    }
}

fn start() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().expect("a time")
}

fn report(instance: u8, sequence: u64, decrypted: u64) -> Report {
    let version = |version, decrypted| VersionUsage {
        version,
        encrypted: 0,
        decrypted,
        refused: 0,
        open: 0,
    };
    Report {
        protocol: 1,
        instance: [instance; 16],
        key: [instance; 32],
        sequence,
        is_final: false,
        answers: None,
        name: format!("shop-{instance}"),
        workload: "shop".into(),
        usage: vec![KeyringUsage {
            name: "orders".parse().expect("a name"),
            id: KEYRING.0,
            generation: 3,
            versions: vec![version(1, decrypted), version(2, 9)],
            mac_version: None,
            mac: None,
        }],
        status: serde_json::from_value(serde_json::json!({
            "version": "0.1.0", "started_at": "2026-11-24T12:00:00Z", "ready": true,
            "pending": [], "keks": [], "keyrings": [],
            "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
        }))
        .expect("a status"),
    }
}

fn received(report: Report, at: Timestamp) -> Received {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&report.sequence.to_be_bytes());
    Received {
        report,
        digest,
        at,
        _share: MemoryShare::default(),
    }
}

fn incoming(received: &Received) -> Incoming<'_> {
    Incoming {
        received,
        identity: "t",
        is_refused: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_database_counts_as_a_use_until_what_lived_before_is_given_up() {
    let mut world = World::new().await;
    assert_eq!(world.take(report(1, 1, 0)).await, Outcome::Taken);
    world.watch(23.hours()).await;
    world.take(report(1, 2, 0)).await;
    world.watch(23.hours()).await;
    assert_eq!(world.lacks(Some(report(1, 3, 0))).await, [Code::Unwatched]);
    world.watch(3.hours()).await;
    assert_eq!(world.lacks(None).await, [Code::Silent]);
    assert_eq!(world.lacks(Some(report(1, 4, 0))).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_everything_and_costs_nothing_if_it_is_quick() {
    let mut world = World::new().await;
    for sequence in 1..=3 {
        world.take(report(1, sequence, 0)).await;
        world.watch(20.hours()).await;
    }
    let barrier = world.store().set_barrier(world.now).await.expect("set");
    world.stop().await;
    world.now += 15.seconds();
    world.start().await;
    let again = world.store().set_barrier(world.now).await.expect("set");
    assert!(again.number > barrier.number);
    let open = world.store().open_instances(None, 10).await.expect("read");
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].id, open[0].name.as_str()), ([1; 16], "shop-1"));
    assert_eq!(open[0].status.version, "0.1.0");
    let old = world.take(report(1, 2, 0)).await;
    assert_eq!(old, Outcome::Known, "its sequence is remembered");
    assert_eq!(world.lacks(Some(report(1, 4, 0))).await, []);
    let other_key = Report {
        key: [9; 32],
        ..report(1, 5, 0)
    };
    assert_eq!(
        world.take(other_key).await,
        Outcome::Refused(Refusal::OtherKey)
    );
}

#[tokio::test(start_paused = true)]
async fn a_time_without_a_hub_counts_as_a_use() {
    let mut world = World::new().await;
    for sequence in 1..=3 {
        world.take(report(1, sequence, 0)).await;
        world.watch(20.hours()).await;
    }
    world.stop().await;
    world.now += 16.seconds();
    world.start().await;
    assert_eq!(world.lacks(Some(report(1, 4, 0))).await, [Code::Unwatched]);
    assert_eq!(world.causes().await, [Cause::HubDown]);
    world.watch(12.hours()).await;
    world.take(report(1, 5, 0)).await;
    world.watch(12.hours()).await;
    assert_eq!(world.lacks(Some(report(1, 6, 0))).await, []);
    // The machine was suspended, or the database was away.
    world.now += 16.seconds();
    assert_eq!(world.lacks(Some(report(1, 7, 0))).await, [Code::Unwatched]);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_committed_was_never_there() {
    let world = World::new().await;
    let received = received(report(1, 1, 0), world.now);
    let real = RealTime::begin();
    let mut change = world.store().change(world.now).await.expect("a write");
    let sql = "INSERT INTO gaps (keyring, workload, ends_at, body) VALUES ('', 'w', 1, '{}')";
    sqlx::raw_sql(sql)
        .execute(change.connection())
        .await
        .expect("written");
    drop(change);
    drop(real);
    let taken = world.store().take(&[incoming(&received)], world.now).await;
    assert_eq!(taken.expect("a database"), [Outcome::Taken]);
    assert_eq!(world.causes().await, [Cause::Created]);
}

#[tokio::test(start_paused = true)]
async fn reports_that_could_not_be_stored_count_as_a_use() {
    let mut world = World::new().await;
    for sequence in 1..=3 {
        world.take(report(1, sequence, 0)).await;
        world.watch(20.hours()).await;
    }
    assert_eq!(world.lacks(Some(report(1, 4, 0))).await, []);
    // Other writes go on meanwhile.
    world.store().note_not_stored();
    assert_eq!(world.lacks(Some(report(1, 5, 0))).await, [Code::Unwatched]);
    assert_eq!(world.causes().await, [Cause::NotStored]);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_was_restored_counts_as_a_use() {
    let mut world = World::new().await;
    for sequence in 1..=3 {
        world.take(report(1, sequence, 0)).await;
        world.watch(20.hours()).await;
    }
    assert_eq!(world.lacks(Some(report(1, 4, 0))).await, []);
    // What a server does that goes back to a backup, or fails over to a copy that lags.
    let number = "UPDATE replicas SET number = number - 1";
    let mut connection = connect(&world.file()).await;
    let changed = sqlx::raw_sql(number).execute(&mut connection).await;
    assert_eq!(changed.expect("restored").rows_affected(), 1);
    drop(connection);
    assert_eq!(world.lacks(Some(report(1, 5, 0))).await, [Code::Unwatched]);
    assert_eq!(world.causes().await, [Cause::Restored]);
    assert_eq!(world.causes().await, [Cause::Restored], "once");
    // A file that is put back while no hub runs says when it was copied.
    world.stop().await;
    let backup = world.folder.path().join("backup");
    fs::copy(world.file(), &backup).expect("copied");
    world.start().await;
    world.watch(30.hours()).await;
    world.take(report(1, 6, 7)).await;
    world.stop().await;
    fs::copy(&backup, world.file()).expect("restored");
    world.start().await;
    assert_eq!(world.causes().await, [Cause::HubDown]);
    assert_eq!(world.take(report(1, 6, 7)).await, Outcome::Taken);
}

async fn connect(file: &Path) -> SqliteConnection {
    let url = format!("sqlite:{}", file.display());
    SqliteConnection::connect(&url).await.expect("a connection")
}

#[tokio::test]
async fn two_handles_of_one_file_write_one_after_the_other() {
    let world = World::new().await;
    let other = open(&world.settings(), world.now).await;
    let now = world.now;
    let write = async |store: &Store, first: u8| {
        for sequence in 1..=20 {
            for instance in [first, 9] {
                let received = received(report(instance, sequence, sequence), now);
                let taken = store.take(&[incoming(&received)], now).await;
                let outcome = taken.expect("a database")[0];
                let is_own = instance == first;
                assert!(outcome == Outcome::Taken || !is_own && outcome == Outcome::Known);
            }
        }
    };
    tokio::join!(write(world.store(), 1), write(&other, 2));
    let ledger = other.ledger_of(KEYRING, now).await.expect("a database");
    let sequences = ledger.books.values().map(|book| book.sequence);
    assert_eq!(sequences.collect::<Vec<_>>(), [20; 3]);
    assert_eq!(world.causes().await, [Cause::Created]);
    let shares = "SELECT instances FROM shares";
    let counted: i64 = sqlx::query_scalar(shares)
        .fetch_one(&mut connect(&world.file()).await)
        .await
        .expect("read");
    assert_eq!(counted, 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_summed_up_and_forgotten() {
    let mut world = World::new().await;
    let mut last = report(1, 1, 4);
    last.is_final = true;
    assert_eq!(world.take(last).await, Outcome::Taken);
    assert_eq!(world.take(report(2, 1, 0)).await, Outcome::Taken);
    world.watch(12.hours()).await;
    world.take(report(2, 2, 0)).await;
    world.watch(12.hours()).await;
    let ledger = world.store().ledger_of(KEYRING, world.now).await;
    let ledger = ledger.expect("a database");
    assert_eq!(ledger.books.len(), 1, "the other one runs");
    let summary = ledger.summaries.values().next().expect("a summary");
    assert_eq!(summary.last_uses[&1], start());
    assert!(world.store().find(&[1; 16]).await.expect("read").is_none());
    // Silent for `lost_after`.
    world.watch(13.hours()).await;
    let ledger = world.store().ledger_of(KEYRING, world.now).await;
    let book = ledger.expect("a database").books.into_values().next();
    assert!(book.expect("it is kept").end.is_some());
    assert!(world.store().find(&[2; 16]).await.expect("read").is_none());
    let counted: i64 = sqlx::query_scalar("SELECT instances + bytes FROM shares")
        .fetch_one(&mut connect(&world.file()).await)
        .await
        .expect("read");
    assert_eq!(counted, 0);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_cannot_be_used_stops_the_start_and_says_what_to_do() {
    let mut world = World::new().await;
    world.stop().await;
    let newer = "UPDATE hub_numbers SET value = 99 WHERE name = 'schema'";
    let mut connection = connect(&world.file()).await;
    sqlx::raw_sql(newer)
        .execute(&mut connection)
        .await
        .expect("newer");
    connection.close().await.expect("closed");
    let fails = async |settings: &HubSettings| {
        let metrics = StoreMetrics::new(&Registry::default());
        let opened = Store::open(settings, metrics, start()).await;
        opened.err().expect("unusable").to_string()
    };
    let error = fails(&world.settings()).await;
    assert!(
        error.contains("has schema 99") && error.contains("restore the backup"),
        "{error}"
    );
    fs::remove_file(world.file()).expect("removed");
    fs::write(
        world.file(),
        "not a database, and longer than its header".repeat(9),
    )
    .expect("write");
    let error = fails(&world.settings()).await;
    assert!(
        error.contains("hub.db: ") && error.contains("`state_dir` must"),
        "{error}"
    );
    let mut settings = world.settings();
    settings.database = config::HubDatabase::Postgres {
        url: "postgres://hub@127.0.0.1:1/hub?sslmode=none".into(),
        password_file: None,
    };
    let error = fails(&settings).await;
    assert!(
        error.contains("127.0.0.1:1/hub") && error.contains("check `database.url`"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let world = World::new().await;
    for (path, mode) in [
        (world.file(), 0o600),
        (world.folder.path().join("state"), 0o700),
    ] {
        let found = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(found & 0o777, mode, "{}", path.display());
    }
}
