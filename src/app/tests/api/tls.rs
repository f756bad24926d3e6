//! Client certificates that stop being accepted while their connections are open.
//!
//! The files in `tls/` guard nothing. `authority.pem` signed `server.pem` for 127.0.0.1, and
//! `client.pem`, which expires half an hour after a world begins.

use std::{fs, sync::Arc};

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::app::testing::{Client, HOUR, TestApp, World, whole};

const AUTHORITY: &str = include_str!("tls/authority.pem");
const OTHER_AUTHORITY: &str = include_str!("tls/other-authority.pem");
const SERVER: &str = include_str!("tls/server.pem");
const CLIENT: &str = include_str!("tls/client.pem");

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const BEARER: (&str, &str) = ("authorization", "Bearer 0123456789abcdef0123456789abcdef");

/// Starts a sidecar whose TCP listener requires certificates of `authority.pem`.
async fn start(world: &World) -> TestApp {
    for (name, content) in [("token", TOKEN), ("server.pem", SERVER)] {
        fs::write(world.path(name), content).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(world.path(name), private).unwrap();
    }
    fs::write(world.path("ca.pem"), AUTHORITY).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
         [listen.tls]\ncertificate = \"server.pem\"\nkey = \"server.pem\"\nclient_ca = \"ca.pem\"\n"
    );
    world.start_with(&config, &["demo"]).await
}

/// Trusts another authority from now on.
async fn drop_authority(world: &World, sidecar: &TestApp) {
    fs::write(world.path("ca.pem"), OTHER_AUTHORITY).unwrap();
    sidecar.refresh();
    let reloaded = "sidekey_tls_reloads_total{listener=\"tcp\",result=\"changed\"} 1";
    sidecar.wait_metric(reloaded).await;
}

async fn handshake(sidecar: &TestApp) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap())
        .unwrap();
    let chain = vec![CertificateDer::from_pem_slice(CLIENT.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(CLIENT.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = TcpStream::connect(sidecar.tcp().unwrap()).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await
        .unwrap()
}

/// Lists keyrings. `None` if the connection is closed.
async fn list(client: &mut Client) -> Option<StatusCode> {
    let answer = client.try_send(Method::GET, "/v1/keyrings", &[BEARER], "");
    answer.await.ok().map(|answer| answer.status)
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_authority_leaves_the_list_loses_its_connections() {
    let world = World::with_demo().await;
    let sidecar = start(&world).await;
    let mut plain = sidecar.client_over(handshake(&sidecar).await).await;
    let mut http2 = sidecar.http2_over(handshake(&sidecar).await).await;
    assert_eq!(list(&mut plain).await, Some(StatusCode::OK));
    let events = http2.open(Method::GET, "/v1/events", &[BEARER], whole(""));
    let mut events = events.await.unwrap().into_body();
    assert_eq!(list(&mut http2).await, Some(StatusCode::OK));

    drop_authority(&world, &sidecar).await;
    // A stream of events would never end by itself.
    while let Some(frame) = world.pass_time_until(events.frame()).await {
        frame.expect("a stream that ends in order");
    }
    assert_eq!(list(&mut plain).await, None);
    assert_eq!(list(&mut http2).await, None);
    let withdrawn = "sidekey_tls_withdrawn_connections_total{listener=\"tcp\"} 2";
    sidecar.wait_metric(withdrawn).await;
    assert!(world.log().contains("app.example"), "{}", world.log());
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_authority_stays_on_the_list_keeps_its_connections() {
    let world = World::with_demo().await;
    let sidecar = start(&world).await;
    let mut client = sidecar.client_over(handshake(&sidecar).await).await;
    assert_eq!(list(&mut client).await, Some(StatusCode::OK));
    fs::write(world.path("ca.pem"), [OTHER_AUTHORITY, AUTHORITY].concat()).unwrap();
    sidecar.refresh();
    let reloaded = "sidekey_tls_reloads_total{listener=\"tcp\",result=\"changed\"} 1";
    sidecar.wait_metric(reloaded).await;
    assert_eq!(list(&mut client).await, Some(StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_refused_on_an_open_connection() {
    let world = World::with_demo().await;
    let sidecar = start(&world).await;
    let mut client = sidecar.client_over(handshake(&sidecar).await).await;
    assert_eq!(list(&mut client).await, Some(StatusCode::OK));
    world.clock().advance(HOUR);
    let refused = client
        .send(Method::GET, "/v1/keyrings", &[BEARER], "")
        .await;
    assert_eq!(refused.problem(), "forbidden");
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("expired"), "{detail}");
}
