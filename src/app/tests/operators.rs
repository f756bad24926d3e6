//! Commands that ask sidecars: about their clocks, what they saw, and what they hold.

use std::collections::BTreeMap;

use crate::{
    admin::{Admin, AdminError, Bases, Memory, Recovered, Recovery, Signing, StampStep, Takeover},
    app::testing::{DAY, HOUR, MINUTE, SECOND, TestApp, World},
    backend::Kek,
    clock::Clock,
    crypto::{Dek, SigningKey, WrapContext},
    fleet::{Fleet, OpsTls},
    keyring::{self, Base64, Document, Evidence, Manifest, NewVersion, Policy, Refusal, Wrap},
    model::{SignerKey, Span},
};

/// The KEK of every keyring that a world makes.
const KEK: &str = "fake:main";

fn touch(current: &Document, now: jiff::Timestamp) -> Result<Manifest, Refusal> {
    Ok(keyring::touch(current, now))
}

fn fleet(apps: &[&TestApp]) -> Fleet {
    let url = |app: &&TestApp| {
        let url = format!("http://{}", app.ops_address());
        url.parse().expect("a URL")
    };
    Fleet::of(apps.iter().map(url), OpsTls::default())
}

/// What this world's operators remember.
fn memory(world: &World, machine: &str) -> Option<Memory> {
    Some(Memory::in_folder(world.path(machine)))
}

/// An operator who names the sidecars and doesn't vouch for the clock.
fn asking(world: &World, apps: &[&TestApp], clock: Clock) -> Admin {
    world
        .admin_at("demo", Signing::NoKey, clock)
        .with_bases(Bases {
            memory: memory(world, "state"),
            sidecars: fleet(apps),
            ..Bases::default()
        })
}

/// The config of a sidecar that reads the keyring `demo` from another location.
fn demo_in(location: &str) -> String {
    format!("[[keyring]]\nname = \"demo\"\nlocation = \"{location}.json\"\nkeks = [\"fake:*\"]\n")
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_differs_from_a_sidecars_changes_nothing() {
    let world = World::with_demo().await;
    let app = world.start().await;
    for (minutes, is_refused) in [(4, false), (6, true)] {
        let (fast, hands) = Clock::manual(world.now());
        hands.advance(minutes * MINUTE);
        let changed = asking(&world, &[&app], fast).change(touch).await;
        match changed {
            Err(AdminError::ClockDiffers { ours, theirs, .. }) => {
                assert!(is_refused, "{minutes} minutes");
                assert_eq!(ours.duration_since(theirs).as_mins(), 6);
            }
            changed => assert!(!is_refused && changed.is_ok(), "{changed:?}"),
        }
    }
    // A slow one is as bad.
    let (slow, _) = Clock::manual(world.now() - 6 * MINUTE);
    let changed = asking(&world, &[&app], slow).change(touch).await;
    assert!(matches!(changed, Err(AdminError::ClockDiffers { .. })));
    // A decision by waiting times needs a clock to compare with.
    let alone = asking(&world, &[], Clock::manual(world.now()).0);
    let destroyed = alone.destroy(1, None).await;
    assert!(matches!(destroyed, Err(AdminError::NoClock)));
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_the_location_counts_as_another() {
    let (world, _app) = with_a_disabled_version().await;
    world.clock().advance(2 * HOUR);
    let destroy = async || {
        let alone = asking(&world, &[], Clock::manual(world.now()).0);
        alone.destroy(1, NO_BACKUP).await
    };
    assert!(matches!(destroy().await, Err(AdminError::NoClock)));
    world.store("demo").set_time(world.now() - 10 * MINUTE);
    let differs = destroy().await;
    let Err(AdminError::ClockDiffers { holder, .. }) = differs else {
        panic!("{differs:?}");
    };
    assert!(holder.ends_with("demo.json"), "{holder}");
    world.store("demo").set_time(world.now());
    destroy().await.expect("the clocks agree");
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_a_kek_counts_as_another() {
    let (world, _app) = with_a_disabled_version().await;
    world.clock().advance(2 * HOUR);
    let alone = || asking(&world, &[], Clock::manual(world.now()).0);
    let unknown = alone().destroy(1, NO_BACKUP).await;
    assert!(matches!(unknown, Err(AdminError::NoClock)));
    world.main_kek().set_time(world.now() - 10 * MINUTE);
    let is_refused = |changed: Result<Document, AdminError>| {
        let Err(AdminError::ClockDiffers { holder, .. }) = changed else {
            panic!("{changed:?}");
        };
        assert_eq!(holder, KEK);
    };
    is_refused(alone().destroy(1, NO_BACKUP).await);
    // Changes that need no other clock compare it, too.
    is_refused(alone().change(touch).await);
    is_refused(
        alone()
            .rotate(&[], Takeover::Now)
            .await
            .map(|(document, _)| document),
    );
    world.main_kek().set_time(world.now());
    alone()
        .destroy(1, NO_BACKUP)
        .await
        .expect("the clocks agree");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_does_not_answer_tells_no_time() {
    let (world, _app) = with_a_disabled_version().await;
    world.clock().advance(2 * HOUR);
    let silent = "http://127.0.0.1:1".parse().expect("a URL");
    let admin = world.admin("demo").with_bases(Bases {
        memory: memory(&world, "state"),
        clocks: Fleet::of([silent], OpsTls::default()),
        ..Bases::default()
    });
    let destroyed = admin.destroy(1, NO_BACKUP).await;
    assert!(
        matches!(destroyed, Err(AdminError::NoClock)),
        "{destroyed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_large_step_of_the_stamps_needs_another_clock_or_is_a_warning() {
    let world = World::with_demo().await;
    let app = world.start().await;
    // The lease is thirty days.
    world.clock().advance(14 * DAY);
    let admin = asking(&world, &[], Clock::manual(world.now()).0);
    admin.change(touch).await.expect("touched");
    assert_eq!(admin.unconfirmed_step(), None, "what weekly changes do");
    let from = world.now();
    let later = async |trust_clock, apps: &[&TestApp]| {
        world.clock().advance(400 * DAY);
        let clock = Clock::manual(world.now()).0;
        let admin = world
            .admin_at("demo", Signing::NoKey, clock)
            .with_bases(Bases {
                memory: memory(&world, "state"),
                sidecars: fleet(apps),
                trust_clock,
                ..Bases::default()
            });
        admin.change(touch).await.expect("a year is no reason");
        admin.unconfirmed_step()
    };
    let step = later(false, &[]).await.expect("a warning");
    let to = world.now();
    assert_eq!(step, StampStep { from, to });
    let text = step.to_string();
    for expected in [
        "400 days",
        "--repair-time",
        "--sidecar URL",
        "--trust-clock",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(later(true, &[]).await, None, "the operator vouches for it");
    assert_eq!(later(false, &[&app]).await, None, "a sidecar agrees");
    world.main_kek().set_time(world.now() + 400 * DAY);
    assert_eq!(later(false, &[]).await, None, "the KEK agrees");
}

#[tokio::test(start_paused = true)]
async fn the_first_change_of_a_command_counts() {
    let world = World::with_demo().await;
    world.clock().advance(400 * DAY);
    let admin = asking(&world, &[], Clock::manual(world.now()).0);
    admin.rotate(&[], Takeover::Now).await.expect("two changes");
    assert!(admin.unconfirmed_step().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_keyring_is_not_created_with_a_clock_that_differs() {
    let world = World::new();
    let init = async |name: &str, trust_clock| {
        let admin = world
            .admin_at(name, Signing::NoKey, Clock::manual(world.now()).0)
            .with_bases(Bases {
                memory: memory(&world, "state"),
                trust_clock,
                ..Bases::default()
            });
        let kek = KEK.parse().expect("a URI");
        let name = name.parse().expect("a name");
        admin.init(name, &[kek], Policy::default()).await
    };
    let assert_differs = |result: Result<Document, AdminError>, expected: &str| {
        let Err(AdminError::ClockDiffers { holder, .. }) = result else {
            panic!("{result:?}");
        };
        assert!(holder.ends_with(expected), "{holder}");
    };
    world.store("first").set_time(world.now() - 10 * MINUTE);
    assert_differs(init("first", false).await, "first.json");
    world.main_kek().set_time(world.now() + 10 * MINUTE);
    assert_differs(init("second", false).await, KEK);
    assert_eq!(world.store("second").get(), None);
    init("second", true).await.expect("the operator vouches");
}

#[tokio::test(start_paused = true)]
async fn a_merge_is_not_stamped_by_a_clock_that_differs() {
    let world = World::with_demo().await;
    let fork = world.store("demo").get().expect("a manifest");
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let app = world.start().await;
    world.store("copy").set(fork);
    let stranger = world.admin("copy").with_bases(Bases {
        memory: memory(&world, "elsewhere"),
        first_time: Some(held(&world, "copy").digest_hex()),
        ..Bases::default()
    });
    stranger.change(touch).await.expect("another branch");
    let other = world.start_with(&demo_in("copy"), &[]).await;
    let merge = async |admin: Admin, app: &TestApp, other: &TestApp| {
        let fleet = fleet(&[app, other]);
        let how = Recovery {
            name: None,
            fleet: &fleet,
            trusted: &[],
            branch: Some(&held(&world, "demo").digest_hex()),
        };
        admin.recover(&how).await
    };
    world.store("demo").set_time(world.now() - 10 * MINUTE);
    let alone = asking(&world, &[], Clock::manual(world.now()).0);
    let differs = merge(alone, &app, &other).await;
    assert!(
        matches!(differs, Err(AdminError::ClockDiffers { .. })),
        "{differs:?}"
    );
    merge(world.admin("demo"), &app, &other)
        .await
        .expect("the operator vouches for the clock");
}

/// A world in which version 1 of `demo` is disabled, and waits an hour until it may be destroyed.
async fn with_a_disabled_version() -> (World, TestApp) {
    let world = World::new();
    let policy = Policy {
        encrypt_lease: Span::from_secs(3600),
        destroy_after: Span::from_secs(3600),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let app = world.start().await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let evidence = Evidence::Override("test".into());
    admin
        .change(|current, now| keyring::disable(current, 1, &evidence, now))
        .await
        .expect("disabled");
    app.wait_generation(4).await;
    (world, app)
}

const NO_BACKUP: Option<&str> = Some("there is no backup of version 1 of demo");

#[tokio::test(start_paused = true)]
async fn waiting_times_count_from_the_first_time_that_someone_saw_the_state() {
    let (world, app) = with_a_disabled_version().await;
    world.clock().advance(2 * HOUR);
    app.refresh();
    world.advance(SECOND).await;
    let digest = {
        let bytes = world.store("demo").get().expect("a manifest");
        Document::parse(bytes).expect("valid").digest_hex()
    };
    // This machine sees the keyring for the first time, so nothing shows that the stamps are true.
    let elsewhere = |sidecars| {
        world.admin("demo").with_bases(Bases {
            memory: memory(&world, "elsewhere"),
            first_time: Some(digest.clone()),
            trust_clock: true,
            sidecars,
            ..Bases::default()
        })
    };
    let early = elsewhere(Fleet::default()).destroy(1, NO_BACKUP).await;
    let Err(AdminError::Refused(refusal @ Refusal::TooEarly { .. })) = early else {
        panic!("{early:?}");
    };
    let text = refusal.to_string();
    assert!(text.contains("first seen here"), "{text}");
    assert!(text.contains("--sidecar URL"), "{text}");

    // A sidecar saw it two hours ago.
    let status = app.keyring().await;
    let seen = status["active"]["versions"][0]["seen_disabled"].as_str();
    assert!(seen.is_some(), "{status}");
    assert_eq!(
        status["active"]["versions"][1].get("seen_superseded"),
        None,
        "version 2 is the primary"
    );
    elsewhere(fleet(&[&app]))
        .destroy(1, NO_BACKUP)
        .await
        .expect("the sidecar shows that the hour is over");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_saw_the_state_destroys_without_a_sidecar() {
    let (world, _app) = with_a_disabled_version().await;
    let early = world.admin("demo").destroy(1, NO_BACKUP).await;
    assert!(early.is_err());
    world.clock().advance(HOUR);
    let admin = world.admin("demo");
    admin
        .destroy(1, NO_BACKUP)
        .await
        .expect("an hour has passed");
}

#[tokio::test(start_paused = true)]
async fn a_trimmed_manifest_is_followed_by_who_knew_the_versions_as_destroyed() {
    let (world, app) = with_a_disabled_version().await;
    // A sidecar that has read nothing since version 1 was enabled.
    let frozen = world.store("frozen");
    let message = app.client().await.encrypt(b"x").await.ok().body;
    let mut trimmed_away = message.to_vec();
    trimmed_away[8] = 1;
    frozen.set(world.store("demo").get().expect("a manifest"));
    let lagging = world.start_with(&demo_in("frozen"), &[]).await;

    world.clock().advance(HOUR);
    let admin = world.admin("demo");
    admin.destroy(1, NO_BACKUP).await.expect("destroyed");
    app.wait_generation(5).await;
    let before = world.now() + HOUR;
    assert!(matches!(
        admin.trim(before).await,
        Err(AdminError::Refused(Refusal::TrimTooRecent { .. }))
    ));
    world.clock().advance(500 * DAY);
    let trimmed = admin.trim(before).await.expect("trimmed");
    assert_eq!(trimmed.manifest().first_version(), 2);
    app.refresh();
    app.wait_generation(6).await;
    let mut client = app.client().await;
    let gone = client.decrypt(&trimmed_away).await;
    assert_eq!(gone.problem(), "key_version_destroyed");
    assert_eq!(client.decrypt(&message).await.ok().body, "x");
    assert_eq!(client.encrypt(b"y").await.ok().version(), 2);

    frozen.set(trimmed.bytes().to_vec());
    lagging.refresh();
    lagging
        .wait_keyring("the refusal", |keyring| {
            keyring["last_error"]["code"] == "too_far_behind"
        })
        .await;
    let decrypted = lagging.client().await.decrypt(&message).await;
    assert_eq!(decrypted.ok().body, "x");
}

/// The manifest of someone without a key of `genuine`, with a high generation.
async fn forged(world: &World, genuine: &Document) -> Document {
    let dek = Dek::from_slice(&[66; 32]).expect("32 bytes");
    let id = genuine.manifest().id;
    let context = WrapContext {
        keyring: id,
        version: 1,
    };
    let kek = "fake:main".parse().expect("a URI");
    let wrap = world.main_kek().wrap(&dek, context).await.expect("wrapped");
    let new = NewVersion {
        wraps: vec![Wrap {
            kek,
            ciphertext: Base64(wrap),
            wrapped_at: world.now(),
        }],
        check: dek.check_value(&id, 1),
        key: dek.succession_key().public_key(),
    };
    let name = genuine.manifest().name.clone();
    let mut manifest = keyring::init(name, id, Policy::default(), new, world.now());
    manifest.generation = 1_000;
    manifest.lineage = genuine.manifest().lineage.clone();
    let keys = BTreeMap::from([(1, dek.succession_key())]);
    keyring::authenticate(manifest, &keys, None).expect("its key")
}

async fn recover(
    world: &World,
    apps: &[&TestApp],
    branch: Option<&str>,
) -> Result<Recovered, AdminError> {
    let fleet = fleet(apps);
    let how = Recovery {
        name: None,
        fleet: &fleet,
        trusted: &[],
        branch,
    };
    world.admin("demo").recover(&how).await
}

fn held(world: &World, store: &str) -> Document {
    Document::parse(world.store(store).get().expect("a manifest")).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_lying_sidecar_neither_wins_nor_blocks_a_recovery() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    let old = world.store("demo").get().expect("a manifest");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let app = world.start().await;
    let genuine = held(&world, "demo");
    // A sidecar of the attacker's serves a manifest of theirs under the same name and id.
    let forged = forged(&world, &genuine).await;
    world.store("lies").set(forged.bytes().to_vec());
    let liar = world.start_with(&demo_in("lies"), &[]).await;
    liar.wait_generation(1_000).await;

    world.store("demo").set(old);
    let recovered = recover(&world, &[&liar, &app], None).await.expect("found");
    assert_eq!(recovered.document.bytes(), genuine.bytes());
    let rejected = recovered.rejected.join("\n");
    assert!(rejected.contains("generation 1000"), "{rejected}");
    assert_eq!(world.store("demo").get().expect("one"), genuine.bytes());
    app.refresh();
    world.advance(SECOND).await;
    assert_eq!(app.client().await.encrypt(b"x").await.ok().version(), 2);
}

#[tokio::test(start_paused = true)]
async fn readers_of_two_branches_follow_the_one_that_is_chosen() {
    let world = World::with_demo().await;
    let fork = world.store("demo").get().expect("a manifest");
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let app = world.start().await;
    // Someone restored an old copy, and an operator who had seen nothing went on from there.
    world.store("copy").set(fork);
    let stranger = world.admin("copy").with_bases(Bases {
        memory: memory(&world, "elsewhere"),
        first_time: Some(held(&world, "copy").digest_hex()),
        ..Bases::default()
    });
    stranger.change(touch).await.expect("touched");
    let other = world.start_with(&demo_in("copy"), &[]).await;

    let undecided = recover(&world, &[&app, &other], None).await;
    let Err(AdminError::Refused(Refusal::NotRecoverable(text))) = undecided else {
        panic!("{undecided:?}");
    };
    let chosen = held(&world, "demo").digest_hex();
    for expected in [
        "--branch DIGEST",
        &chosen,
        &held(&world, "copy").digest_hex(),
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let unknown = recover(&world, &[&app, &other], Some("00")).await;
    assert!(unknown.is_err());

    let recovered = recover(&world, &[&app, &other], Some(&chosen))
        .await
        .expect("merged");
    assert_eq!(recovered.stranded, [""; 0]);
    assert_eq!(recovered.document.manifest().generation, 4);
    world.store("copy").set(recovered.document.bytes().to_vec());
    for app in [&app, &other] {
        app.refresh();
        app.wait_generation(4).await;
        assert_eq!(app.client().await.encrypt(b"x").await.ok().version(), 2);
    }
}

fn signing_key(number: u8) -> SigningKey {
    let dek = Dek::from_slice(&[number; 32]).expect("32 bytes");
    dek.succession_key()
}

#[tokio::test(start_paused = true)]
async fn an_operator_signs_only_what_a_known_signer_has_signed() {
    let world = World::with_demo().await;
    let (own, other) = (5, 6);
    let signing = |key: u8, trusted: &[u8], adopt: Option<String>| Signing::With {
        key: signing_key(key),
        trusted: trusted
            .iter()
            .map(|key| SignerKey(signing_key(*key).public_key()))
            .collect(),
        adopt,
    };
    let with = async |signing| world.admin_with("demo", signing).change(touch).await;
    // No one has signed it yet.
    let unsigned = with(signing(own, &[], None)).await;
    let Err(AdminError::NotSigned { digest, .. }) = unsigned else {
        panic!("{unsigned:?}");
    };
    let wrong = with(signing(own, &[other], Some("00".into()))).await;
    assert!(matches!(wrong, Err(AdminError::NotSigned { .. })));
    with(signing(own, &[other], Some(digest)))
        .await
        .expect("adopted");
    // A colleague's key is trusted if it is listed.
    let stranger = with(signing(other, &[], None)).await;
    assert!(matches!(stranger, Err(AdminError::NotSigned { .. })));
    with(signing(other, &[own], None)).await.expect("trusted");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_returns_another_key_opens_nothing() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let admin = world.admin("demo");
    let second = "fake:second".parse().expect("a URI");
    admin
        .rotate(&[second], Takeover::Later)
        .await
        .expect("rotated");
    world.kek("fake:second").exchange(true);
    app.refresh();
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "exchanged"
    })
    .await;
    assert_eq!(app.client().await.encrypt(b"x").await.ok().version(), 1);
    world.kek("fake:second").exchange(false);
    app.wait_keyring("the repair", |keyring| keyring["last_error"].is_null())
        .await;
}
