//! Vault and OpenBao: the Transit engine wraps, the key-value engine keeps manifests and secrets, others make credentials. One login
//! serves them all.

mod engine;
mod history;
mod kv;
mod kv_secret;
mod lease;
mod login;
#[cfg(test)]
mod tests;
mod transit;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::{Method, Request, StatusCode, Uri, header::HeaderValue};
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use self::{
    engine::Engines,
    login::{Session, Token},
};
use super::{
    Kek, KekError, KekFault, ManifestStore, SecretError, SecretProvider, StoreError,
    fault::Fault,
    web::{Identity, Web, WebError},
};
use crate::{
    config,
    crypto::NamingKey,
    model::{KekUri, Location, SecretSource},
};

/// The longest answer but for manifests.
const ANSWER: usize = 1 << 20;

/// Vault as the settings name it; reached when it is first used.
pub(super) struct Room {
    settings: config::Vault,
    plain_http: Vec<String>,
    vault: OnceLock<Result<Arc<Vault>, Fault>>,
}

impl Room {
    pub(super) fn new(settings: &config::Backends) -> Self {
        Self {
            settings: settings.vault.clone(),
            plain_http: settings.plain_http.clone(),
            vault: OnceLock::new(),
        }
    }

    pub(super) fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        transit::TransitKek::new(uri, || self.vault())
            .map(|kek| Arc::new(kek) as Arc<dyn Kek>)
            .map_err(|fault| fault.of_kek(uri))
    }

    pub(super) fn store(
        &self,
        location: &Location,
        mount: &str,
        path: &str,
    ) -> Result<Arc<dyn ManifestStore>, StoreError> {
        let vault = self.vault().map_err(|fault| fault.of_location(location))?;
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
    ) -> Result<Arc<dyn SecretProvider>, SecretError> {
        let vault = self.vault().map_err(|fault| fault.of_secret(source))?;
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
    ) -> Result<Arc<dyn SecretProvider>, SecretError> {
        let vault = self.vault().map_err(|fault| fault.of_secret(source))?;
        Ok(Arc::new(lease::LeasedSecret::new(
            vault,
            path,
            source.clone(),
        )))
    }

    fn vault(&self) -> Result<Arc<Vault>, Fault> {
        self.vault
            .get_or_init(|| Vault::new(&self.settings, &self.plain_http).map(Arc::new))
            .clone()
    }
}

impl From<WebError> for Fault {
    fn from(error: WebError) -> Self {
        let kind = match error {
            WebError::NotAllowed(_) | WebError::Identity(_) => KekFault::Misconfigured,
            WebError::Unreachable(_) | WebError::TooLong(_) => KekFault::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

/// A server, and our login there.
struct Vault {
    address: String,
    namespace: Option<HeaderValue>,
    web: Web,
    session: Session,
    engines: Engines,
    /// Names values that Vault gives no version.
    names: NamingKey,
}

/// An answer that isn't a failure of Vault itself.
struct Answer {
    status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        self.parse_borrowed()
    }

    /// The same, of what stays in the zeroized answer.
    fn parse_borrowed<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Fault> {
        // serde's words could quote a value, and a value may be a key.
        serde_json::from_slice(&self.body).map_err(|_| {
            Fault::new(
                KekFault::Unavailable,
                "the answer is not what Vault says; is this its address?",
            )
        })
    }

    fn errors(&self) -> String {
        #[derive(Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Vec<String>,
        }
        let errors = serde_json::from_slice::<Errors>(&self.body)
            .map(|answer| answer.errors)
            .unwrap_or_default();
        let text = errors
            .join("; ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let text = text.replace("1 error occurred: * ", "");
        text.chars().take(300).collect()
    }

    /// The failure that a status means wherever it is met.
    fn fault(&self) -> Fault {
        let errors = self.errors();
        let status = self.status;
        let said = if errors.is_empty() {
            format!("Vault answered {status}")
        } else {
            format!("Vault answered {status}: {errors}")
        };
        let kind = match status.as_u16() {
            403 => KekFault::Denied,
            // A standby that hasn't heard yet of what another server did.
            412 => KekFault::Unavailable,
            404 => KekFault::Missing,
            429 => KekFault::Throttled,
            400..500 => KekFault::Refused,
            _ => KekFault::Unavailable,
        };
        match status.as_u16() {
            503 if errors.contains("sealed") => Fault::new(kind, "Vault is sealed; unseal it"),
            _ => Fault::new(kind, said),
        }
    }

    /// Whether the token, and not its policy, is why this was denied. Older servers don't say.
    fn is_of_unknown_token(&self) -> bool {
        self.errors().contains("invalid token")
    }

    /// The same, of a path that `capability` is needed on.
    fn fault_of(&self, path: &str, capability: &str) -> Fault {
        let fault = self.fault();
        match fault.kind {
            KekFault::Denied => {
                let stanza = format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}");
                Fault::new(
                    fault.kind,
                    format!("the token's policy doesn't allow it; it needs: {stanza}"),
                )
            }
            _ => fault,
        }
    }

    fn ok(self) -> Result<Self, Fault> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(self.fault())
        }
    }
}

impl Vault {
    fn new(settings: &config::Vault, plain_http: &[String]) -> Result<Self, Fault> {
        let misconfigured = |reason: String| Fault::new(KekFault::Misconfigured, reason);
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let address = settings.address.clone().or_else(|| variable("VAULT_ADDR")).ok_or_else(|| {
            misconfigured("set Vault's address: `vault.address` in the config, or the variable VAULT_ADDR".into())
        })?;
        let address = address.trim_end_matches('/').to_owned();
        let url: Uri = address
            .parse()
            .map_err(|_| misconfigured(format!("{address} is not a URL (`vault.address`)")))?;
        let file = |setting: &Option<std::path::PathBuf>, name| {
            setting.clone().or_else(|| variable(name).map(Into::into))
        };
        let certificate = file(&settings.client_certificate, "VAULT_CLIENT_CERT");
        let key = file(&settings.client_key, "VAULT_CLIENT_KEY");
        if certificate.is_some() != key.is_some() {
            return Err(misconfigured(
                "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY go together".into(),
            ));
        }
        let identity = Identity {
            ca_file: file(&settings.ca_file, "VAULT_CACERT"),
            client: certificate.zip(key),
        };
        let web = Web::new(identity, plain_http);
        web.allows(&url)?;
        let namespace = settings
            .namespace
            .clone()
            .or_else(|| variable("VAULT_NAMESPACE"));
        let namespace = namespace
            .map(|name| HeaderValue::from_str(&name))
            .transpose();
        let namespace = namespace
            .map_err(|_| misconfigured("the namespace has characters that none has".into()))?;
        let names = NamingKey::draw()
            .map_err(|error| Fault::new(KekFault::Unavailable, error.to_string()))?;
        Ok(Self {
            address,
            namespace,
            web,
            session: Session::new(settings.login.clone()),
            engines: Engines::default(),
            names,
        })
    }

    /// Asks for something that needs a login. A login that has ended midway is made anew once.
    async fn call(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        let token = self.token().await?;
        let answer = self
            .send(method.clone(), path, body.clone(), Some(&token), limit)
            .await?;
        // A token that ended and a right that is missing look the same; the token itself can tell.
        if answer.status == StatusCode::FORBIDDEN && !self.is_alive(&token, &answer).await? {
            self.forget(&token).await;
            let fresh = self.token().await?;
            return self.send(method, path, body, Some(&fresh), limit).await;
        }
        Ok(answer)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        token: Option<&Token>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.address))
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("X-Vault-Token", token.header()?);
        }
        // Zeroized once the request is sent and nobody holds the bytes any more.
        let body = body.map_or_else(Bytes::new, Bytes::from_owner);
        let request = request
            .body(body)
            .map_err(|error| Fault::new(KekFault::Misconfigured, format!("{path}: {error}")))?;
        let answer = self.web.send(request, limit).await?;
        Ok(Answer {
            status: answer.status,
            body: answer.body,
        })
    }
}
