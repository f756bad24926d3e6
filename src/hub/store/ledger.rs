//! Books, summaries and gaps as rows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{AnyConnection, any::AnyRow};

use super::{
    StoreError,
    rows::{self, Table, Value},
};
use crate::{
    crypto::{InstanceId, KeyringId},
    ledger::{Book, Gap, Ledger, Summary},
};

const BOOKS: Table = Table {
    name: "books",
    columns: &["instance", "keyring", "reported_at", "ended_at", "body"],
    keys: 2,
    replaces: "",
};
const SUMMARIES: Table = Table {
    name: "summaries",
    columns: &["keyring", "workload", "body"],
    keys: 2,
    replaces: "",
};
/// The last one is enough: they count by their end.
const GAPS: Table = Table {
    name: "gaps",
    columns: &["keyring", "workload", "ends_at", "body"],
    keys: 2,
    replaces: " WHERE excluded.ends_at > gaps.ends_at",
};

type Books = BTreeMap<(InstanceId, KeyringId), Book>;
type Summaries = BTreeMap<(KeyringId, String), Summary>;

/// Reads books, whose rows begin with instance, keyring and body.
pub(super) fn books(rows: &[AnyRow]) -> Result<Books, StoreError> {
    let read = |row| {
        let key = (id(row, 0, "books")?, id(row, 1, "books")?);
        Ok((key, body(row, 2, "books")?))
    };
    rows.iter().map(read).collect()
}

/// Reads summaries, whose rows begin with keyring, workload and body.
pub(super) fn summaries(rows: &[AnyRow]) -> Result<Summaries, StoreError> {
    let read = |row| {
        let key = (id(row, 0, "summaries")?, rows::text(row, 1)?);
        Ok((key, body(row, 2, "summaries")?))
    };
    rows.iter().map(read).collect()
}

/// Returns everything about a keyring.
pub(super) async fn of_keyring(
    connection: &mut AnyConnection,
    keyring: KeyringId,
) -> Result<Ledger, StoreError> {
    let keyring = [Value::Text(keyring.to_string())];
    let select = "SELECT instance, keyring, body FROM books WHERE keyring = $1";
    let books = books(&rows::select(connection, select, &keyring).await?)?;
    let select = "SELECT keyring, workload, body FROM summaries WHERE keyring = $1";
    let summaries = summaries(&rows::select(connection, select, &keyring).await?)?;
    let select = "SELECT body FROM gaps WHERE keyring = $1 OR keyring = ''";
    let gaps = rows::select(connection, select, &keyring).await?;
    let gaps = gaps.iter().map(|row| body(row, 0, "gaps"));
    Ok(Ledger {
        books,
        summaries,
        gaps: gaps.collect::<Result<_, _>>()?,
        listings: BTreeMap::new(),
    })
}

/// Writes what differs from `before`, and the gaps.
pub(super) async fn save(
    connection: &mut AnyConnection,
    before: &Ledger,
    after: &Ledger,
) -> Result<(), StoreError> {
    let mut changed = Vec::new();
    for (key, book) in &after.books {
        if before.books.get(key) != Some(book) {
            changed.push(book_row(key, book)?);
        }
    }
    BOOKS.put(connection, &changed).await?;
    let gone = before.books.keys();
    let gone = gone.filter(|key| !after.books.contains_key(key));
    let gone: Vec<_> = gone
        .map(|(instance, keyring)| {
            vec![
                Value::Text(instance.to_string()),
                Value::Text(keyring.to_string()),
            ]
        })
        .collect();
    BOOKS.remove(connection, &gone).await?;
    let mut changed = Vec::new();
    for (key @ (keyring, workload), summary) in &after.summaries {
        if before.summaries.get(key) != Some(summary) {
            changed.push(vec![
                Value::Text(keyring.to_string()),
                Value::Text(workload.clone()),
                json(summary)?,
            ]);
        }
    }
    SUMMARIES.put(connection, &changed).await?;
    put_gaps(connection, &after.gaps).await
}

/// Adds gaps, unless a later one of the same keyring and workload is there.
pub(super) async fn put_gaps(
    connection: &mut AnyConnection,
    gaps: &[Gap],
) -> Result<(), StoreError> {
    // One statement changes a row once.
    let mut last: BTreeMap<(String, String), &Gap> = BTreeMap::new();
    for gap in gaps {
        let keyring = gap.keyring.map(|keyring| keyring.to_string());
        let workload = gap.workload.clone();
        let key = (keyring.unwrap_or_default(), workload.unwrap_or_default());
        let entry = last.entry(key).or_insert(gap);
        if gap.until > entry.until {
            *entry = gap;
        }
    }
    let mut new = Vec::new();
    for ((keyring, workload), gap) in last {
        new.push(vec![
            Value::Text(keyring),
            Value::Text(workload),
            Value::Number(gap.until.as_millisecond()),
            json(gap)?,
        ]);
    }
    GAPS.put(connection, &new).await
}

fn book_row(
    (instance, keyring): &(InstanceId, KeyringId),
    book: &Book,
) -> Result<Vec<Value>, StoreError> {
    let ended_at = book.end.map_or(0, |end| end.at.as_millisecond());
    Ok(vec![
        Value::Text(instance.to_string()),
        Value::Text(keyring.to_string()),
        Value::Number(book.reported_at.as_millisecond()),
        Value::Number(ended_at),
        json(book)?,
    ])
}

fn json(value: &impl Serialize) -> Result<Value, StoreError> {
    let text = serde_json::to_string(value);
    text.map(Value::Text)
        .map_err(|error| StoreError::damaged("a new row", error))
}

fn body<T: DeserializeOwned>(
    row: &AnyRow,
    column: usize,
    table: &'static str,
) -> Result<T, StoreError> {
    let text = rows::text(row, column)?;
    serde_json::from_str(&text).map_err(|error| StoreError::damaged(table, error))
}

fn id<T: std::str::FromStr<Err = &'static str>>(
    row: &AnyRow,
    column: usize,
    table: &'static str,
) -> Result<T, StoreError> {
    let text = rows::text(row, column)?;
    text.parse()
        .map_err(|error: &str| StoreError::damaged(table, error))
}

/// Returns a time of a column.
pub(super) fn time(row: &AnyRow, column: usize) -> Result<Timestamp, StoreError> {
    let time = Timestamp::from_millisecond(rows::number(row, column)?);
    time.map_err(|error| StoreError::damaged("times", error))
}
