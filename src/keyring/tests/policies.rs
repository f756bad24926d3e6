//! Changes of the policy: none shortens a wait that has begun.

use super::*;
use crate::keyring::activation::ends;

/// A policy whose periods are so many seconds.
pub(super) fn policy(quiet: u64, lease: u64, destroy_after: u64, class: Class) -> Policy {
    Policy {
        quiet_period: Span::from_secs(quiet),
        encrypt_lease: Span::from_secs(lease),
        destroy_after: Span::from_secs(destroy_after),
        class,
        ..Policy::default()
    }
}

/// Whether a sidecar of this generation may encrypt with a version: it is the primary, or one that
/// was, as long as no KEK unwraps those after it (I10).
fn may_encrypt(held: &Manifest, version: u32, at: Timestamp, wave: &Wave) -> bool {
    let is_usable = held
        .version(version)
        .is_some_and(|held| held.state == State::Enabled && !held.compromised);
    let was_primary = || {
        held.activations.iter().any(|activation| {
            activation.version == version
                && activation.at <= at
                && activation.wave.covers(Some(wave))
        })
    };
    primary_at(&held.activations, at, wave) == Some(version) || (is_usable && was_primary())
}

fn was_activated(manifest: &Manifest, version: u32) -> bool {
    ends(&manifest.activations).contains_key(&version)
}

fn is_superseded(manifest: &Manifest, version: u32) -> bool {
    !matches!(ends(&manifest.activations).get(&version), Some(None))
}

fn is_disabled(manifest: &Manifest, version: u32) -> bool {
    manifest
        .version(version)
        .is_some_and(|version| version.state == State::Disabled)
}

impl World {
    /// The longest period of all generations since `begun` has been true of a version.
    fn longest<T: Ord>(
        &self,
        version: u32,
        begun: fn(&Manifest, u32) -> bool,
        period: fn(&Policy) -> T,
    ) -> Option<T> {
        self.history
            .iter()
            .rev()
            .map(|document| document.manifest())
            .take_while(|manifest| manifest.version(version).is_some() && begun(manifest, version))
            .map(|manifest| period(&manifest.policy))
            .max()
    }

    /// Every wait is as long as the longest policy since it began.
    pub(super) fn check_waits(&self) {
        let manifest = self.document.manifest();
        let policy = &manifest.policy;
        for version in manifest.live() {
            let number = version.version;
            let quiet = self.longest(number, is_superseded, |policy| policy.quiet_period);
            assert!(Some(policy.quiet_period_of(version)) >= quiet, "{number}");
            let class = self.longest(number, is_superseded, |policy| policy.class);
            assert!(Some(policy.class_of(version)) >= class, "{number}");
            let lease = self.longest(number, was_activated, |policy| policy.encrypt_lease);
            assert!(Some(policy.encrypt_lease_of(version)) >= lease, "{number}");
            let disabled = self.longest(number, is_disabled, |policy| policy.destroy_after);
            assert!(
                Some(policy.destroy_after_of(version)) >= disabled,
                "{number}"
            );
        }
    }

    /// No sidecar may encrypt with the version from now on (I11): whichever generation it confirmed
    /// last, at the latest when the next one was written, and whatever lease that has.
    pub(super) fn check_no_sidecar_encrypts_with(&self, version: u32) {
        let written = self.history.iter().skip(1);
        let written = written.map(|next| next.manifest().updated_at);
        for (held, replaced) in self.history.iter().zip(written.chain([self.now])) {
            let held = held.manifest();
            let until = replaced
                .checked_add(held.policy.encrypt_lease.0)
                .expect("in range");
            let takeovers = held.activations.iter().map(|activation| activation.at);
            let times = takeovers.chain([self.now]);
            for at in times.filter(|at| (self.now..until).contains(at)) {
                for index in 0..WAVES.len() {
                    assert!(
                        !may_encrypt(held, version, at, &wave(index)),
                        "generation {} encrypts at {at}, and it is {}",
                        held.generation,
                        self.now
                    );
                }
            }
        }
    }

    fn set(&mut self, policy: Policy) {
        let next = set_policy(&self.document, policy, self.now).expect("a change");
        self.publish(next);
    }

    fn kept(&self, version: u32) -> Kept {
        self.document
            .manifest()
            .version(version)
            .expect("known")
            .kept
    }
}

/// Version 1 is disabled, version 2 the primary, and version 3 pending.
fn waiting() -> World {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Rotate);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world
}

#[test]
fn what_waits_keeps_the_longer_period_and_the_stricter_class() {
    let mut world = waiting();
    world.set(policy(20, 30, 10, Class::Archive));
    assert_eq!(world.kept(1), Kept::default(), "stricter for everyone");
    world.set(policy(5, 6, 7, Class::Live));
    let span = |seconds| Some(Span::from_secs(seconds));
    let lease = Kept {
        encrypt_lease: span(30),
        ..Kept::default()
    };
    assert_eq!(world.kept(2), lease, "sidecars that lag encrypt with it");
    let unused = Kept {
        quiet_period: span(20),
        class: Some(Class::Archive),
        ..Kept::default()
    };
    assert_eq!(world.kept(3), unused, "it may be disabled at any time");
    let all = Kept {
        destroy_after: span(10),
        ..unused
    };
    let all = Kept {
        encrypt_lease: span(30),
        ..all
    };
    assert_eq!(world.kept(1), all);
    assert_eq!(
        all.to_string(),
        "quiet_period 20s, encrypt_lease 30s, destroy_after 10s, class archive"
    );

    // Nothing is kept that the policy demands anyway.
    world.set(policy(20, 30, 9, Class::Kms));
    let rest = Kept {
        destroy_after: span(10),
        ..Kept::default()
    };
    assert_eq!((world.kept(1), world.kept(2)), (rest, Kept::default()));
    // A new version follows the policy of its time.
    world.apply(&Step::Rotate);
    assert_eq!(world.kept(4), Kept::default());
    let unchanged = world.document.manifest().policy.clone();
    assert_eq!(
        set_policy(&world.document, unchanged, world.now),
        Err(Refusal::PolicyUnchanged)
    );
}

#[test]
fn a_shortened_time_does_not_bring_a_destruction_forward() {
    let mut world = waiting();
    world.apply(&Step::Disable {
        version: 3,
        with_evidence: true,
    });
    world.set(policy(20, 1, 1, Class::Live));
    let after = |world: &World, version: u32, seconds: u64| {
        let phrase = backup_phrase(&world.document.manifest().name, version);
        let now = world.now + std::time::Duration::from_secs(seconds);
        let seen = world.sightings.of(version);
        destroy(&world.document, version, Some(&phrase), seen, now)
    };
    let text = after(&world, 3, 9).expect_err("refused").to_string();
    assert!(text.contains("destroy_after (10s)"), "{text}");
    assert!(after(&world, 3, 10).is_ok(), "no lease: it never encrypted");
    let text = after(&world, 1, 29).expect_err("refused").to_string();
    assert!(text.contains("encrypt_lease (30s)"), "{text}");
    let next = after(&world, 1, 30).expect("over");
    let lease = next.versions[0].kept;
    assert_eq!(lease.encrypt_lease, Some(Span::from_secs(30)));
    assert_eq!(lease, lease.once_destroyed());

    // Version 2 was the primary when the lease was shortened, so it waits for the former one too.
    world.apply(&Step::Enable(3));
    world.apply(&Step::Activate {
        version: 3,
        wave: None,
        in_seconds: None,
    });
    world.apply(&Step::Disable {
        version: 2,
        with_evidence: true,
    });
    world.apply(&Step::Wait(29));
    world.apply(&Step::Destroy(2));
    assert_eq!(world.document.manifest().versions[1].state, State::Disabled);
    world.apply(&Step::Wait(1));
    world.apply(&Step::Destroy(2));
    assert_eq!(
        world.document.manifest().versions[1].state,
        State::Destroyed
    );
}

#[test]
fn trimming_waits_for_the_longest_lease() {
    const DAY: u64 = 24 * 3600;
    let mut world = World::new();
    world.set(policy(20, 1000 * DAY, 10, Class::Live));
    world.rotate_to(2);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.set(policy(20, 30, 10, Class::Live));
    world.apply(&Step::Wait(1001 * 24 * 3600));
    world.apply(&Step::Destroy(1));
    let destroyed = world.now + std::time::Duration::from_secs(1);
    let trim_after = |days: u64| {
        let now = world.now + std::time::Duration::from_secs(days * DAY);
        trim(&world.document, destroyed, now)
    };
    assert!(matches!(
        trim_after(1999),
        Err(Refusal::TrimTooRecent { .. })
    ));
    assert_eq!(trim_after(2001).expect("allowed").first_version(), 2);
}

#[test]
fn only_live_versions_are_disabled_because_they_are_unused() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Wait(100));
    let disabled = |world: &World| {
        let report = SidecarReport {
            sidecar: "a".into(),
            usage: Ok(VersionUse {
                generation: world.document.manifest().generation,
                observed_since: Timestamp::UNIX_EPOCH,
                last_used: None,
                open: 0,
                last_refused: None,
            }),
        };
        disable(
            &world.document,
            1,
            &Evidence::Fleet(vec![report].into()),
            world.now,
        )
    };
    assert!(disabled(&world).is_ok());
    for (class, demanded) in [
        (Class::Archive, "a scan"),
        (Class::Kms, "a storage migration"),
    ] {
        world.set(policy(20, 30, 10, class));
        let text = disabled(&world).expect_err("refused").to_string();
        assert!(text.contains(&format!("of class {class}")), "{text}");
        assert!(
            text.contains(demanded) && text.contains("--override"),
            "{text}"
        );
        let attested = Evidence::Override("A. Person: scanned".into());
        assert!(disable(&world.document, 1, &attested, world.now).is_ok());
    }
    // It was superseded in that class.
    world.set(policy(20, 30, 10, Class::Live));
    assert!(matches!(
        disabled(&world),
        Err(Refusal::UseIsNoEvidence {
            class: Class::Kms,
            ..
        })
    ));
}

#[test]
fn a_merge_shortens_no_wait_of_either_branch() {
    let world = waiting();
    let strict = set_policy(&world.document, policy(90, 80, 70, Class::Kms), world.now);
    let strict = reread(&world.authenticate(strict.expect("a change")));
    let loose = set_policy(&world.document, policy(1, 2, 3, Class::Live), world.now);
    let loose = reread(&world.authenticate(loose.expect("a change")));
    let all = Kept {
        quiet_period: Some(Span::from_secs(90)),
        encrypt_lease: Some(Span::from_secs(80)),
        destroy_after: Some(Span::from_secs(70)),
        class: Some(Class::Kms),
    };
    let merged = merge(&loose, &[&strict], world.now).expect("mergeable");
    assert_eq!(merged.versions[0].kept, all);
    reread(&world.authenticate(merged));
    let merged = merge(&strict, &[&loose], world.now).expect("mergeable");
    assert_eq!(merged.versions[0].kept, Kept::default());
    reread(&world.authenticate(merged));
}

#[test]
fn a_superseded_version_that_still_decrypts_is_overdue() {
    let mut world = World::new();
    world.rotate_to(2);
    let superseded = world.now;
    let after = |seconds| superseded + std::time::Duration::from_secs(seconds);
    assert_eq!(overdue(world.document.manifest(), after(1000)), []);
    world.set(Policy {
        decrypt_until: Some(Span::from_secs(60)),
        ..policy(20, 30, 10, Class::Live)
    });
    assert_eq!(overdue(world.document.manifest(), after(59)), []);
    let found = [(1, after(60))];
    assert_eq!(overdue(world.document.manifest(), after(60)), found);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    assert_eq!(overdue(world.document.manifest(), after(60)), []);
}

#[test]
fn a_policy_without_the_newer_members_is_read() {
    let world = World::new();
    let mut value: serde_json::Value =
        serde_json::from_slice(world.document.bytes()).expect("JSON");
    let members = value["policy"].as_object_mut().expect("an object");
    assert_eq!(members.remove("class"), Some("live".into()));
    let read = Document::parse(value.to_string()).expect("valid");
    assert_eq!(read.manifest().policy, world.document.manifest().policy);
    for (class, name) in [
        (Class::Live, "live"),
        (Class::Archive, "archive"),
        (Class::Kms, "kms"),
    ] {
        assert_eq!(name.parse(), Ok(class));
        assert_eq!(class.to_string(), name);
    }
    for null in ["decrypt_until", "class"] {
        value["policy"][null] = serde_json::Value::Null;
        assert!(Document::parse(value.to_string()).is_err(), "{null}");
        value["policy"]
            .as_object_mut()
            .expect("an object")
            .remove(null);
    }
}
