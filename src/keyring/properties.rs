//! The rules under random histories: whatever operators do in whatever order, the invariants hold after every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{
    crypto::{Dek, Header, KeyringId, Opener, Sealer, VersionKeys},
    model::{Span, Wave},
};

const WAVES: [&str; 3] = ["canary", "standard", "critical"];

#[derive(Debug, Clone)]
enum Step {
    Rotate,
    Activate {
        version: u32,
        wave: Option<usize>,
        in_seconds: Option<i64>,
    },
    Disable {
        version: u32,
        with_evidence: bool,
    },
    Enable(u32),
    Destroy(u32),
    Compromise(u32),
    Touch,
    Wait(i64),
    Encrypt(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let version = || 1..8u32;
    let step = prop_oneof![
        3 => Just(Step::Rotate),
        5 => (version(), proptest::option::of(0..WAVES.len()), proptest::option::of(-5..50i64))
            .prop_map(|(version, wave, in_seconds)| Step::Activate { version, wave, in_seconds }),
        3 => (version(), any::<bool>()).prop_map(|(version, with_evidence)| Step::Disable { version, with_evidence }),
        2 => version().prop_map(Step::Enable),
        3 => version().prop_map(Step::Destroy),
        1 => version().prop_map(Step::Compromise),
        1 => Just(Step::Touch),
        4 => (0..60i64).prop_map(Step::Wait),
        4 => (0..WAVES.len()).prop_map(Step::Encrypt),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A keyring with its operator (who opens everything) and one sidecar per wave.
struct World {
    now: Timestamp,
    document: Arc<Document>,
    keys: BTreeMap<u32, VersionKeys>,
    sidecars: Vec<KeyTable>,
    ciphertexts: Vec<Vec<u8>>,
}

fn wave(index: usize) -> Wave {
    WAVES[index].parse().expect("wave")
}

fn new_version(id: KeyringId, number: u32) -> (NewVersion, VersionKeys) {
    let dek = Dek::generate().expect("random");
    let wrap = Wrap {
        kek: "local:/kek".parse().expect("uri"),
        ciphertext: Base64(vec![0]),
        wrapped_at: Timestamp::UNIX_EPOCH,
    };
    let keys = VersionKeys::derive(&dek).expect("memory");
    (
        NewVersion {
            wraps: vec![wrap],
            check: dek.check_value(&id, number),
        },
        keys,
    )
}

fn expectations(document: &Document) -> Expectations {
    Expectations {
        name: document.manifest().name.clone(),
        min_generation: 0,
        trusted_signers: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let id = KeyringId::generate().expect("random");
        let (new, keys) = new_version(id, 1);
        let policy = Policy {
            quiet_period: Span::from_secs(20),
            encrypt_lease: Span::from_secs(30),
            destroy_after: Span::from_secs(10),
            ..Policy::default()
        };
        let manifest = init("demo".parse().expect("name"), id, policy, new, now);
        let keys = BTreeMap::from([(1, keys)]);
        let document = Arc::new(authenticate(manifest, &keys, None).expect("all keys"));
        let mut world = Self {
            now,
            document,
            keys,
            sidecars: Vec::new(),
            ciphertexts: Vec::new(),
        };
        world.sidecars = (0..WAVES.len())
            .map(|index| world.fresh_sidecar(index))
            .collect();
        world
    }

    /// Every key that a sidecar could open: the KEK works, so all but those of destroyed and disabled versions.
    fn open(&self, current: Option<&KeyTable>) -> Opened {
        let wanted = KeyTable::wanted(current, &self.document);
        wanted
            .into_iter()
            .map(|version| (version.version, Ok(self.keys[&version.version].clone())))
            .collect()
    }

    fn fresh_sidecar(&self, index: usize) -> KeyTable {
        KeyTable::build(
            None,
            Arc::clone(&self.document),
            &self.open(None),
            wave(index),
            self.now,
        )
        .expect("a fresh sidecar starts")
    }

    /// Writes a change as one process and reads it as others do.
    fn publish(&mut self, next: Manifest) {
        let before = self.document.manifest().generation;
        let written = authenticate(next, &self.keys, None).expect("the operator holds every key");
        let read = Arc::new(
            Document::parse(written.bytes().clone())
                .expect("what one process writes another reads"),
        );
        assert_eq!(read.canonical(), written.canonical());
        assert_eq!(
            read.manifest().generation,
            before + 1,
            "the generation counts every change"
        );
        self.document = read;
        for index in 0..self.sidecars.len() {
            let current = &self.sidecars[index];
            let verdict =
                KeyTable::examine(Some(current), &self.document, &expectations(&self.document));
            assert_eq!(verdict, Ok(Succession::Newer));
            let next = KeyTable::build(
                Some(current),
                Arc::clone(&self.document),
                &self.open(Some(current)),
                wave(index),
                self.now,
            );
            self.sidecars[index] = next.expect("a change by the rules is accepted");
            self.fresh_sidecar(index);
        }
    }

    fn apply(&mut self, step: &Step) {
        let current = self.document.manifest().clone();
        let at = |seconds: &i64| {
            Timestamp::from_second(self.now.as_second() + seconds).expect("in range")
        };
        let change = match step {
            Step::Wait(seconds) => {
                self.now = at(seconds);
                return;
            }
            Step::Encrypt(index) => return self.encrypt(*index),
            Step::Rotate => {
                let number = u32::try_from(current.versions.len()).expect("few") + 1;
                let (new, keys) = new_version(current.id, number);
                self.keys.insert(number, keys);
                Ok(rotate(&current, new, self.now))
            }
            Step::Activate {
                version,
                wave: index,
                in_seconds,
            } => {
                let selector =
                    index.map_or(WaveSelector::Every, |index| WaveSelector::One(wave(index)));
                activate(
                    &current,
                    *version,
                    selector,
                    in_seconds.as_ref().map(at),
                    self.now,
                )
            }
            Step::Disable {
                version,
                with_evidence,
            } => {
                let evidence = if *with_evidence {
                    Evidence::Override("test".into())
                } else {
                    Evidence::Fleet(vec![SidecarReport {
                        sidecar: "a".into(),
                        answer: Err("down".into()),
                    }])
                };
                let change = disable(&current, *version, &evidence, self.now);
                assert!(
                    *with_evidence || change.is_err(),
                    "disabled without evidence"
                );
                change
            }
            Step::Enable(version) => enable(&current, *version, self.now),
            Step::Destroy(version) => {
                let phrase = backup_phrase(&current.name, *version);
                assert!(
                    destroy(
                        &current,
                        *version,
                        Destruction::Orderly { confirm: None },
                        self.now
                    )
                    .is_err()
                );
                destroy(
                    &current,
                    *version,
                    Destruction::Orderly {
                        confirm: Some(&phrase),
                    },
                    self.now,
                )
            }
            Step::Compromise(version) => compromise(&current, *version, self.now),
            Step::Touch => Ok(touch(&current, self.now)),
        };
        if let Ok(next) = change {
            if let Step::Destroy(version) = step {
                self.keys.remove(version);
            }
            self.publish(next);
        }
    }

    fn encrypt(&mut self, index: usize) {
        let table = &self.sidecars[index];
        let primary = table.primary(self.now).expect("every wave has a primary");
        let Some(Slot::Open(keys)) = table.slot(primary) else {
            panic!("the primary is open")
        };
        self.ciphertexts.push(
            Sealer::new(keys, table.id(), primary)
                .expect("random")
                .seal_copy(b"", b"plaintext"),
        );
    }

    fn check(&self) {
        let manifest = self.document.manifest();
        for table in &self.sidecars {
            let primaries = manifest
                .versions
                .iter()
                .filter(|version| table.role(version.version, self.now) == Some(Role::Primary));
            assert_eq!(primaries.count(), 1, "each wave has exactly one primary");
            for ciphertext in &self.ciphertexts {
                let header = Header::parse(ciphertext, &table.id()).expect("ours");
                let version = manifest
                    .version(header.version)
                    .expect("versions never vanish");
                match (table.slot(header.version), version.state) {
                    (Some(Slot::Open(keys)), State::Enabled) => {
                        let mut message = ciphertext.clone();
                        let plaintext = Opener::default()
                            .open(keys, &table.id(), &header, b"", &mut message)
                            .expect("decrypts");
                        assert_eq!(plaintext, b"plaintext");
                    }
                    (Some(Slot::Disabled), State::Disabled)
                    | (Some(Slot::Destroyed), State::Destroyed) => {}
                    _ => panic!(
                        "version {} is {} but not held so",
                        header.version, version.state
                    ),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn invariants_hold_over_random_histories(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }
}

fn rejected(world: &World, bytes: &[u8]) -> Rejection {
    let current = &world.sidecars[0];
    let document = Arc::new(Document::parse(bytes.to_vec()).expect("parses"));
    match KeyTable::examine(Some(current), &document, &expectations(&world.document)) {
        Err(rejection) => rejection,
        Ok(_) => match KeyTable::build(Some(current), document, &Opened::new(), wave(0), world.now)
        {
            Err(rejection) => rejection,
            Ok(_) => panic!("accepted"),
        },
    }
}

#[test]
fn a_sidecar_refuses_what_does_not_follow_from_what_it_has() {
    let mut world = World::new();
    let first = world.document.bytes().to_vec();
    world.apply(&Step::Rotate);
    assert_eq!(
        rejected(&world, &first),
        Rejection::WentBack { found: 1, least: 2 }
    );

    let edit = |change: fn(&mut Manifest)| {
        let mut manifest = world.document.manifest().clone();
        change(&mut manifest);
        serde_json::to_vec(&manifest).expect("JSON")
    };
    assert_eq!(
        rejected(
            &world,
            &edit(|manifest| manifest.policy.encrypt_lease = Span::from_days(9))
        ),
        Rejection::Forked(2)
    );
    assert_eq!(
        rejected(&world, &edit(|manifest| manifest.generation = 3)),
        Rejection::Unauthenticated(1)
    );
    let exchanged = edit(|manifest| {
        manifest.generation = 3;
        manifest.versions[0].check.0[0] ^= 1;
    });
    assert_eq!(rejected(&world, &exchanged), Rejection::Exchanged(1));
    let vanished = edit(|manifest| {
        manifest.generation = 3;
        manifest.versions.pop();
        manifest.authentication.macs.pop();
    });
    assert_eq!(rejected(&world, &vanished), Rejection::Vanished(2));
    let other = edit(|manifest| manifest.id.0[0] ^= 1);
    assert!(matches!(
        rejected(&world, &other),
        Rejection::OtherKeyring { .. }
    ));
    let whitespace = serde_json::to_vec(world.document.manifest()).expect("JSON");
    let verdict = KeyTable::examine(
        Some(&world.sidecars[0]),
        &Document::parse(whitespace).expect("parses"),
        &expectations(&world.document),
    );
    assert_eq!(
        verdict,
        Ok(Succession::Unchanged),
        "white space is no change"
    );
}

#[test]
fn a_store_writer_without_a_kek_can_not_slip_in_a_key() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    // He makes a key of his own as version 3 and authenticates with it alone.
    let (new, own) = new_version(world.document.manifest().id, 3);
    let forged = rotate(world.document.manifest(), new, world.now);
    let mut all: BTreeMap<u32, VersionKeys> =
        (1..=3).map(|version| (version, own.clone())).collect();
    let forged = Arc::new(authenticate(forged, &all, None).expect("keys"));
    let opened = Opened::from([(3, Ok(all.remove(&3).expect("own")))]);
    let verdict = KeyTable::build(
        Some(&world.sidecars[0]),
        forged,
        &opened,
        wave(0),
        world.now,
    );
    assert!(matches!(verdict, Err(Rejection::Unauthenticated(1))));
}

#[test]
fn a_version_that_no_kek_opens_costs_only_itself() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let one = Ok(world.keys[&1].clone());
    let opened = Opened::from([(1, one), (2, Err("the KMS is down".into()))]);
    let table = KeyTable::build(
        None,
        Arc::clone(&world.document),
        &opened,
        wave(0),
        world.now,
    )
    .expect("serves");
    assert!(table.has_open_primary(world.now));
    assert_eq!(
        table.unopened().collect::<Vec<_>>(),
        [(2, "the KMS is down")]
    );

    // While the primary is not open, the version before it stands in, unless others may know that one.
    let next = activate(
        world.document.manifest(),
        2,
        WaveSelector::Every,
        None,
        world.now,
    )
    .expect("allowed");
    let next = Arc::new(authenticate(next, &world.keys, None).expect("keys"));
    let unopened = Opened::from([(2, Err("down".into()))]);
    let build = |next| KeyTable::build(Some(&table), next, &unopened, wave(0), world.now);
    let standing_in = build(Arc::clone(&next)).expect("serves");
    assert!(!standing_in.has_open_primary(world.now));
    assert_eq!(standing_in.encrypting(world.now).expect("encrypts").0, 1);
    let next = compromise(next.manifest(), 1, world.now).expect("allowed");
    let next = Arc::new(authenticate(next, &world.keys, None).expect("keys"));
    assert!(matches!(
        build(next),
        Err(Rejection::PrimaryUnavailable { version: 2, .. })
    ));
}

#[test]
fn disabling_demands_that_every_sidecar_answered_and_was_quiet() {
    let mut world = World::new();
    for step in [
        Step::Rotate,
        Step::Activate {
            version: 2,
            wave: None,
            in_seconds: None,
        },
        Step::Wait(100),
    ] {
        world.apply(&step);
    }
    let manifest = world.document.manifest();
    let second =
        |seconds: i64| Timestamp::from_second(world.now.as_second() - seconds).expect("in range");
    let report = |generation, since, last_used: Option<i64>| SidecarReport {
        sidecar: "pod-1".into(),
        answer: Ok(VersionUse {
            generation,
            observed_since: second(since),
            last_used: last_used.map(second),
        }),
    };
    let verdict =
        |reports: Vec<SidecarReport>| disable(manifest, 1, &Evidence::Fleet(reports), world.now);
    assert!(verdict(vec![report(3, 90, Some(21))]).is_ok());
    assert!(verdict(vec![report(3, 90, None)]).is_ok());
    let silent = SidecarReport {
        sidecar: "pod-2".into(),
        answer: Err("connection refused".into()),
    };
    let lacking = [
        (vec![], "no sidecar was asked"),
        (vec![report(3, 90, Some(19))], "used it at"),
        (vec![report(3, 5, None)], "counting only since"),
        (vec![report(2, 90, None)], "serves generation 2, not 3"),
        (
            vec![report(3, 90, None), silent],
            "pod-2 did not answer (connection refused)",
        ),
    ];
    for (reports, expected) in lacking {
        let refusal = verdict(reports).expect_err("refused").to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert_eq!(
        disable(manifest, 2, &Evidence::Override("x".into()), world.now),
        Err(Refusal::IsPrimary(2))
    );
}

#[test]
fn destroying_waits_for_the_lease_and_the_waiting_time() {
    let mut world = World::new();
    for step in [
        Step::Rotate,
        Step::Activate {
            version: 2,
            wave: None,
            in_seconds: None,
        },
        Step::Disable {
            version: 1,
            with_evidence: true,
        },
    ] {
        world.apply(&step);
    }
    let manifest = world.document.manifest();
    let phrase = backup_phrase(&manifest.name, 1);
    let after = |seconds: i64| {
        let now = Timestamp::from_second(world.now.as_second() + seconds).expect("in range");
        destroy(
            manifest,
            1,
            Destruction::Orderly {
                confirm: Some(&phrase),
            },
            now,
        )
    };
    assert!(
        after(9)
            .expect_err("refused")
            .to_string()
            .contains("destroy_after (10s)")
    );
    assert!(
        after(29)
            .expect_err("refused")
            .to_string()
            .contains("encrypt_lease (30s)")
    );
    assert_eq!(after(30).expect("allowed").versions[0].wraps, []);
    let unconfirmed = destroy(
        manifest,
        1,
        Destruction::Orderly {
            confirm: Some("yes"),
        },
        world.now + std::time::Duration::from_secs(60),
    );
    assert!(matches!(unconfirmed, Err(Refusal::NotConfirmed { .. })));
}

#[test]
fn a_lost_primary_is_destroyed_together_with_a_successor() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let manifest = world.document.manifest();
    let phrase = lost_phrase(&manifest.name, 1);
    let lose = |successor| {
        destroy(
            manifest,
            1,
            Destruction::Lost {
                confirm: Some(&phrase),
                successor,
            },
            world.now,
        )
    };
    assert_eq!(lose(None), Err(Refusal::LostPrimary(1)));
    assert!(matches!(lose(Some(3)), Err(Refusal::NoSuchVersion { .. })));
    assert_eq!(lose(Some(1)), Err(Refusal::LostPrimary(1)));
    let next = lose(Some(2)).expect("allowed");
    assert_eq!(primary_at(&next.activations, world.now, &wave(0)), Some(2));
    assert_eq!(next.versions[0].state, State::Destroyed);
}

#[test]
fn a_manifest_lists_every_contradiction() {
    let world = World::new();
    let edit = |change: fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value =
            serde_json::from_slice(world.document.bytes()).expect("JSON");
        change(&mut value);
        Document::parse(value.to_string())
            .expect_err("refused")
            .to_string()
    };
    let both = edit(|value| {
        value["generation"] = 0.into();
        value["activations"][0]["version"] = 9.into();
    });
    assert!(
        both.contains("generation 0") && both.contains("names version 9"),
        "{both}"
    );
    let twice = edit(|value| {
        let version = value["versions"][0].clone();
        value["versions"]
            .as_array_mut()
            .expect("array")
            .push(version);
    });
    assert!(twice.contains("each once"), "{twice}");
    assert!(edit(|value| value["surprise"] = 1.into()).contains("unknown field `surprise`"));
    assert!(edit(|value| value["generation"] = u64::MAX.into()).contains("2^53-1"));
    assert!(edit(|value| value["versions"][0]["version"] = (1u64 << 40).into()).contains("u32"));
    assert!(edit(|value| value["versions"][0]["state"] = "disabled".into()).contains("primary"));
    let text = String::from_utf8(world.document.bytes().to_vec()).expect("UTF-8");
    let repeated = text.replacen(
        "\"generation\": 1,",
        "\"generation\": 1, \"generation\": 1,",
        1,
    );
    assert!(
        Document::parse(repeated)
            .expect_err("refused")
            .to_string()
            .contains("duplicate field")
    );
    assert!(Document::parse(world.document.bytes().slice(..100)).is_err());
}

#[test]
fn trusted_signers_are_demanded() {
    let world = World::new();
    // The example key of RFC 8410, section 10.3.
    let pem = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let signer = crate::crypto::SigningKey::from_pem(pem.as_bytes()).expect("key");
    let trusted: crate::model::SignerKey = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
        .parse()
        .expect("key");
    assert_eq!(signer.public_key(), trusted.0);
    let expect = Expectations {
        trusted_signers: vec![trusted],
        ..expectations(&world.document)
    };
    assert_eq!(
        KeyTable::examine(None, &world.document, &expect),
        Err(Rejection::Unsigned)
    );
    let next = touch(world.document.manifest(), world.now);
    let signed = authenticate(next, &world.keys, Some(&signer)).expect("keys");
    assert_eq!(
        KeyTable::examine(None, &signed, &expect),
        Ok(Succession::Newer)
    );
    let signers: BTreeSet<String> = signed
        .manifest()
        .authentication
        .signatures
        .iter()
        .map(|signature| signature.signer.to_string())
        .collect();
    assert_eq!(signers, BTreeSet::from([trusted.to_string()]));
}
