//! Fair shares of what there is a limited amount of.
//!
//! A caller may hold up to three times what is free (a dynamic threshold: Choudhury and
//! Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). One caller alone gets three quarters,
//! two that want everything get three sevenths each, and there is always room for one more. Nothing
//! has to be taken back for that.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How much a caller may hold, as a multiple of what is free before it takes more.
const HELD_PER_FREE: usize = 3;

/// A limited amount that callers share.
pub(crate) struct Pool {
    free: AtomicUsize,
}

/// What one caller holds of a pool.
#[derive(Default)]
pub(crate) struct Held(AtomicUsize);

/// Why a caller gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Less than that is free.
    Scarce,
    /// The caller would hold more than its share.
    Share,
}

impl Pool {
    pub(crate) fn new(amount: usize) -> Self {
        Self {
            free: AtomicUsize::new(amount),
        }
    }

    /// Takes `amount` for the caller that holds `held`. A caller that holds nothing may take
    /// whatever is free, up to `limit`.
    ///
    /// # Errors
    /// [`Refused`]
    pub(crate) fn try_take(&self, held: &Held, amount: usize, limit: usize) -> Result<(), Refused> {
        // Counted first, so that two requests of one caller cannot both take its last share.
        let before = held.0.fetch_add(amount, Ordering::SeqCst);
        let mut refused = Refused::Scarce;
        let taken = self
            .free
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| {
                let rest = free.checked_sub(amount)?;
                let share = HELD_PER_FREE.saturating_mul(free).min(limit);
                if before > 0 && before + amount > share || amount > limit {
                    refused = Refused::Share;
                    return None;
                }
                Some(rest)
            });
        if taken.is_ok() {
            return Ok(());
        }
        held.0.fetch_sub(amount, Ordering::SeqCst);
        Err(refused)
    }

    /// Gives back what [`Self::try_take`] took.
    pub(crate) fn give_back(&self, held: &Held, amount: usize) {
        held.0.fetch_sub(amount, Ordering::SeqCst);
        self.free.fetch_add(amount, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.load(Ordering::SeqCst)
    }
}

impl Held {
    pub(crate) fn amount(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIMIT: usize = usize::MAX;

    /// Takes single units until the pool refuses.
    fn take_all(pool: &Pool, held: &Held) -> usize {
        while pool.try_take(held, 1, NO_LIMIT).is_ok() {}
        held.amount()
    }

    #[test]
    fn one_caller_gets_three_quarters_and_later_ones_their_part_of_the_rest() {
        let (pool, callers) = (Pool::new(1024), [const { Held(AtomicUsize::new(0)) }; 3]);
        let shares = callers.each_ref().map(|held| take_all(&pool, held));
        assert_eq!(shares, [768, 192, 48]);
        assert_eq!(pool.free(), 16);
        assert_eq!(pool.try_take(&callers[0], 1, NO_LIMIT), Err(Refused::Share));
    }

    #[test]
    fn shares_even_out_as_the_first_caller_gives_back() {
        let (pool, greedy, late) = (Pool::new(700), Held::default(), Held::default());
        take_all(&pool, &greedy);
        for _ in 0..1000 {
            take_all(&pool, &late);
            pool.give_back(&greedy, 1);
            take_all(&pool, &greedy);
        }
        assert_eq!((greedy.amount(), late.amount()), (300, 300));
    }

    #[test]
    fn a_caller_that_holds_nothing_may_take_all_that_is_free_up_to_its_limit() {
        let (pool, held) = (Pool::new(10), Held::default());
        assert_eq!(pool.try_take(&held, 11, NO_LIMIT), Err(Refused::Scarce));
        assert_eq!(pool.try_take(&held, 6, 5), Err(Refused::Share));
        pool.try_take(&held, 10, NO_LIMIT).expect("free");
        assert_eq!(pool.try_take(&held, 1, NO_LIMIT), Err(Refused::Scarce));
        pool.give_back(&held, 10);
        assert_eq!((pool.free(), held.amount()), (10, 0));
    }
}
