//! Azure Key Vault and Managed HSM: keys wrap, secrets are served. One login serves both.

mod key;
mod login;
mod secret;
mod transport;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use azure_core::{
    Error,
    credentials::TokenCredential,
    error::ErrorKind,
    http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport},
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use hyper::Uri;

use self::transport::Courier;
use super::{
    Kek, KekError, KekFault, SecretProvider,
    fault::Fault,
    web::{Identity, Web},
};
use crate::config;
use crate::model::{KekUri, SecretSource};

/// Azure as the settings and the environment say.
pub(super) struct Room {
    settings: config::Azure,
    web: Arc<Web>,
    /// For the platform's own service that gives tokens to managed identities. It speaks in the clear, at an address of the machine.
    platform: Arc<Web>,
    credential: Mutex<Option<Arc<dyn TokenCredential>>>,
    key_clients: Clients<KeyClient>,
    secret_clients: Clients<SecretClient>,
}

/// Clients by vault.
type Clients<C> = Mutex<BTreeMap<String, Arc<C>>>;

impl Room {
    pub(super) fn new(settings: &config::Backends) -> Arc<Self> {
        let identity = Identity {
            ca_file: settings.azure.ca_file.clone(),
            client: None,
        };
        let platforms = [&settings.plain_http[..], &login::platform_hosts()].concat();
        Arc::new(Self {
            settings: settings.azure.clone(),
            web: Arc::new(Web::new(identity, &settings.plain_http)),
            platform: Arc::new(Web::new(Identity::default(), &platforms)),
            credential: Mutex::default(),
            key_clients: Mutex::default(),
            secret_clients: Mutex::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        Ok(Arc::new(
            key::VaultKey::new(uri, Arc::clone(self)).map_err(|fault| fault.of_kek(uri))?,
        ))
    }

    pub(super) fn secret(
        self: &Arc<Self>,
        source: &SecretSource,
        vault: &str,
        name: &str,
    ) -> Arc<dyn SecretProvider> {
        Arc::new(secret::VaultSecret::new(
            Arc::clone(self),
            vault,
            name,
            source.clone(),
        ))
    }

    fn options(web: &Arc<Web>) -> ClientOptions {
        let transport = Transport::new(Arc::new(Courier(Arc::clone(web))));
        // Throttled, or failed within Azure: a few times, well within the time that one unwrap may take.
        let times = ExponentialRetryOptions {
            max_retries: 3,
            ..ExponentialRetryOptions::default()
        };
        ClientOptions {
            transport: Some(transport),
            retry: RetryOptions::exponential(times),
            ..ClientOptions::default()
        }
    }

    /// The login; one that can't be made yet, because a file is missing, is tried again.
    fn credential(&self) -> Result<Arc<dyn TokenCredential>, Fault> {
        let mut slot = self
            .credential
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = &*slot {
            return Ok(Arc::clone(credential));
        }
        let credential = login::credential(
            &self.settings,
            Self::options(&self.web),
            Self::options(&self.platform),
        )?;
        Ok(Arc::clone(slot.insert(credential)))
    }

    fn keys_of(&self, vault: &str) -> Result<Arc<KeyClient>, Fault> {
        self.client(&self.key_clients, vault, |credential, client_options| {
            let verify_challenge_resource = Some(self.settings.verify_challenge);
            let options = KeyClientOptions {
                client_options,
                verify_challenge_resource,
                ..KeyClientOptions::default()
            };
            KeyClient::new(vault, credential, Some(options))
        })
    }

    fn secrets_of(&self, vault: &str) -> Result<Arc<SecretClient>, Fault> {
        self.client(&self.secret_clients, vault, |credential, client_options| {
            let verify_challenge_resource = Some(self.settings.verify_challenge);
            let options = SecretClientOptions {
                client_options,
                verify_challenge_resource,
                ..SecretClientOptions::default()
            };
            SecretClient::new(vault, credential, Some(options))
        })
    }

    /// The client for a vault, made when it is first needed.
    fn client<C>(
        &self,
        clients: &Clients<C>,
        vault: &str,
        make: impl FnOnce(Arc<dyn TokenCredential>, ClientOptions) -> azure_core::Result<C>,
    ) -> Result<Arc<C>, Fault> {
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(vault) {
            return Ok(Arc::clone(client));
        }
        let misconfigured = |error: String| Fault::new(KekFault::Misconfigured, error);
        let url: Uri = vault
            .parse()
            .map_err(|_| misconfigured(format!("{vault} is not a URL")))?;
        self.web
            .allows(&url)
            .map_err(|error| misconfigured(error.to_string()))?;
        let client = make(self.credential()?, Self::options(&self.web))
            .map_err(|error| misconfigured(error.to_string()))?;
        let client = Arc::new(client);
        clients.insert(vault.to_owned(), Arc::clone(&client));
        Ok(client)
    }
}

/// What is asked for: `key` or `secret`, and the role that lets one use it.
struct Thing {
    name: &'static str,
    role: &'static str,
}

/// What an error means and what to do about it.
fn explain(error: &Error, thing: &Thing, right: &str) -> Fault {
    let Thing { name, role } = thing;
    let text = with_causes(error);
    let ErrorKind::HttpResponse { status, .. } = error.kind() else {
        return match error.kind() {
            ErrorKind::Credential => Fault::new(KekFault::Denied, format!("can't log in: {text}")),
            _ => Fault::new(KekFault::Unavailable, text),
        };
    };
    let (kind, advice) = match u16::from(*status) {
        403 if text.contains("disabled") || text.contains("Disabled") => (
            KekFault::Disabled,
            format!("; the {name} or its version is disabled"),
        ),
        401 | 403 => (
            KekFault::Denied,
            format!(
                "; the identity needs the {name} permission {right}, as the role `{role}` gives it"
            ),
        ),
        404 => (
            KekFault::Missing,
            format!("; is this the vault's and the {name}'s name?"),
        ),
        429 => (KekFault::Throttled, String::new()),
        400 | 409 | 422 => (KekFault::Refused, String::new()),
        _ => (KekFault::Unavailable, String::new()),
    };
    Fault::new(
        kind,
        format!("Azure answered {}: {text}{advice}", u16::from(*status)),
    )
}

/// An error and what it came from, on one line of bounded length.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes =
        std::iter::successors(Some(error), |error| error.source()).map(|error| error.to_string());
    let mut text = String::new();
    for cause in causes.filter(|cause| !cause.is_empty()) {
        // Some repeat their causes in their own words.
        if !text.contains(&cause) {
            text = if text.is_empty() {
                cause
            } else {
                format!("{text}: {cause}")
            };
        }
    }
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(400)
        .collect()
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 127
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
