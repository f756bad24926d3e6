//! The policy in use, which another config replaces while requests are decided.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{Caller, Policy};
use crate::config::Rule;

/// The policy that requests are decided by. Reading it takes no lock.
pub struct ActivePolicy {
    current: ArcSwap<Policy>,
    replaced: Notify,
}

impl ActivePolicy {
    /// Starts with these rules.
    pub fn new(rules: &[Rule]) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(Policy::new(rules)),
            replaced: Notify::new(),
        })
    }

    /// Returns the current policy. A request takes one and uses it to its end.
    pub fn current(&self) -> Arc<Policy> {
        self.current.load_full()
    }

    /// Decides with the current policy about what `decide` looks up. It may be called again: what
    /// was looked up while the policy was replaced could be from before or after that.
    pub fn decide<T>(&self, decide: impl Fn(&Policy) -> T) -> T {
        loop {
            let policy = self.current.load();
            let decision = decide(&policy);
            if Arc::ptr_eq(&policy, &self.current.load()) {
                return decision;
            }
        }
    }

    /// Replaces the rules, and with `change` what they are about. Meanwhile, only what both the
    /// former and the new rules allow is allowed.
    pub fn replace(&self, rules: &[Rule], change: impl FnOnce()) {
        let (former, next) = (self.current(), Policy::new(rules));
        self.current.store(Arc::new(Policy {
            also: Some(former),
            ..next.clone()
        }));
        change();
        self.current.store(Arc::new(next));
        self.replaced.notify_waiters();
    }

    /// Resolves when another policy than `seen` is current.
    pub async fn replaced(&self, seen: &Arc<Policy>) {
        loop {
            // Before comparing, so that no replacement in between is missed.
            let replaced = self.replaced.notified();
            if !Arc::ptr_eq(seen, &self.current.load()) {
                return;
            }
            replaced.await;
        }
    }

    /// Resolves when the policy no longer allows anything to a caller to whom it did.
    pub async fn withdrawn(&self, caller: &Caller) {
        let mut policy = self.current();
        loop {
            self.replaced(&policy).await;
            let next = self.current();
            if policy.knows(caller) && !next.knows(caller) {
                return;
            }
            policy = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::Operation;

    const SEVEN: Caller = Caller::Process {
        uid: 7,
        gid: 0,
        pid: None,
    };

    fn allow(operation: Operation, uid: u32) -> Rule {
        Rule {
            keyrings: None,
            operations: vec![operation],
            secrets: vec![],
            uids: vec![uid],
            gids: vec![],
            token: false,
        }
    }

    fn allows(policy: &Policy, operation: Operation) -> bool {
        let keyring = "demo".parse().expect("a name");
        policy.permissions(&SEVEN, &keyring).allow(operation)
    }

    #[test]
    fn while_rules_are_replaced_only_what_both_allow_is_allowed() {
        use Operation::{Decrypt, Encrypt, Inspect};
        let secret = "db".parse().expect("a name");
        let active = ActivePolicy::new(&[]);
        assert!(active.current().may_fetch(&SEVEN, &secret));
        let rules = [allow(Encrypt, 7), allow(Decrypt, 7)];
        active.replace(&rules, || {
            let between = active.current();
            assert!(allows(&between, Encrypt) && !allows(&between, Inspect));
            assert!(!between.may_fetch(&SEVEN, &secret) && between.knows(&SEVEN));
        });
        let rules = [allow(Decrypt, 7), allow(Inspect, 7)];
        active.replace(&rules, || {
            let between = active.current();
            assert!(allows(&between, Decrypt));
            assert!(!allows(&between, Encrypt) && !allows(&between, Inspect));
        });
        let after = active.current();
        assert!(allows(&after, Decrypt) && allows(&after, Inspect) && !allows(&after, Encrypt));
        active.replace(&[allow(Inspect, 8)], || {
            assert!(!active.current().knows(&SEVEN));
        });
    }

    #[test]
    fn a_decision_during_a_replacement_is_made_again() {
        let active = ActivePolicy::new(&[]);
        let rules = [allow(Operation::Decrypt, 7)];
        let mut looked_up = std::cell::Cell::new(0);
        let is_allowed = active.decide(|policy| {
            looked_up.set(looked_up.get() + 1);
            if looked_up.get() == 1 {
                active.replace(&rules, || ());
            }
            allows(policy, Operation::Encrypt)
        });
        assert!(!is_allowed);
        assert_eq!(*looked_up.get_mut(), 2);
    }

    #[tokio::test]
    async fn a_caller_is_withdrawn_once_no_rule_is_left_for_it() {
        let active = ActivePolicy::new(&[allow(Operation::Encrypt, 7)]);
        let mut withdrawn = Box::pin(active.withdrawn(&SEVEN));
        assert!(withdrawn.as_mut().now_or_never().is_none());
        active.replace(&[allow(Operation::Decrypt, 7)], || ());
        assert!(withdrawn.as_mut().now_or_never().is_none());
        active.replace(&[allow(Operation::Decrypt, 8)], || ());
        assert!(withdrawn.as_mut().now_or_never().is_some());
        let mut stranger = Box::pin(active.withdrawn(&SEVEN));
        assert!(stranger.as_mut().now_or_never().is_none());
        active.replace(&[allow(Operation::Encrypt, 9)], || ());
        let never = stranger.as_mut().now_or_never();
        assert!(never.is_none(), "it had nothing to lose");
    }
}
