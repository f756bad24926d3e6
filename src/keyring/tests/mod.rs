//! A keyring with its operator and a sidecar per wave, for the tests in this folder.

mod attacks;
mod boundaries;
mod branches;
mod consistency;
mod histories;
mod life;
mod model;
mod policies;
mod rollouts;
mod rules;
mod spread;
mod tables;
mod testaments;
#[allow(clippy::unwrap_used)]
mod waits;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::*;
use crate::{
    crypto::{Dek, KeyringId, RolloutId, Sealer, SigningKey, VersionKeys},
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
    SetPolicy(Policy),
    Advance {
        rollout: u8,
        step: u32,
    },
    EndRollout(u8),
    /// To the primaries that were there so many generations before.
    RollBack(usize),
    Replace {
        compromised: u32,
        successor: u32,
    },
    Wait(i64),
    Encrypt(usize),
}

impl Step {
    /// Whether the step may move the active rollout on, or end it.
    fn concerns_rollouts(&self) -> bool {
        matches!(
            self,
            Self::Advance { .. }
                | Self::EndRollout(_)
                | Self::RollBack(_)
                | Self::Replace { .. }
                | Self::Compromise(_)
        )
    }
}

/// A keyring, its operator, who can unwrap everything, and one sidecar per wave.
struct World {
    now: Timestamp,
    document: Arc<Document>,
    deks: BTreeMap<u32, Dek>,
    /// Every generation, oldest first.
    history: Vec<Arc<Document>>,
    /// What the operator has seen.
    sightings: Sightings,
    sidecars: Vec<KeyTable>,
    ciphertexts: Vec<Vec<u8>>,
}

fn wave(index: usize) -> Wave {
    WAVES[index].parse().expect("wave")
}

fn new_version(id: KeyringId, number: u32) -> (NewVersion, Dek) {
    let dek = Dek::generate().expect("random");
    let wrap = Wrap {
        kek: "local:/kek".parse().expect("uri"),
        ciphertext: Base64(vec![0]),
        wrapped_at: Timestamp::UNIX_EPOCH,
    };
    let new = NewVersion {
        wraps: vec![wrap],
        check: dek.check_value(&id, number),
        key: dek.succession_key().public_key(),
    };
    (new, dek)
}

fn succession_keys(deks: &BTreeMap<u32, Dek>) -> BTreeMap<u32, SigningKey> {
    deks.iter()
        .map(|(version, dek)| (*version, dek.succession_key()))
        .collect()
}

fn keys(dek: &Dek) -> VersionKeys {
    VersionKeys::derive(dek).expect("memory")
}

fn id_of(rollout: u8) -> RolloutId {
    RolloutId([rollout; 16])
}

/// The mark of a rollout whose plan never changes.
fn mark(rollout: u8, step: u32, attempt: u32) -> RolloutMark {
    RolloutMark {
        id: id_of(rollout),
        plan: Base64(vec![rollout; 32]),
        step,
        attempt,
    }
}

/// What one process writes and another reads.
fn reread(written: &Document) -> Arc<Document> {
    let read =
        Document::parse(written.bytes().clone()).expect("one process reads what another writes");
    assert_eq!(read.canonical(), written.canonical());
    Arc::new(read)
}

fn expectations(document: &Document) -> Expectations {
    Expectations::of(&document.manifest().name)
}

/// What a reader says whose base is `base`.
fn verdict(base: &Document, candidate: &Document) -> Result<Succession, Rejection> {
    examine(Some(base), candidate, &expectations(base))
}

impl World {
    fn new() -> Self {
        let mut world = Self::without_sidecars();
        world.sidecars = (0..WAVES.len())
            .map(|index| world.fresh_sidecar(index))
            .collect();
        world
    }

    /// A keyring and its operator, for what is only about manifests. No step encrypts.
    fn without_sidecars() -> Self {
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let id = KeyringId::generate().expect("random");
        let (new, dek) = new_version(id, 1);
        let policy = Policy {
            quiet_period: Span::from_secs(20),
            encrypt_lease: Span::from_secs(30),
            destroy_after: Span::from_secs(10),
            ..Policy::default()
        };
        let manifest = init("demo".parse().expect("name"), id, policy, new, now);
        let deks = BTreeMap::from([(1, dek)]);
        let document = authenticate(manifest, &succession_keys(&deks), None).expect("all keys");
        let document = reread(&document);
        Self {
            now,
            history: vec![Arc::clone(&document)],
            sightings: Sightings::default(),
            document,
            deks,
            sidecars: Vec::new(),
            ciphertexts: Vec::new(),
        }
    }

    /// Unwraps every version that a sidecar asks for: the KEK works.
    fn unwrap(&self, current: Option<&KeyTable>) -> UnwrapResults {
        KeyTable::versions_to_unwrap(current, &self.document)
            .into_iter()
            .map(|version| (version.version, Ok(keys(&self.deks[&version.version]))))
            .collect()
    }

    fn fresh_sidecar(&self, index: usize) -> KeyTable {
        KeyTable::build(
            None,
            Arc::clone(&self.document),
            examine(None, &self.document, &expectations(&self.document)).expect("genuine"),
            &self.unwrap(None),
            &BTreeMap::new(),
            wave(index),
            self.now,
        )
        .expect("a fresh sidecar starts")
    }

    /// Writes a change as one process, and reads it as the others do.
    fn publish(&mut self, next: Manifest) {
        let before = self.document.manifest().generation;
        let read = reread(&self.authenticate(next));
        assert_eq!(
            read.manifest().generation,
            before + 1,
            "the generation counts every change"
        );
        self.document = read;
        self.history.push(Arc::clone(&self.document));
        self.sightings.observe(self.document.manifest(), self.now);
        for index in 0..self.sidecars.len() {
            let current = &self.sidecars[index];
            let succession = verdict(current.document(), &self.document).expect("follows");
            let next = KeyTable::build(
                Some(current),
                Arc::clone(&self.document),
                succession,
                &self.unwrap(Some(current)),
                &BTreeMap::new(),
                wave(index),
                self.now,
            );
            self.sidecars[index] = next.expect("a valid change is accepted");
            self.fresh_sidecar(index);
        }
    }

    /// Authenticates as an operator who can unwrap every version.
    fn authenticate(&self, next: Manifest) -> Document {
        authenticate(next, &succession_keys(&self.deks), None)
            .expect("the operator holds every key")
    }

    fn apply(&mut self, step: &Step) {
        let current = Arc::clone(&self.document);
        let manifest = current.manifest();
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
                let number = manifest.newest_version() + 1;
                let (new, dek) = new_version(manifest.id, number);
                self.deks.insert(number, dek);
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
                    let silent = SidecarReport {
                        sidecar: "a".into(),
                        usage: Err("down".into()),
                    };
                    Evidence::Fleet(vec![silent].into())
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
                let phrase = backup_phrase(&manifest.name, *version);
                let seen = self.sightings.of(*version);
                let unconfirmed = destroy(&current, *version, None, seen, self.now);
                let is_backed_up = manifest
                    .last_backup
                    .as_ref()
                    .is_some_and(|backup| *version <= backup.newest_version);
                assert!(is_backed_up || unconfirmed.is_err());
                destroy(&current, *version, Some(&phrase), seen, self.now)
            }
            Step::Compromise(version) => compromise(&current, *version, self.now),
            Step::Touch => Ok(touch(&current, self.now)),
            Step::SetPolicy(policy) => set_policy(&current, policy.clone(), self.now),
            Step::Advance { rollout, step } => advance_rollout(
                &current,
                touch(&current, self.now),
                mark(*rollout, *step, 1),
            ),
            Step::EndRollout(rollout) => end_rollout(&current, id_of(*rollout), self.now),
            Step::RollBack(generations) => self.rolled_back(*generations),
            Step::Replace {
                compromised,
                successor,
            } => replace_compromised(&current, *compromised, *successor, self.now),
        };
        if let Ok(next) = change {
            assert!(step.concerns_rollouts() || next.rollout == manifest.rollout);
            if let Step::Destroy(version) = step {
                self.check_no_sidecar_encrypts_with(*version);
            }
            self.publish(next);
            if let Step::Destroy(version) = step {
                self.deks.remove(version);
            }
        }
    }

    /// Rolls back to the primaries that were there so many generations before.
    fn rolled_back(&self, generations: usize) -> Result<Manifest, Refusal> {
        let before = self.history.iter().rev().nth(generations);
        let before = before.unwrap_or(&self.history[0]).manifest();
        let former: BTreeMap<WaveSelector, u32> = primaries(&before.activations, before.updated_at)
            .into_iter()
            .filter_map(|(wave, version)| Some((wave, version?)))
            .collect();
        let next = roll_back(&self.document, &former, self.now);
        match &next {
            Ok(next) => rollouts::assert_is_back(next, &former, self.now),
            Err(refusal) => assert!(
                matches!(refusal, Refusal::RollForward { version, .. }
                if self.document.manifest().version(*version).is_none_or(|version| {
                    version.compromised || version.state == State::Destroyed
                })),
                "{refusal}"
            ),
        }
        next
    }

    /// Adds `version` and makes it the primary everywhere.
    fn rotate_to(&mut self, version: u32) {
        self.apply(&Step::Rotate);
        self.apply(&Step::Activate {
            version,
            wave: None,
            in_seconds: None,
        });
    }

    fn encrypt(&mut self, index: usize) {
        let Some(table) = self.sidecars.get(index) else {
            return;
        };
        let primary = table.primary(self.now).expect("every wave has a primary");
        let Some(Slot::Unwrapped(keys)) = table.slot(primary) else {
            panic!("the primary is open")
        };
        self.ciphertexts.push(
            Sealer::new(keys, table.id(), primary)
                .expect("random")
                .seal_copy(b"", b"plaintext"),
        );
    }
}
