//! Azure Key Vault and Managed HSM: keys are KEKs, secrets are secrets. One login serves both.

mod errors;
mod key;
mod login;
mod secret;
mod transport;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use azure_core::{
    credentials::TokenCredential,
    http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport},
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use hyper::Uri;

use self::transport::HttpTransport;
use super::{
    BackendError, ErrorKind, Kek, SecretProvider, client_tls::Identity, error::Failure,
    http_client::HttpClient, server_clock::ServerClock,
};
use crate::{
    config,
    model::{KekUri, SecretSource},
};

/// The client for all vaults.
pub(super) struct Client {
    settings: config::Azure,
    http: Arc<HttpClient>,
    /// For the platform's token endpoint of managed identities, which uses plain HTTP.
    platform_http: Arc<HttpClient>,
    /// What vaults state.
    clock: Arc<ServerClock>,
    credential: Mutex<Option<Arc<dyn TokenCredential>>>,
    key_clients: ClientsByVault<KeyClient>,
    secret_clients: ClientsByVault<SecretClient>,
}

type ClientsByVault<C> = Mutex<BTreeMap<String, Arc<C>>>;

impl Client {
    pub(super) fn new(settings: &config::Backends) -> Arc<Self> {
        let identity = Identity {
            ca_file: settings.azure.ca_file.clone(),
            client: None,
        };
        let platform_hosts = [&settings.plain_http[..], &login::platform_hosts()].concat();
        Arc::new(Self {
            settings: settings.azure.clone(),
            http: Arc::new(HttpClient::new(identity, &settings.plain_http)),
            platform_http: Arc::new(HttpClient::new(Identity::default(), &platform_hosts)),
            clock: Arc::default(),
            credential: Mutex::default(),
            key_clients: Mutex::default(),
            secret_clients: Mutex::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        let key = key::VaultKey::new(uri, Arc::clone(self)).map_err(|failure| failure.on(uri))?;
        Ok(Arc::new(key))
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

    fn options(http: &Arc<HttpClient>, clock: Option<&Arc<ServerClock>>) -> ClientOptions {
        let transport = Transport::new(Arc::new(HttpTransport {
            http: Arc::clone(http),
            clock: clock.map(Arc::clone),
        }));
        // For throttling and server errors; well within the time limit of one unwrap.
        let retry = ExponentialRetryOptions {
            max_retries: 3,
            ..ExponentialRetryOptions::default()
        };
        ClientOptions {
            transport: Some(transport),
            retry: RetryOptions::exponential(retry),
            ..ClientOptions::default()
        }
    }

    /// Returns the login. If it can't be created, because a file is missing, the next call retries.
    fn credential(&self) -> Result<Arc<dyn TokenCredential>, Failure> {
        let mut slot = self
            .credential
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = &*slot {
            return Ok(Arc::clone(credential));
        }
        let credential = login::credential(
            &self.settings,
            Self::options(&self.http, None),
            Self::options(&self.platform_http, None),
        )?;
        Ok(Arc::clone(slot.insert(credential)))
    }

    fn key_client(&self, vault: &str) -> Result<Arc<KeyClient>, Failure> {
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

    fn secret_client(&self, vault: &str) -> Result<Arc<SecretClient>, Failure> {
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

    /// Returns the client for a vault; creates it at first use.
    fn client<C>(
        &self,
        clients: &ClientsByVault<C>,
        vault: &str,
        create: impl FnOnce(Arc<dyn TokenCredential>, ClientOptions) -> azure_core::Result<C>,
    ) -> Result<Arc<C>, Failure> {
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(vault) {
            return Ok(Arc::clone(client));
        }
        let misconfigured = |error: String| Failure::new(ErrorKind::Misconfigured, error);
        let url: Uri = vault
            .parse()
            .map_err(|_| misconfigured(format!("{vault} is not a URL")))?;
        self.http.check(&url)?;
        let client = create(
            self.credential()?,
            Self::options(&self.http, Some(&self.clock)),
        )
        .map_err(|error| misconfigured(error.to_string()))?;
        let client = Arc::new(client);
        clients.insert(vault.to_owned(), Arc::clone(&client));
        Ok(client)
    }
}

/// Whether `text` is a valid name or version of a key or secret.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 127
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
