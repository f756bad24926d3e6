//! What a report changes, of the part of the database that it concerns. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    report::{MAX_KEYRINGS, MAX_VERSIONS, Received},
    shares::{Amounts, Resource, Shares},
    workloads::Workloads,
};
use crate::{
    crypto::{InstanceId as ProcessId, KeyringId},
    encoding::to_hex,
    http::problem::Problem,
    ledger::{Cause, Delivery, Gap, Ledger},
    wire::{
        Code,
        hub::{KeyringUsage, Report},
        status::Status,
    },
};

/// Names an instance: 16 random bytes that its process drew.
pub(super) type InstanceId = [u8; 16];

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is the instance's last one now.
    Taken,
    /// A later one had been taken, or the same.
    Known,
    Refused(Refusal),
}

/// Why a report with a valid signature changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The instance's first report had another key, or another identity sent it.
    OtherKey,
    /// It has the sequence of another report, or another name or workload than the first.
    Conflict,
    /// The instance's last report said that it ends.
    Ended,
    /// It names too many keyrings, or too many versions of one.
    TooLong,
    /// The identity has its share of what there is.
    NoRoom(Resource),
    /// It was refused before it was looked at.
    Before,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (code, detail) = match refusal {
            Refusal::OtherKey => (
                Code::OtherKey,
                "the first report of this instance was sent by another identity, or signed by \
                 another key; draw instance and key at the start of the process"
                    .to_owned(),
            ),
            Refusal::Conflict => (
                Code::ReportConflict,
                "another report has this sequence, or the first one had another name or workload"
                    .into(),
            ),
            Refusal::Ended => (
                Code::ReportConflict,
                "this instance has sent its final report; a new process draws a new instance"
                    .into(),
            ),
            Refusal::TooLong => (
                Code::InvalidRequest,
                format!(
                    "the reports of an instance may name {MAX_KEYRINGS} keyrings, and \
                     {MAX_VERSIONS} versions of each"
                ),
            ),
            Refusal::NoRoom(Resource::Keyrings) => (
                Code::Overloaded,
                "this identity has its share of the keyrings and workloads that are counted; \
                 report under a workload and keyrings that were counted before"
                    .into(),
            ),
            Refusal::NoRoom(Resource::Instances | Resource::Bytes) | Refusal::Before => (
                Code::Overloaded,
                "too many instances of this identity are remembered, or their reports are too \
                 long; raise `limits.instances` of the hub"
                    .into(),
            ),
        };
        let problem = Self::new(code, detail);
        match refusal {
            Refusal::NoRoom(_) | Refusal::Before => problem.retry_after(60),
            _ => problem,
        }
    }
}

/// An instance that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) name: String,
    pub(super) workload: String,
    /// When its last report was received.
    pub(super) received_at: Timestamp,
    pub(super) status: Status,
}

/// What is remembered of an instance, beside its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The identity that its reports come from.
    pub(super) identity: String,
    pub(super) key: [u8; 32],
    pub(super) name: String,
    pub(super) workload: String,
    pub(super) sequence: u64,
    /// The SHA-256 of the last report.
    pub(super) digest: [u8; 32],
    /// When the last report was received.
    pub(super) received_at: Timestamp,
    /// The highest barrier that it has answered; 0 for none.
    pub(super) answered: u64,
    pub(super) has_ended: bool,
    /// The bytes that its status and books take up, about.
    pub(super) size: u64,
}

/// A report, and who sent it.
#[derive(Clone, Copy)]
pub(super) struct Incoming<'r> {
    pub(super) received: &'r Received,
    /// The identity, as [`Identity::label`](super::caller::Identity::label) has it.
    pub(super) identity: &'r str,
    /// Whether it is refused, whatever it says. That it was missed counts.
    pub(super) is_refused: bool,
}

/// The part of the database that some reports concern.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The instances.
    pub(super) entries: BTreeMap<InstanceId, Entry>,
    /// The statuses of those whose reports were taken, as JSON.
    pub(super) statuses: BTreeMap<InstanceId, String>,
    /// Their books, the summaries of their workloads, and the gaps that are new.
    pub(super) ledger: Ledger,
    /// The keyrings that are counted for any workload.
    pub(super) known: BTreeSet<KeyringId>,
    pub(super) shares: Shares,
    /// The last barrier that was set.
    pub(super) barrier: u64,
}

impl Part {
    /// Takes a report.
    pub(super) fn take(&mut self, incoming: &Incoming<'_>, workloads: &Workloads) -> Outcome {
        let report = &incoming.received.report;
        let counted: Vec<KeyringUsage> = report
            .usage
            .iter()
            .filter(|usage| self.counts(report, usage, workloads))
            .cloned()
            .collect();
        let outcome = self.examine(incoming).and_then(|answered| {
            self.store(incoming, answered, &counted)?;
            Ok(Outcome::Taken)
        });
        match outcome.unwrap_or_else(|outcome| outcome) {
            Outcome::Taken => Outcome::Taken,
            outcome => {
                self.miss(incoming, outcome, counted, workloads);
                outcome
            }
        }
    }

    /// Whether uses of the keyring count. Others could be any number, and nothing is asked about
    /// them: no workload is declared for their keyring that has ever reported.
    fn counts(&self, report: &Report, usage: &KeyringUsage, workloads: &Workloads) -> bool {
        self.known.contains(&KeyringId(usage.id))
            || workloads.may_use(&report.workload, &usage.name)
    }

    /// Returns the highest barrier that the instance has answered, if the report replaces the last
    /// one.
    fn examine(&self, incoming: &Incoming<'_>) -> Result<u64, Outcome> {
        if incoming.is_refused {
            return Err(Outcome::Refused(Refusal::Before));
        }
        let Received { report, digest, .. } = incoming.received;
        let answered = self.answer(report).unwrap_or(0);
        let Some(known) = self.entries.get(&report.instance) else {
            return Ok(answered);
        };
        if (known.key, known.identity.as_str()) != (report.key, incoming.identity) {
            return Err(Outcome::Refused(Refusal::OtherKey));
        }
        let is_last = report.sequence == known.sequence;
        if report.sequence < known.sequence || is_last && known.digest == *digest {
            return Err(Outcome::Known);
        }
        if (&known.name, &known.workload) != (&report.name, &report.workload) || is_last {
            return Err(Outcome::Refused(Refusal::Conflict));
        }
        if known.has_ended {
            return Err(Outcome::Refused(Refusal::Ended));
        }
        Ok(answered.max(known.answered))
    }

    /// Returns the barrier that a report answers. One that was never set is another hub's.
    fn answer(&self, report: &Report) -> Option<u64> {
        report.answers.filter(|answers| *answers <= self.barrier)
    }

    fn store(
        &mut self,
        incoming: &Incoming<'_>,
        answered: u64,
        counted: &[KeyringUsage],
    ) -> Result<(), Outcome> {
        let Received {
            report, digest, at, ..
        } = incoming.received;
        let status = status_text(report);
        let versions = self.versions(report.instance, counted);
        if versions.len() > MAX_KEYRINGS || versions.values().any(|count| *count > MAX_VERSIONS) {
            return Err(Outcome::Refused(Refusal::TooLong));
        }
        let size = size(status.len(), &versions);
        let before = self
            .entries
            .get(&report.instance)
            .map_or(Amounts::default(), |known| [1, known.size, 0]);
        let is_new = |usage: &&KeyringUsage| {
            let key = (KeyringId(usage.id), report.workload.clone());
            !self.ledger.summaries.contains_key(&key)
        };
        let new = counted.iter().filter(is_new).count() as u64;
        let delivery = self.delivery(incoming, counted.to_vec());
        let mut shares = self.shares.clone();
        shares
            .exchange(incoming.identity, before, [1, size, new])
            .map_err(|resource| Outcome::Refused(Refusal::NoRoom(resource)))?;
        self.ledger
            .take(&delivery, *at)
            .map_err(|_| Outcome::Refused(Refusal::OtherKey))?;
        self.shares = shares;
        self.known
            .extend(counted.iter().map(|usage| KeyringId(usage.id)));
        self.statuses.insert(report.instance, status);
        let entry = Entry {
            identity: incoming.identity.into(),
            key: report.key,
            name: report.name.clone(),
            workload: report.workload.clone(),
            sequence: report.sequence,
            digest: *digest,
            received_at: *at,
            answered,
            has_ended: report.is_final,
            size,
        };
        self.entries.insert(report.instance, entry);
        Ok(())
    }

    /// Counts the versions in each book of an instance, as they would be.
    fn versions(
        &self,
        instance: InstanceId,
        counted: &[KeyringUsage],
    ) -> BTreeMap<KeyringId, usize> {
        let books = self.ledger.books_of(ProcessId(instance));
        let mut versions: BTreeMap<KeyringId, usize> = books
            .map(|(keyring, book)| (keyring, book.accounts.len()))
            .collect();
        for usage in counted {
            let keyring = KeyringId(usage.id);
            let key = (ProcessId(instance), keyring);
            let book = self.ledger.books.get(&key);
            let is_new =
                |version: u32| book.is_none_or(|book| !book.accounts.contains_key(&version));
            let listed = usage.versions.iter();
            *versions.entry(keyring).or_default() +=
                listed.filter(|listed| is_new(listed.version)).count();
        }
        versions
    }

    /// A report that wasn't taken may show that something was missed. By its instance's key, it is
    /// compared with the books that there are; it opens none.
    fn miss(
        &mut self,
        incoming: &Incoming<'_>,
        outcome: Outcome,
        counted: Vec<KeyringUsage>,
        workloads: &Workloads,
    ) {
        let Received {
            report, digest, at, ..
        } = incoming.received;
        let is_by_its_key = match outcome {
            Outcome::Taken => return,
            Outcome::Known | Outcome::Refused(Refusal::Conflict | Refusal::Ended) => true,
            Outcome::Refused(_) => false,
        };
        let known = self.entries.get(&report.instance);
        if is_by_its_key && known.is_some_and(|known| known.digest == *digest) {
            return;
        }
        let has_book = |usage: &KeyringUsage| {
            let key = (ProcessId(report.instance), KeyringId(usage.id));
            is_by_its_key && self.ledger.books.contains_key(&key)
        };
        let (booked, missed): (Vec<_>, Vec<_>) = counted.into_iter().partition(has_book);
        let delivery = self.delivery(incoming, booked);
        if !delivery.usage.is_empty()
            && let Err(error) = self.ledger.take(&delivery, *at)
        {
            tracing::warn!(name = report.name, "{error}");
        }
        // Names that no one declared, and ids of keyrings that no one serves, could be any number.
        let workload = workloads
            .has(&report.workload)
            .then(|| report.workload.clone());
        let gaps = missed.into_iter().filter_map(|usage| {
            let id = KeyringId(usage.id);
            let keyring = self.known.contains(&id).then_some(id);
            (keyring.is_some() || workload.is_some()).then(|| Gap {
                until: *at,
                from: None,
                keyring,
                workload: workload.clone(),
                cause: Cause::Vanished,
            })
        });
        self.ledger.gaps.extend(gaps);
    }

    fn delivery(&self, incoming: &Incoming<'_>, usage: Vec<KeyringUsage>) -> Delivery {
        let report = &incoming.received.report;
        let owner = format!("{} {}", to_hex(&report.key), incoming.identity);
        Delivery {
            answers: self.answer(report),
            usage,
            ..Delivery::of(report, owner, None)
        }
    }
}

/// The status as it is stored. No one asks for the details of a process that has ended.
fn status_text(report: &Report) -> String {
    let status = if report.is_final {
        &without_details(&report.status)
    } else {
        &report.status
    };
    // It was parsed from JSON.
    serde_json::to_string(status).unwrap_or_default()
}

fn without_details(status: &Status) -> Status {
    Status {
        keks: Vec::new(),
        keyrings: Vec::new(),
        secrets: Vec::new(),
        renders: Vec::new(),
        tls: Vec::new(),
        pending: Vec::new(),
        config: None,
        audit: None,
        ..status.clone()
    }
}

/// The bytes that an instance takes up, about: its rows, a book for each keyring, and an account
/// for each version.
fn size(status: usize, versions: &BTreeMap<KeyringId, usize>) -> u64 {
    let accounts: usize = versions.values().sum();
    (512 + status + 512 * versions.len() + 128 * accounts) as u64
}
