//! The memory that request and response bodies may hold together, shared by caller.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{
    account::Account,
    problem::Problem,
    share::{Pool, Refused},
};
use crate::wire::Code;

/// Bodies up to this size are not accounted for: the number of requests bounds what they hold.
pub(crate) const UNTRACKED: usize = 1024;

/// The memory that all bodies may hold together.
pub(crate) struct BodyMemory {
    pub(super) pool: Pool,
    /// How long a request waits for its share.
    patience: Duration,
    queue: Mutex<VecDeque<Waiter>>,
    /// The length of the queue.
    waiting: AtomicUsize,
    next_ticket: AtomicU64,
}

/// A request that waits for its share.
struct Waiter {
    ticket: u64,
    account: Arc<Account>,
    bytes: usize,
    granted: oneshot::Sender<MemoryShare>,
}

/// The problem of a request for which there is no memory.
pub(crate) fn overloaded() -> Problem {
    Problem::new(
        Code::Overloaded,
        "other requests hold all of `limits.body_memory`, or those of this caller hold its share \
         of it; try again",
    )
    .retry_after(1)
}

/// A share of the memory; empty if the bytes are not accounted for. Dropping it returns the share.
#[derive(Default)]
pub(crate) struct MemoryShare {
    /// None if it is empty.
    account: Option<Arc<Account>>,
    bytes: usize,
}

impl BodyMemory {
    /// `bytes` is the total.
    pub(super) fn new(bytes: usize, patience: Duration) -> Self {
        Self {
            pool: Pool::new(bytes),
            patience,
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
        }
    }

    /// Reserves a share without waiting. None also while others wait, so that none is overtaken.
    pub(super) fn try_reserve(&self, account: &Arc<Account>, bytes: usize) -> Option<MemoryShare> {
        if bytes <= UNTRACKED {
            return Some(MemoryShare::default());
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        if account.take_memory(bytes).is_ok() {
            return Some(MemoryShare::of(Arc::clone(account), bytes));
        }
        // For a moment, this seemed to hold what it did not get. Someone may have been refused.
        self.settle();
        None
    }

    /// Reserves a share.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if other requests hold the memory for too long.
    pub(super) async fn reserve(
        &self,
        account: &Arc<Account>,
        bytes: usize,
    ) -> Result<MemoryShare, Problem> {
        if let Some(share) = self.try_reserve(account, bytes) {
            return Ok(share);
        }
        let (granted, share) = oneshot::channel();
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        self.change_queue(|queue| {
            queue.push_back(Waiter {
                ticket,
                account: Arc::clone(account),
                bytes,
                granted,
            });
        });
        let _place = QueuePlace {
            memory: self,
            ticket,
        };
        // Something may have been returned meanwhile, or others may hold more than this caller.
        self.settle();
        match timeout(self.patience, share).await {
            Ok(Ok(share)) => Ok(share),
            _ => Err(overloaded()),
        }
    }

    /// Whether a request waits that `account` keeps waiting: one of its own, or one of a caller
    /// that holds no more than it does.
    pub(super) fn must_give_way(&self, account: &Account) -> bool {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let held = account.memory_held();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.iter().any(|waiter| {
            std::ptr::eq(&*waiter.account, account) || waiter.account.memory_held() <= held
        })
    }

    /// Grants what can be granted to those who wait.
    pub(super) fn settle(&self) {
        while self.waiting.load(Ordering::SeqCst) > 0
            && let Some(waiter) = self.change_queue(grantable)
        {
            // One that gave up meanwhile drops its share, which returns it.
            let _ = waiter
                .granted
                .send(MemoryShare::of(waiter.account, waiter.bytes));
        }
    }

    fn change_queue<T>(&self, change: impl FnOnce(&mut VecDeque<Waiter>) -> T) -> T {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut queue);
        self.waiting.store(queue.len(), Ordering::SeqCst);
        result
    }
}

/// Removes the next request whose share is free now, and takes it. Of each caller, the request that
/// has waited longest is next; of the callers, the one that holds least.
fn grantable(queue: &mut VecDeque<Waiter>) -> Option<Waiter> {
    let mut next: Vec<(usize, usize)> = Vec::new();
    for (at, waiter) in queue.iter().enumerate() {
        let is_next = next
            .iter()
            .all(|(_, earlier)| !Arc::ptr_eq(&queue[*earlier].account, &waiter.account));
        if is_next {
            next.push((waiter.account.memory_held(), at));
        }
    }
    next.sort_unstable();
    for (_, at) in next {
        let waiter = &queue[at];
        match waiter.account.take_memory(waiter.bytes) {
            Ok(()) => return queue.remove(at),
            // What is free is kept for the caller that holds least.
            Err(Refused::Scarce) => return None,
            Err(Refused::Share) => {}
        }
    }
    None
}

/// The place of a request in the queue, which it leaves when it gives up.
struct QueuePlace<'m> {
    memory: &'m BodyMemory,
    ticket: u64,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let removed = self.memory.change_queue(|queue| {
            let at = queue
                .iter()
                .position(|waiter| waiter.ticket == self.ticket)?;
            queue.remove(at)
        });
        if removed.is_some() {
            // It may have kept others waiting.
            self.memory.settle();
        }
    }
}

impl MemoryShare {
    fn of(account: Arc<Account>, bytes: usize) -> Self {
        Self {
            account: Some(account),
            bytes,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.account.is_none()
    }

    /// Adds what `account` lacks to `bytes`, and waits for it.
    ///
    /// # Errors
    /// [`Code::Overloaded`]
    pub(crate) async fn grow_to(
        &mut self,
        account: &Arc<Account>,
        bytes: usize,
    ) -> Result<(), Problem> {
        let mut more = account.reserve(bytes.saturating_sub(self.bytes)).await?;
        if self.is_empty() {
            *self = more;
        } else {
            self.bytes += std::mem::take(&mut more.bytes);
        }
        Ok(())
    }

    /// Returns what exceeds `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let keep = if bytes <= UNTRACKED { 0 } else { bytes };
        if let Some(account) = &self.account
            && self.bytes > keep
        {
            account.give_back_memory(self.bytes - keep);
            self.bytes = keep;
        }
        if keep == 0 {
            self.account = None;
        }
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use tokio::time::Instant;

    use super::*;
    use crate::http::account::{
        Accounts,
        testing::{account, accounts},
    };

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_reservation_waits_for_memory_and_fails_in_the_end() {
        let accounts = accounts(10_000, PATIENCE);
        let (holder, waiting) = (accounts.of_user(1), accounts.of_user(2));
        let share = holder.reserve(8000).await.expect("free");
        assert!(!holder.must_give_way());
        let start = Instant::now();
        let (refused, ()) = tokio::join!(waiting.reserve(4000), async {
            tokio::task::yield_now().await;
            assert!(holder.must_give_way());
        });
        assert_eq!(refused.err().expect("refused").code, Code::Overloaded);
        assert_eq!(start.elapsed(), PATIENCE);
        assert!(!holder.must_give_way());
        drop(share);
        waiting.reserve(4000).await.expect("free again");
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_leaves_memory_to_another_even_while_it_waits() {
        let accounts = accounts(64_000, PATIENCE);
        let (greedy, other) = (accounts.of_user(1), accounts.of_user(2));
        let mut shares = Vec::new();
        while let Some(share) = greedy.try_reserve(4000) {
            shares.push(share);
        }
        assert_eq!(shares.len(), 12);
        let mut waiting = pin!(greedy.reserve(4000));
        assert!(poll!(waiting.as_mut()).is_pending());
        let mut first = pin!(other.reserve(4000));
        assert!(
            poll!(first.as_mut()).is_ready(),
            "it does not queue behind the greedy one"
        );
        shares.pop();
        assert!(
            poll!(waiting.as_mut()).is_ready(),
            "its own share is free again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_wait_the_caller_that_holds_least_is_next() {
        let accounts = accounts(12_000, PATIENCE);
        let callers = [1, 2, 3].map(|uid| accounts.of_user(uid));
        let first = callers[0].reserve(6000).await.expect("free");
        let _second = callers[1].reserve(4000).await.expect("free");
        let mut more = pin!(callers[1].reserve(3000));
        assert!(poll!(more.as_mut()).is_pending());
        let mut third = pin!(callers[2].reserve(3000));
        assert!(poll!(third.as_mut()).is_pending());
        assert!(callers[0].must_give_way() && callers[1].must_give_way());
        drop(first);
        assert!(poll!(third.as_mut()).is_ready());
        assert!(poll!(more.as_mut()).is_ready(), "there is enough for both");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stops_waiting_keeps_no_one_else_waiting() {
        let accounts = accounts(10_000, PATIENCE);
        let [holder, large, small] = [1, 2, 3].map(|uid| accounts.of_user(uid));
        let _share = holder.reserve(4000).await.expect("free");
        let mut large_waits = Box::pin(large.reserve(9000));
        assert!(poll!(large_waits.as_mut()).is_pending());
        let mut small_waits = pin!(small.reserve(2000));
        assert!(
            poll!(small_waits.as_mut()).is_pending(),
            "after the one before it"
        );
        drop(large_waits);
        assert!(poll!(small_waits.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_share_grows_and_shrinks() {
        let account = account(10_000);
        let mut share = account.reserve(2000).await.expect("free");
        share.grow_to(&account, 7000).await.expect("free");
        assert_eq!(account.free_memory(), 3000);
        share.grow_to(&account, 5000).await.expect("enough");
        assert_eq!(account.free_memory(), 3000);
        share.shrink_to(3000);
        assert_eq!(account.free_memory(), 7000);
        share.shrink_to(UNTRACKED);
        assert!(share.is_empty());
        assert_eq!(account.free_memory(), 10_000);
        share.grow_to(&account, 4000).await.expect("free");
        drop(share);
        assert_eq!(account.free_memory(), 10_000);
    }

    #[tokio::test]
    async fn small_bodies_are_free() {
        let share = account(0).reserve(UNTRACKED).await.expect("free");
        assert!(share.is_empty());
    }

    /// Whatever order requests and responses take, no byte is lost or counted twice.
    #[tokio::test(start_paused = true)]
    async fn all_memory_returns() {
        let accounts: Arc<Accounts> = accounts(50_000, Duration::from_millis(7));
        let callers = [1, 2, 3].map(|uid| accounts.of_user(uid));
        let tasks = (0..60u64).map(|at| {
            let account = Arc::clone(&callers[at as usize % 3]);
            tokio::spawn(async move {
                for round in 0..20 {
                    let bytes = 1500 + (at * 733 + round * 1999) as usize % 20_000;
                    if let Ok(mut share) = account.reserve(bytes).await {
                        tokio::time::sleep(Duration::from_millis((at + round) % 5)).await;
                        share.shrink_to(bytes / 2);
                        tokio::task::yield_now().await;
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
        assert_eq!(callers[0].free_memory(), 50_000);
        assert!(callers.iter().all(|caller| caller.memory_held() == 0));
    }
}
