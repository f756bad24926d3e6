//! Authorization: rules and a caller in, a decision out.

mod active;

use std::{collections::BTreeSet, sync::Arc};

pub use self::active::ActivePolicy;
use crate::config::Rule;
use crate::model::{KeyringName, NamePattern, Operation, SecretName};

/// The caller of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A process connected to the Unix socket, identified by the kernel (SO_PEERCRED, unix(7)).
    Process {
        /// The effective user ID when it connected.
        uid: u32,
        /// The effective group ID when it connected.
        gid: u32,
        /// The process ID, if the kernel provides it. Used for logs only.
        pid: Option<i32>,
    },
    /// A holder of the TCP listener's token.
    TokenHolder,
}

/// The compiled rules. Without any, every caller that reaches the listener may do everything but
/// request data keys. Once there is a rule, anything that no rule allows is denied.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Compiled>,
    /// What must allow a request as well.
    also: Option<Arc<Self>>,
}

#[derive(Debug, Clone)]
struct Compiled {
    keyrings: Option<BTreeSet<KeyringName>>,
    operations: Vec<Operation>,
    secrets: Vec<NamePattern>,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
    token: bool,
}

impl Compiled {
    fn applies_to(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Process { uid, gid, .. } => self.uids.contains(uid) || self.gids.contains(gid),
            Caller::TokenHolder => self.token,
        }
    }
}

/// The operations that a caller may perform on one keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u8);

impl Permissions {
    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns whether `operation` is allowed.
    pub fn allow(self, operation: Operation) -> bool {
        self.0 & bit(operation) != 0
    }

    /// Returns whether any operation is allowed.
    pub fn allow_any(self) -> bool {
        self.0 != 0
    }
}

fn bit(operation: Operation) -> u8 {
    1 << operation as u8
}

impl Policy {
    /// Compiles a config's rules.
    pub fn new(rules: &[Rule]) -> Self {
        let compile = |rule: &Rule| Compiled {
            keyrings: rule
                .keyrings
                .as_ref()
                .map(|names| names.iter().cloned().collect()),
            operations: rule.operations.clone(),
            secrets: rule.secrets.clone(),
            uids: rule.uids.iter().copied().collect(),
            gids: rule.gids.iter().copied().collect(),
            token: rule.token,
        };
        Self {
            rules: rules.iter().map(compile).collect(),
            also: None,
        }
    }

    /// Returns whether `caller` may do anything at all, with any keyring or secret.
    pub fn knows(&self, caller: &Caller) -> bool {
        let allows_any = |rule: &Compiled| !rule.operations.is_empty() || !rule.secrets.is_empty();
        let is_known = self.rules.is_empty()
            || self
                .rules
                .iter()
                .any(|rule| rule.applies_to(caller) && allows_any(rule));
        is_known && self.also.as_ref().is_none_or(|also| also.knows(caller))
    }

    /// Returns whether `caller` may fetch `secret`.
    pub fn may_fetch(&self, caller: &Caller, secret: &SecretName) -> bool {
        let covers = |rule: &Compiled| {
            rule.secrets
                .iter()
                .any(|pattern| pattern.covers(secret.as_str()))
        };
        let may_fetch = self.rules.is_empty()
            || self
                .rules
                .iter()
                .any(|rule| rule.applies_to(caller) && covers(rule));
        may_fetch
            && self
                .also
                .as_ref()
                .is_none_or(|also| also.may_fetch(caller, secret))
    }

    /// Returns what `caller` may do with `keyring`.
    pub fn permissions(&self, caller: &Caller, keyring: &KeyringName) -> Permissions {
        let own = self.own_permissions(caller, keyring);
        match &self.also {
            Some(also) => own.and(also.permissions(caller, keyring)),
            None => own,
        }
    }

    fn own_permissions(&self, caller: &Caller, keyring: &KeyringName) -> Permissions {
        if self.rules.is_empty() {
            return Permissions(
                Operation::ALL
                    .into_iter()
                    .filter(|operation| operation.is_implied())
                    .map(bit)
                    .sum(),
            );
        }
        let applies = |rule: &&Compiled| {
            rule.applies_to(caller)
                && rule
                    .keyrings
                    .as_ref()
                    .is_none_or(|names| names.contains(keyring))
        };
        Permissions(
            self.rules
                .iter()
                .filter(applies)
                .flat_map(|rule| &rule.operations)
                .fold(0, |all, operation| all | bit(*operation)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> KeyringName {
        text.parse().expect("name")
    }

    fn rule(keyrings: Option<&[&str]>, operations: &[Operation], uids: &[u32]) -> Rule {
        Rule {
            keyrings: keyrings.map(|names| names.iter().map(|text| name(text)).collect()),
            operations: operations.to_vec(),
            secrets: vec![],
            uids: uids.to_vec(),
            gids: vec![],
            token: false,
        }
    }

    fn process(uid: u32, gid: u32) -> Caller {
        Caller::Process {
            uid,
            gid,
            pid: Some(1),
        }
    }

    #[test]
    fn without_rules_every_caller_may_do_everything_but_request_data_keys() {
        let permissions = Policy::new(&[]).permissions(&process(1, 1), &name("a"));
        for operation in Operation::ALL {
            // Only a rule can allow data keys.
            assert_eq!(
                permissions.allow(operation),
                operation != Operation::DataKey
            );
        }
    }

    #[test]
    fn once_there_is_a_rule_everything_else_is_denied() {
        let policy = Policy::new(&[
            rule(Some(&["a"]), &[Operation::Decrypt], &[7]),
            rule(None, &[Operation::Inspect], &[7, 8]),
        ]);
        let seven = policy.permissions(&process(7, 0), &name("a"));
        assert!(seven.allow(Operation::Decrypt) && seven.allow(Operation::Inspect));
        assert!(!seven.allow(Operation::Encrypt) && !seven.allow(Operation::Rewrap));
        assert!(
            !policy
                .permissions(&process(7, 0), &name("b"))
                .allow(Operation::Decrypt)
        );
        assert!(!policy.permissions(&process(9, 7), &name("a")).allow_any());
        assert!(
            !policy
                .permissions(&Caller::TokenHolder, &name("a"))
                .allow_any()
        );
    }

    #[test]
    fn a_secret_may_be_fetched_by_callers_whose_rule_names_it() {
        let secret = |text: &str| text.parse::<SecretName>().expect("name");
        let seven = process(7, 0);
        assert!(
            Policy::new(&[]).may_fetch(&seven, &secret("db")),
            "without rules, only the socket's mode decides"
        );
        let keys = rule(None, &Operation::ALL, &[7]);
        let policy = Policy::new(std::slice::from_ref(&keys));
        assert!(
            !policy.may_fetch(&seven, &secret("db")),
            "a rule for all keyrings covers no secret"
        );
        let secrets = ["db", "team-*"]
            .map(|text| text.parse().expect("pattern"))
            .to_vec();
        let policy = Policy::new(&[
            keys,
            Rule {
                secrets,
                ..rule(Some(&[]), &[], &[8])
            },
        ]);
        let eight = process(8, 0);
        assert!(
            policy.may_fetch(&eight, &secret("db")) && policy.may_fetch(&eight, &secret("team-a"))
        );
        assert!(
            !policy.may_fetch(&eight, &secret("other")) && !policy.may_fetch(&seven, &secret("db"))
        );
        assert!(policy.knows(&eight) && !policy.permissions(&eight, &name("a")).allow_any());
    }

    #[test]
    fn groups_and_token_holders_have_rules_of_their_own() {
        let group = Rule {
            gids: vec![5],
            ..rule(None, &[Operation::Encrypt], &[])
        };
        let token = Rule {
            token: true,
            ..rule(None, &[Operation::Decrypt], &[])
        };
        let policy = Policy::new(&[group, token]);
        assert!(
            policy
                .permissions(&process(0, 5), &name("a"))
                .allow(Operation::Encrypt)
        );
        assert!(!policy.permissions(&process(5, 0), &name("a")).allow_any());
        assert!(
            policy
                .permissions(&Caller::TokenHolder, &name("a"))
                .allow(Operation::Decrypt)
        );
    }

    #[test]
    fn permissions_of_several_rules_add_up() {
        let policy = Policy::new(&[
            rule(None, &[Operation::Encrypt], &[7]),
            rule(Some(&["a"]), &[Operation::Decrypt], &[7]),
        ]);
        let caller = process(7, 0);
        let (a, b) = (
            policy.permissions(&caller, &name("a")),
            policy.permissions(&caller, &name("b")),
        );
        assert!(a.allow(Operation::Encrypt) && a.allow(Operation::Decrypt));
        assert!(b.allow(Operation::Encrypt) && !b.allow(Operation::Decrypt));
    }

    #[test]
    fn a_caller_without_a_useful_rule_is_unknown() {
        let policy = Policy::new(&[
            rule(None, &[], &[7]),
            rule(None, &[Operation::Inspect], &[8]),
        ]);
        assert!(!policy.knows(&process(7, 0)), "its rule allows nothing");
        assert!(policy.knows(&process(8, 0)));
        assert!(!policy.knows(&process(9, 0)) && !policy.knows(&Caller::TokenHolder));
    }
}
