//! The usage ledger: from the reports of a fleet, whether a version of a keyring is out of use.
//!
//! Each process has a [`Book`] per keyring, with counters since its start. So a report that is
//! lost, repeated, late or taken by another replica changes nothing that the next one doesn't put
//! right.
//! Every time is the hub's, at the receipt of a report. Whatever wasn't watched counts as a use of
//! every version at its end ([`Cause`]): it delays a retirement and never blocks it without end. A
//! [`Verdict`] speaks about the time before a barrier: every process has reported after it.
//!
//! Pure: no I/O, no clock, no async. A [`Ledger`] may be the part that a change needs: the hub
//! loads that from its database and stores it again.

mod book;
mod gap;
mod question;
mod reasons;
mod roster;
mod summary;
#[cfg(test)]
mod tests;
mod verdict;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

pub use self::{
    book::{Account, Book, Delivery, End, How},
    gap::{Cause, Gap, Unwatched},
    question::{Barrier, Declared, FurtherUse, Question, Statement, Subject, Superseded},
    roster::Listing,
    summary::{Run, Summary},
    verdict::{Code, Reason, Verdict, WorkloadVerdict, judge},
};
use crate::{
    crypto::{InstanceId, KeyringId},
    model::Span,
};

/// How long the book of an ended process is kept, so that a late or repeated report finds it.
pub const KEEP_CLOSED: Span = Span::from_days(1);

/// The time without a heartbeat that counts as watched. A process whose whole life falls into it is
/// seen only by a roster.
pub const WATCHED_WITHIN: Duration = Duration::from_secs(15);

/// Books and summaries, what rosters list, and gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// The books.
    pub books: BTreeMap<(InstanceId, KeyringId), Book>,
    /// The summaries of ended processes, by keyring and workload.
    pub summaries: BTreeMap<(KeyringId, String), Summary>,
    /// The listed processes, by the roster's name for them.
    pub listings: BTreeMap<String, Listing>,
    /// The gaps of workloads and of the whole fleet.
    pub gaps: Vec<Gap>,
}

/// The report is not by the owner of the process's books, so nothing of it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the report is by another identity or key than the first one of the process")]
pub struct NotTheOwner;

impl Ledger {
    /// Takes a report that is received now. Returns the keyrings in which it shows that something
    /// was missed.
    ///
    /// # Errors
    /// [`NotTheOwner`]
    pub fn take(
        &mut self,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Vec<(KeyringId, Cause)>, NotTheOwner> {
        let is_owner = |(_, book): (_, &Book)| book.owner == delivery.owner;
        if !self.books.range(range_of(delivery.instance)).all(is_owner) {
            return Err(NotTheOwner);
        }
        let mut gaps = Vec::new();
        for usage in &delivery.usage {
            let keyring = KeyringId(usage.id);
            let key = (delivery.instance, keyring);
            if let Some(book) = self.books.get_mut(&key) {
                gaps.extend(
                    book.take(delivery, usage, now)
                        .map(|cause| (keyring, cause)),
                );
                continue;
            }
            self.books.insert(key, Book::open(delivery, usage, now));
            let key = (keyring, delivery.workload.clone());
            let summary = self.summaries.entry(key);
            summary.or_insert_with(|| Summary::since(now));
        }
        if delivery.is_final {
            // The final report lists every keyring that is served, and not this one.
            self.confirm_end_of(delivery.instance, now);
        }
        self.join(delivery, now);
        Ok(gaps)
    }

    /// Returns the books of a process, by keyring.
    pub fn books_of(&self, instance: InstanceId) -> impl Iterator<Item = (KeyringId, &Book)> {
        let books = self.books.range(range_of(instance));
        books.map(|((_, keyring), book)| (*keyring, book))
    }

    /// The listed process has reported.
    fn join(&mut self, delivery: &Delivery, now: Timestamp) {
        let Some(member) = &delivery.member else {
            return;
        };
        let Some(listing) = self.listings.get_mut(member) else {
            return;
        };
        if !listing.instances.contains(&delivery.instance) {
            listing.instances.push(delivery.instance);
        }
        if listing.ended_at.is_some() {
            // A report that was under way when the process ended.
            self.confirm_end_of(delivery.instance, now);
        }
    }

    /// A roster lists a process: a name that it gives to no other one.
    pub fn list(&mut self, member: &str, workload: &str, now: Timestamp) {
        match self.listings.get_mut(member) {
            Some(listing) if listing.ended_at.is_none() => {
                listing.seen_at = now.max(listing.seen_at);
            }
            _ => {
                let listing = Listing::new(workload.into(), now);
                self.listings.insert(member.into(), listing);
            }
        }
    }

    /// A roster confirms that a process has ended: its container has terminated, or its node is
    /// gone. That it is no longer listed is no confirmation.
    pub fn confirm_end(&mut self, member: &str, now: Timestamp) {
        let Some(listing) = self.listings.get_mut(member) else {
            return;
        };
        if listing.ended_at.is_some() {
            return;
        }
        if listing.instances.is_empty() {
            self.gaps.push(listing.gap(now));
        }
        listing.ended_at = Some(now);
        for instance in listing.instances.clone() {
            self.confirm_end_of(instance, now);
        }
    }

    fn confirm_end_of(&mut self, instance: InstanceId, now: Timestamp) {
        for (_, book) in self.books.range_mut(range_of(instance)) {
            book.confirm_end(now);
        }
    }

    /// Gives up processes that were silent for `timeout`, which is at least the encrypt lease: what
    /// is cut off for longer than that encrypts nothing.
    pub fn close_lost(&mut self, timeout: Span, now: Timestamp) {
        for book in self.books.values_mut() {
            book.close_if_lost(timeout, now);
        }
        let gaps = &mut self.gaps;
        self.listings.retain(|_, listing| {
            let is_lost = listing.ended_at.is_none() && has_passed(listing.seen_at, timeout, now);
            // The books of those that have reported say how they are.
            if is_lost && listing.is_silent() {
                gaps.push(listing.gap(now));
            }
            !is_lost
        });
    }

    /// Moves books to the summaries that were closed [`KEEP_CLOSED`] ago.
    pub fn fold(&mut self, now: Timestamp) {
        let has_ended = |ended_at: Option<Timestamp>| {
            ended_at.is_some_and(|ended_at| has_passed(ended_at, KEEP_CLOSED, now))
        };
        let summaries = &mut self.summaries;
        self.books.retain(|(_, keyring), book| {
            let is_over = has_ended(book.end.map(|end| end.at));
            if is_over {
                let summary = summaries.entry((*keyring, book.workload.clone()));
                let summary = summary.or_insert_with(|| Summary::since(book.opened_at));
                summary.fold(book);
            }
            !is_over
        });
        self.listings
            .retain(|_, listing| !has_ended(listing.ended_at));
    }
}

fn range_of(instance: InstanceId) -> std::ops::RangeInclusive<(InstanceId, KeyringId)> {
    (instance, KeyringId([0; 16]))..=(instance, KeyringId([u8::MAX; 16]))
}

fn has_passed(since: Timestamp, span: Span, now: Timestamp) -> bool {
    since.checked_add(span.0).is_ok_and(|end| end <= now)
}
