//! Random histories: after any sequence of operations, every invariant holds at every step.

use proptest::prelude::*;

use super::*;
use crate::crypto::{Header, Opener};

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let version = || 1..8u32;
    let step = prop_oneof![
        3 => Just(Step::Rotate),
        5 => (version(), proptest::option::of(0..WAVES.len()), proptest::option::of(-5..50i64))
            .prop_map(|(version, wave, in_seconds)| Step::Activate { version, wave, in_seconds }),
        3 => (version(), any::<bool>())
            .prop_map(|(version, with_evidence)| Step::Disable { version, with_evidence }),
        2 => version().prop_map(Step::Enable),
        3 => version().prop_map(Step::Destroy),
        1 => version().prop_map(Step::Compromise),
        1 => Just(Step::Touch),
        2 => (0..3u8, 0..6u32).prop_map(|(rollout, step)| Step::Advance { rollout, step }),
        2 => (0..40u64, 1..50u64, 0..30u64, class())
            .prop_map(|(quiet, lease, after, class)| {
                Step::SetPolicy(policies::policy(quiet, lease, after, class))
            }),
        1 => (0..3u8).prop_map(Step::EndRollout),
        2 => (0..20usize).prop_map(Step::RollBack),
        1 => (version(), version()).prop_map(|(compromised, successor)| Step::Replace {
            compromised,
            successor,
        }),
        4 => (0..60i64).prop_map(Step::Wait),
        4 => (0..WAVES.len()).prop_map(Step::Encrypt),
    ];
    proptest::collection::vec(step, 1..60)
}

fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(&[Class::Live, Class::Archive, Class::Kms][..])
}

impl World {
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
                    (Some(Slot::Unwrapped(keys)), State::Enabled) => {
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
            world.check_waits();
        }
        // However long a reader was away, it follows.
        for lagging in &world.history {
            let verdict = verdict(lagging, &world.document);
            prop_assert!(verdict.is_ok(), "{verdict:?}");
        }
    }
}
