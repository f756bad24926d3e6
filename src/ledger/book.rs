//! What is kept of one process and one keyring.

use std::{cmp::Ordering, collections::BTreeMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Unwatched, has_passed};
use crate::{
    crypto::InstanceId,
    model::Span,
    wire::hub::{KeyringUsage, Report, VersionUsage},
};

/// A report, without its status, as it reached the hub.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The process.
    pub instance: InstanceId,
    /// Who sent it: the authenticated identity and the key of the process. Two deliveries are of
    /// the same process only if these are equal.
    pub owner: String,
    /// What the roster calls the process, if there is a roster.
    pub member: Option<String>,
    /// What the fleet calls the sidecar.
    pub name: String,
    /// The workload that it serves.
    pub workload: String,
    /// Counts the reports of the process.
    pub sequence: u64,
    /// The barrier that it answers.
    pub answers: Option<u64>,
    /// Whether the process ends with it.
    pub is_final: bool,
    /// The uses of each keyring since the start of the process.
    pub usage: Vec<KeyringUsage>,
}

impl Delivery {
    /// Returns a report as a delivery by `owner`, whose process the roster calls `member`.
    pub fn of(report: &Report, owner: String, member: Option<String>) -> Self {
        Self {
            instance: InstanceId(report.instance),
            owner,
            member,
            name: report.name.clone(),
            workload: report.workload.clone(),
            sequence: report.sequence,
            answers: report.answers,
            is_final: report.is_final,
            usage: report.usage.clone(),
        }
    }
}

/// One process's uses of one keyring. Every time is the hub's, at the receipt of a report.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Book {
    /// Whose reports count, as in [`Delivery::owner`].
    pub owner: String,
    /// What the fleet calls the sidecar.
    pub name: String,
    /// The workload that it serves.
    pub workload: String,
    /// When the first report was received.
    pub opened_at: Timestamp,
    /// When the last report that said something new was received.
    pub reported_at: Timestamp,
    /// The sequence of the first report that was received.
    #[serde(default)]
    pub first: u64,
    /// The highest sequence.
    pub sequence: u64,
    /// The highest barrier that was answered; 0 if none was.
    pub answered: u64,
    /// The generation of the manifest that the process serves.
    pub generation: u64,
    /// The versions that the process knows.
    pub accounts: BTreeMap<u32, Account>,
    /// The latest time until which the process wasn't watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Unwatched>,
    /// The end of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// A process's uses of one version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Account {
    /// Messages encrypted since the start of the process.
    pub encrypted: u64,
    /// Messages decrypted since the start of the process.
    pub decrypted: u64,
    /// Requests refused since the start of the process, because the version is disabled.
    #[serde(default)]
    pub refused: u64,
    /// Requests that held the version at the last report.
    #[serde(default)]
    pub open: u64,
    /// The receipt of the last report in which messages had been added, or before or at which
    /// requests held the version: the last use was then or before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_use: Option<Timestamp>,
    /// The receipt of the last report in which the refused requests had risen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<Timestamp>,
}

impl Account {
    fn take(&mut self, usage: &VersionUsage, now: Timestamp) {
        let is_changed = (usage.encrypted, usage.decrypted) != (self.encrypted, self.decrypted);
        // A stream counts once, and may have gone on until this report.
        if is_changed || self.open > 0 || usage.open > 0 {
            self.last_use = Some(now);
        }
        if usage.refused != self.refused {
            self.last_refusal = Some(now);
        }
        self.encrypted = usage.encrypted;
        self.decrypted = usage.decrypted;
        self.refused = usage.refused;
        self.open = usage.open;
    }

    /// Returns whether a counter of `usage` is higher.
    fn is_exceeded_by(&self, usage: &VersionUsage) -> bool {
        usage.encrypted > self.encrypted
            || usage.decrypted > self.decrypted
            || usage.refused > self.refused
    }

    /// Returns whether a counter of `usage` is lower.
    fn is_above(&self, usage: &VersionUsage) -> bool {
        usage.encrypted < self.encrypted
            || usage.decrypted < self.decrypted
            || usage.refused < self.refused
    }
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct End {
    /// When the hub learned of it.
    pub at: Timestamp,
    /// How.
    pub how: How,
}

/// How the hub learned of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// From its final report: everything that it did is known.
    Final,
    /// From the roster.
    Confirmed,
    /// It was silent for too long.
    Lost,
}

impl Book {
    pub(super) fn open(delivery: &Delivery, usage: &KeyringUsage, now: Timestamp) -> Self {
        let mut book = Self {
            owner: delivery.owner.clone(),
            name: delivery.name.clone(),
            workload: delivery.workload.clone(),
            opened_at: now,
            reported_at: now,
            first: delivery.sequence,
            sequence: 0,
            answered: 0,
            generation: usage.generation,
            accounts: BTreeMap::new(),
            gap: None,
            end: None,
        };
        book.update(delivery, usage, now);
        book
    }

    /// Takes a report of the book's owner, and returns why it shows that something was missed, if
    /// it does. The highest sequence counts, and one that is repeated or late changes nothing: the
    /// counters are those since the start of the process.
    pub(super) fn take(
        &mut self,
        delivery: &Delivery,
        usage: &KeyringUsage,
        now: Timestamp,
    ) -> Option<Cause> {
        // Two replicas' clocks differ.
        let now = now.max(self.reported_at);
        let cause = match delivery.sequence.cmp(&self.sequence) {
            Ordering::Less => self.is_exceeded_by(usage).then_some(Cause::CountersFell),
            Ordering::Equal => {
                (!self.says_the_same(delivery, usage)).then_some(Cause::SequenceReused)
            }
            Ordering::Greater => {
                let reopened = self.end.take().map(|_| Cause::ReportedAfterEnd);
                let fell = self.exceeds(usage).then_some(Cause::CountersFell);
                self.update(delivery, usage, now);
                reopened.or(fell)
            }
        };
        if let Some(cause) = cause {
            self.add_gap(cause, now);
        }
        cause
    }

    fn update(&mut self, delivery: &Delivery, usage: &KeyringUsage, now: Timestamp) {
        for version in &usage.versions {
            let account = self.accounts.entry(version.version).or_default();
            account.take(version, now);
        }
        // A report lists every version that the process knows. What it does with one that it leaves
        // out isn't known.
        for (version, account) in &mut self.accounts {
            if find(usage, *version).is_none() {
                account.last_use = Some(now);
            }
        }
        self.sequence = delivery.sequence;
        self.answered = self.answered.max(delivery.answers.unwrap_or(0));
        self.generation = usage.generation;
        self.reported_at = now;
        if delivery.is_final {
            self.end = Some(End {
                at: now,
                how: How::Final,
            });
        }
    }

    fn is_exceeded_by(&self, usage: &KeyringUsage) -> bool {
        usage.versions.iter().any(|version| {
            let account = self.accounts.get(&version.version).copied();
            account.unwrap_or_default().is_exceeded_by(version)
        })
    }

    fn exceeds(&self, usage: &KeyringUsage) -> bool {
        usage.versions.iter().any(|version| {
            let account = self.accounts.get(&version.version);
            account.is_some_and(|account| account.is_above(version))
        })
    }

    fn differs_in_open(&self, usage: &KeyringUsage) -> bool {
        usage.versions.iter().any(|version| {
            let account = self.accounts.get(&version.version);
            account.map_or(0, |account| account.open) != version.open
        })
    }

    fn says_the_same(&self, delivery: &Delivery, usage: &KeyringUsage) -> bool {
        let ends = self.end.is_some_and(|end| end.how == How::Final);
        self.generation == usage.generation
            && !self.is_exceeded_by(usage)
            && !self.exceeds(usage)
            && !self.differs_in_open(usage)
            && (ends || !delivery.is_final)
    }

    /// Returns whether the process has not ended, as far as the hub knows.
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }

    /// Closes the book because the process has ended. What it did after its last report counts as
    /// use of every version.
    pub(super) fn confirm_end(&mut self, now: Timestamp) {
        self.close(How::Confirmed, Cause::Vanished, now);
    }

    /// Closes the book if the process has been silent for `timeout`.
    pub(super) fn close_if_lost(&mut self, timeout: Span, now: Timestamp) {
        if has_passed(self.reported_at, timeout, now) {
            self.close(How::Lost, Cause::Lost, now);
        }
    }

    fn close(&mut self, how: How, cause: Cause, now: Timestamp) {
        if self.end.is_none() {
            let at = now.max(self.reported_at);
            self.end = Some(End { at, how });
            self.add_gap(cause, at);
        }
    }

    fn add_gap(&mut self, cause: Cause, until: Timestamp) {
        self.gap = Unwatched::later(self.gap, Some(Unwatched { until, cause }));
    }
}

fn find(usage: &KeyringUsage, version: u32) -> Option<&VersionUsage> {
    let mut versions = usage.versions.iter();
    versions.find(|found| found.version == version)
}
