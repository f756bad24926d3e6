//! Sidecars and operators that show who they are by a client certificate.
//!
//! The files are those of the sidecar's tests. `client.pem` is for app.example, and expires half an
//! hour after the clock begins.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs},
};

use super::*;

const AUTHORITY: &str = include_str!("../../app/tests/api/tls/authority.pem");
const SERVER: &str = include_str!("../../app/tests/api/tls/server.pem");
const CLIENT: &str = include_str!("../../app/tests/api/tls/client.pem");

/// A hub with TLS and one more table.
async fn start_with_tls(table: &str) -> (Hub, ManualClock, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [("ca.pem", AUTHORITY), ("server.pem", SERVER)] {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }
    let tls = "[tls]\ncertificate = \"server.pem\"\nkey = \"server.pem\"\nclient_ca = \"ca.pem\"\n";
    let settings = settings(folder.path(), &format!("{tls}{table}"));
    let now: Timestamp = "2027-01-15T08:00:00Z".parse().expect("a time");
    let (clock, hands) = Clock::manual(now);
    let hub = start(&settings, clock).await.expect("a hub");
    (hub, hands, folder)
}

/// Connects with the client's certificate, or without any.
async fn connect(hub: &Hub, has_certificate: bool) -> http1::SendRequest<Full<Bytes>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).expect("PEM");
    roots.add(authority).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = if has_certificate {
        let chain = CertificateDer::from_pem_slice(CLIENT.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(CLIENT.as_bytes()).expect("PEM");
        builder
            .with_client_auth_cert(vec![chain], key)
            .expect("a key")
    } else {
        builder.with_no_client_auth()
    };
    let stream = TcpStream::connect(hub.address()).await.expect("connect");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("a handshake");
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    sender
}

/// Lists the sidecars, and returns the code of the response.
async fn list(client: &mut http1::SendRequest<Full<Bytes>>, token: Option<&str>) -> String {
    let mut request = Request::builder().uri("/v1/sidecars").header("host", "hub");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::default()).expect("a request");
    let response = client.send_request(request).await.expect("a response");
    code(parts(response).await)
}

#[tokio::test]
async fn a_certificate_with_a_listed_name_shows_who_asks_unless_a_token_does() {
    let operator =
        "[[operator]]\nname = \"app\"\ncertificate = \"app.example\"\nrole = \"viewer\"\n";
    let (hub, clock, _folder) = start_with_tls(operator).await;
    let mut client = connect(&hub, true).await;
    assert_eq!(list(&mut client, None).await, "ok");
    assert_eq!(list(&mut client, Some(VIEWER)).await, "ok");
    assert_eq!(list(&mut client, Some(ORDERS)).await, "forbidden");
    assert_eq!(list(&mut client, Some("wrong")).await, "unauthorized");
    clock.advance(Duration::from_secs(3600));
    assert_eq!(
        list(&mut client, None).await,
        "unauthorized",
        "it has expired"
    );
    let mut anonymous = connect(&hub, false).await;
    assert_eq!(list(&mut anonymous, None).await, "unauthorized");
    assert_eq!(list(&mut anonymous, Some(VIEWER)).await, "ok");
}

#[tokio::test]
async fn a_certificate_of_the_authority_with_another_name_is_no_ones() {
    let identity = "[[sidecar_identity]]\ncertificate = \"other.example\"\nworkloads = [\"*\"]\n";
    let (hub, _clock, _folder) = start_with_tls(identity).await;
    let mut client = connect(&hub, true).await;
    assert_eq!(list(&mut client, None).await, "unauthorized");
}

#[tokio::test]
async fn a_sidecars_certificate_gives_it_no_operators_rights() {
    let identity = "[[sidecar_identity]]\ncertificate = \"app.example\"\nworkloads = [\"*\"]\n";
    let (hub, _clock, _folder) = start_with_tls(identity).await;
    let mut client = connect(&hub, true).await;
    assert_eq!(list(&mut client, None).await, "forbidden");
}
