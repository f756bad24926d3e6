//! What identities take up in the database: shared by the same rule as what a listener has, so that
//! one identity alone gets three quarters, and there is always room for one more.

use std::collections::BTreeMap;

use crate::config::HubLimits;

/// How much an identity may hold, as a multiple of what is free before it takes more.
const HELD_PER_FREE: u64 = 3;
/// How many instances are remembered, as a multiple of those that report: those that have ended,
/// or were silent for an hour, are remembered longer than they count.
const REMEMBERED: u64 = 4;
/// The bytes of statuses and uses, for each instance that may report.
const INSTANCE_BYTES: u64 = 16 << 10;
/// There is room for a few of the longest reports, however few instances may report.
const LONGEST_REPORTS: u64 = 4;
/// How many keyrings are counted, once for each workload that uses them.
const KEYRINGS: u64 = 10_000;

/// What there is a limited amount of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// Instances that are remembered.
    Instances,
    /// Bytes of what they have reported.
    Bytes,
    /// Pairs of a keyring and a workload that uses it. They are kept for good.
    Keyrings,
}

/// An amount of each [`Resource`], in their order.
pub(super) type Amounts = [u64; 3];

const RESOURCES: [Resource; 3] = [Resource::Instances, Resource::Bytes, Resource::Keyrings];

/// What identities hold, and may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shares {
    most: Amounts,
    /// By identity.
    pub(super) held: BTreeMap<String, Amounts>,
}

impl Shares {
    pub(super) fn new(limits: &HubLimits) -> Self {
        let (instances, report) = (limits.instances as u64, limits.report as u64);
        Self {
            most: [
                instances.saturating_mul(REMEMBERED),
                instances
                    .saturating_mul(INSTANCE_BYTES)
                    .saturating_add(report * LONGEST_REPORTS),
                KEYRINGS,
            ],
            held: BTreeMap::new(),
        }
    }

    /// Gives `identity` the amounts `after` in place of `before`.
    ///
    /// # Errors
    /// What there is too little of. Nothing has changed.
    pub(super) fn exchange(
        &mut self,
        identity: &str,
        before: Amounts,
        after: Amounts,
    ) -> Result<(), Resource> {
        let held = self.held.get(identity).copied().unwrap_or_default();
        for (index, resource) in RESOURCES.into_iter().enumerate() {
            let more = after[index].saturating_sub(before[index]);
            let all: u64 = self.held.values().map(|held| held[index]).sum();
            let free = self.most[index].saturating_sub(all);
            let is_over_share = held[index] > 0
                && held[index].saturating_add(more) > HELD_PER_FREE.saturating_mul(free);
            if more > free || more > 0 && is_over_share {
                return Err(resource);
            }
        }
        let now = self.held.entry(identity.into()).or_default();
        for index in 0..now.len() {
            now[index] = now[index].saturating_sub(before[index]) + after[index];
        }
        Ok(())
    }

    /// Takes back what an identity no longer holds.
    pub(super) fn give_back(&mut self, identity: &str, amounts: Amounts) {
        if let Some(held) = self.held.get_mut(identity) {
            for (held, less) in held.iter_mut().zip(amounts) {
                *held = held.saturating_sub(less);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(most: Amounts) -> Shares {
        Shares {
            most,
            held: BTreeMap::new(),
        }
    }

    fn take_all(shares: &mut Shares, identity: &str) -> u64 {
        while shares.exchange(identity, [0; 3], [1, 0, 0]).is_ok() {}
        shares.held[identity][0]
    }

    #[test]
    fn one_identity_gets_three_quarters_and_later_ones_their_part_of_the_rest() {
        let mut shares = shares([1024, 1, 1]);
        let taken = ["a", "b", "c"].map(|identity| take_all(&mut shares, identity));
        assert_eq!(taken, [768, 192, 48]);
        shares.give_back("a", [768, 0, 0]);
        assert_eq!(take_all(&mut shares, "d"), 588);
    }

    #[test]
    fn each_resource_is_limited_and_what_shrinks_is_always_taken() {
        let mut shares = shares([10, 100, 4]);
        shares.exchange("a", [0; 3], [1, 60, 2]).expect("room");
        let more = |shares: &mut Shares, after| shares.exchange("a", [1, 60, 2], after);
        assert_eq!(more(&mut shares, [1, 200, 2]), Err(Resource::Bytes));
        assert_eq!(more(&mut shares, [1, 60, 9]), Err(Resource::Keyrings));
        assert_eq!(more(&mut shares, [99, 60, 2]), Err(Resource::Instances));
        assert_eq!(shares.held["a"], [1, 60, 2], "nothing has changed");
        more(&mut shares, [1, 5, 2]).expect("less");
        assert_eq!(shares.held["a"], [1, 5, 2]);
    }

    #[test]
    fn an_instance_that_reports_as_much_as_it_may_has_room() {
        let limits = HubLimits {
            instances: 1,
            ..HubLimits::default()
        };
        let longest = limits.report as u64;
        let mut shares = Shares::new(&limits);
        shares.exchange("a", [0; 3], [1, longest, 1]).expect("room");
    }
}
