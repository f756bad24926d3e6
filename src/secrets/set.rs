//! The secrets that are served at one moment, and what another config makes of them.

use std::{collections::BTreeMap, sync::Arc};

use super::{Secret, Shared, publish};
use crate::{
    backend::{BackendError, SecretProvider},
    config,
    model::SecretSource,
};

/// The secrets that are served. It is replaced as a whole, so a request sees those of one config.
#[derive(Clone)]
pub(super) struct Set {
    pub(super) settings: Arc<config::Secrets>,
    pub(super) named: Arc<BTreeMap<String, Arc<Secret>>>,
    /// The secrets covered by a wildcard that were requested.
    pub(super) wildcard: BTreeMap<String, Arc<Secret>>,
}

/// The secrets of another config, with everything that could fail done.
pub(crate) struct PreparedSecrets {
    settings: config::Secrets,
    /// Of the named secrets whose source is new, by name.
    providers: BTreeMap<String, Arc<dyn SecretProvider>>,
}

impl Set {
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Secret>> {
        self.named.get(name).or_else(|| self.wildcard.get(name))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.named.values().chain(self.wildcard.values())
    }

    /// Makes the providers that other settings need. Changes nothing.
    ///
    /// # Errors
    /// This build has no backend for a source, or a backend's settings are invalid.
    pub(super) fn prepare(
        &self,
        settings: &config::Secrets,
        shared: &Shared,
    ) -> Result<PreparedSecrets, BackendError> {
        let mut providers = BTreeMap::new();
        for secret in &settings.named {
            let name = secret.name.as_str();
            if !is_from(self.named.get(name), &secret.source) {
                let provider = shared.backends.secret(&secret.source)?;
                providers.insert(name.to_owned(), provider);
            }
        }
        Ok(PreparedSecrets {
            settings: settings.clone(),
            providers,
        })
    }

    /// Returns what is served with other settings: secrets whose source is the same go on, and the
    /// others start.
    pub(super) fn succeeded_by(&self, prepared: PreparedSecrets, shared: &Arc<Shared>) -> Self {
        let PreparedSecrets {
            settings,
            mut providers,
        } = prepared;
        let named = settings.named.iter().filter_map(|secret| {
            let name = secret.name.as_str();
            let secret = match providers.remove(name) {
                Some(provider) => {
                    shared.spawn_after(self.get(name), provider, secret.clone(), false)
                }
                None => kept(self.named.get(name)?, secret),
            };
            Some((name.to_owned(), secret))
        });
        let named: BTreeMap<_, _> = named.collect();
        let mut wildcard = BTreeMap::new();
        for (name, held) in &self.wildcard {
            let Some(wanted) = settings.find(name).filter(|_| !named.contains_key(name)) else {
                continue;
            };
            if is_from(Some(held), &wanted.source) {
                wildcard.insert(name.clone(), kept(held, &wanted));
            } else if let Ok(provider) = shared.backends.secret(&wanted.source) {
                let secret = shared.spawn_after(Some(held), provider, wanted, true);
                wildcard.insert(name.clone(), secret);
            }
        }
        Self {
            settings: Arc::new(settings),
            named: Arc::new(named),
            wildcard,
        }
    }

    /// Ends the secrets of this set that `next` doesn't have.
    pub(super) fn retire_for(&self, next: &Self) {
        for secret in self.all() {
            match next.get(secret.name().as_str()) {
                Some(same) if Arc::ptr_eq(same, secret) => {}
                Some(_) => secret.end(),
                None => publish::removal(secret),
            }
        }
    }
}

fn is_from(held: Option<&Arc<Secret>>, source: &SecretSource) -> bool {
    held.is_some_and(|held| held.source() == source)
}

fn kept(held: &Arc<Secret>, settings: &config::Secret) -> Arc<Secret> {
    held.configure(settings);
    Arc::clone(held)
}
