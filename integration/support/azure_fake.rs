//! A fake of Azure Key Vault and its login service, because no emulator exists: TLS, the real
//! challenge, real RSA-OAEP-256 and AES key wrap, and secrets with versions that are deleted and
//! recovered. Microsoft's own Python clients run against it to verify the wire format.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use aws_lc_rs::{
    encoding::AsDer,
    key_wrap::{AES_256, AesKek, KeyWrap},
    rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
        PrivateDecryptingKey,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, crypto::aws_lc_rs as provider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
pub const CLIENT: &str = "66666666-7777-8888-9999-000000000000";
pub const SECRET: &str = "fake~client~secret";
pub const ASSERTION: &str = "fake.projected.token";

enum Key {
    Rsa(PrivateDecryptingKey),
    Oct([u8; 32]),
}

/// A version of a secret.
struct Secret {
    version: String,
    value: String,
    content_type: Option<String>,
    is_enabled: bool,
    /// In seconds, of a clock that advances by one with every version.
    created: i64,
    expires: Option<i64>,
}

#[derive(Default)]
struct State {
    /// Versions by name, oldest first.
    keys: BTreeMap<String, Vec<(String, Key)>>,
    secrets: BTreeMap<String, Vec<Secret>>,
    deleted_secrets: BTreeMap<String, Vec<Secret>>,
    is_throttled: bool,
    disabled: BTreeSet<String>,
    denied: bool,
    tokens: BTreeSet<String>,
    are_tokens_short: bool,
}

pub struct AzureFake {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl AzureFake {
    /// Serves with the certificate `server.pem` in `folder`.
    pub async fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let chain = CertificateDer::pem_file_iter(folder.join("server.pem"))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let fake = Self {
            url: url.clone(),
            state: Arc::default(),
        };
        let state = Arc::clone(&fake.state);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state, url) = (acceptor.clone(), Arc::clone(&state), url.clone());
                tokio::spawn(async move {
                    // Clients that don't trust the certificate disconnect here.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service =
                        service_fn(|request| answer(Arc::clone(&state), url.clone(), request));
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates a key, or another version of it.
    pub fn make_rsa(&self, name: &str) {
        make(
            &mut self.state(),
            name,
            Key::Rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()),
        );
    }

    pub fn make_oct(&self, name: &str) {
        make(
            &mut self.state(),
            name,
            Key::Oct(std::array::from_fn(|_| fastrand::u8(..))),
        );
    }

    pub fn disable(&self, name: &str, is_disabled: bool) {
        let mut state = self.state();
        if is_disabled {
            state.disabled.insert(name.into())
        } else {
            state.disabled.remove(name)
        };
    }

    /// Creates a secret or another version of it, and returns the version.
    pub fn put_secret(&self, name: &str, value: &str) -> String {
        let mut state = self.state();
        put_secret(&mut state, name, &json!({ "value": value }));
        state.secrets[name].last().unwrap().version.clone()
    }

    /// Enables or disables a version of a secret.
    pub fn enable_secret(&self, name: &str, version: &str, is_enabled: bool) {
        let mut state = self.state();
        let versions = state.secrets.get_mut(name).unwrap();
        versions
            .iter_mut()
            .find(|secret| secret.version == version)
            .unwrap()
            .is_enabled = is_enabled;
    }

    /// Sets when a secret's newest version expires.
    pub fn expire_secret(&self, name: &str, expires: i64) {
        self.state()
            .secrets
            .get_mut(name)
            .unwrap()
            .last_mut()
            .unwrap()
            .expires = Some(expires);
    }

    pub fn delete_secret(&self, name: &str) {
        let mut state = self.state();
        let versions = state.secrets.remove(name).unwrap();
        state.deleted_secrets.insert(name.to_owned(), versions);
    }

    pub fn recover_secret(&self, name: &str) {
        let mut state = self.state();
        let versions = state.deleted_secrets.remove(name).unwrap();
        state.secrets.insert(name.to_owned(), versions);
    }

    /// Sets whether requests are throttled.
    pub fn throttle(&self, is_throttled: bool) {
        self.state().is_throttled = is_throttled;
    }

    /// Sets whether all identities lack permission.
    pub fn deny(&self, is_denied: bool) {
        self.state().denied = is_denied;
    }

    /// Makes all tokens issued from now on expire at once.
    pub fn shorten_tokens(&self) {
        self.state().are_tokens_short = true;
    }

    /// Accepts a token issued by another service.
    pub fn grant(&self, token: &str) {
        self.state().tokens.insert(token.to_owned());
    }

    /// Expires every issued token.
    pub fn end_tokens(&self) {
        self.state().tokens.clear();
    }
}

fn make(state: &mut State, name: &str, key: Key) -> String {
    let version = format!("{:032x}", fastrand::u128(..));
    state
        .keys
        .entry(name.into())
        .or_default()
        .push((version.clone(), key));
    version
}

type Answer = Response<Full<Bytes>>;

fn say(status: u16, body: &Value) -> Answer {
    let mut answer = Response::new(Full::from(body.to_string()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, "application/json".parse().unwrap());
    answer
}

fn fail(status: u16, code: &str, message: &str) -> Answer {
    say(
        status,
        &json!({ "error": { "code": code, "message": message } }),
    )
}

async fn answer(
    state: Arc<Mutex<State>>,
    url: String,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    let mut state = state.lock().unwrap();
    Ok(match (&head.method, &path[..]) {
        (&Method::POST, [TENANT, "oauth2", "v2.0", "token"]) => log_in(&mut state, &body),
        (&Method::GET, [TENANT, "v2.0", ".well-known", "openid-configuration"]) => {
            let at = |path: &str| format!("{url}/{TENANT}/{path}");
            let endpoints = json!({
                "token_endpoint": at("oauth2/v2.0/token"),
                "authorization_endpoint": at("oauth2/v2.0/authorize"),
                "issuer": at("v2.0"),
            });
            say(200, &endpoints)
        }
        (
            method,
            [
                kind @ ("keys" | "secrets" | "deletedsecrets"),
                name,
                rest @ ..,
            ],
        ) => {
            if let Some(refusal) = refusal(&state, &url, &head.headers) {
                return Ok(refusal);
            }
            let body = serde_json::from_slice(&body).unwrap_or_default();
            match *kind {
                "keys" => key(&mut state, &url, method, name, rest, &body),
                "secrets" => secret(
                    &mut state,
                    &url,
                    method,
                    name,
                    rest,
                    head.uri.query(),
                    &body,
                ),
                _ => deleted_secret(&mut state, &url, method, name, rest),
            }
        }
        _ => fail(404, "NotFound", "there is nothing here"),
    })
}

/// Returns the answer to a request that gets no access to the vault.
fn refusal(state: &State, url: &str, headers: &HeaderMap) -> Option<Answer> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !bearer.is_some_and(|token| state.tokens.contains(token)) {
        let mut challenge = fail(
            401,
            "Unauthorized",
            "AKV10000: Request is missing a Bearer or PoP token.",
        );
        let text = format!(
            "Bearer authorization=\"{url}/{TENANT}\", resource=\"https://vault.azure.net\""
        );
        challenge
            .headers_mut()
            .insert(WWW_AUTHENTICATE, text.parse().unwrap());
        return Some(challenge);
    }
    if state.denied {
        return Some(fail(
            403,
            "Forbidden",
            "Caller is not authorized to perform action on resource.",
        ));
    }
    if state.is_throttled {
        let mut answer = fail(
            429,
            "Throttled",
            "Request was not processed because too many requests were received.",
        );
        answer.headers_mut().insert(RETRY_AFTER, 1.into());
        return Some(answer);
    }
    None
}

fn log_in(state: &mut State, form: &[u8]) -> Answer {
    let form = std::str::from_utf8(form).unwrap();
    let field = |name: &str| {
        let found = form
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.map(|value| {
            percent_encoding::percent_decode_str(value)
                .decode_utf8()
                .unwrap()
                .into_owned()
        })
    };
    let is_known = field("client_secret").as_deref() == Some(SECRET)
        || field("client_assertion").as_deref() == Some(ASSERTION);
    let wants_vault =
        field("scope").is_some_and(|scope| scope.contains("https://vault.azure.net/.default"));
    if field("client_id").as_deref() != Some(CLIENT) || !is_known || !wants_vault {
        return say(
            401,
            &json!({
                "error": "invalid_client",
                "error_description": "AADSTS7000215: Invalid client secret provided.",
            }),
        );
    }
    let token = format!("token-{:x}", fastrand::u128(..));
    state.tokens.insert(token.clone());
    let seconds = if state.are_tokens_short { 1 } else { 3599 };
    say(
        200,
        &json!({
            "token_type": "Bearer",
            "expires_in": seconds,
            "ext_expires_in": seconds,
            "access_token": token,
        }),
    )
}

fn key(
    state: &mut State,
    url: &str,
    method: &Method,
    name: &str,
    rest: &[&str],
    body: &Value,
) -> Answer {
    if let (&Method::POST, ["create"]) = (method, rest) {
        make(
            state,
            name,
            Key::Rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()),
        );
    }
    let wanted = rest
        .first()
        .copied()
        .filter(|version| !version.is_empty() && *version != "create");
    let versions = state.keys.get(name).map(Vec::as_slice).unwrap_or_default();
    let found = match wanted {
        None => versions.last(),
        Some(wanted) => versions.iter().find(|(version, _)| version == wanted),
    };
    let Some((version, key)) = found else {
        return fail(
            404,
            "KeyNotFound",
            "A key with (name/id) was not found in this key vault.",
        );
    };
    let kid = format!("{url}/keys/{name}/{version}");
    let Some(operation @ ("wrapkey" | "unwrapkey")) = rest.get(1).copied() else {
        let enabled = !state.disabled.contains(name);
        return say(
            200,
            &json!({
                "key": jwk(&kid, key),
                "attributes": { "enabled": enabled, "created": 1, "updated": 1 },
            }),
        );
    };
    if state.disabled.contains(name) {
        return fail(
            403,
            "Forbidden",
            &format!("Operation {operation} is not allowed on a disabled key."),
        );
    }
    let value = BASE64
        .decode(body["value"].as_str().unwrap_or_default())
        .unwrap_or_default();
    let result = match (key, body["alg"].as_str()) {
        (Key::Rsa(key), Some("RSA-OAEP-256")) => rsa(key, operation, &value),
        (Key::Oct(key), Some("A256KW")) => aes(key, operation, &value),
        _ => {
            return fail(
                400,
                "BadParameter",
                "The algorithm is not supported by the key.",
            );
        }
    };
    match result {
        Some(result) => say(200, &json!({ "kid": kid, "value": BASE64.encode(result) })),
        None => fail(400, "BadParameter", "The parameter is incorrect."),
    }
}

fn put_secret(state: &mut State, name: &str, body: &Value) {
    let created = 1_700_000_000
        + state
            .secrets
            .values()
            .chain(state.deleted_secrets.values())
            .flatten()
            .count() as i64;
    state.secrets.entry(name.into()).or_default().push(Secret {
        version: format!("{:032x}", fastrand::u128(..)),
        value: body["value"].as_str().unwrap().to_owned(),
        content_type: body["contentType"].as_str().map(str::to_owned),
        is_enabled: body["attributes"]["enabled"].as_bool().unwrap_or(true),
        created,
        expires: body["attributes"]["exp"].as_i64(),
    });
}

/// Returns a version's attributes, with or without its value.
fn bundle(url: &str, name: &str, secret: &Secret, has_value: bool) -> Value {
    let mut bundle = json!({
        "id": format!("{url}/secrets/{name}/{}", secret.version),
        "attributes": {
            "enabled": secret.is_enabled, "created": secret.created, "updated": secret.created,
            "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
        },
    });
    if let Some(expires) = secret.expires {
        bundle["attributes"]["exp"] = expires.into();
    }
    if let Some(content_type) = &secret.content_type {
        bundle["contentType"] = content_type.as_str().into();
    }
    if has_value {
        bundle["value"] = secret.value.as_str().into();
    }
    bundle
}

fn secret(
    state: &mut State,
    url: &str,
    method: &Method,
    name: &str,
    rest: &[&str],
    query: Option<&str>,
    body: &Value,
) -> Answer {
    if *method == Method::PUT {
        if state.deleted_secrets.contains_key(name) {
            return fail(
                409,
                "Conflict",
                &format!("Secret {name} is currently in a deleted but recoverable state."),
            );
        }
        put_secret(state, name, body);
    }
    let none = || {
        fail(
            404,
            "SecretNotFound",
            "A secret with (name/id) was not found in this key vault.",
        )
    };
    let Some(versions) = state.secrets.get_mut(name) else {
        return none();
    };
    if *method == Method::DELETE {
        let versions = state.secrets.remove(name).unwrap();
        let newest = bundle(url, name, versions.last().unwrap(), false);
        state.deleted_secrets.insert(name.to_owned(), versions);
        return say(200, &deleted(url, name, newest));
    }
    if rest == ["versions"] {
        return page(url, name, versions, query.unwrap_or_default());
    }
    let found = match rest {
        [] | [""] => versions.last_mut(),
        [wanted] => versions.iter_mut().find(|secret| secret.version == *wanted),
        _ => None,
    };
    let Some(secret) = found else { return none() };
    if *method == Method::PATCH {
        secret.is_enabled = body["attributes"]["enabled"]
            .as_bool()
            .unwrap_or(secret.is_enabled);
        return say(200, &bundle(url, name, secret, false));
    }
    if !secret.is_enabled {
        let inner = json!({ "code": "SecretDisabled" });
        let message = "Operation get is not allowed on a disabled secret.";
        return say(
            403,
            &json!({ "error": { "code": "Forbidden", "message": message, "innererror": inner } }),
        );
    }
    say(200, &bundle(url, name, secret, true))
}

/// Lists a secret's versions in pages of two, in an unhelpful order.
fn page(url: &str, name: &str, versions: &[Secret], query: &str) -> Answer {
    let query = percent_encoding::percent_decode_str(query)
        .decode_utf8()
        .unwrap();
    let token = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("$skiptoken="));
    let skipped: usize = token.map_or(0, |token| token.parse().unwrap());
    let listed: Vec<Value> = versions
        .iter()
        .skip(skipped)
        .take(2)
        .map(|secret| bundle(url, name, secret, false))
        .collect();
    let next = (skipped + 2 < versions.len()).then(|| {
        format!(
            "{url}/secrets/{name}/versions?api-version=7.5&$skiptoken={}",
            skipped + 2
        )
    });
    say(200, &json!({ "value": listed, "nextLink": next }))
}

fn deleted(url: &str, name: &str, mut bundle: Value) -> Value {
    bundle["recoveryId"] = format!("{url}/deletedsecrets/{name}").into();
    bundle["deletedDate"] = 1_700_000_000.into();
    bundle["scheduledPurgeDate"] = 1_707_776_000.into();
    bundle
}

fn deleted_secret(
    state: &mut State,
    url: &str,
    method: &Method,
    name: &str,
    rest: &[&str],
) -> Answer {
    let Some(versions) = state.deleted_secrets.remove(name) else {
        return fail(
            404,
            "SecretNotFound",
            "A deleted secret with (name/id) was not found in this key vault.",
        );
    };
    let newest = bundle(url, name, versions.last().unwrap(), false);
    if (method, rest) == (&Method::POST, &["recover"]) {
        state.secrets.insert(name.to_owned(), versions);
        return say(200, &newest);
    }
    state.deleted_secrets.insert(name.to_owned(), versions);
    say(200, &deleted(url, name, newest))
}

fn jwk(kid: &str, key: &Key) -> Value {
    match key {
        Key::Rsa(key) => {
            let der = key.public_key().as_der().unwrap();
            // SubjectPublicKeyInfo ends in the modulus and 02 03 01 00 01.
            let der = der.as_ref();
            let modulus = &der[der.len() - 5 - 256..der.len() - 5];
            let operations = ["wrapKey", "unwrapKey", "encrypt", "decrypt"];
            json!({
                "kid": kid,
                "kty": "RSA",
                "key_ops": operations,
                "n": BASE64.encode(modulus),
                "e": "AQAB",
            })
        }
        Key::Oct(_) => json!({ "kid": kid, "kty": "oct-HSM", "key_ops": ["wrapKey", "unwrapKey"] }),
    }
}

fn rsa(key: &PrivateDecryptingKey, operation: &str, value: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; key.key_size_bytes()];
    let length = if operation == "wrapkey" {
        let key = OaepPublicEncryptingKey::new(key.public_key()).unwrap();
        key.encrypt(&OAEP_SHA256_MGF1SHA256, value, &mut out, None)
            .ok()?
            .len()
    } else {
        let key = OaepPrivateDecryptingKey::new(key.clone()).unwrap();
        key.decrypt(&OAEP_SHA256_MGF1SHA256, value, &mut out, None)
            .ok()?
            .len()
    };
    out.truncate(length);
    Some(out)
}

fn aes(key: &[u8; 32], operation: &str, value: &[u8]) -> Option<Vec<u8>> {
    let kek = AesKek::new(&AES_256, key).unwrap();
    let mut out = vec![0; value.len() + 8];
    let length = if operation == "wrapkey" {
        kek.wrap(value, &mut out).ok()?.len()
    } else {
        kek.unwrap(value, &mut out).ok()?.len()
    };
    out.truncate(length);
    Some(out)
}
