//! One write at a time in the whole database.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use sqlx::{Any, AnyConnection, AnyPool, Transaction};
use tokio::sync::MutexGuard;

use super::{
    Store, StoreError,
    connect::Kind,
    ledger,
    watch::{self, Beat},
};

/// Held by a writer to the end of its transaction; PostgreSQL alone needs it. The number is the
/// ASCII codes of `sidekey`.
const LOCK: &str = "DO $$ BEGIN PERFORM pg_advisory_xact_lock(32484756655580537); END $$";

/// Begins a transaction that no other writer runs beside.
pub(super) async fn begin(
    pool: &AnyPool,
    kind: Kind,
) -> Result<Transaction<'static, Any>, StoreError> {
    let failed = StoreError::failed;
    match kind {
        Kind::Sqlite => pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed("begin a write")),
        Kind::Postgres => {
            let mut transaction = pool.begin().await.map_err(failed("begin a write"))?;
            sqlx::raw_sql(LOCK)
                .execute(&mut *transaction)
                .await
                .map_err(failed("wait for another replica's write"))?;
            Ok(transaction)
        }
    }
}

pub(super) async fn commit(transaction: Transaction<'static, Any>) -> Result<(), StoreError> {
    let result = transaction.commit().await;
    result.map_err(StoreError::failed("commit a write"))
}

/// A write that is under way. Dropping it undoes it.
pub(super) struct Change<'a> {
    transaction: Transaction<'static, Any>,
    beat: MutexGuard<'a, Beat>,
    number: i64,
    not_stored: u64,
}

impl Store {
    /// Begins a write, with a heartbeat.
    pub(super) async fn change(&self, now: Timestamp) -> Result<Change<'_>, StoreError> {
        let mut beat = self.beat.lock().await;
        let mut transaction = begin(&self.pool, self.kind).await?;
        let number = watch::beat(&mut transaction, &self.replica, &mut beat, now).await?;
        let not_stored = self.not_stored.load(Ordering::SeqCst);
        if not_stored > beat.not_stored {
            ledger::put_gaps(&mut transaction, &[watch::not_stored(now)]).await?;
        }
        Ok(Change {
            transaction,
            beat,
            number,
            not_stored,
        })
    }
}

impl Change<'_> {
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }

    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        // If the connection fails now, whether this was written isn't known.
        self.beat.attempted = self.number;
        commit(self.transaction).await?;
        self.beat.written = self.number;
        self.beat.not_stored = self.not_stored;
        Ok(())
    }
}
