use std::collections::{BTreeMap, VecDeque};

use jiff::{Timestamp, ToSpan};

use crate::{
    crypto::{Dek, KeyringId, RolloutId, SigningKey},
    keyring::{
        self, Base64, Document, Evidence, FleetEvidence, LedgerEvidence, Manifest, NewVersion,
        Policy, Refusal, Sighting, State as VersionState, VersionUse, WaveSelector, Wrap,
    },
    model::{Span, Wave},
    rollout::*,
};

/// A key, its fleet, and time.
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) document: Document,
    keys: BTreeMap<u32, SigningKey>,
    pub(super) sidecars: BTreeMap<String, Sidecar>,
    /// Decrypts that failed although the version is enabled.
    pub(super) failed_decrypts: u64,
    /// Whether the location answers.
    pub(super) has_store: bool,
    /// Whether the KEKs answer.
    pub(super) has_keks: bool,
    /// What each change was, in order.
    pub(super) writes: Vec<String>,
    pub(super) has_backup: bool,
    /// From when on the ledger of a hub says that version 1 is out of use.
    pub(super) quiet_from: Option<Timestamp>,
    /// Until when it says that version 1 was asked for, although it is disabled.
    pub(super) asked_until: Option<Timestamp>,
}

pub(super) struct Sidecar {
    pub(super) wave: Wave,
    pub(super) instance: u32,
    /// What it runs.
    pub(super) document: Document,
    /// Whether it has joined a hub.
    pub(super) is_joined: bool,
    /// Whether it answers.
    pub(super) is_up: bool,
    /// Whether it refreshes.
    pub(super) refreshes: bool,
    /// Whether it proves what it is asked for.
    pub(super) proves: bool,
    /// Whether applications use it.
    pub(super) has_traffic: bool,
    /// Ciphertexts that are damaged, of each second's messages, once it encrypts with version 2.
    pub(super) damage: u64,
    /// Why it can't unwrap the newest version.
    pub(super) unopened: Option<String>,
    /// Whether that is because it waits for its turn.
    pub(super) waits: bool,
    pub(super) counters: Counters,
    pub(super) since: Timestamp,
    last_used: BTreeMap<u32, Timestamp>,
    /// When a request for version 1 was last refused.
    pub(super) last_refused: Option<Timestamp>,
    /// How many streams use version 1.
    pub(super) open: u64,
}

pub(super) fn wave(name: &str) -> Wave {
    name.parse().expect("a wave")
}

fn new_version(id: KeyringId, number: u32) -> (NewVersion, SigningKey) {
    let dek = Dek::generate().expect("random");
    let wrap = Wrap {
        kek: "local:/kek".parse().expect("a URI"),
        ciphertext: Base64(vec![0]),
        wrapped_at: Timestamp::UNIX_EPOCH,
    };
    let key = dek.succession_key();
    let new = NewVersion {
        wraps: vec![wrap],
        check: dek.check_value(&id, number),
        key: key.public_key(),
    };
    (new, key)
}

impl World {
    /// Six sidecars in three waves, and a keyring with one version.
    pub(super) fn new() -> Self {
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let id = KeyringId::generate().expect("random");
        let (new, key) = new_version(id, 1);
        let policy = Policy {
            quiet_period: Span::from_secs(60),
            encrypt_lease: Span::from_secs(30),
            destroy_after: Span::from_secs(90),
            ..Policy::default()
        };
        let manifest = keyring::init("demo".parse().expect("a name"), id, policy, new, now);
        let keys = BTreeMap::from([(1, key)]);
        let document = reread(keyring::authenticate(manifest, &keys, None).expect("all keys"));
        let waves = [
            ("a", "canary"),
            ("b", "standard"),
            ("c", "standard"),
            ("d", "critical"),
            ("e", "critical"),
            ("f", "critical"),
        ];
        let sidecars = waves.map(|(name, in_wave)| {
            let sidecar = Sidecar {
                wave: wave(in_wave),
                instance: 0,
                document: document.clone(),
                is_joined: false,
                is_up: true,
                refreshes: true,
                proves: true,
                has_traffic: true,
                damage: 0,
                unopened: None,
                waits: false,
                counters: Counters::default(),
                since: now,
                last_used: BTreeMap::new(),
                last_refused: None,
                open: 0,
            };
            (name.to_owned(), sidecar)
        });
        Self {
            now,
            document,
            keys,
            sidecars: sidecars.into(),
            failed_decrypts: 0,
            quiet_from: None,
            asked_until: None,
            has_store: true,
            has_keks: true,
            writes: Vec::new(),
            has_backup: true,
        }
    }

    pub(super) fn sidecar(&mut self, name: &str) -> &mut Sidecar {
        self.sidecars.get_mut(name).expect("a sidecar")
    }

    pub(super) fn manifest(&self) -> &Manifest {
        self.document.manifest()
    }

    /// Returns the primary of a wave now.
    pub(super) fn primary(&self, name: &str) -> Option<u32> {
        keyring::primary_at(&self.manifest().activations, self.now, &wave(name))
    }

    pub(super) fn primaries(&self) -> [Option<u32>; 4] {
        ["canary", "standard", "critical", "other"].map(|name| self.primary(name))
    }

    pub(super) fn requester(&self) -> Requester {
        Requester {
            name: "ann@desk".into(),
            key: None,
        }
    }

    pub(super) fn assess(&self, strategy: &Strategy, intent: &Intent) -> Assessment {
        assess(&self.document, &self.view(), strategy, intent, self.now)
    }

    /// Begins a rollout of which nothing stands in the way.
    pub(super) fn begin(&self, strategy: Strategy, intent: Intent) -> (State, Vec<Action>) {
        let assessment = self.assess(&strategy, &intent);
        let blockers: Vec<_> = assessment.blockers().collect();
        assert!(blockers.is_empty(), "{blockers:?}");
        let requester = self.requester();
        let plan = Plan::new(
            &self.document,
            &assessment,
            strategy,
            intent,
            requester,
            self.now,
        );
        let id = RolloutId::generate().expect("random");
        begin(plan, assessment.findings, id, self.now)
    }

    /// Begins a rollout as if its old version had been backed up.
    pub(super) fn begin_despite_blockers(&self, strategy: Strategy) -> (State, Vec<Action>) {
        let intent = Intent::Rotate;
        let assessment = self.assess(&strategy, &intent);
        let blockers: Vec<&str> = assessment
            .blockers()
            .map(|finding| finding.code.as_str())
            .collect();
        assert_eq!(blockers, ["destroy_needs_backup"]);
        let requester = self.requester();
        let plan = Plan::new(
            &self.document,
            &assessment,
            strategy,
            intent,
            requester,
            self.now,
        );
        let id = RolloutId::generate().expect("random");
        begin(plan, assessment.findings, id, self.now)
    }

    /// Passes time second by second: sidecars refresh, and applications encrypt and decrypt.
    pub(super) fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now = self.now.checked_add(1.second()).expect("in range");
            self.refresh();
            self.traffic();
        }
    }

    fn refresh(&mut self) {
        for sidecar in self.sidecars.values_mut() {
            let is_behind =
                sidecar.document.manifest().generation != self.document.manifest().generation;
            if is_behind && sidecar.is_up && sidecar.refreshes && self.has_store {
                sidecar.document = self.document.clone();
            }
        }
    }

    /// Every sidecar with traffic encrypts a message, which every other one decrypts.
    fn traffic(&mut self) {
        let now = self.now;
        let messages: Vec<(u32, u64)> = self
            .sidecars
            .values_mut()
            .filter(|sidecar| sidecar.is_up && sidecar.has_traffic)
            .filter_map(|sidecar| {
                let version = sidecar.primary(now)?;
                sidecar.counters.encrypted += 1;
                sidecar.last_used.insert(version, now);
                Some((version, if version > 1 { sidecar.damage } else { 0 }))
            })
            .collect();
        for sidecar in self.sidecars.values_mut().filter(|sidecar| sidecar.is_up) {
            for (version, damage) in &messages {
                let code = match sidecar.document.manifest().version(*version) {
                    // A sidecar that meets a version it lacks refreshes before it answers (I2).
                    None if sidecar.refreshes => None,
                    None => Some("key_version_unavailable"),
                    Some(found) if found.state == VersionState::Disabled => {
                        Some("key_version_disabled")
                    }
                    Some(_) => None,
                };
                match code {
                    Some(code) => {
                        *sidecar.counters.failed.entry(code.into()).or_default() += 1;
                        self.failed_decrypts += 1;
                    }
                    None if *damage > 0 => {
                        let failed = &mut sidecar.counters.failed;
                        *failed.entry("decryption_failed".into()).or_default() += damage;
                    }
                    None => {
                        sidecar.counters.decrypted += 1;
                        sidecar.last_used.insert(*version, now);
                    }
                }
            }
        }
    }

    /// What a runner sees.
    pub(super) fn view(&self) -> FleetView {
        let sidecars = self.sidecars.iter().map(|(name, sidecar)| {
            let view = if sidecar.is_up {
                Ok(sidecar.view(self.now))
            } else {
                Err("no response within 10s".into())
            };
            (name.clone(), view)
        });
        FleetView {
            sidecars: sidecars.collect(),
        }
    }

    fn ledger(&self) -> Option<LedgerEvidence> {
        let from = self.quiet_from?;
        let used = (self.now < from).then(|| "workload shop: version 1 was used".into());
        let is_asked = self.asked_until.is_some_and(|until| self.now < until);
        let asked = is_asked.then(|| "workload shop: version 1 was asked for".into());
        Some(LedgerEvidence {
            generation: self.manifest().generation,
            missing: used.into_iter().chain(asked).collect(),
            asking: is_asked
                .then(|| "workload shop".into())
                .into_iter()
                .collect(),
        })
    }

    pub(super) fn observe(&self) -> Observation {
        Observation {
            fleet: self.view(),
            manifest: if self.has_store {
                Ok(self.manifest().clone())
            } else {
                Err("the location is down".into())
            },
            ledger: self.ledger(),
        }
    }

    /// Does what is ordered, as signer and runner would, until the rollout ends, halts or waits for
    /// a person.
    pub(super) fn run(&mut self, state: State, actions: Vec<Action>) -> State {
        self.run_until(state, actions, |_, _| false)
    }

    /// Like [`Self::run`], but also ends before an action that `stop` names.
    pub(super) fn run_until(
        &mut self,
        mut state: State,
        actions: Vec<Action>,
        mut stop: impl FnMut(&State, &Action) -> bool,
    ) -> State {
        let mut actions = VecDeque::from(actions);
        for _ in 0..20_000 {
            let Some(action) = actions.pop_front() else {
                return state;
            };
            if stop(&state, &action) {
                return state;
            }
            if let Some(event) = self.perform(&state, &action) {
                let (next, ordered) = step(state, event, self.now);
                state = next;
                actions = ordered.into();
            }
        }
        panic!(
            "it never ends: {:?}, {:?}",
            state.phase,
            state.entries.last()
        );
    }

    /// Does one thing, and returns what came of it.
    pub(super) fn perform(&mut self, state: &State, action: &Action) -> Option<Event> {
        match action {
            Action::Write(write) => Some(match self.write(state, write) {
                Ok(written) => Event::Written(written),
                Err(failure) => Event::NotWritten(failure),
            }),
            Action::Push => None,
            Action::Observe => Some(Event::Observed(Box::new(self.observe()))),
            Action::Prove { sidecars, version } => {
                let proof = |name: &String| {
                    let sidecar = &self.sidecars[name];
                    let has = sidecar.document.manifest().version(*version).is_some();
                    match (sidecar.is_up, sidecar.proves, has) {
                        (true, true, true) => Ok(()),
                        _ => Err("its proof is not by the version's key".to_owned()),
                    }
                };
                let proofs = sidecars.iter().map(|name| (name.clone(), proof(name)));
                Some(Event::Proved(proofs.collect()))
            }
            Action::Sleep { until } => {
                // Approvals wait for days, and soaks are watched.
                let seconds = until.duration_since(self.now).as_secs().clamp(1, 30);
                self.pass(seconds);
                (self.now >= *until).then_some(Event::Woken).or_else(|| {
                    self.now = *until;
                    Some(Event::Woken)
                })
            }
        }
    }

    fn write(&mut self, state: &State, write: &Write) -> Result<Written, WriteFailure> {
        if !self.has_store {
            return Err(WriteFailure::Unavailable("the location is down".into()));
        }
        if !self.has_keks {
            return Err(WriteFailure::Unavailable("the KEKs are down".into()));
        }
        let mark = self.manifest().rollout.as_ref();
        let is_done = mark.is_some_and(|mark| state.was_made(mark, write));
        let changed = if is_done {
            Ok(None)
        } else {
            self.changed(state, write).map(Some)
        };
        match changed {
            Ok(None) => {}
            Ok(Some(next)) => {
                self.writes.push(format!("{write:?}"));
                let document = keyring::authenticate(next, &self.keys, None).expect("all keys");
                self.document = reread(document);
            }
            Err(Refusal::RolloutStepDone { step, attempt, .. })
                if (step, attempt) == (state.number(), state.attempt) => {}
            Err(Refusal::NoSuchRollout(_) | Refusal::RolloutEnded(_))
                if matches!(write, Write::End | Write::Replace { .. }) => {}
            Err(Refusal::TooEarly { from, why, .. }) => {
                return Err(WriteFailure::TooEarly { from, reason: why });
            }
            Err(
                refusal @ (Refusal::OtherRollout { .. }
                | Refusal::RolloutEnded(_)
                | Refusal::NoSuchRollout(_)
                | Refusal::RolloutStepDone { .. }),
            ) => return Err(WriteFailure::Preempted(refusal.to_string())),
            Err(refusal @ (Refusal::EvidenceMissing { .. } | Refusal::StillAskedFor { .. })) => {
                return Err(WriteFailure::NoEvidence(refusal.to_string()));
            }
            Err(refusal) => return Err(WriteFailure::Refused(refusal.to_string())),
        }
        let number = match write {
            Write::Generate { .. } => self.manifest().newest_version(),
            Write::Adopt { version } => *version,
            _ => state.version.as_ref().map_or(0, |version| version.version),
        };
        let version = self.manifest().version(number).map(|found| NamedVersion {
            version: number,
            key: found.key.clone(),
        });
        Ok(Written {
            generation: self.manifest().generation,
            sha256: self.document.digest(),
            version,
        })
    }

    fn changed(&mut self, state: &State, write: &Write) -> Result<Manifest, Refusal> {
        let (current, now) = (&self.document.clone(), self.now);
        let next = match write {
            Write::BackUp(_) => return Ok(keyring::touch(current, now)),
            Write::End => return keyring::end_rollout(current, state.id, now),
            Write::RollBack { former, .. } => {
                keyring::require_last_rollout(current.manifest(), state.id)?;
                return keyring::roll_back(current, former, now);
            }
            Write::Replace {
                compromised,
                version,
            } => {
                keyring::require_last_rollout(current.manifest(), state.id)?;
                return keyring::replace_compromised(current, *compromised, *version, now);
            }
            Write::Generate { preempts, .. } => {
                if let Some(mark) = &current.manifest().rollout
                    && *preempts
                    && mark.id != state.id
                {
                    let ended = keyring::end_rollout(current, mark.id, now)?;
                    let ended = keyring::authenticate(ended, &self.keys, None);
                    self.document = reread(ended.expect("all keys"));
                }
                let current = &self.document;
                let number = current.manifest().newest_version() + 1;
                let (new, key) = new_version(current.manifest().id, number);
                let next = keyring::rotate(current, new, now);
                let next = keyring::advance_rollout(current, next, state.mark())?;
                self.keys.insert(number, key);
                return Ok(next);
            }
            Write::Adopt { .. } => keyring::touch(current, now),
            Write::Activate { version, wave } => {
                keyring::activate(current, *version, wave.clone(), None, now)?
            }
            Write::Disable { version, .. } => {
                let evidence = Evidence::Fleet(FleetEvidence {
                    reports: self.reports(*version),
                    ledger: self.ledger(),
                });
                keyring::disable(current, *version, &evidence, now)?
            }
            Write::Destroy { version, .. } => {
                let evidence = FleetEvidence {
                    reports: self.reports(*version),
                    ledger: self.ledger(),
                };
                keyring::require_unasked(current.manifest(), *version, &evidence, now)?;
                let phrase = keyring::backup_phrase(&current.manifest().name, *version);
                let confirm = self.has_backup.then_some(phrase.as_str());
                let changed = current.manifest().version(*version);
                let seen = Sighting {
                    disabled: changed.map(|found| found.state_changed_at),
                    superseded: changed.map(|found| found.state_changed_at),
                    end: None,
                };
                keyring::destroy(current, *version, confirm, seen, now)?
            }
        };
        keyring::advance_rollout(current, next, state.mark())
    }

    fn reports(&self, version: u32) -> Vec<keyring::SidecarReport> {
        let sidecars = self.sidecars.iter();
        sidecars
            .filter(|(_, sidecar)| !sidecar.is_joined)
            .map(|(name, sidecar)| keyring::SidecarReport {
                sidecar: name.clone(),
                usage: if sidecar.is_up {
                    Ok(VersionUse {
                        generation: sidecar.document.manifest().generation,
                        observed_since: sidecar.since,
                        last_used: sidecar.last_used.get(&version).copied(),
                        open: sidecar.open,
                        last_refused: sidecar.last_refused,
                    })
                } else {
                    Err("no response within 10s".into())
                },
            })
            .collect()
    }

    /// A change by hand.
    pub(super) fn by_hand(
        &mut self,
        change: impl FnOnce(&Document, Timestamp) -> Result<Manifest, Refusal>,
    ) {
        let next = change(&self.document, self.now).expect("allowed");
        let document = keyring::authenticate(next, &self.keys, None).expect("all keys");
        self.document = reread(document);
    }

    /// A version that is created by hand, and pending.
    pub(super) fn rotate_by_hand(&mut self) -> u32 {
        let number = self.manifest().newest_version() + 1;
        let (new, key) = new_version(self.manifest().id, number);
        self.keys.insert(number, key);
        self.by_hand(|current, now| Ok(keyring::rotate(current, new, now)));
        number
    }
}

impl Sidecar {
    fn primary(&self, now: Timestamp) -> Option<u32> {
        keyring::primary_at(&self.document.manifest().activations, now, &self.wave)
    }

    /// Starts again, with all that it had counted lost.
    pub(super) fn restart(&mut self, now: Timestamp) {
        self.instance += 1;
        self.counters = Counters::default();
        self.since = now;
        self.last_used.clear();
    }

    fn view(&self, now: Timestamp) -> SidecarView {
        let manifest = self.document.manifest();
        let newest = manifest.newest_version();
        let versions = manifest.versions.iter().map(|version| {
            let number = version.version;
            let view = VersionView {
                unopened: self.unopened.clone().filter(|_| number == newest),
                waits: self.waits,
                last_used: self.last_used.get(&number).copied(),
                open: if number == 1 { self.open } else { 0 },
                last_refused: self.last_refused.filter(|_| number == 1),
            };
            (number, view)
        });
        SidecarView {
            instance: self.instance.to_string(),
            is_joined: self.is_joined,
            shares_name: false,
            wave: self.wave.clone(),
            ready: true,
            now: Some(now),
            keyring_id: manifest.id.to_string(),
            generation: manifest.generation,
            encrypting: self.primary(now),
            observed_since: self.since,
            encrypt_until: Timestamp::MAX,
            last_error: (!self.refreshes).then(|| "the location is unreachable".into()),
            failing_keks: BTreeMap::new(),
            versions: versions.collect(),
            counters: self.counters.clone(),
        }
    }
}

/// What one process writes and another reads.
fn reread(written: Document) -> Document {
    Document::parse(written.bytes().clone()).expect("readable")
}

/// Returns a state as another process reads it.
pub(super) fn stored(state: &State) -> State {
    let json = serde_json::to_vec(state).expect("JSON");
    let read: State = serde_json::from_slice(&json).expect("its own form");
    assert_eq!(read, *state);
    read
}

pub(super) fn quick() -> Strategy {
    Strategy::built_in("quick").expect("built in")
}

/// `quick`, and then the old version is retired.
pub(super) fn retiring() -> Strategy {
    Strategy {
        observe: Some(Observe::default()),
        disable: Some(Retire::default()),
        destroy: Some(Retire::default()),
        ..quick()
    }
}

pub(super) fn ask(state: State, verb: Verb, now: Timestamp) -> (State, Vec<Action>) {
    let by = "ann@desk".into();
    step(state, Event::Asked { verb, by }, now)
}

/// The waves in the order in which they were activated.
pub(super) fn activated(state: &State) -> Vec<String> {
    let texts = state
        .entries
        .iter()
        .filter(|entry| entry.kind == Kind::Began);
    texts
        .filter_map(|entry| Some(entry.text.strip_prefix("activate ")?.to_owned()))
        .collect()
}

/// What an activation is for.
pub(super) fn is_activation_of(action: &Action, name: &str) -> bool {
    let expected = WaveSelector::One(wave(name));
    matches!(action, Action::Write(Write::Activate { wave, .. }) if *wave == expected)
}
