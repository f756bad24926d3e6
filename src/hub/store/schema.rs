//! Tables, and how they came to be what they are.
//!
//! Both kinds of databases know `BIGINT`, and `TEXT` in the order of its bytes. Times are
//! milliseconds since 1970, 0 for none. Bodies are JSON of the pure types; the columns beside them
//! are what statements select by.

use sqlx::{AnyConnection, AnyPool, AssertSqlSafe};

use super::{
    StoreError,
    change::{begin, commit},
    connect::{Kind, Location},
    rows::{self, Table, Value},
};
use crate::config::HubDatabase;

/// The number of the last barrier.
pub(super) const BARRIER: &str = "barrier";
const SCHEMA: &str = "schema";

/// Each makes a schema from the one before. What is released never changes.
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE replicas (
    replica TEXT PRIMARY KEY, number BIGINT NOT NULL, beat_at BIGINT NOT NULL
);
CREATE TABLE shares (
    identity TEXT PRIMARY KEY, instances BIGINT NOT NULL, bytes BIGINT NOT NULL,
    keyrings BIGINT NOT NULL
);
CREATE TABLE instances (
    instance TEXT PRIMARY KEY, identity TEXT NOT NULL, public_key TEXT NOT NULL, name TEXT NOT NULL,
    workload TEXT NOT NULL, sequence BIGINT NOT NULL, digest TEXT NOT NULL,
    received_at BIGINT NOT NULL, answered BIGINT NOT NULL, ended BIGINT NOT NULL,
    size BIGINT NOT NULL, status TEXT NOT NULL
);
CREATE INDEX instances_by_name ON instances (ended, name, instance);
CREATE INDEX instances_by_time ON instances (ended, received_at);
CREATE TABLE books (
    instance TEXT NOT NULL, keyring TEXT NOT NULL, reported_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (instance, keyring)
);
CREATE INDEX books_by_keyring ON books (keyring);
CREATE INDEX books_by_time ON books (ended_at, reported_at);
CREATE TABLE summaries (
    keyring TEXT NOT NULL, workload TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (keyring, workload)
);
CREATE TABLE gaps (
    keyring TEXT NOT NULL, workload TEXT NOT NULL, ends_at BIGINT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (keyring, workload)
);
"];

/// Its rows are by name.
const NUMBERS: Table = Table {
    name: "hub_numbers",
    columns: &["name", "value"],
    keys: 1,
    replaces: "",
};

/// Creates or upgrades the tables.
pub(super) async fn upgrade(
    pool: &AnyPool,
    kind: Kind,
    database: &HubDatabase,
) -> Result<(), StoreError> {
    let failed = StoreError::failed;
    let mut transaction = begin(pool, kind).await?;
    let connection: &mut AnyConnection = &mut transaction;
    // It has the number of the schema, so it is outside of every schema.
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS hub_numbers (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    )
    .execute(&mut *connection)
    .await
    .map_err(failed("create its tables"))?;
    let found = number(connection, SCHEMA).await?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::NewerSchema {
            location: Location(database).to_string(),
            found,
            known,
        });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        let text = match kind {
            Kind::Sqlite => (*migration).to_owned(),
            Kind::Postgres => migration.replace("TEXT", "TEXT COLLATE \"C\""),
        };
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut *connection)
            .await
            .map_err(failed("upgrade its tables"))?;
    }
    set_number(connection, SCHEMA, known).await?;
    commit(transaction).await
}

/// Returns a number, or 0 if it was never set.
pub(super) async fn number(
    connection: &mut AnyConnection,
    name: &'static str,
) -> Result<i64, StoreError> {
    let select = "SELECT value FROM hub_numbers WHERE name = $1";
    let found = rows::select(connection, select, &[name.into()]).await?;
    found.first().map_or(Ok(0), |row| rows::number(row, 0))
}

pub(super) async fn set_number(
    connection: &mut AnyConnection,
    name: &'static str,
    value: i64,
) -> Result<(), StoreError> {
    let row = vec![name.into(), Value::Number(value)];
    NUMBERS.put(connection, &[row]).await
}
