//! `POST /push`: a hint that a keyring or secret has changed. A hint contains only a name and a
//! version; what is new is read from the usual location.

use hyper::{Response, StatusCode};
use serde::Deserialize;

use super::{OpsParts, find_keyring, response};
use crate::{
    http::{peer::ClientCertificate, problem::Problem, response::ResponseBody},
    refresh, secrets,
    wire::{Code, JSON},
};

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Hint {
    Keyring {
        keyring: String,
        generation: u64,
    },
    Secret {
        secret: String,
        version: Option<String>,
    },
}

/// Requests a refresh if the hint names a change that is not known yet.
pub(super) fn push(
    parts: &OpsParts,
    certificate: ClientCertificate,
    body: &[u8],
) -> Result<Response<ResponseBody>, Problem> {
    if certificate != ClientCertificate::Accepted {
        return Err(Problem::new(
            Code::Forbidden,
            "a push requires a client certificate; set `client_ca` in `ops.tls`",
        ));
    }
    let hint: Hint = serde_json::from_slice(body).map_err(|error| {
        let detail = format!(
            "send {{\"keyring\": NAME, \"generation\": N}} or {{\"secret\": NAME, \"version\": V}}\
             : {error}"
        );
        Problem::new(Code::InvalidRequest, detail)
    })?;
    let is_news = match hint {
        Hint::Keyring {
            keyring,
            generation,
        } => push_generation(parts, &keyring, generation)?,
        Hint::Secret { secret, version } => push_version(parts, &secret, version)?,
    };
    let body = if is_news {
        "{\"refreshing\":true}"
    } else {
        "{\"refreshing\":false}"
    };
    Ok(response(StatusCode::ACCEPTED, JSON, body))
}

fn push_generation(parts: &OpsParts, name: &str, generation: u64) -> Result<bool, Problem> {
    let keyring = find_keyring(parts, name)?;
    let active = keyring
        .snapshot()
        .as_ref()
        .map_or(0, |snapshot| snapshot.table.generation());
    let is_news = generation > active;
    if is_news {
        keyring.request(refresh::Trigger::Push);
    }
    Ok(is_news)
}

fn push_version(parts: &OpsParts, name: &str, version: Option<String>) -> Result<bool, Problem> {
    let secret = parts
        .secrets
        .all()
        .into_iter()
        .find(|secret| secret.name().as_str() == name);
    // A secret under a `*` that was never requested is read when it is.
    let secret = secret
        .ok_or_else(|| Problem::new(Code::SecretNotFound, "/status lists the secrets held"))?;
    let current = secret.status().current.map(|current| current.version);
    let is_news = version.is_none() || version != current;
    if is_news {
        secret.request(secrets::Trigger::Push);
    }
    Ok(is_news)
}
