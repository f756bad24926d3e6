//! Start orders: what a person signs so that a signer begins a rollout for them. Those who carry an
//! order can't change it, and a signer, which has its own rules, takes it once.

use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use super::{
    order::{ApprovalRule, Requester},
    plan::Intent,
    strategy::{BackUp, Strategy},
};
use crate::{
    crypto::{KeyringId, RolloutId, SigningKey, fingerprint, verify_signature},
    keyring::{Base64, Manifest},
    model::{KekScope, KeyringName, SignerKey, Span},
};

/// The domain of the signatures, so that they can't be taken for others by the same key.
const DOMAIN: &[u8] = b"sidekey start order v1\0";

/// The longest time for which an order is valid. A manifest remembers as many ended rollouts as can
/// begin in this time, so that an order never begins a second one.
pub const LONGEST_ORDER: Span = Span::from_days(1);

/// By how much the requester's clock may be ahead of the signer's.
const CLOCK_TOLERANCE: Span = Span::from_secs(300);

/// An order to begin a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartOrder {
    /// Random; becomes the rollout's id.
    pub id: RolloutId,
    /// The keyring's name.
    pub keyring: KeyringName,
    /// The keyring's id.
    pub keyring_id: KeyringId,
    /// What the rollout is for.
    pub intent: Intent,
    /// How it goes on, whole.
    pub strategy: Strategy,
    /// Who orders it.
    pub requester: Requester,
    /// After this, the order is void.
    pub not_after: Timestamp,
}

/// An order with its requester's signature (Ed25519, RFC 8032).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStart {
    /// The order.
    pub order: StartOrder,
    /// 64 bytes, by the requester's key.
    pub signature: Base64,
}

/// What a signer allows in orders for a keyring.
#[derive(Debug, Clone)]
pub struct StartRules {
    /// The keys whose orders it takes.
    pub requesters: Vec<SignerKey>,
    /// The approvals that disabling and destroying need.
    pub approvals: Option<ApprovalRule>,
    /// The only backup that a strategy may ask for.
    pub backup: Option<BackUp>,
    /// The KEKs that may wrap new versions.
    pub keks: KekScope,
    /// How many versions may be created in any 24 hours.
    pub versions_per_day: u32,
}

/// Why an order begins nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartRefusal {
    /// The requester is not listed, or names no key.
    #[error(
        "the signer takes no orders by {0}; an operator of the signer can add the key to \
         `requesters`"
    )]
    Stranger(String),
    /// The signature is not by the requester's key over this order.
    #[error("the order's signature is not valid: the order was changed on its way")]
    Forged,
    /// Its time is over.
    #[error("the order was valid until {0}; sign another one")]
    Late(Timestamp),
    /// It would be valid for too long.
    #[error(
        "the order is valid until {}, but may be for {} at most; compare the clocks",
        .0, LONGEST_ORDER
    )]
    TooLong(Timestamp),
    /// It is for another keyring.
    #[error("the order is for keyring {asked}, but {name} here has the id {here}")]
    OtherKeyring {
        /// The id in the order.
        asked: KeyringId,
        /// The name.
        name: KeyringName,
        /// The id of the keyring with this name.
        here: KeyringId,
    },
    /// Its rollout has begun before.
    #[error("the order was taken before; sign another one for another rollout")]
    Taken,
    /// Too many versions were created.
    #[error(
        "{created} versions were created in the last 24 hours; the signer's limit is {limit} \
         (`new_versions_per_day`)"
    )]
    TooManyVersions {
        /// How many.
        created: usize,
        /// The limit.
        limit: u32,
    },
    /// The signer's rules don't allow the strategy.
    #[error("the strategy can't be ordered: {}", .0.join("; "))]
    Strategy(Vec<String>),
}

impl StartOrder {
    /// The bytes that the requester signs: the domain, and the order in the canonical form of RFC
    /// 8785.
    pub fn statement(&self) -> Vec<u8> {
        let mut statement = DOMAIN.to_vec();
        match serde_json_canonicalizer::to_vec(self) {
            Ok(bytes) => statement.extend(bytes),
            Err(error) => unreachable!("an order has only text and finite numbers: {error}"),
        }
        statement
    }

    /// The SHA-256 of the statement, which the rollout's plan names.
    pub fn digest(&self) -> [u8; 32] {
        fingerprint(&self.statement())
    }

    /// Signs the order by the requester, whose key becomes part of it.
    pub fn sign(mut self, key: &SigningKey) -> SignedStart {
        self.requester.key = Some(SignerKey(key.public_key()));
        let signature = Base64(key.sign(&self.statement()).to_vec());
        SignedStart {
            order: self,
            signature,
        }
    }
}

impl SignedStart {
    /// Checks everything about an order that doesn't need the fleet. `manifest` is trusted.
    ///
    /// # Errors
    /// [`StartRefusal`]; the signature is checked first, so that the other reasons are told only to
    /// requesters.
    pub fn check(
        &self,
        rules: &StartRules,
        manifest: &Manifest,
        now: Timestamp,
    ) -> Result<(), StartRefusal> {
        let order = &self.order;
        self.check_without_manifest(rules, (&manifest.name, manifest.id), now)?;
        let active = manifest.rollout.as_ref().map(|mark| mark.id);
        if active == Some(order.id) || manifest.ended_rollouts.contains(&order.id) {
            return Err(StartRefusal::Taken);
        }
        rules.check_versions(&order.intent, manifest, now)
    }

    /// Checks everything about an order that needs neither the manifest nor the fleet. `keyring` is
    /// the name and id of the keyring here.
    ///
    /// # Errors
    /// [`StartRefusal`]
    pub fn check_without_manifest(
        &self,
        rules: &StartRules,
        (name, id): (&KeyringName, KeyringId),
        now: Timestamp,
    ) -> Result<(), StartRefusal> {
        let order = &self.order;
        self.check_requester(&rules.requesters)?;
        self.check_time(now)?;
        if (order.keyring_id, &order.keyring) != (id, name) {
            return Err(StartRefusal::OtherKeyring {
                asked: order.keyring_id,
                name: order.keyring.clone(),
                here: id,
            });
        }
        rules.check_strategy(&order.strategy)
    }

    /// Checks what those who carry an order can check: that the key which it names has signed it,
    /// that it is valid now and not for too long, and that its strategy makes sense.
    ///
    /// # Errors
    /// [`StartRefusal`]
    pub fn check_form(&self, now: Timestamp) -> Result<(), StartRefusal> {
        let own: Vec<SignerKey> = self.order.requester.key.into_iter().collect();
        self.check_requester(&own)?;
        self.check_time(now)?;
        let problems = self.order.strategy.problems();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(StartRefusal::Strategy(problems))
        }
    }

    fn check_time(&self, now: Timestamp) -> Result<(), StartRefusal> {
        let not_after = self.order.not_after;
        if now > not_after {
            return Err(StartRefusal::Late(not_after));
        }
        let latest = now.checked_add(LONGEST_ORDER.0).ok();
        let latest = latest.and_then(|time| time.checked_add(CLOCK_TOLERANCE.0).ok());
        if latest.is_some_and(|latest| not_after > latest) {
            return Err(StartRefusal::TooLong(not_after));
        }
        Ok(())
    }

    /// Checks that a listed requester has signed the order.
    ///
    /// # Errors
    /// [`StartRefusal::Stranger`], [`StartRefusal::Forged`]
    pub fn check_requester(&self, requesters: &[SignerKey]) -> Result<(), StartRefusal> {
        let requester = &self.order.requester;
        let Some(key) = requester.key.filter(|key| requesters.contains(key)) else {
            let key = requester.key.map(|key| key.to_string());
            return Err(StartRefusal::Stranger(
                key.unwrap_or_else(|| "a requester without a key".into()),
            ));
        };
        if verify_signature(&key.0, &self.order.statement(), &self.signature.0) {
            Ok(())
        } else {
            Err(StartRefusal::Forged)
        }
    }
}

impl StartRules {
    /// `created_at` of versions is part of the manifest, which is trusted.
    fn check_versions(
        &self,
        intent: &Intent,
        manifest: &Manifest,
        now: Timestamp,
    ) -> Result<(), StartRefusal> {
        if matches!(intent, Intent::Adopt { .. }) {
            return Ok(());
        }
        let since = now.checked_sub(24.hours()).unwrap_or(Timestamp::MIN);
        let versions = manifest.versions.iter();
        let created = versions
            .filter(|version| version.created_at > since)
            .count();
        if created < self.versions_per_day as usize {
            return Ok(());
        }
        Err(StartRefusal::TooManyVersions {
            created,
            limit: self.versions_per_day,
        })
    }

    /// A requester has no rights of their own: what the strategy names is opened, written or
    /// approved with those of the signer.
    fn check_strategy(&self, strategy: &Strategy) -> Result<(), StartRefusal> {
        let mut problems = strategy.problems();
        if strategy.backup.is_some() && strategy.backup != self.backup {
            problems.push(
                "the signer's config has another [keyring.backup], or none: it alone decides who \
                 can open a backup"
                    .into(),
            );
        }
        let keks = strategy.generate.keks.iter();
        for kek in keks.filter(|kek| !self.keks.covers(kek)) {
            problems.push(format!(
                "{kek} may not wrap a version: it isn't in the signer's `keks`"
            ));
        }
        let retires = [&strategy.disable, &strategy.destroy];
        match &self.approvals {
            Some(rule) => {
                let needs_rule = retires.into_iter().flatten().next().is_some();
                if needs_rule && strategy.approvals.as_ref() != Some(rule) {
                    problems.push(
                        "[approvals] must be those of the signer's config, because the strategy \
                         disables a version"
                            .into(),
                    );
                }
                if retires.into_iter().flatten().any(|step| !step.approval) {
                    problems.push("[disable] and [destroy] need approval = true".into());
                }
            }
            None if strategy.destroy.is_some() => problems.push(
                "a version is destroyed by order only if the signer's config has \
                 [keyring.approvals]"
                    .into(),
            ),
            None => {}
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(StartRefusal::Strategy(problems))
        }
    }
}
