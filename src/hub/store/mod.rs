//! The hub's database: the registry of instances and the usage ledger.
//!
//! SQLite in a file of its own, or PostgreSQL for several replicas. What a report changes is
//! decided by pure functions: a write loads the part that is needed, lets them change it, and
//! stores the rows that differ. One write is under way at a time in the whole database, so two
//! replicas that take the same book decide one after the other, and the highest sequence wins.
//!
//! Every write is a heartbeat as well, which shows times that no hub watched, and a database that
//! was restored (`watch`).

mod change;
mod connect;
mod error;
mod health;
mod ledger;
mod reading;
mod reports;
mod rows;
mod schema;
mod shares;
#[cfg(test)]
pub(super) mod tests;
mod upkeep;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use sqlx::AnyPool;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

pub use self::error::StoreError;
use self::{connect::Kind, health::Health, watch::Beat};
use super::{metrics::StoreMetrics, workloads::Workloads};
use crate::{
    config::{HubLimits, HubSettings},
    crypto::{InstanceId, KeyringId},
    ledger::{Barrier, Ledger},
    model::Span,
};

/// How long the database may take for a whole read or write.
const PATIENCE: Duration = Duration::from_secs(25);

/// The database, as one replica uses it.
pub(super) struct Store {
    pool: AnyPool,
    kind: Kind,
    /// Names this process among the replicas.
    replica: String,
    /// Held by the write that is under way.
    beat: Mutex<Beat>,
    /// Counts the times when reports could not be stored.
    not_stored: AtomicU64,
    health: Health,
    pub(super) workloads: Arc<Workloads>,
    limits: HubLimits,
    pub(super) lost_after: Span,
}

impl Store {
    /// Opens the database, creates or upgrades its tables, and notes what wasn't watched until now.
    ///
    /// # Errors
    /// The database can't be used, or is of a newer build.
    pub(super) async fn open(
        settings: &HubSettings,
        metrics: StoreMetrics,
        now: Timestamp,
    ) -> Result<Arc<Self>, StoreError> {
        let opened = Self::open_tables(settings, metrics, now).await;
        opened.map_err(|error| connect::at_start(error, &settings.database))
    }

    async fn open_tables(
        settings: &HubSettings,
        metrics: StoreMetrics,
        now: Timestamp,
    ) -> Result<Arc<Self>, StoreError> {
        #[cfg(test)]
        let _real = tests::RealTime::begin();
        let (pool, kind) = connect::connect(&settings.database).await?;
        schema::upgrade(&pool, kind, &settings.database).await?;
        let replica = InstanceId::generate().map_err(|_| StoreError::RandomnessUnavailable)?;
        let lost_after = Span(settings.lost_after);
        let store = Self {
            pool,
            kind,
            replica: replica.to_string(),
            beat: Mutex::new(Beat {
                written: 0,
                attempted: 0,
                not_stored: 0,
                lost_after,
            }),
            not_stored: AtomicU64::new(0),
            health: Health::new(metrics),
            workloads: Arc::new(Workloads::new(&settings.workloads)),
            limits: settings.limits.clone(),
            lost_after,
        };
        store.tidy(now).await?;
        Ok(Arc::new(store))
    }

    /// Returns everything about a keyring, up to now.
    ///
    /// # Errors
    /// The database can't be read or written.
    pub(super) async fn ledger_of(
        &self,
        keyring: KeyringId,
        now: Timestamp,
    ) -> Result<Ledger, StoreError> {
        let write = async {
            // With a heartbeat, which shows whether something wasn't watched until now.
            let mut change = self.change(now).await?;
            let ledger = ledger::of_keyring(change.connection(), keyring).await?;
            change.commit().await?;
            Ok(ledger)
        };
        self.write(write).await
    }

    /// Sets a barrier: its number is higher than every one before, in a database that was restored,
    /// too.
    ///
    /// # Errors
    /// The database can't be written.
    pub(super) async fn set_barrier(&self, now: Timestamp) -> Result<Barrier, StoreError> {
        let write = async {
            let mut change = self.change(now).await?;
            let last = schema::number(change.connection(), schema::BARRIER).await?;
            let number = last.max(now.as_millisecond()) + 1;
            schema::set_number(change.connection(), schema::BARRIER, number).await?;
            change.commit().await?;
            Ok(Barrier {
                number: number.unsigned_abs(),
                at: now,
            })
        };
        self.write(write).await
    }

    /// Notes that a report could not be stored, whose process may never send another: the next
    /// write says that it wasn't watched until then.
    pub(super) fn note_not_stored(&self) {
        self.not_stored.fetch_add(1, Ordering::SeqCst);
    }

    /// Closes the connections, after the writes that are under way.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Waits for a write, but not for a database that doesn't answer, and notes how it went.
    async fn write<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let result = wait_for(write).await;
        self.health.wrote(start.elapsed(), result.as_ref().err());
        result
    }
}

/// Waits for the database to do what it was asked, but not for one that doesn't answer.
async fn wait_for<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    #[cfg(test)]
    let _real = tests::RealTime::begin();
    let silent = StoreError::Silent {
        seconds: PATIENCE.as_secs(),
    };
    timeout(PATIENCE, work).await.unwrap_or(Err(silent))
}
