//! Evidence from the fleet: the use of a version according to every sidecar's `/status`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{
    backup::CONCURRENT,
    ops_client::{Fleet, OpsClient},
};
use crate::{
    crypto::KeyringId,
    keyring::{Manifest, SidecarReport, Sighting, VersionUse},
    model::KeyringName,
    wire::status::{ActiveManifest, KeyringStatus, Status},
};

/// The time limit for a request to a sidecar.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `/status`, in bytes.
const MAX_STATUS: usize = 64 << 20;

/// Asks sidecars for their use of a version. A failed request is part of the report.
///
/// # Errors
/// A TLS file can't be used.
pub async fn ask_sidecars(
    fleet: &Fleet,
    keyring: &KeyringName,
    id: KeyringId,
    version: u32,
) -> Result<Vec<SidecarReport>, String> {
    let statuses = ask_status(fleet).await?;
    let report = |(sidecar, status): (String, Result<Status, String>)| SidecarReport {
        sidecar,
        usage: status.and_then(|status| usage(&status, keyring, id, version)),
    };
    Ok(statuses.into_iter().map(report).collect())
}

/// Returns the earliest time at which any of the sidecars saw the state of a version. A sidecar
/// that doesn't answer, or serves another keyring or generation, saw nothing.
///
/// # Errors
/// A TLS file can't be used.
pub(super) async fn ask_sightings(
    fleet: &Fleet,
    manifest: &Manifest,
    version: u32,
) -> Result<Sighting, String> {
    let statuses = ask_status(fleet).await?;
    let seen = statuses.iter().filter_map(|(_, status)| {
        let (_, active) = find(status.as_ref().ok()?, &manifest.name, manifest.id).ok()?;
        if active.generation != manifest.generation {
            return None;
        }
        let found = active
            .versions
            .iter()
            .find(|found| found.version == version)?;
        Some(Sighting {
            disabled: found.seen_disabled,
            superseded: found.seen_superseded,
            end: None,
        })
    });
    Ok(seen.fold(Sighting::default(), Sighting::or_earlier))
}

/// Fetches the status of every sidecar. A failed request is part of the result.
///
/// # Errors
/// A TLS file can't be used.
pub(super) async fn ask_status(
    fleet: &Fleet,
) -> Result<Vec<(String, Result<Status, String>)>, String> {
    let client = OpsClient::new(fleet)?;
    let requests = stream::iter(&fleet.urls).map(async |url| {
        let status = match timeout(TIMEOUT, status(&client, url)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no response within {TIMEOUT:?}")),
        };
        (url.to_string(), status)
    });
    Ok(requests.buffered(CONCURRENT).collect().await)
}

async fn status(client: &OpsClient, url: &Uri) -> Result<Status, String> {
    let body = get(client, url, "/status", MAX_STATUS).await?;
    serde_json::from_slice(&body).map_err(|error| {
        format!("unexpected /status, maybe of another version of Sidekey: {error}")
    })
}

/// Fetches `path` from an ops listener, up to `limit` bytes.
pub(super) async fn get(
    client: &OpsClient,
    url: &Uri,
    path: &str,
    limit: usize,
) -> Result<Bytes, String> {
    let stream = client.connect(url).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header(
            HOST,
            url.authority().map_or("", |authority| authority.as_str()),
        )
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    if response.status() == StatusCode::FORBIDDEN {
        return Err(
            "it requires a client certificate with a permitted name (--sidecar-cert, --sidecar-key)"
                .into(),
        );
    }
    if response.status() != StatusCode::OK {
        return Err(format!("{path} returned {}", response.status()));
    }
    let body = Limited::new(response.into_body(), limit)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    driver.abort();
    Ok(body.to_bytes())
}

fn usage(
    status: &Status,
    keyring: &KeyringName,
    id: KeyringId,
    version: u32,
) -> Result<VersionUse, String> {
    let (found, active) = find(status, keyring, id)?;
    let last_used = active
        .versions
        .iter()
        .find(|found| found.version == version)
        .and_then(|found| found.last_used);
    Ok(VersionUse {
        generation: active.generation,
        observed_since: found.observed_since,
        last_used,
    })
}

/// Finds a keyring and its active manifest in a sidecar's status.
fn find<'a>(
    status: &'a Status,
    keyring: &KeyringName,
    id: KeyringId,
) -> Result<(&'a KeyringStatus, &'a ActiveManifest), String> {
    let found = status
        .keyrings
        .iter()
        .find(|found| found.name == *keyring)
        .ok_or("it doesn't serve the keyring; omit it")?;
    let active = found.active.as_ref().ok_or("it has no active manifest")?;
    if active.id != id.to_string() {
        return Err(format!(
            "its keyring of that name has another ID, {}",
            active.id
        ));
    }
    Ok((found, active))
}
