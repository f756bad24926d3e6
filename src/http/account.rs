//! What each caller holds of everything that callers share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use super::{
    memory::{BodyMemory, MemoryShare},
    problem::Problem,
    share::{Held, Pool, Refused},
};
use crate::config::Limits;

/// HTTP/2 requests in flight beyond the first of each connection, per connection allowed. What one
/// of them holds beyond `body_memory` is a few KiB.
const STREAMS_PER_CONNECTION: usize = 16;
/// The part of them that strangers may have together, as a divisor.
const STRANGERS_PART: usize = 16;
/// The memory of operators' responses, in bytes. It is their own, so that a sidecar whose
/// applications use all of theirs can still be watched.
const OPERATORS_MEMORY: usize = 32 << 20;

/// What the callers of all listeners share.
pub struct Accounts {
    resources: Arc<Resources>,
    /// Unix users with connections.
    users: Mutex<BTreeMap<u32, Weak<Account>>>,
    token_holder: Arc<Account>,
    operators: Arc<Account>,
    strangers: Arc<Account>,
}

struct Resources {
    memory: BodyMemory,
    streams: Pool,
}

/// What one caller holds. Its connections share it.
pub(crate) struct Account {
    resources: Arc<Resources>,
    pub(crate) connections: Held,
    pub(crate) subscriptions: Held,
    memory: Held,
    streams: Held,
    stream_limit: usize,
}

impl Accounts {
    /// `patience` is how long a request waits for memory.
    pub(crate) fn new(limits: &Limits, patience: Duration) -> Arc<Self> {
        let streams = limits.connections.saturating_mul(STREAMS_PER_CONNECTION);
        let resources = Arc::new(Resources {
            memory: BodyMemory::new(limits.body_memory, patience),
            streams: Pool::new(streams),
        });
        let operators = Account::new(&Arc::new(Resources {
            memory: BodyMemory::new(OPERATORS_MEMORY, patience),
            streams: Pool::new(streams),
        }));
        let strangers = Account {
            stream_limit: streams / STRANGERS_PART,
            ..Account::new(&resources)
        };
        Arc::new(Self {
            users: Mutex::default(),
            token_holder: Arc::new(Account::new(&resources)),
            operators: Arc::new(operators),
            strangers: Arc::new(strangers),
            resources,
        })
    }

    /// The account of a Unix user.
    pub(crate) fn of_user(&self, uid: u32) -> Arc<Account> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = users.get(&uid).and_then(Weak::upgrade) {
            return account;
        }
        users.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::new(&self.resources));
        users.insert(uid, Arc::downgrade(&account));
        account
    }

    /// An account for one more caller, which keeps it.
    #[cfg(feature = "hub")]
    pub(crate) fn of_another(&self) -> Arc<Account> {
        Arc::new(Account::new(&self.resources))
    }

    pub(crate) fn of_token_holder(&self) -> &Arc<Account> {
        &self.token_holder
    }

    pub(crate) fn of_operators(&self) -> &Arc<Account> {
        &self.operators
    }

    /// The account of everyone who is not known.
    pub(crate) fn of_strangers(&self) -> &Arc<Account> {
        &self.strangers
    }
}

impl Account {
    fn new(resources: &Arc<Resources>) -> Self {
        Self {
            resources: Arc::clone(resources),
            connections: Held::default(),
            subscriptions: Held::default(),
            memory: Held::default(),
            streams: Held::default(),
            stream_limit: usize::MAX,
        }
    }

    /// Reserves memory, in bytes, and waits for it. Small amounts are free.
    ///
    /// # Errors
    /// [`Code::Overloaded`](crate::wire::Code::Overloaded) if that takes too long.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: usize) -> Result<MemoryShare, Problem> {
        self.resources.memory.reserve(self, bytes).await
    }

    /// Like [`Self::reserve`], but does not wait.
    pub(crate) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<MemoryShare> {
        self.resources.memory.try_reserve(self, bytes)
    }

    /// Whether others wait for memory of which this caller holds more than they do.
    pub(crate) fn must_give_way(&self) -> bool {
        self.resources.memory.must_give_way(self)
    }

    /// Admits a concurrent HTTP/2 request.
    pub(crate) fn try_stream(self: &Arc<Self>) -> Option<StreamPlace> {
        let pool = &self.resources.streams;
        pool.try_take(&self.streams, 1, self.stream_limit).ok()?;
        Some(StreamPlace(Arc::clone(self)))
    }

    pub(super) fn memory_held(&self) -> usize {
        self.memory.amount()
    }

    pub(super) fn take_memory(&self, bytes: usize) -> Result<(), Refused> {
        let pool = &self.resources.memory.pool;
        pool.try_take(&self.memory, bytes, usize::MAX)
    }

    pub(super) fn give_back_memory(&self, bytes: usize) {
        let memory = &self.resources.memory;
        memory.pool.give_back(&self.memory, bytes);
        memory.settle();
    }
}

/// The place of a concurrent HTTP/2 request.
pub(crate) struct StreamPlace(Arc<Account>);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.resources.streams.give_back(&self.0.streams, 1);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Accounts that share `memory` bytes.
    pub(crate) fn accounts(memory: usize, patience: Duration) -> Arc<Accounts> {
        let limits = Limits {
            body_memory: memory,
            ..Limits::default()
        };
        Accounts::new(&limits, patience)
    }

    /// The only account, with `memory` bytes to share.
    pub(crate) fn account(memory: usize) -> Arc<Account> {
        Arc::clone(accounts(memory, Duration::from_secs(5)).of_token_holder())
    }

    impl Account {
        pub(crate) fn free_memory(&self) -> usize {
            self.resources.memory.pool.free()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::accounts, *};

    #[test]
    fn a_user_has_one_account_as_long_as_it_is_in_use() {
        let accounts = accounts(1 << 20, Duration::ZERO);
        let first = accounts.of_user(1);
        assert!(Arc::ptr_eq(&first, &accounts.of_user(1)));
        assert!(!Arc::ptr_eq(&first, &accounts.of_user(2)));
        drop(first);
        accounts.of_user(3);
        let users = accounts.users.lock().expect("lock");
        assert_eq!(users.keys().copied().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn operators_have_memory_while_applications_use_all_of_theirs() {
        let accounts = accounts(10_000, Duration::ZERO);
        let user = accounts.of_user(1);
        let _all = user.try_reserve(10_000).expect("free");
        assert!(accounts.of_user(2).try_reserve(2000).is_none());
        accounts.of_operators().try_reserve(1 << 20).expect("free");
    }

    #[test]
    fn strangers_leave_most_concurrent_requests_to_others() {
        let accounts = accounts(1 << 20, Duration::ZERO);
        let mut places = Vec::new();
        while let Some(place) = accounts.of_strangers().try_stream() {
            places.push(place);
        }
        assert_eq!(places.len(), 16 * 1024 / STRANGERS_PART);
        let greedy = accounts.of_user(1);
        while let Some(place) = greedy.try_stream() {
            places.push(place);
        }
        accounts.of_user(2).try_stream().expect("room for another");
        drop(places);
        assert_eq!(accounts.resources.streams.free(), 16 * 1024);
    }
}
