//! Who may do what: rules in, verdict out.

use std::collections::BTreeSet;

use crate::config::Rule;
use crate::model::{KeyringName, NamePattern, Operation, SecretName};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A process at the other end of a Unix socket, as the kernel tells it (SO_PEERCRED, unix(7)).
    Process {
        /// Its effective user id when it connected.
        uid: u32,
        /// Its effective group id when it connected.
        gid: u32,
        /// Its process id, where the kernel tells it; for logs alone.
        pid: Option<i32>,
    },
    /// A holder of the TCP listener's token.
    TokenHolder,
}

/// The rules, ready to be asked. Without any, whoever reaches the listener may do everything but get a
/// data key; with one, what no rule allows is denied.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Compiled>,
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
    fn speaks_for(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Process { uid, gid, .. } => self.uids.contains(uid) || self.gids.contains(gid),
            Caller::TokenHolder => self.token,
        }
    }
}

/// What a caller may do with one keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// Whether the operation is allowed.
    pub fn allow(self, operation: Operation) -> bool {
        self.0 & bit(operation) != 0
    }

    /// Whether anything is.
    pub fn allow_any(self) -> bool {
        self.0 != 0
    }
}

fn bit(operation: Operation) -> u8 {
    1 << operation as u8
}

impl Policy {
    /// The policy that a config's rules make.
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
        }
    }

    /// Whether `caller` may do anything at all, with any keyring or secret.
    pub fn knows(&self, caller: &Caller) -> bool {
        let gives = |rule: &Compiled| !rule.operations.is_empty() || !rule.secrets.is_empty();
        self.rules.is_empty()
            || self
                .rules
                .iter()
                .any(|rule| rule.speaks_for(caller) && gives(rule))
    }

    /// Whether `caller` may fetch `secret`.
    pub fn may_fetch(&self, caller: &Caller, secret: &SecretName) -> bool {
        let covers = |rule: &Compiled| {
            rule.secrets
                .iter()
                .any(|pattern| pattern.covers(secret.as_str()))
        };
        self.rules.is_empty()
            || self
                .rules
                .iter()
                .any(|rule| rule.speaks_for(caller) && covers(rule))
    }

    /// What `caller` may do with `keyring`.
    pub fn permissions(&self, caller: &Caller, keyring: &KeyringName) -> Permissions {
        if self.rules.is_empty() {
            return Permissions(
                Operation::ALL
                    .into_iter()
                    .filter(|operation| operation.is_implied())
                    .map(bit)
                    .sum(),
            );
        }
        let speaks = |rule: &&Compiled| {
            rule.speaks_for(caller)
                && rule
                    .keyrings
                    .as_ref()
                    .is_none_or(|names| names.contains(keyring))
        };
        Permissions(
            self.rules
                .iter()
                .filter(speaks)
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
    fn without_rules_the_sockets_mode_decides_alone() {
        let permissions = Policy::new(&[]).permissions(&process(1, 1), &name("a"));
        for operation in Operation::ALL {
            // A key is handed out only where a rule says so.
            assert_eq!(
                permissions.allow(operation),
                operation != Operation::DataKey
            );
        }
    }

    #[test]
    fn once_there_is_a_rule_the_rest_is_denied() {
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
    fn a_secret_is_for_whom_a_rule_names_it_to() {
        let secret = |text: &str| text.parse::<SecretName>().expect("name");
        let seven = process(7, 0);
        assert!(
            Policy::new(&[]).may_fetch(&seven, &secret("db")),
            "without rules the socket's mode decides alone"
        );
        let keys = rule(None, &Operation::ALL, &[7]);
        let policy = Policy::new(std::slice::from_ref(&keys));
        assert!(
            !policy.may_fetch(&seven, &secret("db")),
            "every keyring is no secret"
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
    fn groups_and_token_holders_are_named_on_their_own() {
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
}
