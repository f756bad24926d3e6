//! The refresh engine with a manual clock: leases and scheduled takeovers, without waiting.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Keyring, Shared, Trigger, spawn};
use crate::{
    backend::{self, local::LocalKek},
    clock::{Clock, ManualClock},
    config::{self, Confirm},
    crypto::{Dek, InstanceId, KeyringId, WrapContext},
    keks::Keks,
    keyring::{self, Activation, Document, Manifest, NewVersion, Policy, Slot, WaveSelector},
    model::{KekScope, Location},
    telemetry::Registry,
};

struct World {
    folder: tempfile::TempDir,
    clock: Clock,
    manual: ManualClock,
    shared: Shared,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        LocalKek::create(&folder.path().join("kek")).expect("KEK");
        let (clock, manual) =
            Clock::manual(Timestamp::from_second(1_800_000_000).expect("in range"));
        let settings = config::Refresh {
            // No machine is so slow that a miss is forgotten within a test.
            miss_ttl: Duration::from_secs(24 * 60 * 60),
            ..config::Refresh::default()
        };
        let registry = Arc::new(Registry::default());
        let backends = backend::configured(&Default::default());
        let shared = Shared {
            settings: settings.clone(),
            wave: "standard".parse().expect("wave"),
            clock: clock.clone(),
            registry: Arc::clone(&registry),
            keks: Arc::new(Keks::new(
                Arc::clone(&backends),
                &settings,
                clock.clone(),
                Arc::clone(&registry),
            )),
            backends,
            audit: Default::default(),
            instance: InstanceId([7; 16]),
            shutdown: CancellationToken::new(),
        };
        Self {
            folder,
            clock,
            manual,
            shared,
        }
    }

    fn location(&self) -> Location {
        Location::File(self.folder.path().join("demo.json"))
    }

    /// Writes a new manifest with two versions, after `change` was applied to it.
    async fn write(&self, change: impl FnOnce(Manifest, Timestamp) -> Manifest) -> Document {
        let now = self.clock.now();
        let id = KeyringId::generate().expect("random");
        let kek = [
            format!("local:{}", self.folder.path().join("kek").display())
                .parse()
                .expect("URI"),
        ];
        let mut keys = std::collections::BTreeMap::new();
        let mut new = Vec::new();
        for version in [1, 2] {
            let dek = Dek::generate().expect("random");
            let wraps = self
                .shared
                .keks
                .wrap(
                    &kek,
                    &dek,
                    WrapContext {
                        keyring: id,
                        version,
                    },
                )
                .await
                .expect("wrap");
            new.push(NewVersion {
                wraps,
                check: dek.check_value(&id, version),
                key: dek.succession_key().public_key(),
            });
            keys.insert(version, dek.succession_key());
        }
        let [first, second] = <[NewVersion; 2]>::try_from(new).expect("two");
        let name = "demo".parse().expect("name");
        let created = keyring::init(name, id, Policy::default(), first, now);
        let created = keyring::authenticate(created, &keys, None).expect("keys");
        let manifest = keyring::rotate(&created, second, now);
        let document = keyring::authenticate(change(manifest, now), &keys, None).expect("keys");
        self.shared
            .backends
            .store(&self.location())
            .expect("store")
            .replace(None, document.bytes().to_vec())
            .await
            .expect("written");
        document
    }

    async fn serve(&self, confirm: Confirm) -> Arc<Keyring> {
        let settings = config::Keyring {
            name: "demo".parse().expect("name"),
            location: self.location(),
            keks: KekScope::Any,
            confirm,
            min_generation: 0,
            trusted_signers: Vec::new(),
            anchor: None,
            accept_lost: Vec::new(),
            wave: None,
        };
        let keyring = spawn(&settings, &self.shared).expect("store");
        let mut generations = keyring.generations();
        generations.wait_for(Option::is_some).await.expect("loaded");
        keyring
    }
}

fn activated(mut manifest: Manifest, version: u32, at: Timestamp) -> Manifest {
    manifest.activations.push(Activation {
        version,
        wave: WaveSelector::Every,
        at,
        generation: None,
    });
    manifest
}

/// The world after the process restarted at another time: only the folder is kept.
fn restarted(world: World, at: Timestamp) -> World {
    let (clock, manual) = Clock::manual(at);
    let shared = Shared {
        clock: clock.clone(),
        shutdown: CancellationToken::new(),
        ..world.shared
    };
    World {
        clock,
        manual,
        shared,
        ..world
    }
}

fn lease_is_over(keyring: &Keyring, now: Timestamp) -> bool {
    let snapshot = keyring.snapshot();
    now >= keyring.lease_end(&snapshot.as_ref().expect("loaded").table)
}

fn primary(keyring: &Keyring, now: Timestamp) -> Option<u32> {
    keyring
        .snapshot()
        .as_ref()
        .expect("loaded")
        .table
        .primary(now)
}

async fn refreshed(world: &World, keyring: &Keyring, trigger: Trigger) {
    // So that its time distinguishes this refresh from the one before.
    world.manual.advance(Duration::from_millis(1));
    let before = keyring.status().last_success;
    keyring.request(trigger);
    while keyring.status().last_success == before {
        tokio::task::yield_now().await;
    }
}

const LEASE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn the_lease_runs_from_the_last_successful_read() {
    let world = World::new();
    world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(LEASE - MINUTE);
    assert!(!lease_is_over(&keyring, world.clock.now()));
    world.manual.advance(MINUTE);
    assert!(
        lease_is_over(&keyring, world.clock.now()),
        "nothing has confirmed the manifest for a whole lease"
    );
    refreshed(&world, &keyring, Trigger::Signal).await;
    assert!(
        !lease_is_over(&keyring, world.clock.now()),
        "a read confirms the manifest"
    );
}

#[tokio::test]
async fn after_a_restart_the_lease_continues_from_the_cache_and_no_clock_extends_it() {
    let mut world = World::new();
    world.shared.settings.cache_dir = Some(world.folder.path().join("cache"));
    world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(20 * DAY);
    refreshed(&world, &keyring, Trigger::Signal).await;
    let confirmed = world.clock.now();
    let copy = world.folder.path().join("cache/demo.json");
    let stamp = || std::fs::metadata(&copy).and_then(|metadata| metadata.modified());
    while stamp()
        .ok()
        .and_then(|stamp| Timestamp::try_from(stamp).ok())
        != Some(confirmed)
    {
        tokio::task::yield_now().await;
    }
    world.shared.shutdown.cancel();
    drop(keyring);
    std::fs::remove_file(world.folder.path().join("demo.json")).expect("the location is gone");

    // Ten days later, twenty days of the lease are left.
    let world = restarted(world, confirmed + 10 * DAY);
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(20 * DAY - MINUTE);
    assert!(!lease_is_over(&keyring, world.clock.now()));
    world.manual.advance(MINUTE);
    assert!(lease_is_over(&keyring, world.clock.now()));
    world.shared.shutdown.cancel();

    // To a clock that was set back, the copy was confirmed in the future. The lease starts now at
    // the latest.
    let world = restarted(world, confirmed - 10 * DAY);
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(LEASE - MINUTE);
    assert!(!lease_is_over(&keyring, world.clock.now()));
    world.manual.advance(MINUTE);
    assert!(lease_is_over(&keyring, world.clock.now()));
}

#[tokio::test]
async fn with_confirm_stamp_a_read_does_not_renew_the_lease() {
    let world = World::new();
    world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Stamp).await;
    world.manual.advance(LEASE);
    refreshed(&world, &keyring, Trigger::Signal).await;
    assert!(
        lease_is_over(&keyring, world.clock.now()),
        "reading an old manifest confirms nothing"
    );
}

#[tokio::test]
async fn a_scheduled_version_takes_over_at_its_instant_without_a_refresh() {
    let world = World::new();
    world
        .write(|manifest, now| {
            let later = now.checked_add(MINUTE).expect("in range");
            activated(manifest, 2, later)
        })
        .await;
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(MINUTE - Duration::from_millis(1));
    assert_eq!(primary(&keyring, world.clock.now()), Some(1));
    world.manual.advance(Duration::from_millis(1));
    assert_eq!(primary(&keyring, world.clock.now()), Some(2));
}

#[tokio::test]
async fn while_no_kek_unwraps_the_primary_the_previous_version_encrypts_until_the_lease_ends() {
    let world = World::new();
    let other = world.folder.path().join("other");
    world
        .write(|mut manifest, now| {
            manifest.versions[1].wraps[0].kek =
                format!("local:{}", other.display()).parse().expect("URI");
            let later = now.checked_add(MINUTE).expect("in range");
            activated(manifest, 2, later)
        })
        .await;
    let keyring = world.serve(Confirm::Read).await;
    let encrypting = || {
        let snapshot = keyring.snapshot();
        snapshot
            .as_ref()
            .expect("loaded")
            .table
            .encryption_key(world.clock.now())
            .map(|(version, _)| version)
    };
    world.manual.advance(MINUTE);
    assert_eq!(
        (primary(&keyring, world.clock.now()), encrypting()),
        (Some(2), Some(1))
    );
    world.manual.advance(LEASE - MINUTE);
    refreshed(&world, &keyring, Trigger::Signal).await;
    assert!(
        lease_is_over(&keyring, world.clock.now()),
        "a read does not confirm a version that should no longer encrypt"
    );
    std::fs::copy(world.folder.path().join("kek"), &other).expect("copied");
    refreshed(&world, &keyring, Trigger::Signal).await;
    assert_eq!(encrypting(), Some(2));
    assert!(!lease_is_over(&keyring, world.clock.now()));
}

#[tokio::test]
async fn a_keyring_whose_first_activation_is_not_due_yet_decrypts() {
    let world = World::new();
    world
        .write(|mut manifest, now| {
            manifest.activations[0].at = now.checked_add(MINUTE).expect("in range");
            manifest
        })
        .await;
    // This happens on a sidecar whose clock is slow.
    let keyring = world.serve(Confirm::Read).await;
    let snapshot = keyring.snapshot().clone().expect("loaded");
    assert_eq!(snapshot.table.primary(world.clock.now()), None);
    assert!(matches!(snapshot.table.slot(1), Some(Slot::Unwrapped(_))));
    world.manual.advance(MINUTE);
    assert!(snapshot.table.has_unwrapped_primary(world.clock.now()));
}

#[tokio::test]
async fn a_kek_that_hangs_delays_no_other_version() {
    let world = World::new();
    let pipe = world.folder.path().join("pipe");
    // Opening a pipe for reading blocks until it is opened for writing.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("pipe");
    world
        .write(|mut manifest, _| {
            manifest.versions[1].wraps[0].kek =
                format!("local:{}", pipe.display()).parse().expect("URI");
            manifest
        })
        .await;
    let keyring = world.serve(Confirm::Read).await;
    let slot_is_open = |version| {
        let snapshot = keyring.snapshot();
        matches!(
            snapshot.as_ref().expect("loaded").table.slot(version),
            Some(Slot::Unwrapped(_))
        )
    };
    assert!(
        slot_is_open(1) && !slot_is_open(2),
        "unwrapped versions are served while the other one is pending"
    );
    assert!(
        keyring
            .status()
            .failure
            .expect("reported")
            .1
            .message
            .contains("have not answered yet")
    );
    // Changes are found however long the KEK takes.
    refreshed(&world, &keyring, Trigger::Signal).await;
    // Releases the KEK, so that the test can end.
    let open = move || std::fs::OpenOptions::new().write(true).open(pipe);
    tokio::task::spawn_blocking(open)
        .await
        .expect("joined")
        .expect("the other end is open");
}

#[tokio::test]
async fn an_unknown_version_is_looked_up_once_and_then_remembered_as_missing() {
    let world = World::new();
    world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Read).await;
    world.manual.advance(MINUTE);
    assert!(
        keyring
            .refresh_for_version(9)
            .await
            .is_some_and(|newest| newest.table.slot(9).is_none())
    );
    let looked = keyring.status().last_success;
    assert_eq!(looked, Some(world.clock.now()), "the location was read");
    world.manual.advance(MINUTE);
    assert!(keyring.refresh_for_version(9).await.is_none());
    assert_eq!(
        keyring.status().last_success,
        looked,
        "the miss is remembered and the location is not read"
    );
}

#[tokio::test]
async fn a_version_that_came_since_the_caller_looked_is_not_looked_up() {
    let world = World::new();
    world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Read).await;
    let looked = keyring.status().last_success;
    world.manual.advance(MINUTE);
    let newest = keyring.refresh_for_version(2).await;
    assert!(newest.is_some_and(|newest| newest.table.slot(2).is_some()));
    assert_eq!(keyring.status().last_success, looked, "nothing was read");
}

#[tokio::test]
async fn usage_is_counted_across_a_refresh() {
    let world = World::new();
    let document = world.write(|manifest, _| manifest).await;
    let keyring = world.serve(Confirm::Read).await;
    let used = world.clock.now();
    keyring
        .snapshot()
        .as_ref()
        .expect("loaded")
        .usage(1)
        .expect("version 1")
        .record_encrypted(1, used);
    // The same manifest followed by white space, which does not count as a change.
    std::fs::write(
        world.folder.path().join("demo.json"),
        [&document.bytes()[..], b"\n"].concat(),
    )
    .expect("written");
    world.manual.advance(MINUTE);
    refreshed(&world, &keyring, Trigger::Signal).await;
    assert_eq!(
        keyring
            .snapshot()
            .as_ref()
            .expect("loaded")
            .usage(1)
            .expect("version 1")
            .last_used(),
        Some(used)
    );
    assert_eq!(keyring.status().failure, None);
}
