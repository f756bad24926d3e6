use std::{future::pending, net::SocketAddr, path::Path, sync::Arc};

use hyper::client::conn;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Client, EventStream, RawConnection, client::Stream, time::Time};
use crate::{
    app::{Bound, Config},
    config::LoadError,
};

/// A sidecar that runs in the test. Dropping it ends it at once, as SIGKILL would.
pub(crate) struct TestApp {
    bound: Bound,
    time: Arc<Time>,
}

impl TestApp {
    pub(super) fn new(bound: Bound, time: Arc<Time>) -> Self {
        Self { bound, time }
    }

    /// Opens an HTTP/1.1 connection to the Unix socket.
    pub(crate) async fn client(&self) -> Client {
        Client::http1(self.socket(), Arc::clone(&self.time)).await
    }

    /// Opens an HTTP/2 connection to the Unix socket.
    pub(crate) async fn http2(&self) -> Client {
        Client::http2(self.socket(), Arc::clone(&self.time)).await
    }

    /// Opens an HTTP/2 connection to the Unix socket, whose client takes no response's body.
    pub(crate) async fn client_taking_no_body(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).await.expect("connected");
        Client::taking_no_body(stream, Arc::clone(&self.time)).await
    }

    /// Like [`Self::client_taking_no_body`], to the TCP listener.
    pub(crate) async fn tcp_client_taking_no_body(&self) -> Client {
        let address = self.tcp().expect("the config has a TCP listener");
        let stream = TcpStream::connect(address).await.expect("connected");
        Client::taking_no_body(stream, Arc::clone(&self.time)).await
    }

    /// Like [`Self::client_taking_no_body`], to the ops listener.
    pub(crate) async fn ops_client_taking_no_body(&self) -> Client {
        let stream = TcpStream::connect(self.bound.ops())
            .await
            .expect("connected");
        Client::taking_no_body(stream, Arc::clone(&self.time)).await
    }

    /// Opens an HTTP/1.1 connection to the TCP listener.
    pub(crate) async fn tcp_client(&self) -> Client {
        let address = self.tcp().expect("the config has a TCP listener");
        Client::tcp(address, Arc::clone(&self.time)).await
    }

    /// Speaks HTTP/1.1 over a connection that the test has made.
    pub(crate) async fn client_over(&self, stream: impl Stream) -> Client {
        Client::on_http1(stream, Arc::clone(&self.time)).await
    }

    /// Speaks HTTP/2 over a connection that the test has made.
    pub(crate) async fn http2_over(&self, stream: impl Stream) -> Client {
        let builder = conn::http2::Builder::new(TokioExecutor::new());
        Client::on_http2(stream, &builder, Arc::clone(&self.time)).await
    }

    /// Opens a connection to the Unix socket for a test that writes its own bytes.
    pub(crate) async fn raw(&self) -> RawConnection {
        RawConnection::open(self.socket(), Arc::clone(&self.time)).await
    }

    /// Subscribes to events; `last_id` is the last one received before.
    pub(crate) async fn events(&self, last_id: Option<&str>) -> EventStream {
        EventStream::open(self.client().await, last_id, Arc::clone(&self.time)).await
    }

    pub(super) fn reload(&self, config: Result<Config, LoadError>) {
        self.bound.reload(config.map_err(Into::into));
    }

    /// Returns the Unix socket's path.
    pub(crate) fn socket(&self) -> &Path {
        self.bound.socket()
    }

    /// Returns the TCP listener's address, if the config has one.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        self.bound.tcp()
    }

    /// Returns the ops listener's address.
    pub(crate) fn ops_address(&self) -> SocketAddr {
        self.bound.ops()
    }

    /// Sends `GET` to the ops listener, and returns status and body.
    pub(crate) async fn ops(&self, path: &str) -> (u16, String) {
        ops(self.bound.ops(), path, &self.time).await
    }

    /// Opens an HTTP/1.1 connection to the ops listener.
    pub(crate) async fn ops_client(&self) -> Client {
        Client::tcp(self.bound.ops(), Arc::clone(&self.time)).await
    }

    /// Returns `/status`.
    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.ops("/status").await.1).expect("JSON")
    }

    /// Returns the status of the first keyring.
    pub(crate) async fn keyring(&self) -> Value {
        self.status().await["keyrings"][0].clone()
    }

    /// Returns the status of the secret `name`.
    pub(crate) async fn secret(&self, name: &str) -> Value {
        find_secret(&self.status().await, name).clone()
    }

    /// Waits until the sidecar is ready.
    pub(crate) async fn wait_ready(&self) {
        let is_ready = async || self.bound.pending().is_empty();
        self.time.wait("readiness", is_ready).await;
    }

    /// Returns the generation that the first keyring serves.
    pub(crate) fn generation(&self) -> Option<u64> {
        *self.bound.keyrings()[0].generations().borrow()
    }

    /// Waits until the first keyring serves at least `generation`.
    pub(crate) async fn wait_generation(&self, generation: u64) {
        let keyring = &self.bound.keyrings()[0];
        let mut generations = keyring.generations();
        let is_served = async || *generations.borrow_and_update() >= Some(generation);
        self.time.wait("a generation", is_served).await;
    }

    /// Waits until `is_there`, while time moves by up to a second.
    pub(crate) async fn wait(&self, what: &str, is_there: impl AsyncFnMut() -> bool) {
        self.time.wait(what, is_there).await;
    }

    /// Waits until `/status` is as expected.
    pub(crate) async fn wait_status(&self, what: &str, is_it: impl Fn(&Value) -> bool) {
        let is_there = async || is_it(&self.status().await);
        self.time.wait(what, is_there).await;
    }

    /// Waits until the status of the first keyring is as expected.
    pub(crate) async fn wait_keyring(&self, what: &str, is_it: impl Fn(&Value) -> bool) {
        let of_first = |status: &Value| is_it(&status["keyrings"][0]);
        self.wait_status(what, of_first).await;
    }

    /// Waits until the status of the secret `name` is as expected.
    pub(crate) async fn wait_secret(&self, name: &str, is_it: impl Fn(&Value) -> bool) {
        let of_secret = |status: &Value| is_it(find_secret(status, name));
        self.wait_status(name, of_secret).await;
    }

    /// Waits until `/metrics` contains `text`.
    pub(crate) async fn wait_metric(&self, text: &str) {
        let is_there = async || self.ops("/metrics").await.1.contains(text);
        self.time.wait(text, is_there).await;
    }

    /// Refreshes everything, as SIGHUP does.
    pub(crate) fn refresh(&self) {
        self.bound.refresh();
    }

    /// Stops as SIGTERM does, and waits until the sidecar has drained.
    pub(crate) async fn stop(self) {
        let time = Arc::clone(&self.time);
        time.within(self.bound.stop(pending())).await;
    }

    /// Begins to stop, as SIGTERM does.
    pub(crate) fn begin_stop(self) -> StoppingApp {
        let (ops, hurry) = (self.bound.ops(), CancellationToken::new());
        let stop = self.bound.stop(hurry.clone().cancelled_owned());
        StoppingApp {
            task: tokio::spawn(stop),
            hurry,
            ops,
            time: self.time,
        }
    }
}

/// A sidecar that drains.
pub(crate) struct StoppingApp {
    task: JoinHandle<()>,
    hurry: CancellationToken,
    ops: SocketAddr,
    time: Arc<Time>,
}

impl StoppingApp {
    /// Like [`TestApp::ops`].
    pub(crate) async fn ops(&self, path: &str) -> (u16, String) {
        ops(self.ops, path, &self.time).await
    }

    /// Ends the drain at once, as a second SIGTERM does.
    pub(crate) fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Returns whether the sidecar has stopped.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the sidecar has stopped, with time paused.
    pub(crate) async fn over(self) {
        self.time.within(self.task).await.expect("it stops");
    }
}

fn find_secret<'s>(status: &'s Value, name: &str) -> &'s Value {
    let secrets = status["secrets"].as_array().expect("a list");
    let found = secrets.iter().find(|secret| secret["name"] == name);
    found.unwrap_or_else(|| panic!("no secret {name} in {status}"))
}

async fn ops(address: SocketAddr, path: &str, time: &Arc<Time>) -> (u16, String) {
    let mut client = Client::tcp(address, Arc::clone(time)).await;
    let answer = client.get(path).await;
    let body = String::from_utf8(answer.body.to_vec()).expect("text");
    (answer.status.as_u16(), body)
}
