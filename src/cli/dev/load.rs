//! The applications of `sidekey dev --fleet`: each encrypts through its own sidecar, and what it
//! encrypted is decrypted through others, too.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::{Method, StatusCode, header::CONTENT_TYPE};
use tokio::time::sleep;
use tracing::warn;

use crate::{
    client::{Problem, Socket, full_body, read_body, request},
    wire::OCTETS,
};

/// The time between two messages of an application.
const PAUSE: Duration = Duration::from_millis(200);

/// An application.
pub(super) struct Application {
    /// Its sidecar's socket.
    pub(super) socket: PathBuf,
    /// Whether what it encrypts is damaged once its version is not the first that it saw.
    pub(super) is_faulty: bool,
}

/// Uses the sidecars for as long as it is polled.
pub(super) async fn run(applications: Vec<Application>) {
    let sockets: Vec<Socket> = applications
        .iter()
        .map(|application| Socket::new(application.socket.clone()))
        .collect();
    let users = applications
        .iter()
        .enumerate()
        .map(|(own, application)| use_sidecars(&sockets, own, application.is_faulty));
    join_all(users).await;
}

/// Encrypts through the application's own sidecar, and decrypts through that and another one, each
/// time the next.
async fn use_sidecars(sockets: &[Socket], own: usize, is_faulty: bool) {
    let mut first_version = None;
    for round in 1.. {
        if let Some((mut message, version)) = encrypt(&sockets[own]).await {
            let first = first_version.get_or_insert_with(|| version.clone());
            if is_faulty && version != *first {
                damage(&mut message);
            }
            decrypt(&sockets[own], message.clone()).await;
            decrypt(&sockets[(own + round) % sockets.len()], message).await;
        }
        sleep(PAUSE).await;
    }
}

/// Encrypts a message, and returns it with the version that the response names.
async fn encrypt(socket: &Socket) -> Option<(Vec<u8>, String)> {
    let response = post(socket, "encrypt", b"a row of a table".as_slice().into()).await?;
    let version = response.headers().get("sidekey-key-version")?;
    let version = version.to_str().ok()?.to_owned();
    Some((read_body(response).await.ok()?.to_vec(), version))
}

async fn decrypt(socket: &Socket, message: Vec<u8>) {
    if let Some(response) = post(socket, "decrypt", message.into()).await {
        // Read to the end, as an application would.
        let _ = read_body(response).await;
    }
}

/// Sends a request. A problem is logged.
async fn post(
    socket: &Socket,
    operation: &str,
    body: Bytes,
) -> Option<hyper::Response<hyper::body::Incoming>> {
    let path = format!("/v1/keyrings/demo/{operation}");
    let request = request(Method::POST, &path)
        .header(CONTENT_TYPE, OCTETS)
        .body(full_body(body))
        .ok()?;
    match socket.send(request).await {
        Ok(response) if response.status() == StatusCode::OK => Some(response),
        Ok(response) => {
            let socket = socket.path().display();
            match Problem::from_response(response).await {
                Ok(problem) => warn!(%socket, operation, code = problem.code, "{}", problem.title),
                Err(error) => warn!(%socket, operation, "{error}"),
            }
            None
        }
        Err(error) => {
            warn!(operation, "{error}");
            None
        }
    }
}

/// Flips a bit of a ciphertext, past its header.
fn damage(message: &mut [u8]) {
    if let Some(byte) = message.last_mut() {
        *byte ^= 1;
    }
}
