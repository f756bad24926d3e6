//! Every rule by itself, a search over everything that may happen to a small fleet, and a fleet
//! that retires a version.

mod fleet;
mod judging;
mod reports;
mod search;

use jiff::Timestamp;

use super::{Barrier, Declared, Delivery, Ledger, Question, Superseded, Verdict, judge};
use crate::{
    crypto::{InstanceId, KeyringId},
    keyring::Class,
    model::Span,
    wire::hub::{KeyringUsage, VersionUsage},
};

const KEYRING: KeyringId = KeyringId([7; 16]);
/// The version that is to be retired.
const OLD: u32 = 1;
/// The generation that superseded it.
const GENERATION: u64 = 2;
const WORKLOAD: &str = "orders";

fn day(day: i64) -> Timestamp {
    hour(24 * day)
}

fn hour(hour: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + 3600 * hour).expect("a time")
}

fn instance(number: u8) -> InstanceId {
    InstanceId([number; 16])
}

/// A report of process `number` that decrypted `uses` messages with the old version.
fn report(number: u8, sequence: u64, uses: u64) -> Delivery {
    Delivery {
        instance: instance(number),
        owner: format!("owner-{number}"),
        member: None,
        name: format!("orders-{number}"),
        workload: WORKLOAD.into(),
        sequence,
        answers: None,
        is_final: false,
        usage: vec![usage(uses)],
    }
}

fn last_report(number: u8, sequence: u64, uses: u64) -> Delivery {
    Delivery {
        is_final: true,
        ..report(number, sequence, uses)
    }
}

/// Lets process `number` run from its first report to its last one.
fn run(ledger: &mut Ledger, number: u8, uses: u64, at: Timestamp) {
    take(ledger, &report(number, 1, 0), at);
    take(ledger, &last_report(number, 2, uses), at);
}

fn answer(barrier: &Barrier, number: u8, sequence: u64, uses: u64) -> Delivery {
    Delivery {
        answers: Some(barrier.number),
        ..report(number, sequence, uses)
    }
}

fn usage(uses: u64) -> KeyringUsage {
    let version = |version, decrypted| VersionUsage {
        version,
        encrypted: 0,
        decrypted,
        refused: 0,
        open: 0,
    };
    KeyringUsage {
        name: "orders".parse().expect("a name"),
        id: KEYRING.0,
        generation: GENERATION,
        versions: vec![version(OLD, uses), version(OLD + 1, 0)],
        mac_version: None,
        mac: None,
    }
}

/// A barrier whose number rises with its time.
fn barrier(at: Timestamp) -> Barrier {
    let number = u64::try_from(at.as_millisecond()).expect("after 1970");
    Barrier { number, at }
}

/// Asks about the old version, which was superseded on day 0, with a quiet period of 30 days.
fn question(at: Timestamp) -> Question {
    Question {
        keyring: KEYRING,
        version: OLD,
        class: Class::Live,
        quiet_period: Span::from_days(30),
        destroy_after: None,
        encrypt_lease: Span::from_days(30),
        lost_after: Span::from_days(30),
        superseded: Some(Superseded {
            at: day(0),
            generation: GENERATION,
        }),
        barrier: barrier(at),
        workloads: vec![Declared {
            workload: WORKLOAD.into(),
            max_interval: None,
        }],
        further_uses: Vec::new(),
        statements: Vec::new(),
    }
}

/// Returns the codes of what is missing.
fn missing(verdict: &Verdict) -> Vec<String> {
    verdict
        .all_reasons()
        .map(|reason| reason.code.to_string())
        .collect()
}

fn take(ledger: &mut Ledger, delivery: &Delivery, now: Timestamp) {
    ledger.take(delivery, now).expect("the owner");
}

/// Sets a barrier, lets the processes answer that no more happened, and judges.
fn ask(ledger: &mut Ledger, answers: &[(u8, u64, u64)], at: Timestamp) -> Verdict {
    let question = question(at);
    for (number, sequence, uses) in answers {
        let delivery = answer(&question.barrier, *number, *sequence, *uses);
        take(ledger, &delivery, at);
    }
    judge(ledger, &question)
}
