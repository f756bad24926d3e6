//! Gives up what was silent for too long, and forgets what has ended.

use jiff::Timestamp;
use sqlx::AnyConnection;

use super::{
    Store, StoreError, ledger,
    rows::{self, Value},
    shares,
};
use crate::ledger::{KEEP_CLOSED, Ledger};

/// The most books that change at a time. What is left waits for the next time.
const BOOKS: i64 = 2000;

impl Store {
    /// Shows that this replica watches, closes books of processes that were silent for
    /// `lost_after`, moves those that were closed a while ago to the summaries, and forgets the
    /// instances. Due every few seconds: at most
    /// [`WATCHED_WITHIN`](crate::ledger::WATCHED_WITHIN) may pass.
    ///
    /// # Errors
    /// The database can't be read or written.
    pub(in crate::hub) async fn tidy(&self, now: Timestamp) -> Result<(), StoreError> {
        let write = async {
            let mut change = self.change(now).await?;
            self.close_books(change.connection(), now).await?;
            self.forget(change.connection(), now).await?;
            change.commit().await
        };
        self.write(write).await
    }

    async fn close_books(
        &self,
        connection: &mut AnyConnection,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let values = [
            milliseconds(now.checked_sub(self.lost_after.0)),
            milliseconds(now.checked_sub(KEEP_CLOSED.0)),
            Value::Number(BOOKS),
        ];
        let select = "SELECT instance, keyring, body FROM books \
                      WHERE (ended_at = 0 AND reported_at <= $1) \
                      OR (ended_at > 0 AND ended_at <= $2) LIMIT $3";
        let books = ledger::books(&rows::select(connection, select, &values).await?)?;
        if books.is_empty() {
            return Ok(());
        }
        let mut keyrings: Vec<Value> = books
            .keys()
            .map(|(_, keyring)| Value::Text(keyring.to_string()))
            .collect();
        keyrings.dedup();
        keyrings.sort();
        keyrings.dedup();
        let select = "SELECT keyring, workload, body FROM summaries WHERE keyring";
        let summaries = rows::select_in(connection, select, &keyrings).await?;
        let before = Ledger {
            books,
            summaries: ledger::summaries(&summaries)?,
            ..Ledger::default()
        };
        let mut after = before.clone();
        after.close_lost(self.lost_after, now);
        after.fold(now);
        ledger::save(connection, &before, &after).await
    }

    async fn forget(
        &self,
        connection: &mut AnyConnection,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let values = [
            milliseconds(now.checked_sub(KEEP_CLOSED.0)),
            milliseconds(now.checked_sub(self.lost_after.0)),
        ];
        let delete = "DELETE FROM instances WHERE (ended = 1 AND received_at <= $1) \
                      OR (ended = 0 AND received_at <= $2) RETURNING identity, size";
        let forgotten = rows::select(connection, delete, &values).await?;
        if forgotten.is_empty() {
            return Ok(());
        }
        let before = shares::load(connection, &self.limits).await?;
        let mut after = before.clone();
        for row in &forgotten {
            after.give_back(&rows::text(row, 0)?, [1, rows::count(row, 1)?, 0]);
        }
        shares::save(connection, &before, &after).await
    }
}

/// A time before any other if there is none.
fn milliseconds(time: Result<Timestamp, jiff::Error>) -> Value {
    Value::Number(time.map_or(i64::MIN, Timestamp::as_millisecond))
}
