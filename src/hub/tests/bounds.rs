//! What one identity can't do to others: of the pure part of taking reports.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    config::{HubLimits, Workload},
    crypto::KeyringId,
    http::Problem,
    http::memory::MemoryShare,
    hub::{
        registry::{Incoming, Outcome, Part, Refusal},
        report::{MAX_KEYRINGS, MAX_VERSIONS, Received},
        shares::{Resource, Shares},
        workloads::Workloads,
    },
    ledger::{Cause, Ledger},
    wire::Code,
};

const ID: [u8; 16] = [7; 16];

struct Hub {
    part: Part,
    workloads: Workloads,
}

impl Hub {
    fn with(limits: &HubLimits) -> Self {
        let part = Part {
            entries: BTreeMap::new(),
            statuses: BTreeMap::new(),
            ledger: Ledger::default(),
            known: BTreeSet::new(),
            shares: Shares::new(limits),
            barrier: 10,
        };
        let workloads = Workloads::new(&[Workload {
            name: "orders".into(),
            keyrings: vec!["demo".parse().expect("a name")],
            max_interval: None,
        }]);
        Self { part, workloads }
    }

    fn new() -> Self {
        Self::with(&HubLimits::default())
    }

    fn take(&mut self, identity: &str, report: &Value) -> Outcome {
        self.take_if(identity, report, false)
    }

    fn take_if(&mut self, identity: &str, report: &Value, is_refused: bool) -> Outcome {
        let received = Received {
            report: serde_json::from_value(report.clone()).expect("a report"),
            digest: fingerprint(report.to_string().as_bytes()),
            at: Timestamp::UNIX_EPOCH,
            _share: MemoryShare::default(),
        };
        let incoming = Incoming {
            received: &received,
            identity,
            is_refused,
        };
        self.part.take(&incoming, &self.workloads)
    }

    fn keyrings(&self) -> Vec<KeyringId> {
        let books = self.part.ledger.books.keys();
        books.map(|(_, keyring)| *keyring).collect()
    }

    /// The keyrings and workloads of the gaps.
    fn gaps(&self) -> Vec<(Option<KeyringId>, Option<&str>)> {
        let gaps = self.part.ledger.gaps.iter();
        gaps.inspect(|gap| assert_eq!(gap.cause, Cause::Vanished))
            .map(|gap| (gap.keyring, gap.workload.as_deref()))
            .collect()
    }
}

/// A report of `workload` about one keyring.
fn report(number: u8, sequence: u64, workload: &str, keyring: &str, id: [u8; 16]) -> Value {
    let mut report = TestSidecar::orders(number).report(sequence);
    report["workload"] = json!(workload);
    report["usage"][0]["name"] = json!(keyring);
    report["usage"][0]["id"] = json!(to_hex(&id));
    report
}

fn code(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Refused(refusal) => Problem::from(refusal).code,
        _ => panic!("{outcome:?}"),
    }
}

#[test]
fn only_keyrings_that_are_declared_or_known_are_counted() {
    let mut hub = Hub::new();
    let other = report(1, 1, "orders", "other", [8; 16]);
    assert_eq!(hub.take("a", &other), Outcome::Taken);
    let early = report(2, 1, "spam", "demo", ID);
    assert_eq!(hub.take("b", &early), Outcome::Taken);
    assert_eq!(hub.keyrings(), []);
    assert_eq!(
        hub.take("a", &report(3, 1, "orders", "demo", ID)),
        Outcome::Taken
    );
    // Known by now, whatever it is called there.
    assert_eq!(
        hub.take("b", &report(2, 2, "spam", "x", ID)),
        Outcome::Taken
    );
    assert_eq!(hub.keyrings(), [KeyringId(ID); 2]);
    assert_eq!(hub.gaps(), []);
}

#[test]
fn an_instance_is_its_identitys_as_well_as_its_keys() {
    let mut hub = Hub::new();
    assert_eq!(
        hub.take("a", &report(1, 1, "orders", "demo", ID)),
        Outcome::Taken
    );
    let stolen = hub.take("b", &report(1, 2, "orders", "demo", ID));
    assert_eq!(stolen, Outcome::Refused(Refusal::OtherKey));
    assert_eq!(code(stolen), Code::OtherKey);
    assert_eq!(hub.part.ledger.books.len(), 1);
    // Nor once the registry has forgotten it.
    hub.part.entries.clear();
    let stolen = hub.take("b", &report(1, 3, "orders", "demo", ID));
    assert_eq!(stolen, Outcome::Refused(Refusal::OtherKey));
    assert_eq!(hub.part.statuses.len(), 1);
    let book = hub.part.ledger.books.values().next().expect("a book");
    assert_eq!(book.sequence, 1);
    assert_eq!(hub.gaps(), [(Some(KeyringId(ID)), Some("orders")); 2]);
}

#[test]
fn a_report_that_is_not_taken_opens_no_book() {
    let mut hub = Hub::new();
    let mut first = report(1, 5, "orders", "demo", ID);
    first["usage"] = json!([]);
    assert_eq!(hub.take("a", &first), Outcome::Taken);
    assert_eq!(hub.take("a", &first), Outcome::Known);
    assert_eq!(hub.gaps(), [], "it was stored");
    // It had a keyring that the later one has no more.
    assert_eq!(
        hub.take("a", &report(1, 4, "orders", "demo", ID)),
        Outcome::Known
    );
    assert_eq!(hub.keyrings(), []);
    // No one serves the keyring now. To keep its id would let one identity keep any number.
    assert_eq!(hub.gaps(), [(None, Some("orders"))]);
}

#[test]
fn what_is_refused_delays_the_keyrings_that_it_names_and_no_others() {
    let mut hub = Hub::new();
    let mut taken = report(1, 1, "orders", "demo", ID);
    assert_eq!(hub.take("a", &taken), Outcome::Taken);
    let unknown = report(2, 1, "spam", "spam", [9; 16]);
    assert_eq!(code(hub.take_if("b", &unknown, true)), Code::Overloaded);
    assert_eq!(hub.gaps(), []);
    assert_eq!(
        code(hub.take_if("b", &report(2, 1, "spam", "x", ID), true)),
        Code::Overloaded
    );
    assert_eq!(hub.gaps(), [(Some(KeyringId(ID)), None)]);
    taken["sequence"] = json!(2);
    hub.take_if("a", &taken, true);
    assert_eq!(hub.gaps()[1], (Some(KeyringId(ID)), Some("orders")));
}

#[test]
fn an_instance_names_a_bounded_number_of_keyrings_and_versions_over_its_life() {
    let mut hub = Hub::new();
    let usage = |id: u16, versions: std::ops::Range<usize>| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let versions =
            versions.map(|version| json!({"version": version, "encrypted": 1, "decrypted": 0}));
        json!({
            "name": "demo", "id": to_hex(&bytes), "generation": 1,
            "versions": versions.collect::<Vec<_>>(),
        })
    };
    let mut sequence = 0;
    let mut take = |usages: Vec<Value>| {
        sequence += 1;
        let mut report = TestSidecar::orders(1).report(sequence);
        report["usage"] = json!(usages);
        hub.take("a", &report)
    };
    let ids = u16::try_from(MAX_KEYRINGS).expect("few");
    assert_eq!(
        take((0..ids).map(|id| usage(id, 0..1)).collect()),
        Outcome::Taken
    );
    assert_eq!(code(take(vec![usage(ids, 0..1)])), Code::InvalidRequest);
    assert_eq!(take(vec![usage(1, 0..MAX_VERSIONS)]), Outcome::Taken);
    let one_more = MAX_VERSIONS..MAX_VERSIONS + 1;
    assert_eq!(
        code(take(vec![usage(1, one_more.clone())])),
        Code::InvalidRequest
    );
    assert_eq!(take(vec![usage(2, one_more)]), Outcome::Taken);
}

#[test]
fn an_identity_takes_up_no_more_than_its_share() {
    let limits = HubLimits {
        instances: 2,
        report: 64 << 10,
        ..HubLimits::default()
    };
    // Two instances that report, of eight that are remembered.
    let mut hub = Hub::with(&limits);
    let mut outcomes = (0..9).map(|number| hub.take("a", &report(number, 1, "orders", "demo", ID)));
    let refused = outcomes.position(|outcome| outcome != Outcome::Taken);
    drop(outcomes);
    assert_eq!(refused, Some(6), "three quarters");
    let again = hub.take("a", &report(9, 1, "orders", "demo", ID));
    assert_eq!(
        again,
        Outcome::Refused(Refusal::NoRoom(Resource::Instances))
    );
    assert_eq!(code(again), Code::Overloaded);
    assert_eq!(
        hub.take("b", &report(10, 1, "orders", "demo", ID)),
        Outcome::Taken
    );

    // Long statuses.
    let mut hub = Hub::with(&limits);
    let mut long = report(1, 1, "orders", "demo", ID);
    long["status"]["pending"] = json!(["x".repeat(60 << 10)]);
    let mut taken = 0;
    let refused = loop {
        long["instance"] = json!(to_hex(&[taken; 16]));
        match hub.take("a", &long) {
            Outcome::Taken => taken += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, Outcome::Refused(Refusal::NoRoom(Resource::Bytes)));
    assert_eq!(code(refused), Code::Overloaded);
    assert!((2..6).contains(&taken), "{taken}");
    assert_eq!(
        hub.take("b", &report(10, 1, "orders", "demo", ID)),
        Outcome::Taken
    );
    let mut less = report(1, 2, "orders", "demo", ID);
    less["instance"] = json!(to_hex(&[0; 16]));
    assert_eq!(
        hub.take("a", &less),
        Outcome::Taken,
        "what shrinks has room"
    );
}

#[test]
fn an_identity_invents_a_bounded_number_of_keyrings_and_workloads() {
    let mut hub = Hub::new();
    assert_eq!(
        hub.take("a", &report(0, 1, "orders", "demo", ID)),
        Outcome::Taken
    );
    let mut refused = None;
    for number in 0..8000u32 {
        let mut invented = report(1, 1, &format!("spam-{number}"), "x", ID);
        let mut instance = [1; 16];
        instance[..4].copy_from_slice(&number.to_be_bytes());
        invented["instance"] = json!(to_hex(&instance));
        let outcome = hub.take("b", &invented);
        if outcome != Outcome::Taken {
            refused = Some((number, outcome));
            break;
        }
    }
    let (taken, outcome) = refused.expect("a bound");
    assert_eq!(
        outcome,
        Outcome::Refused(Refusal::NoRoom(Resource::Keyrings))
    );
    assert_eq!(code(outcome), Code::Overloaded);
    assert!((7400..7600).contains(&taken), "{taken}");
    // What it would have said counts for the keyring.
    assert_eq!(hub.gaps(), [(Some(KeyringId(ID)), None)]);
    assert_eq!(
        hub.take("a", &report(2, 1, "orders", "demo", [8; 16])),
        Outcome::Taken
    );
}
