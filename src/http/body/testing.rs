//! Requests over in-memory connections, whose bodies tests send in parts.

use std::{convert::Infallible, future::pending, sync::Mutex};

use http_body_util::Full;
use hyper::{Request, Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::oneshot,
};

use super::*;

/// Sends a request head with `header`. Returns the body and the end of the connection on which
/// the body is to be sent.
pub(crate) async fn request(header: &str) -> (RequestBody, DuplexStream) {
    let (mut client, server) = duplex(1 << 20);
    let (sender, body) = oneshot::channel();
    tokio::spawn(async move {
        let sender = Mutex::new(Some(sender));
        let service = service_fn(|request: Request<Incoming>| {
            if let Some(sender) = sender.lock().expect("lock").take() {
                let _ = sender.send(RequestBody::new(request.into_body(), None));
            }
            pending::<Result<Response<Full<Bytes>>, Infallible>>()
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .await
    });
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("written");
    (body.await.expect("a request"), client)
}

/// A request with a whole body of known length.
pub(crate) async fn request_with(body: &[u8]) -> (RequestBody, DuplexStream) {
    let (request, mut client) = request(&format!("Content-Length: {}", body.len())).await;
    client.write_all(body).await.expect("written");
    (request, client)
}
