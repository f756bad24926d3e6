//! Vault and OpenBao: the Transit engine holds KEKs, the key-value engine holds manifests and
//! secrets, and other engines issue leased credentials. One login serves all of them.

mod engine;
mod history;
mod kv;
mod kv_reader;
mod kv_secret;
mod lease;
mod login;
mod response;
mod session;
mod static_role;
#[cfg(test)]
mod tests;
mod token;
mod transit;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{DATE, HeaderValue},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use self::{engine::Engines, response::Response, session::Session, token::Token};
use super::{
    BackendError, ErrorKind, Kek, ManifestStore, SecretProvider,
    client_tls::Identity,
    error::Failure,
    http_client::{HttpClient, Route},
    server_clock::ServerClock,
};
use crate::{
    config,
    crypto::MacKey,
    model::{KekUri, Location, SecretSource},
};

/// The limit for responses without a manifest or a secret, in bytes.
const MAX_RESPONSE: usize = 1 << 20;
/// What stays as it is in the path of a URL (RFC 3986 §2.3). Vault decodes the rest.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The configured Vault server, contacted at first use.
pub(super) struct Client {
    settings: config::Vault,
    plain_http: Vec<String>,
    vault: OnceLock<Result<Arc<Vault>, Failure>>,
}

impl Client {
    pub(super) fn new(settings: &config::Backends) -> Self {
        Self {
            settings: settings.vault.clone(),
            plain_http: settings.plain_http.clone(),
            vault: OnceLock::new(),
        }
    }

    pub(super) fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        let kek = transit::TransitKek::new(uri, || self.vault());
        Ok(Arc::new(kek.map_err(|failure| failure.on(uri))?))
    }

    pub(super) fn store(
        &self,
        location: &Location,
        mount: &str,
        path: &str,
    ) -> Result<Arc<dyn ManifestStore>, BackendError> {
        let vault = self.vault().map_err(|failure| failure.on(location))?;
        Ok(Arc::new(kv::KvStore::new(
            vault,
            mount,
            path,
            location.clone(),
        )))
    }

    pub(super) fn secret(
        &self,
        source: &SecretSource,
        mount: &str,
        path: &str,
    ) -> Result<Arc<dyn SecretProvider>, BackendError> {
        let vault = self.vault().map_err(|failure| failure.on(source))?;
        Ok(Arc::new(kv_secret::KvSecret::new(
            vault,
            mount,
            path,
            source.clone(),
        )))
    }

    pub(super) fn leased(
        &self,
        source: &SecretSource,
        path: &str,
    ) -> Result<Arc<dyn SecretProvider>, BackendError> {
        let vault = self.vault().map_err(|failure| failure.on(source))?;
        Ok(Arc::new(lease::LeasedSecret::new(
            vault,
            path,
            source.clone(),
        )))
    }

    fn vault(&self) -> Result<Arc<Vault>, Failure> {
        self.vault
            .get_or_init(|| Vault::new(&self.settings, &self.plain_http).map(Arc::new))
            .clone()
    }
}

/// A server, and the session with it.
struct Vault {
    /// As configured.
    address: String,
    /// The beginning of each request's URL.
    base: String,
    namespace: Option<HeaderValue>,
    http: HttpClient,
    /// The server's clock.
    clock: ServerClock,
    session: Session,
    engines: Engines,
    /// Derives versions for values to which Vault gives none.
    version_key: MacKey,
}

impl Vault {
    fn new(settings: &config::Vault, plain_http: &[String]) -> Result<Self, Failure> {
        let misconfigured = |message: &str| Failure::new(ErrorKind::Misconfigured, message);
        let address = settings
            .address
            .clone()
            .or_else(|| variable("VAULT_ADDR"))
            .ok_or_else(|| {
                misconfigured(
                    "set Vault's address: `vault.address` in the config, or the variable \
                     VAULT_ADDR",
                )
            })?;
        let address = address.trim_end_matches('/').to_owned();
        let (base, http) = match address.strip_prefix("unix://") {
            None => (
                address.clone(),
                HttpClient::new(identity(settings)?, plain_http),
            ),
            // The protocol on such a socket is HTTP, and the name of its host is of no importance.
            Some(path) if path.starts_with('/') => {
                let route = Route::over(Path::new(path));
                let http = HttpClient::along(route, Identity::default(), plain_http);
                ("http://localhost".to_owned(), http)
            }
            Some(_) => {
                let message =
                    format!("{address} has no absolute path, as in unix:///run/vault.sock");
                return Err(misconfigured(&message));
            }
        };
        let url: Uri = base
            .parse()
            .map_err(|_| misconfigured(&format!("{address} is not a URL (`vault.address`)")))?;
        http.check(&url)?;
        let namespace = settings
            .namespace
            .clone()
            .or_else(|| variable("VAULT_NAMESPACE"))
            .map(|name| HeaderValue::from_str(&name))
            .transpose()
            .map_err(|_| {
                misconfigured("the namespace has invalid characters (`vault.namespace`)")
            })?;
        let version_key = MacKey::generate()
            .map_err(|error| Failure::new(ErrorKind::Unavailable, error.to_string()))?;
        Ok(Self {
            address,
            base,
            namespace,
            http,
            clock: ServerClock::default(),
            session: Session::new(settings.login.clone()),
            engines: Engines::default(),
            version_key,
        })
    }

    /// Sends a request with a token. If the token has expired, logs in again and retries once.
    async fn call(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        limit: usize,
    ) -> Result<Response, Failure> {
        let token = self.token().await?;
        let response = self
            .send(method.clone(), path, body.clone(), Some(&token), limit)
            .await?;
        // An expired token and a missing permission have the same status. A lookup of the token
        // tells them apart.
        if response.status == StatusCode::FORBIDDEN && !self.is_alive(&token, &response).await? {
            self.discard(&token).await;
            let fresh = self.token().await?;
            return self.send(method, path, body, Some(&fresh), limit).await;
        }
        Ok(response)
    }

    /// Returns the URL of a path, which may be followed by a query.
    fn url(&self, path: &str) -> String {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (path, String::new()),
        };
        let path = utf8_percent_encode(path, IN_PATH);
        format!("{}/v1/{path}{query}", self.base)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        token: Option<&Token>,
        limit: usize,
    ) -> Result<Response, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.url(path))
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("X-Vault-Token", token.header()?);
        }
        // Zeroized when the request is sent and the last handle is dropped.
        let body = body.map_or_else(Bytes::new, Bytes::from_owner);
        let request = request
            .body(body)
            .map_err(|error| Failure::new(ErrorKind::Misconfigured, format!("{path}: {error}")))?;
        let response = self.http.send(request, limit).await.map_err(|failure| {
            // Limits leave room for Vault's longest valid response, so this one is not from Vault.
            let kind = match failure.kind {
                ErrorKind::TooLarge => ErrorKind::Unavailable,
                kind => kind,
            };
            Failure { kind, ..failure }
        })?;
        let date = response.headers.get(DATE);
        self.clock.set(date.and_then(|date| date.to_str().ok()));
        Ok(Response {
            status: response.status,
            body: response.body,
        })
    }
}

fn identity(settings: &config::Vault) -> Result<Identity, Failure> {
    let file = |setting: &Option<PathBuf>, name| {
        setting
            .clone()
            .or_else(|| variable(name).map(PathBuf::from))
    };
    let certificate = file(&settings.client_certificate, "VAULT_CLIENT_CERT");
    let key = file(&settings.client_key, "VAULT_CLIENT_KEY");
    if certificate.is_some() != key.is_some() {
        let message = "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY must be set together";
        return Err(Failure::new(ErrorKind::Misconfigured, message));
    }
    Ok(Identity {
        ca_file: file(&settings.ca_file, "VAULT_CACERT"),
        client: certificate.zip(key),
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
