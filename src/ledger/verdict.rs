//! Whether a version is out of use, and if not, why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Barrier, Book, Cause, Gap, Ledger, Question, Statement, Subject, Superseded, Unwatched,
    reasons::Reasons, summary::Run,
};
use crate::{
    crypto::{InstanceId, KeyringId, fingerprint},
    keyring::Class,
    model::Span,
};

/// Comes before the canonical form in what is hashed.
const DOMAIN: &[u8] = b"sidekey evidence v1\0";

/// The evidence that a version is out of use, or what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The keyring.
    pub keyring: KeyringId,
    /// The version.
    pub version: u32,
    /// Its class.
    pub class: Class,
    /// How long it must have been unused.
    pub quiet_period: Span,
    /// How long it must have been disabled without a request for it, if it is to be destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_after: Option<Span>,
    /// When it was superseded.
    pub superseded: Option<Superseded>,
    /// The end of the time that the verdict covers.
    pub barrier: Barrier,
    /// What is missing that concerns no single workload.
    pub reasons: Vec<Reason>,
    /// The workloads, by name.
    pub workloads: Vec<WorkloadVerdict>,
    /// The statements that count.
    pub statements: Vec<Statement>,
}

/// The evidence about one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadVerdict {
    /// Its name.
    pub workload: String,
    /// Whether it is declared.
    pub declared: bool,
    /// How many of its processes run, as far as the hub knows.
    pub running: usize,
    /// The last time that it used the version, or may have. Since then it has been quiet.
    pub quiet_since: Option<Timestamp>,
    /// How long it must have been quiet.
    pub quiet_period: Span,
    /// Its last whole run since the version was superseded.
    pub run: Option<Run>,
    /// What is missing; empty if it doesn't use the version.
    pub reasons: Vec<Reason>,
}

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What it is.
    pub code: Code,
    /// How many processes or events it is about.
    pub count: usize,
    /// When it is over if nothing new happens; None if something has to be done.
    pub until: Option<Timestamp>,
    /// What is missing, on what, and what to do. It names at most ten.
    pub message: String,
}

/// Why a version can't be retired. The codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// It is still a primary.
    NotSuperseded,
    /// No workload is declared.
    NoWorkloads,
    /// Its class demands more than that it isn't used.
    UseIsNoEvidence,
    /// A scan found ciphertexts.
    FoundByScan,
    /// It was used.
    Used,
    /// It may have been used.
    Unwatched,
    /// It is disabled, and a request for it was refused.
    Refused,
    /// A process has a request that uses it and has not ended.
    Open,
    /// Processes are given up while they may still encrypt.
    LostTooSoon,
    /// A process has not answered the barrier.
    Silent,
    /// A listed process has never reported.
    NotJoined,
    /// A process serves a generation before the one that superseded the version.
    Behind,
    /// A process doesn't count uses of the version.
    Uncounted,
    /// A workload that runs at intervals hasn't run.
    NotRun,
    /// A workload that runs all the time has no process.
    NoInstances,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Verdict {
    /// Returns whether the version is out of use.
    pub fn is_quiet(&self) -> bool {
        self.all_reasons().next().is_none()
    }

    /// Returns everything that is missing.
    pub fn all_reasons(&self) -> impl Iterator<Item = &Reason> {
        let of_workloads = self.workloads.iter().flat_map(|found| &found.reasons);
        self.reasons.iter().chain(of_workloads)
    }

    /// Returns when the version will be out of use if nothing new happens; None if something has to
    /// be done, or if it is already.
    pub fn quiet_from(&self) -> Option<Timestamp> {
        let ends: Option<Vec<Timestamp>> = self.all_reasons().map(|reason| reason.until).collect();
        ends?.into_iter().max()
    }

    /// Returns the SHA-256 of the verdict's canonical form (RFC 8785), which orders and approvals
    /// name.
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = DOMAIN.to_vec();
        match serde_json_canonicalizer::to_vec(self) {
            Ok(canonical) => bytes.extend(canonical),
            Err(error) => unreachable!("a verdict has only strings and integers: {error}"),
        }
        fingerprint(&bytes)
    }
}

/// Answers a question from the ledger, which has everything about the keyring.
pub fn judge(ledger: &Ledger, question: &Question) -> Verdict {
    let statements = counting_statements(question);
    let mut names: BTreeSet<&str> = question
        .workloads
        .iter()
        .map(|declared| declared.workload.as_str())
        .collect();
    let summaries = ledger.summaries.keys();
    names.extend(
        summaries
            .filter(|(keyring, _)| *keyring == question.keyring)
            .map(|(_, workload)| workload.as_str()),
    );
    let mut books: BTreeMap<&str, Vec<(InstanceId, &Book)>> = BTreeMap::new();
    for ((instance, keyring), book) in &ledger.books {
        if *keyring == question.keyring {
            books
                .entry(&book.workload)
                .or_default()
                .push((*instance, book));
        }
    }
    names.extend(books.keys());
    let is_unknown = names.is_empty();
    let workloads = names.into_iter().map(|workload| {
        let view = View {
            ledger,
            question,
            workload,
            books: books.get(workload).map(Vec::as_slice).unwrap_or_default(),
            statements: &statements,
        };
        view.judge()
    });
    Verdict {
        keyring: question.keyring,
        version: question.version,
        class: question.class,
        quiet_period: question.quiet_period,
        destroy_after: question.destroy_after,
        superseded: question.superseded,
        barrier: question.barrier,
        workloads: workloads.collect(),
        reasons: general_reasons(ledger, question, &statements, is_unknown),
        statements,
    }
}

/// Returns the statements by named persons about the version that were made since it was
/// superseded.
fn counting_statements(question: &Question) -> Vec<Statement> {
    let Some(superseded) = question.superseded else {
        return Vec::new();
    };
    let statements = question.statements.iter();
    statements
        .filter(|statement| {
            statement.version == question.version
                && statement.at >= superseded.at
                && !statement.by.trim().is_empty()
        })
        .cloned()
        .collect()
}

/// `is_unknown`: no workload is known for the keyring, whose own reasons would say what wasn't
/// watched.
fn general_reasons(
    ledger: &Ledger,
    question: &Question,
    statements: &[Statement],
    is_unknown: bool,
) -> Vec<Reason> {
    let mut reasons = Reasons::new(question);
    if question.superseded.is_none() {
        reasons.add(Code::NotSuperseded);
    }
    if question.lost_after < question.encrypt_lease {
        reasons.add(Code::LostTooSoon);
    }
    // What shows that it isn't needed was decided about when it was disabled.
    let is_disabled = question.destroy_after.is_some();
    if question.workloads.is_empty() && !is_disabled {
        reasons.add(Code::NoWorkloads);
    }
    let since = before(question.barrier.at, question.quiet_time());
    let of_keyring = |gap: &&Gap| gap.keyring.is_none_or(|id| id == question.keyring);
    for gap in ledger.gaps.iter().filter(of_keyring) {
        if is_unknown && gap.until > since {
            let name = format!("at {} ({})", gap.until, gap.cause);
            reasons.name(Code::Unwatched, Some(gap.until), name);
        }
    }
    let last_scan = statements
        .iter()
        .filter_map(|statement| match statement.subject {
            Subject::Scan { found } => Some((statement.at, found)),
            _ => None,
        })
        .max();
    let is_clean_since = |time: Timestamp| last_scan.is_some_and(|scan| scan.0 >= time);
    if let Some((at, found)) = last_scan
        && found > 0
    {
        reasons.name(Code::FoundByScan, Some(at), format!("{found} at {at}"));
    }
    let is_shown = match question.class {
        Class::Live => true,
        Class::Archive => {
            is_clean_since(Timestamp::MIN)
                || statements
                    .iter()
                    .any(|statement| statement.subject == Subject::NotNeeded { workload: None })
        }
        Class::Kms => statements.iter().any(|statement| {
            statement.subject == Subject::StorageMigration && is_clean_since(statement.at)
        }),
    };
    if !is_shown && !is_disabled {
        reasons.add(Code::UseIsNoEvidence);
    }
    for further in &question.further_uses {
        if further.at > since {
            let name = format!("{} at {}", further.source, further.at);
            reasons.name(Code::Used, Some(further.at), name);
        }
    }
    reasons.finish(question.quiet_time())
}

/// What is known about one workload.
struct View<'a> {
    ledger: &'a Ledger,
    question: &'a Question,
    workload: &'a str,
    books: &'a [(InstanceId, &'a Book)],
    statements: &'a [Statement],
}

impl View<'_> {
    fn judge(&self) -> WorkloadVerdict {
        let question = self.question;
        let mut declarations = question.workloads.iter();
        let declared = declarations.find(|declared| declared.workload == self.workload);
        let max_interval = declared.and_then(|declared| declared.max_interval);
        let quiet_time = question.quiet_time();
        let is_disabled = question.destroy_after.is_some();
        // What runs every quarter says nothing in a month.
        let quiet_period = max_interval
            .filter(|_| !is_disabled)
            .map_or(quiet_time, |interval| interval.max(quiet_time));
        let since = before(question.barrier.at, quiet_period);
        let mut reasons = Reasons::new(question);
        let quiet_since = self.add_uses(since, &mut reasons);
        self.add_open_books(&mut reasons);
        self.add_listings(&mut reasons);
        let run = self.last_run();
        if declared.is_some() && !is_disabled && !self.is_attested() {
            let is_running = self.books.iter().any(|(_, book)| book.is_open());
            match max_interval {
                Some(_) if run.is_none() => reasons.add(Code::NotRun),
                None if !is_running => reasons.add(Code::NoInstances),
                _ => {}
            }
        }
        WorkloadVerdict {
            workload: self.workload.into(),
            declared: declared.is_some(),
            running: self.books.iter().filter(|(_, book)| book.is_open()).count(),
            quiet_since,
            quiet_period,
            run,
            reasons: reasons.finish(quiet_period),
        }
    }

    /// Adds every use after `since`, and returns the last use at any time.
    fn add_uses(&self, since: Timestamp, reasons: &mut Reasons) -> Option<Timestamp> {
        let mut last = None;
        let mut add = |code, at: Timestamp, name: &dyn Fn() -> String| {
            last = last.max(Some(at));
            if at > since {
                reasons.name(code, Some(at), name());
            }
        };
        let version = self.question.version;
        // Who asks for a version uses it, as far as it may.
        let refused = match self.question.destroy_after {
            Some(_) => Code::Refused,
            None => Code::Used,
        };
        for (instance, book) in self.books {
            let account = book.accounts.get(&version);
            if let Some(at) = account.and_then(|account| account.last_use) {
                add(Code::Used, at, &|| {
                    format!("{} at {at}", named(*instance, book))
                });
            }
            if let Some(at) = account.and_then(|account| account.last_refusal) {
                add(refused, at, &|| {
                    format!("{} at {at} (refused)", named(*instance, book))
                });
            }
            if let Some(Unwatched { until, cause }) = book.gap {
                let name = || format!("{} at {until} ({cause})", named(*instance, book));
                add(Code::Unwatched, until, &name);
            }
        }
        let key = (self.question.keyring, self.workload.to_owned());
        if let Some(summary) = self.ledger.summaries.get(&key) {
            let (at, cause) = (summary.since, Cause::FirstSeen);
            add(Code::Unwatched, at, &|| format!("at {at} ({cause})"));
            if let Some(at) = summary.last_uses.get(&version) {
                add(Code::Used, *at, &|| format!("one that has ended, at {at}"));
            }
            if let Some(at) = summary.last_refusals.get(&version) {
                let name = || format!("one that has ended, at {at} (refused)");
                add(refused, *at, &name);
            }
            if let Some(Unwatched { until, cause }) = summary.gap {
                let name = || format!("one that has ended, at {until} ({cause})");
                add(Code::Unwatched, until, &name);
            }
        }
        for gap in &self.ledger.gaps {
            if gap.covers(self.question.keyring, self.workload) {
                let (until, cause) = (gap.until, gap.cause);
                add(Code::Unwatched, until, &|| format!("at {until} ({cause})"));
            }
        }
        last
    }

    fn add_open_books(&self, reasons: &mut Reasons) {
        let question = self.question;
        let oldest = question.superseded.map(|superseded| superseded.generation);
        for (instance, book) in self.books.iter().filter(|(_, book)| book.is_open()) {
            let at = Some(book.reported_at);
            if book.answered < question.barrier.number {
                let name = format!("{}, last at {}", named(*instance, book), book.reported_at);
                reasons.name(Code::Silent, at, name);
            }
            let is_behind = oldest.is_some_and(|oldest| book.generation < oldest);
            if is_behind {
                let name = format!("{} ({})", named(*instance, book), book.generation);
                reasons.name(Code::Behind, at, name);
            }
            match book.accounts.get(&question.version) {
                Some(account) if account.open > 0 => {
                    let name = format!("{} ({})", named(*instance, book), account.open);
                    reasons.name(Code::Open, at, name);
                }
                Some(_) => {}
                None if is_behind => {}
                None => reasons.name(Code::Uncounted, at, named(*instance, book)),
            }
        }
    }

    fn add_listings(&self, reasons: &mut Reasons) {
        for (member, listing) in &self.ledger.listings {
            if listing.workload == self.workload && listing.is_silent() {
                let name = format!("{member}, since {}", listing.listed_at);
                reasons.name(Code::NotJoined, Some(listing.listed_at), name);
            }
        }
    }

    /// Returns the last run that was whole since the version was superseded.
    fn last_run(&self) -> Option<Run> {
        let superseded = self.question.superseded?;
        let key = (self.question.keyring, self.workload.to_owned());
        let summary = self.ledger.summaries.get(&key);
        let runs = self.books.iter().filter_map(|(_, book)| Run::of(book));
        runs.chain(summary.and_then(|summary| summary.last_run))
            .filter(|run| {
                run.started_at >= superseded.at && run.generation >= superseded.generation
            })
            .max()
    }

    fn is_attested(&self) -> bool {
        let mut statements = self.statements.iter();
        statements.any(|statement| match &statement.subject {
            Subject::NotNeeded { workload } => {
                workload.as_deref().is_none_or(|name| name == self.workload)
            }
            _ => false,
        })
    }
}

fn named(instance: InstanceId, book: &Book) -> String {
    format!("{} (instance {instance})", book.name)
}

fn before(time: Timestamp, span: Span) -> Timestamp {
    time.checked_sub(span.0).unwrap_or(Timestamp::MIN)
}
