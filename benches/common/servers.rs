//! The measured servers: a sidecar, and a hyper echo server as the baseline.

#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "each benchmark uses a part"
)]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sidekey::{
    admin::{Admin, Signing},
    backend::{self, local::LocalKek},
    clock::Clock,
    keyring::Policy,
    model::Location,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

const WORKERS: usize = 2;

/// The length of the served secret, in bytes.
pub const SECRET: usize = 1024;

/// A sidecar and a hyper echo server, as separate processes with the same number of workers.
pub struct Setup {
    pub echo: PathBuf,
    pub sidekey: PathBuf,
    pub manifest: PathBuf,
    children: Vec<Child>,
}

impl Setup {
    pub fn new(folder: &Path) -> Self {
        let at = |name: &str| folder.join(name);
        LocalKek::create(&at("kek")).expect("KEK");
        let manifest = at("demo.json");
        let admin = Admin::new(
            Location::File(manifest.clone()),
            Signing::NoKey,
            &backend::configured(&Default::default()),
            Clock::system(),
        )
        .expect("admin");
        let kek = format!("local:{}", at("kek").display())
            .parse()
            .expect("URI");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime
            .block_on(admin.init("demo".parse().expect("name"), &[kek], Policy::default()))
            .expect("init");
        let (echo, sidekey) = (at("echo.sock"), at("sidekey.sock"));
        let config = format!(
            "[listen]\nsocket = {sidekey:?}\n[ops]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nlevel = \"error\"\n[runtime]\nworkers = {WORKERS}\n\
             [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"local:kek\"]\n\
             [[secret]]\nname = \"demo\"\nsource = \"file:secret\"\nrequired = true\n"
        );
        std::fs::write(at("secret"), "x".repeat(SECRET)).expect("secret");
        std::fs::write(at("sidekey.toml"), config).expect("config");
        let this = std::env::current_exe().expect("this benchmark");
        let start = |command: &mut Command| command.stdin(Stdio::null()).spawn().expect("server");
        let children = vec![
            start(Command::new(this).arg("--echo").arg(&echo)),
            start(
                Command::new(env!("CARGO_BIN_EXE_sidekey"))
                    .args(["serve", "--config"])
                    .arg(at("sidekey.toml")),
            ),
        ];
        let setup = Self {
            echo,
            sidekey,
            manifest,
            children,
        };
        // Ready once both respond successfully.
        runtime.block_on(async {
            while !responds(&setup.echo).await || !responds(&setup.sidekey).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        setup
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn responds(socket: &Path) -> bool {
    let request = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                   Content-Type: application/octet-stream\r\n\
                   Content-Length: 1\r\nConnection: close\r\n\r\nx";
    let Ok(mut stream) = UnixStream::connect(socket).await else {
        return false;
    };
    let mut response = Vec::new();
    stream.write_all(request.as_bytes()).await.is_ok()
        && stream.read_to_end(&mut response).await.is_ok()
        && response.starts_with(b"HTTP/1.1 200")
}

/// Runs the echo server until killed if this process was started as one; else returns false.
pub fn is_echo() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--echo") {
        return false;
    }
    echo(Path::new(&arguments.next().expect("a socket")));
    true
}

fn echo(socket: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("bind");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| async {
                    if request.method() == Method::GET {
                        let body = Full::new(Bytes::from_static(&[b'x'; SECRET]));
                        return Ok(Response::new(body.map_err(|never| match never {}).boxed()));
                    }
                    let body = request.into_body();
                    // Like a server that buffers short bodies and streams long ones.
                    let is_short = body
                        .size_hint()
                        .exact()
                        .is_some_and(|length| length <= 1 << 20);
                    let body = if is_short {
                        Full::new(body.collect().await?.to_bytes())
                            .map_err(|never| match never {})
                            .boxed()
                    } else {
                        body.boxed()
                    };
                    Ok::<_, hyper::Error>(Response::new(body))
                });
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
            });
        }
    });
}
