//! How many instances report, shared by identity: each takes a row of the database and more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{caller::Identity, registry::InstanceId};
use crate::{
    http::{problem::Problem, share::Pool},
    wire::Code,
};

/// After which silence the seat of an instance is free: it has most likely ended.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often seats are looked through for that.
const SWEEP: Duration = Duration::from_secs(60);

/// The instances that report.
pub(super) struct Seats {
    pool: Pool,
    taken: Mutex<Taken>,
}

struct Taken {
    seats: HashMap<InstanceId, Seat>,
    swept_at: Instant,
}

struct Seat {
    identity: Arc<Identity>,
    seen_at: Instant,
}

impl Seats {
    pub(super) fn new(count: usize) -> Self {
        Self {
            pool: Pool::new(count),
            taken: Mutex::new(Taken {
                seats: HashMap::new(),
                swept_at: Instant::now(),
            }),
        }
    }

    /// Takes the seat of an instance that reports, or keeps the one that it has.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if all seats are taken, or the identity has its share of them.
    pub(super) fn take(
        &self,
        instance: &InstanceId,
        identity: &Arc<Identity>,
    ) -> Result<(), Problem> {
        let now = Instant::now();
        let mut taken = self.lock();
        if now.duration_since(taken.swept_at) >= SWEEP {
            self.sweep(&mut taken, now);
        }
        if let Some(seat) = taken.seats.get_mut(instance) {
            seat.seen_at = now;
            return Ok(());
        }
        self.pool
            .try_take(&identity.instances, 1, usize::MAX)
            .map_err(|_| {
                Problem::new(
                    Code::Overloaded,
                    "all of `limits.instances` report, or those of this identity have its share \
                     of them",
                )
                .retry_after(60)
            })?;
        let seat = Seat {
            identity: Arc::clone(identity),
            seen_at: now,
        };
        taken.seats.insert(*instance, seat);
        Ok(())
    }

    /// Returns the identity that an instance has reported by.
    pub(super) fn owner(&self, instance: &InstanceId) -> Option<Arc<Identity>> {
        let taken = self.lock();
        let seat = taken.seats.get(instance)?;
        Some(Arc::clone(&seat.identity))
    }

    /// Frees the seat of an instance that has ended.
    pub(super) fn free(&self, instance: &InstanceId) {
        if let Some(seat) = self.lock().seats.remove(instance) {
            self.pool.give_back(&seat.identity.instances, 1);
        }
    }

    fn sweep(&self, taken: &mut Taken, now: Instant) {
        taken.swept_at = now;
        taken.seats.retain(|_, seat| {
            let is_taken = now.duration_since(seat.seen_at) < PATIENCE;
            if !is_taken {
                self.pool.give_back(&seat.identity.instances, 1);
            }
            is_taken
        });
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
